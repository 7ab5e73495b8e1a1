"""Projection heads, and views through the encoder."""

import pytest
import torch
from torch import nn

from tests.pretrain.images.two_views import encoder
from tilth.errors import TilthError
from tilth.pretrain.images.heads import pooled, projection, two


def kinds(head):
    return [type(layer).__name__ for layer in head]


def test_layers_of_a_projection():
    assert kinds(projection(4, 6, 3, layers=3)) == ["Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm", "ReLU", "Linear"]
    assert kinds(projection(4, 6, 3, last_norm=True)) == ["Linear", "BatchNorm", "ReLU", "Linear", "BatchNorm"]
    plain = projection(4, 6, 3, norm=False, bias=True)
    assert kinds(plain) == ["Linear", "ReLU", "Linear"] and all(
        layer.bias is not None for layer in plain if isinstance(layer, nn.Linear)
    )
    assert projection(4, 6, 3)(torch.randn(5, 4)).shape == (5, 3)


def test_no_layer_has_a_bias_that_a_norm_would_take_away():
    head = projection(4, 6, 3, last_norm=True, bias=True)
    assert all(layer.bias is None for layer in head if isinstance(layer, nn.Linear))


def test_views_of_different_sizes_come_back_in_their_order():
    model = encoder()
    views = [torch.rand(3, 3, size, size) for size in (8, 8, 4, 8)]
    calls = []
    model.register_forward_pre_hook(lambda module, given: calls.append(len(given[0])))
    found = pooled(model, views)
    assert calls == [6, 3, 3]
    for view, vectors in zip(views, found, strict=True):
        assert torch.allclose(vectors, model(view).pooled, atol=1e-6)


def test_other_than_two_views_are_told():
    with pytest.raises(TilthError, match="'simclr' compares two views, but 1 were made"):
        two([torch.zeros(1)], "simclr")
