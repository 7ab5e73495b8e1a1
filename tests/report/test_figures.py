"""Curves: what is drawn, in which colours, and that thinning loses no spike."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tilth.report.figures import POINTS, averaged, draw, thinned
from tilth.report.words import duration, number, short_number


def test_colours_are_the_pages_and_text_stays_text():
    curves = draw("Loss", {"training": [[0, 3.0], [10, 1.0]], "held out": [[5, 2.0], [10, 1.5]]}, x="step", y="nats")
    assert not re.search(r"#[0-9a-fA-F]{6}\b", curves.svg) and "var(--series-2)" in curves.svg and "var(--muted)" in curves.svg
    assert "font-family" not in curves.svg and ">step</text>" in curves.svg and ">nats</text>" in curves.svg
    assert "<metadata" not in curves.svg and "<style" not in curves.svg
    assert "training: from 3 at step 0 to 1 at step 10" in curves.described
    assert curves.legend == [("training", 1, False), ("held out", 2, False)]


def test_two_figures_share_no_identifier():
    points = [[0, 3.0], [10, 1.0]]
    first, second = draw("a", {"x": points}), draw("b", {"x": points})
    assert not set(re.findall(r'id="([^"]+)"', first.svg)) & set(re.findall(r'id="([^"]+)"', second.svg))


def test_dollars_and_markup_in_labels_are_letters():
    curves = draw("<b>", {"<i>&": [[0, 1], [1, 2]]}, x="$x_1$ <script>", y="a & b")
    assert "$x_1$ &lt;script&gt;" in curves.svg and "<script" not in curves.svg and 'aria-label="&lt;b&gt;' in curves.svg


def test_nothing_to_draw_is_no_figure():
    assert draw("Loss", {}) is None
    assert draw("Loss", {"training": [[0, float("nan")], ["a", 1], [1], None]}) is None


def test_one_point_is_a_dot():
    assert "<use" in draw("Loss", {"training": [[0, 1.0]]}).svg


def test_logarithms_only_where_there_are_any():
    assert draw("a", {"x": [[0, 1e-8], [1, 1.0]]}, log=True) is not None
    assert draw("a", {"x": [[0, 0.0], [1, 1.0]]}, log=True) is not None


def test_many_points_are_thinned_in_the_file_too():
    points = [[step, float(np.sin(step))] for step in range(20_000)]
    svg = draw("a", {"x": points}).svg
    assert len(re.findall(r"[ML] [\d.]+ [\d.]+", svg)) < POINTS + 100


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=2000), st.integers(10, 500))
def test_thinning_keeps_ends_extremes_and_order(values, most):
    points = np.stack([np.arange(len(values), dtype=float), np.array(values)], axis=1)
    thin = thinned(points, most)
    assert len(thin) <= most
    assert (thin[0] == points[0]).all() and (thin[-1] == points[-1]).all()
    assert thin[:, 1].min() == points[:, 1].min() and thin[:, 1].max() == points[:, 1].max()
    assert (np.diff(thin[:, 0]) > 0).all()


def test_the_average_of_a_line_is_the_line_and_noise_is_damped():
    line = np.stack([np.arange(300.0), 2 * np.arange(300.0)], axis=1)
    assert averaged(line)[10:-10, 1] == pytest.approx(line[10:-10, 1])
    noise = np.stack([np.arange(300.0), (-1.0) ** np.arange(300)], axis=1)
    assert np.abs(averaged(noise)[10:-10, 1]).max() < 0.2


@pytest.mark.parametrize(
    "value, written",
    [(0, "0"), (8123, "8,123"), (12345.6, "12,346"), (0.994, "0.994"), (0.02, "0.020"), (0.0999999, "0.100"), (1.31, "1.31"), (27.43, "27.4"),
     (0.99999, "1.00"), (-0.5, "−0.500"), (100_000_000, "100,000,000"), (True, "True"), (None, "–"), ("<b>", "&lt;b&gt;"),
     (4.35e-25, "4.3 × 10<sup>−25</sup>"), (float("inf"), "∞"), (float("nan"), "not a number")],
)  # fmt: skip
def test_numbers(value, written):
    assert number(value) == written


@pytest.mark.parametrize(
    "value, written",
    [
        (0, "0"),
        (6644, "6.64k"),
        (2360064, "2.36M"),
        (999_999, "1M"),
        (0.61, "0.61"),
        (4e-25, "4e−25"),
        (-1500, "−1.5k"),
        (1.5, "1.5"),
    ],
)
def test_short_numbers(value, written):
    assert short_number(value) == written


@pytest.mark.parametrize(
    "value, written", [(0, "under 0.1 s"), (0.6, "0.6 s"), (59.7, "1 min"), (212.4, "3 min 32 s"), (7500, "2 h 5 min")]
)
def test_durations(value, written):
    assert duration(value) == written
