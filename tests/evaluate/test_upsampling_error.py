"""Pictures rebuilt larger than they were seen: read from a training's checkpoint, and measured as it is said."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.images import digits
from tilth.backbones.folder import load, save
from tilth.backbones.patches import Patches
from tilth.batches.images.pictures import natural
from tilth.context import Context
from tilth.contracts import Noise, Sample, use
from tilth.errors import TilthError
from tilth.evaluate.upsampling_error import UpsamplingError, errors, trained
from tilth.stages.pretrain import Pretrain
from tilth.training.settings import Budget, Training

GREY = use("batches", "pictures", channels=1)
TINY = {"scales": 1, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2, "views": use("views", "none")}


def pretrained(folder, **settings):
    rows = digits(folder)
    context = Context(folder / "encoder", corpora={"digits": rows})
    context.folder.mkdir()
    backbone = use("backbone", "patches", width=16, depth=1, heads=2, patch=2)
    objective = use("pretrain", "sat_mae_pp", **{**TINY, **settings})
    training = Training(lr=1e-2, batch_size=16, compile=False)
    Pretrain(data="digits", backbone=backbone, batches=GREY, objective=objective, training=training, budget=Budget(steps=5)).run(
        context
    )
    return context.folder / "model", context, rows


@pytest.mark.parametrize("multi_scale", [0.4, 0.0])
def test_errors_are_those_of_the_trained_objective(multi_scale, tmp_path):
    model, context, rows = pretrained(tmp_path, multi_scale=multi_scale)
    scores = UpsamplingError(data="digits", batches=GREY, batch_size=128)(model, context).metrics
    assert scores == pytest.approx(UpsamplingError(data="digits", batches=GREY, batch_size=7)(model, context).metrics, rel=1e-5)
    objective = trained(model)
    for name, value in load(model).model.state_dict().items():
        assert torch.equal(objective.model.state_dict()[name], value)
    indices = np.arange(len(rows.table(["id"])))
    batch = GREY.build().build(rows, None, context).batch(indices, Noise(0, indices))
    pixels = natural(batch.pixel_values)
    with torch.no_grad():
        loss = objective(batch)
        assert scores["hidden_error"] == pytest.approx(loss.parts["reconstruction"].item(), rel=1e-5)
        whole = objective.model.embedding(pixels).standardised(pixels)
        if multi_scale:
            assert scores["error_2x"] == pytest.approx(loss.parts["multi_scale"].item(), rel=1e-5) == scores["error_2x_pasted"]
            return
        reduced = F.avg_pool2d(pixels, 2)
        mask = objective.mask(batch["keys"], 4)
        picture = objective.picture(objective.predictions(reduced, mask), (2, 2))
        enlarged = F.interpolate(picture, scale_factor=2, mode="bicubic", align_corners=False)
        assert scores["error_2x"] == pytest.approx((enlarged - whole).abs().mean().item(), rel=1e-5)
        hidden = mask.where().reshape(-1, 1, 2, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        standard = objective.model.embedding(reduced).standardised(reduced)
        pasted = F.interpolate(torch.where(hidden, picture, standard), scale_factor=2, mode="bicubic", align_corners=False)
        assert scores["error_2x_pasted"] == pytest.approx((pasted - whole).abs().mean().item(), rel=1e-5)


def test_every_scale_has_its_error(tmp_path):
    made = use("pretrain", "sat_mae_pp", **{**TINY, "scales": 2}).build(
        Patches(width=16, depth=1, heads=2, patch=2).build(Sample(3, (16, 16)))
    )
    found = errors(made, torch.rand(2, 3, 16, 16), torch.arange(2))
    assert set(found) == {"hidden_error", "error_2x", "error_2x_pasted", "error_4x", "error_4x_pasted"}


def test_what_cannot_be_measured_is_told(tmp_path):
    model, context, _ = pretrained(tmp_path)
    save(load(model).model, None, tmp_path / "alone" / "model", {"history": []})
    with pytest.raises(TilthError, match="checkpoints of this model's training"):
        UpsamplingError(data="digits", batches=GREY)(tmp_path / "alone" / "model", context)
