"""UPerNet against transformers."""

import pytest
import torch
from transformers import UperNetForSemanticSegmentation

from tests.backbones.segmenters import ODD, SAMPLE, made, pixels, with_history
from tilth.registry import configure

TRANSFORMERS = ("upernet", "upernet_resnet")


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_upernet_is_that_of_transformers(name):
    network, values = with_history(made(name)), pixels(2, ODD)
    theirs = UperNetForSemanticSegmentation(network.config.transformers()).eval()
    theirs.load_state_dict({k.removeprefix("network."): v for k, v in network.state_dict().items() if k.startswith("network.")})
    standard = (values - torch.tensor(SAMPLE.mean).reshape(-1, 1, 1)) / torch.tensor(SAMPLE.std).reshape(-1, 1, 1)
    assert torch.equal(network(values).logits, theirs(standard).logits)
    assert theirs.backbone.config.model_type == ("convnext" if name == "upernet" else "resnet")
    assert [stage.layers[-1] is not None for stage in theirs.backbone.encoder.stages] == [True] * 3


def test_upernets_default_is_convnexts_tiny_form():
    config = configure("backbone", {"upernet": {"classes": 3}}).build()
    assert (config.depths, config.hidden_sizes, config.width) == ((3, 3, 9, 3), (96, 192, 384, 768), 512)
