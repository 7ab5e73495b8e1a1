"""UNet++: a UNet whose skips are nested and dense, so that every level's map meets the way up at every depth (arXiv 1807.10165)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.standardise import Standardise
from tilth.backbones.unet import Contracting, DoubleConvolution, UNetConfig, checked
from tilth.contracts import Backbone, Sample, method
from tilth.errors import TilthError
from tilth.registry import PositiveInt


class UNetPlusPlusConfig(UNetConfig):
    """As `UNetConfig`; deep_supervision as in `unet_plus_plus`."""

    model_type = "tilth_unet_plus_plus"

    def __init__(self, *given: object, deep_supervision: bool = False, **others: object) -> None:
        super().__init__(*given, **others)  # type: ignore[arg-type]
        self.deep_supervision = deep_supervision


class UNetPlusPlus(PreTrainedModel):
    """See `unet_plus_plus`. Node (level, column) reads its level's maps of all columns before and the raised map of the level below."""

    config_class = UNetPlusPlusConfig
    main_input_name = "pixel_values"

    def __init__(self, config: UNetPlusPlusConfig) -> None:
        super().__init__(config)
        widths, depth = config.widths, len(config.widths)
        self.standardise = Standardise(config.num_channels, config.mean, config.std)
        self.contracting = Contracting(config.num_channels, widths)
        self.nodes, self.raised = nn.ModuleDict(), nn.ModuleDict()
        for column in range(1, depth):
            for level in range(depth - column):
                self.raised[f"{level}_{column}"] = nn.ConvTranspose2d(widths[level + 1], widths[level], 2, 2)
                self.nodes[f"{level}_{column}"] = DoubleConvolution((1 + column) * widths[level], widths[level])
        heads = depth - 1 if config.deep_supervision else 1
        self.heads = nn.ModuleList(nn.Conv2d(widths[0], int(config.num_labels or 2), 1) for _ in range(heads))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation stands."""

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, channels, height, width) in their natural scale -> logits (batch, classes, height, width)."""
        read = self.columns(pixel_values)[-len(self.heads) :]
        logits = [head(x) for head, x in zip(self.heads, read, strict=True)]
        return SemanticSegmenterOutput(logits=torch.stack(logits).mean(0))

    def columns(self, pixel_values: Tensor) -> list[Tensor]:
        """The finest level's maps (batch, width, height, width) of every column after the first: UNets of ever more levels."""
        rows = [[x] for x in self.contracting(self.standardise(pixel_values))]
        for column in range(1, len(rows)):
            for level in range(len(rows) - column):
                name, kept = f"{level}_{column}", rows[level][0]
                up = self.raised[name](rows[level + 1][-1])
                up = F.pad(up, (0, kept.shape[3] - up.shape[3], 0, kept.shape[2] - up.shape[2]))
                rows[level].append(self.nodes[name](torch.cat([*rows[level], up], 1)))
        return rows[0][1:]


@method("backbone", "unet_plus_plus", systems=[6])
class NestedUNet(Backbone):
    """UNet++ (arXiv 1807.10165) of the parts of this package's `unet`, with its group norms.

    classes: outputs of every pixel. widths: channels of every level, from the finest. deep_supervision: every column of the finest
    level has a head and the logits are their mean, while training too (the paper adds up losses of the heads, and averages after).
    """

    tokenised = False

    def __init__(
        self, *, classes: PositiveInt, widths: tuple[PositiveInt, ...] = (32, 64, 128, 256, 512), deep_supervision: bool = False
    ) -> None:
        self.classes, self.widths, self.deep_supervision = classes, widths, deep_supervision

    def build(self, inputs: Sample) -> UNetPlusPlus:
        """inputs: what the pictures look like. TilthError for what is no picture, too small a one, or a single level."""
        if len(self.widths) < 2:
            raise TilthError("nested skips need two levels or more", where="backbone.unet_plus_plus.widths")
        checked(inputs, self.widths, "backbone.unet_plus_plus")
        return UNetPlusPlus(
            UNetPlusPlusConfig(
                inputs.channels, self.widths, inputs.mean, inputs.std, deep_supervision=self.deep_supervision,
                num_labels=self.classes,
            )
        )  # fmt: skip


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(UNetPlusPlusConfig.model_type, UNetPlusPlusConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(UNetPlusPlusConfig, UNetPlusPlus, exist_ok=True)
