"""Which parameters are decayed."""

import torch

from tilth.backbones.patches import Patches
from tilth.contracts import Sample, use


def test_what_a_module_names_is_not_decayed():
    torch.manual_seed(0)
    encoder = Patches(width=24, depth=1, heads=2, patch=4, position="learned", class_token=True).build(Sample(1, (8, 8)))
    groups = use("optimiser", "adamw", weight_decay=0.1).build(encoder, 1e-3).param_groups
    spared = next(group["params"] for group in groups if group["weight_decay"] == 0)
    for parameter in (encoder.class_token, encoder.embeddings["2d"].table):
        assert any(parameter is one for one in spared)
    assert not any(encoder.blocks[0].mixer.qkv.weight is one for one in spared)
