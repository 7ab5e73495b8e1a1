"""A model that is looked at: on the computing device, every module in eval mode, without gradients, and itself again afterwards."""

import pytest
import torch
from torch import nn

from tilth.backbones.evaluating import computing_device, evaluating


def network():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.9), nn.BatchNorm1d(2)).train()
    model[2].eval()
    return model


def test_within_nothing_is_random_or_kept_for_a_gradient():
    model, x = network(), torch.ones(8, 2)
    before = model[2].running_mean.clone()
    with evaluating(model) as device:
        assert device == computing_device() == next(model.parameters()).device
        found = model(x.to(device))
        assert torch.equal(found, model(x.to(device))) and not found.requires_grad
        with torch.enable_grad():
            assert model(x.to(device)).requires_grad
    assert torch.equal(model[2].running_mean.cpu(), before)


def test_each_module_gets_its_own_mode_back_even_after_an_error():
    model = network()
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model] == [True, True, False] and model.training
