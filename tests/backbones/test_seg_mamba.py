"""SegMamba: scans from section to section, sizes, transfer, and through a folder."""

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from tilth.backbones.folder import load, save
from tilth.backbones.mamba import MambaMixer, ordered
from tilth.backbones.seg_mamba import GatedConvolution, ScannedMap, SegMambaBackbone
from tilth.context import Context
from tilth.contracts import Sample
from tilth.errors import TilthError
from tilth.stages.dense_classifier import DenseClassifierOf

SAMPLE = Sample(1, (4, 16, 16), (0.5,), (0.2,))
SMALL = {"widths": (4, 8), "depths": (1, 1), "hidden": 8}


def network(**settings):
    torch.manual_seed(0)
    return SegMambaBackbone(**{**SMALL, **settings}).build(SAMPLE)


@pytest.mark.parametrize(("tokens", "slices"), [(20, 5), (24, 4), (24, 24), (7, 1)])
def test_from_section_to_section_is_a_permutation_and_is_undone(tokens, slices):
    x = torch.arange(tokens)[None, :, None]
    scanned = ordered(x, "slices", None, slices)
    each = tokens // slices
    assert scanned.flatten().tolist() == [run * each + place for place in range(each) for run in range(slices)]
    assert torch.equal(ordered(scanned, "slices", None, slices, undo=True), x)
    assert torch.equal(ordered(x, "slices", (slices, each), None), scanned)  # None: the grid's sections


def test_slices_must_divide_the_tokens_and_sections_need_a_grid():
    with pytest.raises(TilthError, match="7 tokens cannot be cut into 5"):
        ordered(torch.zeros(1, 7, 1), "slices", None, 5)
    with pytest.raises(TilthError, match="no grid"):
        ordered(torch.zeros(1, 7, 1), "slices", None, None)


def test_backwards_over_a_palindrome_is_forwards_reversed():
    torch.manual_seed(0)
    mixer = MambaMixer(8, expand=2, directions=("forward", "backward", "slices"), combine="sum")
    mixer.scans[1].load_state_dict(mixer.scans[0].state_dict())
    half = torch.randn(2, 5, 16)
    forward, backward, _ = mixer.scans.raw(torch.cat([half, half.flip(1)], 1))
    assert torch.allclose(backward, forward.flip(1), atol=1e-6)
    x = torch.randn(2, 10, 16)
    assert torch.allclose(mixer.scans(x), sum(mixer.scans.raw(x)), atol=1e-6)  # the three are summed


def test_scans_have_no_residual_unless_asked():
    x = torch.randn(1, 4, 2, 4, 4)
    torch.manual_seed(1)
    plain, residual = ScannedMap(4, None, False), ScannedMap(4, None, True)
    residual.load_state_dict(plain.state_dict())
    assert torch.allclose(residual(x), x + plain(x), atol=1e-6)
    for part in (plain, residual):
        torch.nn.init.zeros_(part.mixer.out_proj.weight)
    assert not plain(x).any() and torch.equal(residual(x), x)


def test_the_gated_convolution_adds_its_branches():
    torch.manual_seed(0)
    part, x = GatedConvolution(3, 4), torch.randn(2, 4, 3, 6, 6)
    assert torch.allclose(part(x), x + part.joined(part.far(x) + part.near(x)), atol=1e-6)
    assert part.far[0][0].kernel_size == (3, 3, 3) and part.near[0].kernel_size == (1, 1, 1)


def test_sections_are_neither_reduced_nor_convolved_over_on_the_way_up():
    model = network()
    assert model.stages[0].reduced.kernel_size == (1, 7, 7) and model.stages[0].reduced.stride == (1, 2, 2)
    assert all(block.first.kernel_size == (1, 3, 3) for block in (*model.skips, *model.joined, model.last))
    assert model(torch.rand(2, 1, 4, 16, 16)).logits.shape == (2, 1, 4, 16, 16)
    assert model(torch.rand(2, 1, 6, 24, 8)).logits.shape == (2, 1, 6, 24, 8)  # of any size that the strides divide
    with pytest.raises(TilthError, match="1x4x4"):
        model(torch.rand(2, 1, 4, 16, 18))
    cube = SegMambaBackbone(**SMALL, strides=(2, 2, 2)).build(Sample(1, (8, 8, 8)))
    assert cube.last.first.kernel_size == (3, 3, 3) and cube(torch.rand(1, 1, 8, 8, 8)).logits.shape == (1, 1, 8, 8, 8)
    picture = SegMambaBackbone(**SMALL, strides=(2, 2), outputs=3).build(Sample(3, (16, 16)))
    assert picture(torch.rand(1, 3, 16, 16)).logits.shape == (1, 3, 16, 16)


def test_the_papers_smallest_has_about_as_many_parameters_as_it_says():
    model = SegMambaBackbone(slices=5).build(Sample(1, (16, 160, 160)))
    assert 15e6 < sum(value.numel() for value in model.parameters()) < 35e6  # "28 M"; the decoder's blocks are not all told


def test_it_goes_through_a_folder_and_gets_other_outputs(tmp_path):
    model, x = network().eval(), torch.rand(1, 1, 4, 16, 16)
    save(model, None, tmp_path / "model", {})
    loaded = load(tmp_path / "model").model.eval()
    assert torch.equal(loaded(x).logits, model(x).logits)
    assert torch.equal(AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "model").eval()(x).logits, model(x).logits)
    more = model.with_outputs(3)
    assert more(x).logits.shape == (1, 3, 4, 16, 16) and more.config.num_labels == 3 and model.config.num_labels == 1
    for name, part in model.named_children():
        assert (getattr(more, name) is part) == (name != "outputs")
    assert more.state_dict().keys() == model.state_dict().keys() and model(x).logits.shape[1] == 1
    save(more, None, tmp_path / "more", {})
    assert torch.equal(load(tmp_path / "more").model.eval()(x).logits, more(x).logits)


def test_of_other_outputs_only_the_last_layer_is_drawn():
    model = network()
    torch.manual_seed(3)
    made, after = model.with_outputs(3).outputs, torch.rand(())
    torch.manual_seed(3)
    fresh = torch.nn.Conv3d(4, 3, 1)
    assert torch.equal(made.weight, fresh.weight) and torch.equal(made.bias, fresh.bias) and torch.equal(after, torch.rand(()))


def test_a_stage_gives_it_other_outputs(tmp_path):
    save(network().eval(), None, tmp_path / "model", {"history": ["pre-trained"]})
    DenseClassifierOf(model=str(tmp_path / "model"), classes=2).run(Context(tmp_path / "stage"))
    before, made = load(tmp_path / "model"), load(tmp_path / "stage" / "model")
    assert made.about["history"] == ["pre-trained"] and made.model.outputs.out_channels == 2
    assert torch.equal(before.model.last.first.weight, made.model.last.first.weight)


def test_settings_that_make_no_network_are_refused():
    for settings, message in (
        ({"depths": (1,)}, "'depths'"),
        ({"strides": (1, 1, 1)}, "strides"),
        ({"strides": (3, 2)}, "strides"),
    ):
        with pytest.raises(TilthError, match=message):
            network(**settings)
    with pytest.raises(TilthError, match="2 axes"):
        SegMambaBackbone(**SMALL).build(Sample(1, (16, 16)))
