"""Faults of micrographs: which examples have one, and what each does."""

import pytest
import torch

from tilth.batches.images import microscopy
from tilth.batches.images.microscopy import FAULTS, degraded
from tilth.noise import Noise


def keys(count):
    return torch.from_numpy(Noise(3, torch.arange(count).numpy()).keys())


def volumes(count=4, sections=6):
    torch.manual_seed(0)
    return torch.rand(count, 1, sections, 16, 16)


def test_the_share_asked_for_is_spoilt_and_the_rest_is_left_alone():
    given = volumes(400)
    made = degraded(given, keys(400), 0.5)
    changed = (made != given).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.5, abs=0.08)
    assert torch.equal(degraded(given, keys(400), 0.0), given)
    assert made.isfinite().all()


def test_all_faults_occur_equally_often():
    given = volumes(1000)
    made = degraded(given, keys(1000), 1.0)
    each = torch.stack([(fault(given, keys(1000)) == made).flatten(1).all(1) for fault in FAULTS])
    assert each.any(0).all()
    assert each.float().mean(1).min() > 0.06 and each.float().mean(1).max() < 0.16


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_fault_changes_every_example_by_its_own_key(fault):
    given = volumes(8)
    made = fault(given, keys(8))
    assert made.shape == given.shape and made.isfinite().all()
    changed = (made != given).flatten(1).any(1)
    assert changed.float().mean() > 0.7  # a move by no pixel, or a cube outside, changes nothing
    assert torch.allclose(fault(given[3:4], keys(8)[3:4]), made[3:4], atol=1e-6)


def test_sections_are_lost_one_at_a_time():
    given = volumes() + 0.1
    for fault in (microscopy.missing, microscopy.artefact):
        changed = (fault(given, keys(4)) != given).flatten(3).any(3)[:, 0]
        assert (changed.sum(1) == 1).all()
    assert ((microscopy.missing(given, keys(4)) == 0).flatten(3).all(3)[:, 0].sum(1) == 1).all()


def test_misalignment_moves_all_sections_from_one_on_by_whole_pixels():
    given = volumes(32)
    made = microscopy.misaligned(given, keys(32))
    same = (made == given).flatten(3).all(3)[:, 0]
    assert same[:, 0].all()  # the first section is where it was
    assert (same.long().diff(dim=1) <= 0).all()  # and none behind a moved one is
    moves = [(y, x) for y in range(-2, 3) for x in range(-2, 3)]
    for before, after in zip(given[:, 0, -1], made[:, 0, -1], strict=True):
        found = [after[2:-2, 2:-2].equal(before[2 - y : 14 - y, 2 - x : 14 - x]) for y, x in moves]
        assert sum(found) == 1


def test_faults_of_sections_are_not_those_of_pictures():
    given = volumes(300, 1)[:, :, 0] + 0.5
    made = degraded(given, keys(300), 1.0)
    assert made.shape == given.shape and not (made == 0).flatten(1).all(1).any()


def test_constant_volumes_survive_blur_rescaling_and_warping_and_have_no_edges():
    flat = torch.full((3, 2, 4, 16, 16), 0.4)
    for fault in (microscopy.blur, microscopy.rescale, microscopy.elastic):
        assert torch.allclose(fault(flat, keys(3)), flat, atol=1e-5)
    assert microscopy.sobel(flat, keys(3)).abs().max() < 1e-6
