import math

import numpy as np
import pytest
import torch

from tests.images import BATCHES, cnn, digits, resnet, vit
from tilth.backbones.heads import extractor_parameters, head_of
from tilth.context import Context
from tilth.contracts import Noise, use
from tilth.pretrain.images.classification import Classification
from tilth.training.loop import fit
from tilth.training.settings import Budget, Training


def test_the_loss_is_the_mean_of_minus_log_p_of_the_label(tmp_path):
    rows, indices = BATCHES.build().build(digits(tmp_path), None, Context(tmp_path)), np.arange(6)
    batch, model = rows.batch(indices, Noise(0, indices)), cnn()
    loss = Classification(model)(batch)
    logits = model(pixel_values=batch.pixel_values).logits.tolist()
    by_hand = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits, batch.labels.tolist())]
    assert loss.total.item() == pytest.approx(np.mean(by_hand), rel=1e-5) and loss.count == 6


@pytest.mark.parametrize("network", [cnn, vit, resnet])
@pytest.mark.parametrize("train", ["head", "all"])
def test_the_head_alone_can_be_trained_in_any_network(network, train, tmp_path):
    """Repairing a head on few labelled images, as LAF+R does."""
    few = BATCHES.build().build(digits(tmp_path).filter("label != 0"), None, Context(tmp_path))
    before, model = network(), network()
    adam = Training(lr=1e-3, batch_size=16, compile=False, optimiser=use("optimiser", "adamw", weight_decay=0.0))
    fit(Classification(model, train=train), few, training=adam, budget=Budget(steps=2), folder=tmp_path / "fit", seed=0)
    assert not any(torch.equal(a, b) for a, b in zip(head_of(before).parameters(), head_of(model).parameters()))
    same = [torch.equal(a, b) for a, b in zip(extractor_parameters(before), extractor_parameters(model))]
    assert all(same) if train == "head" else not all(same)
