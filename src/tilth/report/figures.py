"""Curves as inline SVG that follows the page: its colours, its fonts, light and dark.

Notable: matplotlib draws with placeholder colours, which become CSS variables; text stays text; every figure is drawn for
the width of a phone and laid out in a grid, so that its letters are readable on both; the legend is HTML.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from tilth.report.words import number, plural, safe, short_number

Points = Sequence[Sequence[Any]]

POINTS = 500
"""At most this many points of a series are drawn."""
_COLOURS = 6
_INK, _GRID = "#0a0b01", "#0a0b02"
_SERIES = [f"#0a0c0{number}" for number in range(1, _COLOURS + 1)]
_VARIABLES = {_INK: "--muted", _GRID: "--line", **{colour: f"--series-{i}" for i, colour in enumerate(_SERIES, start=1)}}
_WIDTH, _HEIGHT = 4.5, 2.7  # inches of 72 points: 324 x 194
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _GRID,
    "grid.linewidth": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Curves:
    """A drawn figure. legend: (name, number of its colour, dashed); described: the figure in words, for who cannot see it."""

    title: str
    svg: Markup
    legend: list[tuple[str, int, bool]]
    described: str
    note: str


def draw(
    title: str, series: Mapping[str, Points], *, x: str = "", y: str = "", log: bool = False, smooth: str = ""
) -> Curves | None:
    """Draw lines; None when no series has a finite point.

    series: name -> [[x, y]]. log: logarithmic y where all values allow it. smooth: name of a noisy series that is drawn
    faint, with its moving average on top.
    """
    title, series = safe(title), {safe(name): points for name, points in series.items()}
    clean = {name: _finite(points) for name, points in series.items()}
    left_out = sum(len(series[name]) - len(points) for name, points in clean.items())
    clean = {name: points for name, points in clean.items() if len(points)}
    if not clean:
        return None
    log = log and all((points[:, 1] > 0).all() for points in clean.values())
    described = f"{title}. " + " ".join(_described(name, points, x) for name, points in clean.items())
    with warnings.catch_warnings(), mpl.rc_context({**_STYLE, "svg.hashsalt": described}):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has its own fonts
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        for index, (name, points) in enumerate(clean.items()):
            colour, style = _SERIES[index % _COLOURS], "--" if index >= _COLOURS else "-"
            thin = thinned(points)
            if name == smooth and len(points) > 60:
                axes.plot(thin[:, 0], thin[:, 1], color=colour, linewidth=0.8, alpha=0.35)
                thin = thinned(averaged(points), POINTS // 2)
            axes.plot(
                thin[:, 0], thin[:, 1], style, color=colour, linewidth=1.7, marker="o" if len(points) < 3 else "", markersize=3.5
            )
        alone = len(clean) > 1 and all(len(points) == 1 for points in clean.values())
        for label, place, left in _named_points(clean) if alone else ():
            axes.annotate(
                label, (place[0], place[1]), xytext=(-5 if left else 5, 3), textcoords="offset points", fontsize=9, color=_INK,
                horizontalalignment="right" if left else "left",
            )  # fmt: skip
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_locator(LogLocator(numticks=5))
        else:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=all((points[:, 0] % 1 == 0).all() for points in clean.values())))
        for axis, column in ((axes.xaxis, 0), (axes.yaxis, 1)):
            tiny = 0 < max(np.abs(points[:, column]).max() for points in clean.values()) < 0.01
            axis.set_major_formatter(FuncFormatter(lambda value, _, tiny=tiny: short_number(value, tiny=tiny)))
        axes.set_xlabel(_label(x))
        axes.set_ylabel(_label(y))
        axes.margins(x=0.02)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer)
    legend = [] if alone else [(name, index % _COLOURS + 1, index >= _COLOURS) for index, name in enumerate(clean)]
    note = f"{plural(left_out, 'point')} left out: not a number." if left_out else ""
    return Curves(title, _inlined(buffer.getvalue(), described), legend, described, note)


def _named_points(clean: Mapping[str, np.ndarray]) -> list[tuple[str, np.ndarray, bool]]:
    """Names of single points, where each stands, and whether it is written to the left; points that lie together share a label."""
    places = np.concatenate(list(clean.values()))
    lowest, span = places.min(0), np.maximum(np.ptp(places, axis=0), 1e-12)
    groups: list[tuple[list[str], np.ndarray]] = []
    for name, place in zip(clean, places, strict=True):
        near = (names for names, other in groups if (np.abs(place - other) / span < (0.25, 0.07)).all())
        found = next(near, None)
        if found is None:
            groups.append(([name], place))
        else:
            found.append(name)
    named = [(", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else ""), place) for names, place in groups]
    return [(label, place, bool((place[0] - lowest[0]) / span[0] > 0.5)) for label, place in named]


def thinned(points: np.ndarray, most: int = POINTS) -> np.ndarray:
    """At most `most` of the points (count, 2): of each stretch the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return points
    edges = np.linspace(1, len(points) - 1, (most - 2) // 2 + 1).astype(int)
    kept = {0, len(points) - 1}
    for start, stop in pairwise(edges):
        stretch = points[start:stop, 1]
        kept |= {start + int(stretch.argmin()), start + int(stretch.argmax())}
    return points[sorted(kept)]


def averaged(points: np.ndarray) -> np.ndarray:
    """A centred moving average over a thirtieth of the points, shorter at both ends."""
    half = max(1, len(points) // 60)
    sums = np.concatenate([[0.0], np.cumsum(points[:, 1])])
    low = np.maximum(np.arange(len(points)) - half, 0)
    high = np.minimum(np.arange(len(points)) + half + 1, len(points))
    return np.stack([points[:, 0], (sums[high] - sums[low]) / (high - low)], axis=1)


def _finite(points: Points) -> np.ndarray:
    """The points that are two finite numbers, by x: (count, 2)."""
    pairs = [point for point in points if isinstance(point, (list, tuple)) and len(point) == 2]
    numbers = [[float(a), float(b)] for a, b in pairs if isinstance(a, (int, float)) and isinstance(b, (int, float))]
    array = np.array(numbers, dtype=float).reshape(-1, 2)
    array = array[np.isfinite(array).all(axis=1)]
    return array[array[:, 0].argsort(kind="stable")]


def _described(name: str, points: np.ndarray, x: str) -> str:
    first, last = points[0], points[-1]
    if len(points) == 1:
        return f"{name}: {_text(first[1])} at {x} {_text(first[0])}."
    return (
        f"{name}: from {_text(first[1])} at {x} {_text(first[0])} to {_text(last[1])} at {x} {_text(last[0])}, "
        f"lowest {_text(points[:, 1].min())}, highest {_text(points[:, 1].max())}."
    )


def _text(value: float) -> str:
    return number(float(value)).striptags() if math.isfinite(value) else "not a number"


def _label(text: str) -> str:
    """An axis label on one line, not longer than the axis."""
    text = " ".join(safe(text).split())
    return text[:33] + "…" if len(text) > 34 else text


def _inlined(svg: str, described: str) -> Markup:
    """The <svg> element alone, sized by the page, coloured by its variables, with no names that could clash."""
    svg = svg[svg.index("<svg") :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<style[^>]*>.*?</style>", r"<!--.*?-->"):
        svg = re.sub(unwanted, "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*;|font-size: ([\d.]+px); font-family: [^;\"]*;", r"font-size: \1\2;", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    box = re.search(r'viewBox="[^"]*"', svg)
    opening = f'<svg role="img" aria-label="{escape(described)}" {box[0] if box else ""} preserveAspectRatio="xMidYMid meet">'
    return Markup(re.sub(r"\s*\n\s*", "\n", opening + svg[svg.index(">") + 1 :]))
