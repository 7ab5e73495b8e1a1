"""Rotation."""

import numpy as np
import pytest
import torch

from tests.pretrain.images.two_views import constant, drawn, encoder, pictures
from tilth.contracts import Batch, use
from tilth.errors import TilthError


def rotation(model, **settings):
    return use("pretrain", "rotation", **settings).build(model)


def test_the_loss_is_the_mean_over_pictures_and_turns():
    objective, batch = rotation(encoder()), pictures(3)
    [view] = drawn(objective, batch)
    losses, right = [], []
    for picture in view.numpy():
        for turns in range(4):
            turned = torch.from_numpy(np.stack([np.rot90(channel, turns) for channel in picture]).copy())[None]
            logits = objective.head(objective.model(turned).pooled)[0].double().detach().numpy()
            losses.append(np.log(np.exp(logits).sum()) - logits[turns])
            right.append(logits.argmax() == turns)
    loss = objective(batch)
    assert loss.total.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert loss.parts["accuracy"].item() == pytest.approx(np.mean(right))


def test_a_constant_encoder_cannot_beat_chance():
    objective = rotation(constant(encoder()))
    with torch.no_grad():
        objective.head.weight.zero_()
        objective.head.bias.zero_()
    assert objective(pictures(3)).total.item() == pytest.approx(np.log(4))


def test_turning_is_learnt_from_pictures_with_an_up_and_a_down():
    pixels = torch.zeros(8, 3, 8, 8, dtype=torch.uint8)
    pixels[:, :, :4] = 255
    batch = Batch(pixel_values=pixels, keys=torch.arange(8))
    objective = rotation(encoder(), views=use("views", "none"))
    optimiser = torch.optim.Adam(objective.parameters(), 1e-2)
    for _ in range(40):
        loss = objective(batch)
        loss.total.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss.parts["accuracy"] == 1


def test_a_picture_that_is_not_square_is_refused():
    batch = Batch(pixel_values=torch.zeros(2, 3, 8, 4, dtype=torch.uint8), keys=torch.arange(2))
    with pytest.raises(TilthError, match="square"):
        rotation(encoder(), views=use("views", "none"))(batch)
