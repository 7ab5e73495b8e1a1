"""transformers' ResNet with finer maps: from a chosen stride on, convolutions are spread out instead of the map reduced.

Notable: no weight changes shape, so that a stage reads weights of transformers; in evaluation mode the dilated map holds the values
of the reduced one, and others between them (the `algorithme a trous`).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel


class DilatedResNet(nn.Module):
    """The map of every stage (batch, hidden size, height / stride, width / stride), strides 4, 8, ... and at most `output_stride`.

    layer: 'basic' (ResNet-18, ResNet-34) or 'bottleneck'; stem: channels before the first stage. Batch norms, as in transformers.
    """

    def __init__(
        self, channels: int, layer: str, stem: int, depths: Sequence[int], hidden_sizes: Sequence[int], output_stride: int
    ) -> None:
        super().__init__()
        self.resnet = ResNetModel(
            ResNetConfig(
                num_channels=channels, embedding_size=stem, hidden_sizes=list(hidden_sizes), depths=list(depths), layer_type=layer
            )
        )
        dilation = 1
        for number, stage in enumerate(self.resnet.encoder.stages):
            if 4 * 2**number > output_stride:
                dilate(stage, dilation)
                dilation *= 2

    def forward(self, x: Tensor) -> list[Tensor]:
        """(batch, channels, height, width) -> the map of every stage, the finest first."""
        return list(self.resnet(x, output_hidden_states=True).hidden_states[1:])


def dilate(stage: nn.Module, before: int) -> None:
    """Take the stride out of a stage, in place; before: dilation of the map that comes in, which is twice that after the stride."""
    for part in stage.modules():
        if isinstance(part, nn.Conv2d):
            # The convolution that had the stride still reads the map as it came.
            rate = before if part.stride[0] > 1 else 2 * before
            part.stride, part.dilation = (1, 1), (rate, rate)
            part.padding = (rate * (part.kernel_size[0] // 2), rate * (part.kernel_size[1] // 2))
