"""BlackBench's further networks for pixels: sizes, folders, that they learn, and what they refuse."""

import numpy as np
import pytest
import torch

from tests.backbones.segmenters import NETWORKS, ODD, SAMPLE, SIZE, configured, made, pixels, with_history
from tests.floods import BATCHES, floods
from tilth.backbones.folder import load, save
from tilth.context import Context
from tilth.contracts import Noise, Sample, use
from tilth.errors import TilthError
from tilth.pretrain.images.segmentation import Segmentation
from tilth.stages.pretrain import Pretrain
from tilth.training.settings import Budget, Training


@pytest.mark.parametrize("name", NETWORKS)
def test_any_size_has_logits_of_its_own_and_examples_stay_apart(name):
    network = with_history(made(name))
    for size in (SIZE, ODD):
        values = pixels(3, size)
        logits = network(pixel_values=values).logits
        assert logits.shape == (3, 3, *size) and logits.std() > 0
        assert torch.allclose(network(values[1:2]).logits[0], logits[1], atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_folder_gives_the_same(name, tmp_path):
    network, values = with_history(made(name)), pixels()
    save(network, None, tmp_path / "model", {"history": []})
    again = load(tmp_path / "model")
    assert again.tokenizer is None and again.model.config.num_labels == 3
    assert all(torch.equal(value, again.model.state_dict()[key]) for key, value in network.state_dict().items())
    # Weights that are read from a file lie at odd addresses, where vectorised kernels round otherwise.
    for part in (*again.model.parameters(), *again.model.buffers()):
        part.data = part.data.clone()
    assert torch.equal(again.model(values).logits, network(values).logits)


@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_are_standardised_inside(name):
    network, plain = with_history(made(name)), made(name, Sample(4, SIZE)).eval()
    plain.load_state_dict({**network.state_dict(), "standardise.mean": torch.zeros(4), "standardise.std": torch.ones(4)})
    standard = (pixels() - torch.tensor(SAMPLE.mean).reshape(-1, 1, 1)) / torch.tensor(SAMPLE.std).reshape(-1, 1, 1)
    assert torch.allclose(network(pixels()).logits, plain(standard).logits, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_weight_has_a_gradient(name):
    network = made(name)
    network(pixels(4, (64, 64))).logits.square().mean().backward()
    # A softmax does not see what all keys have in common, nor a difference what both dates have.
    blind = ("k_proj.bias", "decoding.1.mlp.down.bias")
    named = {name: weight.grad for name, weight in network.named_parameters() if not name.endswith(blind)}
    assert not [name for name, gradient in named.items() if gradient is None or not gradient.any()]


@pytest.mark.parametrize("name", NETWORKS)
def test_masks_of_floods_are_learnt(name, tmp_path):
    examples = (
        use("batches", "segmentation", **{**BATCHES.settings, "keep": [0, 2]})
        .build()
        .build(floods(tmp_path), None, Context(tmp_path))
    )
    objective = Segmentation(made(name, examples.sample))
    batch = examples.batch(np.arange(16), Noise(0, np.arange(16)))
    optimiser = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        losses.append(objective(batch).total)
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_stage_pretrain_trains_and_keeps_it(name, tmp_path):
    context = Context(tmp_path / "stage", corpora={"floods": floods(tmp_path / "floods")})
    context.folder.mkdir()
    stage = Pretrain(
        data="floods", budget=Budget(steps=2), objective=use("pretrain", "segmentation", crop=(0.5, 1.0), flip=0.5),
        batches=use("batches", "segmentation", **{**BATCHES.settings, "keep": [0, 2]}), backbone=configured(name),
        training=Training(lr=1e-3, batch_size=4, compile=False),
    )  # fmt: skip
    assert np.isfinite(stage.run(context)["loss"])
    kept = load(context.folder / "model").model
    # Two dates of radar, standardised with the constants of the batches.
    assert kept.config.num_channels == 4 and kept.config.mean == pytest.approx([0.0953, 0.0264] * 2)
    assert kept(torch.rand(2, 4, *SIZE)).logits.shape == (2, 3, *SIZE)


def test_what_cannot_be_is_told():
    volume, odd, small = Sample(4, (16, 16, 8)), Sample(5, SIZE), Sample(4, (8, 8))
    for name in NETWORKS:
        with pytest.raises(TilthError, match="reads pictures"):
            made(name, volume)
    for name in ("bit_cd", "change_former"):
        with pytest.raises(TilthError, match="not two dates"):
            made(name, odd)
    for name, settings in (
        ("deeplab", {}),
        ("upernet", {}),
        ("bit_cd", {}),
        ("change_former", {"reductions": [4, 1, 1, 1]}),
        ("unet_plus_plus", {"widths": [4] * 5}),
    ):
        with pytest.raises(TilthError, match="too small"):
            made(name, small, **settings)
    with pytest.raises(TilthError, match="16x16 are too small, of 29 needed"):
        made("change_former", reductions=[8, 4, 2, 1])
    for name in ("deeplab", "upernet", "bit_cd", "change_former"):
        with pytest.raises(TilthError, match="each stage needs a number in every list"):
            made(name, depths=[1, 1])
    with pytest.raises(TilthError, match="two levels or more"):
        made("unet_plus_plus", widths=[4])
    for name, settings in (("bit_cd", {"heads": 3}), ("change_former", {"heads": [1, 3, 2, 2]})):
        with pytest.raises(TilthError, match="heads cannot share"):
            made(name, **settings)
    for name in ("upernet", "change_former"):
        with pytest.raises(TilthError, match="too small"):
            made(name).eval()(pixels(2, (15, 4)))
    network = made("upernet")
    with pytest.raises(TilthError, match="one picture a step"):
        network(pixels(1))
    assert network.eval()(pixels(1)).logits.shape == (1, 3, *SIZE)
