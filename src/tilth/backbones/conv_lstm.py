"""Pictures of several dates read one after another by a convolutional LSTM (arXiv 1506.04214)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.standardise import Standardise
from tilth.contracts import Backbone, Sample, method
from tilth.errors import TilthError
from tilth.registry import PositiveInt


class ConvLSTMConfig(PretrainedConfig):
    """num_channels, mean, std: of all dates together; dates, hidden_size and num_hidden_layers as in `conv_lstm`. The number of
    classes is `num_labels`."""

    model_type = "tilth_conv_lstm"

    def __init__(
        self,
        num_channels: int = 6,
        dates: int = 3,
        hidden_size: int = 32,
        num_hidden_layers: int = 1,
        mean: Any = (),
        std: Any = (),
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.num_channels, self.dates, self.hidden_size = num_channels, dates, hidden_size
        self.num_hidden_layers, self.mean, self.std = num_hidden_layers, list(mean), list(std)


class Cell(nn.Module):
    """One step: gates i, f, o and the candidate g from a 3 x 3 convolution of input and state; c' = f c + i g, h' = o tanh c'.

    Without the paper's peepholes, as most implementations.
    """

    def __init__(self, source: int, width: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(source + width, 4 * width, 3, padding=1)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """x (batch, source, *size), h and c (batch, width, *size) -> the next h and c."""
        i, f, o, g = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class ConvLSTM(PreTrainedModel):
    """See `conv_lstm`."""

    config_class = ConvLSTMConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ConvLSTMConfig) -> None:
        super().__init__(config)
        width, each = config.hidden_size, config.num_channels // config.dates
        self.standardise = Standardise(config.num_channels, config.mean, config.std)
        self.cells = nn.ModuleList(Cell(width if n else each, width) for n in range(config.num_hidden_layers))
        self.head = nn.Conv2d(width, int(config.num_labels or 2), 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation stands."""

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, dates * channels, height, width), the earliest date first -> logits of every pixel."""
        sequence = list(self.standardise(pixel_values).chunk(self.config.dates, 1))
        for cell in self.cells:
            h = c = sequence[0].new_zeros(len(pixel_values), self.config.hidden_size, *pixel_values.shape[2:])
            for number, x in enumerate(sequence):
                h, c = cell(x, h, c)
                sequence[number] = h
        return SemanticSegmenterOutput(logits=self.head(sequence[-1]))


@method("backbone", "conv_lstm", systems=[6])
class ConvLSTMSegmenter(Backbone):
    """Layers of a convolutional LSTM over the dates, then a 1 x 1 convolution of the last state (BlackBench's recurrent family).

    classes: of every pixel; dates: how many the channels are, the earliest first; width: of the state; depth: layers.
    """

    tokenised = False

    def __init__(self, *, classes: PositiveInt, dates: PositiveInt = 3, width: PositiveInt = 32, depth: PositiveInt = 1) -> None:
        self.classes, self.dates, self.width, self.depth = classes, dates, width, depth

    def build(self, inputs: Sample) -> ConvLSTM:
        """inputs: what all dates look like together."""
        if len(inputs.size) != 2 or inputs.channels % self.dates:
            raise TilthError(
                f"{inputs.channels} channels are not {self.dates} dates of pictures", where="backbone.conv_lstm.dates"
            )
        return ConvLSTM(
            ConvLSTMConfig(inputs.channels, self.dates, self.width, self.depth, inputs.mean, inputs.std, num_labels=self.classes)
        )


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(ConvLSTMConfig.model_type, ConvLSTMConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(ConvLSTMConfig, ConvLSTM, exist_ok=True)
