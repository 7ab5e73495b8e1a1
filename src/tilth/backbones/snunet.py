"""SNUNet with ensemble channel attention: two dates in a lattice of skips, four outputs weighed channel by channel."""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.siamese import SiameseUNetConfig
from tilth.backbones.standardise import Standardise
from tilth.backbones.two_dates import channels_of_a_date, checked_dates, two_dates
from tilth.backbones.unet import checked
from tilth.contracts import Backbone, Sample, method
from tilth.registry import NonNegativeInt, PositiveInt

LEVELS = 5


class SNUNetConfig(SiameseUNetConfig):
    """As `SiameseUNetConfig`; widths: n, 2n, 4n, 8n, 16n."""

    model_type = "tilth_snunet"

    # transformers writes a constructor for a class without its own, and that one takes no widths.
    def __init__(self, *given: object, **others: object) -> None:
        super().__init__(*given, **others)  # type: ignore[arg-type]


class Node(nn.Module):
    """ReLU(y + norm(conv(ReLU(norm(y))))), y = conv x: a residual double convolution with group norms (the code's: batch norms)."""

    def __init__(self, source: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(source, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.first_norm, self.second_norm = (nn.GroupNorm(gcd(8, width), width) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, source, *size) -> (batch, width, *size)."""
        kept = self.first(x)
        return F.relu(self.second_norm(self.second(F.relu(self.first_norm(kept)))) + kept)


class ChannelAttention(nn.Module):
    """sigmoid(fc(mean over pixels) + fc(maximum over pixels)), (batch, width, 1, 1); fc has one hidden layer, `ratio` times narrower."""

    def __init__(self, width: int, ratio: int) -> None:
        super().__init__()
        inner = max(1, width // ratio)
        self.fc = nn.Sequential(nn.Conv2d(width, inner, 1, bias=False), nn.ReLU(), nn.Conv2d(inner, width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """x: a map (batch, width, *size)."""
        return (self.fc(x.mean((2, 3), keepdim=True)) + self.fc(x.amax((2, 3), keepdim=True))).sigmoid()


class SNUNet(PreTrainedModel):
    """See `snunet`. Node (level, column) reads its level's maps and the raised map of the level below, as in UNet++."""

    config_class = SNUNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: SNUNetConfig) -> None:
        super().__init__(config)
        widths, each = config.widths, channels_of_a_date(config.num_channels, config.shared)
        self.standardise = Standardise(config.num_channels, config.mean, config.std)
        self.down = nn.ModuleList(Node(s, w) for s, w in zip([each, *widths[:-1]], widths, strict=True))
        self.nodes, self.raised = nn.ModuleDict(), nn.ModuleDict()
        for column in range(1, LEVELS):
            for level in range(LEVELS - column):
                # Both dates' maps of the level, then one of each column in between.
                source = (1 + column) * widths[level] + widths[level + 1]
                self.nodes[f"{level}_{column}"] = Node(source, widths[level])
                self.raised[f"{level}_{column}"] = nn.ConvTranspose2d(widths[level + 1], widths[level + 1], 2, 2)
        n = widths[0]
        self.within, self.ensemble = ChannelAttention(n, 4), ChannelAttention(4 * n, 16)
        self.head = nn.Conv2d(4 * n, int(config.num_labels or 2), 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation stands."""

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, channels of the first date, of the second, shared ones; height, width) -> logits of every pixel."""
        outputs = self.outputs(pixel_values)
        together, total = torch.cat(outputs, 1), torch.stack(outputs).sum(0)
        inside = self.within(total).repeat(1, len(outputs), 1, 1)
        return SemanticSegmenterOutput(logits=self.head(self.ensemble(together) * (together + inside)))

    def outputs(self, pixel_values: Tensor) -> list[Tensor]:
        """The four maps at full size (batch, n, height, width)."""
        first, second = two_dates(self.standardise(pixel_values), self.config.shared)
        rows: list[list[Tensor]] = []
        for level, node in enumerate(self.down):
            second = node(F.max_pool2d(second, 2) if level else second)
            if level == LEVELS - 1:  # of the coarsest level only the second date is read
                rows.append([second])
                break
            first = node(F.max_pool2d(first, 2) if level else first)
            rows.append([first, second])
        for column in range(1, LEVELS):
            for level in range(LEVELS - column):
                name = f"{level}_{column}"
                up = self.raised[name](rows[level + 1][-1])
                kept = rows[level][0]
                up = F.pad(up, (0, kept.shape[3] - up.shape[3], 0, kept.shape[2] - up.shape[2]))
                rows[level].append(self.nodes[name](torch.cat([*rows[level], up], 1)))
        return rows[0][2:]


@method("backbone", "snunet", systems=[6])
class SNUNetECAM(Backbone):
    """SNUNet-CD with its ensemble channel attention module (doi 10.1109/LGRS.2021.3056416).

    classes: of every pixel; width: n, channels of the finest of five levels, doubled at each below. shared: channels at the end that
    both dates see. Group norms, where the authors have batch norms.
    """

    tokenised = False

    def __init__(self, *, classes: PositiveInt, width: PositiveInt = 32, shared: NonNegativeInt = 0) -> None:
        self.classes, self.width, self.shared = classes, width, shared

    def build(self, inputs: Sample) -> SNUNet:
        """inputs: what both dates look like together."""
        widths = [self.width * 2**level for level in range(LEVELS)]
        checked(inputs, widths, "backbone.snunet")
        checked_dates(inputs, self.shared, "backbone.snunet")
        return SNUNet(SNUNetConfig(inputs.channels, widths, inputs.mean, inputs.std, shared=self.shared, num_labels=self.classes))


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(SNUNetConfig.model_type, SNUNetConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(SNUNetConfig, SNUNet, exist_ok=True)
