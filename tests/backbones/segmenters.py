"""Small networks that tell classes of pixels, of every kind, and pictures for them."""

import torch
from torch import nn

from tilth.contracts import Sample
from tilth.registry import configure

SIZE, ODD = (16, 16), (37, 22)
SAMPLE = Sample(4, SIZE, (0.5, 1.0, 2.0, 3.0), (0.5, 2.0, 1.0, 4.0))
RESNET = {"stem": 8, "depths": [1, 1, 1], "hidden_sizes": [8, 8, 16]}
UPERNET = {"depths": [1, 1, 1], "hidden_sizes": [8, 16, 16], "width": 16, "pools": [1, 2]}
FORMER = {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "heads": [1, 1, 2, 2], "reductions": [2, 1, 1, 1], "width": 16}
NETWORKS = {
    "unet_plus_plus": {"unet_plus_plus": {"widths": [4, 8, 8]}},
    "supervised": {"unet_plus_plus": {"widths": [4, 8, 8], "deep_supervision": True}},
    "deeplab": {"deeplab_v3_plus": {**RESNET, "output_stride": 8, "rates": [1, 2], "width": 16, "low": 8}},
    "upernet": {"upernet": UPERNET},
    "upernet_resnet": {"upernet": {**UPERNET, "encoder": "resnet"}},
    "bit_cd": {"bit_cd": {**RESNET, "width": 16, "heads": 2, "decoder_depth": 2}},
    "change_former": {"change_former": FORMER},
}


def configured(name, **more):
    [(method, settings)] = NETWORKS[name].items()
    return configure("backbone", {method: {"classes": 3, **settings, **more}})


def made(name, sample=SAMPLE, **more):
    torch.manual_seed(0)
    return configured(name, **more).build().build(sample)


def pixels(count=3, size=SIZE, sample=SAMPLE):
    values = torch.randn(count, sample.channels, *size, generator=torch.Generator().manual_seed(1))
    mean, std = sample.mean or [0.0] * sample.channels, sample.std or [1.0] * sample.channels
    return values * torch.tensor(std).reshape(-1, 1, 1) + torch.tensor(mean).reshape(-1, 1, 1)


def with_history(network):
    """Batch norms as after some training: of a fresh one, mean 0 and variance 1 hide what they do."""
    generator = torch.Generator().manual_seed(2)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(0.3 * torch.randn(part.num_features, generator=generator))
            part.running_var.copy_(0.5 + torch.rand(part.num_features, generator=generator))
    return network.eval()
