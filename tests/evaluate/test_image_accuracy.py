"""Accuracy, resolution transfer and the residual stream of classifiers of digits."""

import numpy as np
import pytest
import torch

from tests.images import cnn, digits
from tilth.backbones.classifier import FreshPictureClassifier
from tilth.backbones.folder import load, save
from tilth.backbones.swin import resized
from tilth.context import Context
from tilth.contracts import use
from tilth.errors import TilthError
from tilth.evaluate.image_accuracy import ImageAccuracy, ResolutionTransfer
from tilth.evaluate.residual_stream import ResidualStream, block_sizes

BATCHES = use("batches", "images", channels=1, mean=0.0, std=1.0)
SWIN = {"width": 8, "depths": (2, 2), "heads": (1, 2), "window": 4, "patch": 1, "drop_path": 0.0}


@pytest.fixture
def context(tmp_path):
    return Context(tmp_path / "stage", corpora={"digits": digits(tmp_path / "digits")})


def swin(rows):
    torch.manual_seed(0)
    model = FreshPictureClassifier(classes=10, encoder=use("backbone", "swin_v2", **SWIN)).build(rows.sample).eval()
    with torch.no_grad():  # so that no branch is silent
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


def test_accuracy_is_the_share_of_images_whose_logit_is_greatest(tmp_path, context):
    rows = BATCHES.build().build(context.corpus("digits"), None, context)
    model = swin(rows)
    folder = save(model, None, tmp_path / "model")
    batch = rows.batch(np.arange(300))
    expected = (model(batch.pixel_values).logits.argmax(1) == batch.labels).float().mean().item()
    assert ImageAccuracy(test="digits", batches=BATCHES)(folder, context).metrics["accuracy"] == pytest.approx(expected)


def test_resolution_transfer_is_the_accuracy_of_the_resized_encoder_on_upsampled_images(tmp_path, context):
    rows = BATCHES.build().build(context.corpus("digits"), None, context)
    model = swin(rows)
    folder = save(model, None, tmp_path / "model")
    found = ResolutionTransfer(test="digits", size=16, window=8, batches=BATCHES)(folder, context).metrics
    large = load(folder).model
    large.encoder = resized(large.encoder, 16, 8)
    batch = rows.batch(np.arange(300))
    values = torch.nn.functional.interpolate(batch.pixel_values, (16, 16), mode="bilinear", align_corners=False)
    expected = (large(values).logits.argmax(1) == batch.labels).float().mean().item()
    assert found["resized_accuracy"] == pytest.approx(expected) and found["drop"] == found["accuracy"] - found["resized_accuracy"]
    with pytest.raises(TilthError, match="swin_v2"):
        ResolutionTransfer(test="digits", size=16, window=8, batches=BATCHES)(save(cnn(), None, tmp_path / "cnn"), context)


def test_the_residual_stream_does_not_grow_through_blocks_that_are_the_identity(tmp_path, context):
    context.folder.mkdir()
    rows = BATCHES.build().build(context.corpus("digits"), None, context)
    settings = {**SWIN, "depths": (4,), "heads": (1,)}
    fresh = FreshPictureClassifier(classes=10, encoder=use("backbone", "swin_v2", **settings)).build(rows.sample)
    found = ResidualStream(data="digits", batches=BATCHES)(save(fresh, None, tmp_path / "model"), context).metrics
    assert found["growth"] == 1.0 and found["first"] == pytest.approx(1.0, abs=0.05)  # what a layer norm gives
    model = swin(rows)
    values = rows.batch(np.arange(5)).pixel_values
    sizes = block_sizes(model, values)
    last = model.encoder(values, layers=(2,)).layers[0]
    assert len(sizes) == 4 and sizes[-1] == pytest.approx(last.square().mean().sqrt().item(), rel=1e-5)
    with pytest.raises(TilthError, match="no residual blocks"):
        block_sizes(cnn(), values)
