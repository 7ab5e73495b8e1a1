"""Masked autoencoding: what is seen, what is scored, and transformers' own loss as an independent witness."""

import numpy as np
import pytest
import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEDecoderOutput, ViTMAEModelOutput

from tilth.backbones.patches import Patches
from tilth.batches.patches.patchify import patchify
from tilth.contracts import Batch, Noise, Sample, use
from tilth.pretrain.images.mae import MAE


def problem(size=(16, 16), channels=3, **settings):
    torch.manual_seed(0)
    model = Patches(width=48, depth=2, heads=2, patch=4).build(Sample(channels, size))
    defaults = {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2, "views": use("views", "none")}
    return MAE(model, **{**defaults, **settings}).eval()


def batch(values: torch.Tensor) -> Batch:
    return Batch(samples=len(values), pixel_values=values, keys=torch.from_numpy(Noise(0, np.arange(len(values))).keys()))


def test_counts_gradients_and_what_is_scored():
    objective, values = problem(), torch.rand(4, 3, 16, 16)
    _, mask, predicted, seen = objective._predicted(batch(values))
    assert mask.hidden.shape == (4, 12) and seen.shape == (4, 4, 48) and predicted.shape == (4, 12, 48)
    # The encoder's output does not depend on hidden pixels.
    patches = patchify(values, (4, 4))
    noisy = values.clone()
    for row in range(4):
        for token in mask.hidden[row].tolist():
            y, x = divmod(token, 4)
            noisy[row, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = torch.rand(3, 4, 4)
    assert not torch.equal(patchify(noisy, (4, 4)), patches)
    assert torch.equal(objective._predicted(batch(noisy))[3], seen)
    objective(batch(values)).total.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_of_196_patches_49_are_seen():
    model = Patches(width=48, depth=1, heads=2, patch=16).build(Sample(1, (224, 224)))
    objective = MAE(model, decoder_width=24, decoder_depth=1, decoder_heads=2, views=use("views", "none"))
    assert objective._predicted(batch(torch.rand(1, 1, 224, 224)))[3].shape[1] == 49


@pytest.mark.parametrize("normalise", [True, False])
def test_the_loss_is_transformers_own(normalise, monkeypatch):
    objective, values = problem(normalise=normalise), torch.rand(3, 3, 16, 16)
    _, mask, predicted, seen = objective._predicted(batch(values))
    config = ViTMAEConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, norm_pix_loss=normalise
    )
    theirs = ViTMAEForPreTraining(config)  # of which the loss alone is asked: what it is computed from is ours
    # transformers lays a patch out as (rows, columns, channels); ours is (channels, rows, columns).
    whole = torch.zeros(3, 16, 48).scatter(1, mask.hidden[:, :, None].expand(-1, -1, 48), predicted)
    reordered = whole.unflatten(-1, (3, 4, 4)).permute(0, 1, 3, 4, 2).flatten(2)
    monkeypatch.setattr(theirs.vit, "forward", lambda *_, **__: ViTMAEModelOutput(seen, mask.where().float(), mask.hidden))
    monkeypatch.setattr(theirs.decoder, "forward", lambda *_, **__: ViTMAEDecoderOutput(logits=reordered))
    expected = theirs(values).loss
    assert torch.allclose(objective(batch(values)).total, expected, atol=1e-5)


def test_volumes_and_signals_are_rebuilt_too():
    for size in ((8, 8, 4), (32,)):
        torch.manual_seed(0)
        model = Patches(width=24, depth=1, heads=2, patch=4).build(Sample(2, size))
        objective = MAE(model, decoder_width=12, decoder_depth=1, decoder_heads=2, views=use("views", "none"))
        assert torch.isfinite(objective(batch(torch.rand(2, 2, *size))).total)


def test_the_report_shows_what_is_hidden_and_what_is_made_of_it():
    objective, values = problem(normalise=False), torch.rand(2, 3, 16, 16)
    rows = objective.pictures(batch(values))
    assert len(rows) == 2 and torch.allclose(rows[0][0], values[0], atol=1e-6)
    hidden = objective._predicted(batch(values))[1].where()[0].reshape(4, 4)
    blocks = lambda picture: patchify(picture[None], (4, 4))[0].reshape(4, 4, -1)
    assert torch.equal(blocks(rows[0][1])[~hidden], blocks(rows[0][0])[~hidden]) and (blocks(rows[0][1])[hidden] == 0).all()
    assert torch.equal(blocks(rows[0][2])[~hidden], blocks(rows[0][0])[~hidden])
    assert not torch.equal(blocks(rows[0][2])[hidden], blocks(rows[0][0])[hidden])


def test_signs_of_collapse_are_told_when_evaluated_and_cost_nothing_while_training():
    objective, values = problem(), torch.rand(8, 3, 16, 16)
    assert set(objective(batch(values)).parts) == {"effective_rank", "uniformity"}
    assert not objective.train()(batch(values)).parts
