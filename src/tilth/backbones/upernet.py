"""UPerNet on ConvNeXt or ResNet: transformers' own network behind the face that networks for pixels have here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    ConvNextConfig,
    PretrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.stage_checks import checked_size, checked_stages
from tilth.backbones.standardise import Standardise
from tilth.contracts import Backbone, Sample, method
from tilth.errors import TilthError
from tilth.registry import PositiveInt


class UPerNetSegmenterConfig(PretrainedConfig):
    """num_channels, mean, std: of the pictures. The others are those of `upernet`; the number of classes is `num_labels`."""

    model_type = "tilth_upernet"

    def __init__(
        self,
        num_channels: int = 3,
        encoder: str = "convnext",
        depths: Sequence[int] = (3, 3, 9, 3),
        hidden_sizes: Sequence[int] = (96, 192, 384, 768),
        width: int = 512,
        pools: Sequence[int] = (1, 2, 3, 6),
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.num_channels, self.mean, self.std = num_channels, list(mean), list(std)
        self.encoder, self.depths, self.hidden_sizes = encoder, list(depths), list(hidden_sizes)
        self.width, self.pools = width, list(pools)

    @property
    def smallest(self) -> int:
        """Pixels that a picture needs along each axis: ConvNeXt drops what its strides leave over, ResNet pads."""
        return 2 ** (len(self.depths) + 1) if self.encoder == "convnext" else 1

    def transformers(self) -> UperNetConfig:
        """The same for transformers' class."""
        sizes: dict[str, Any] = {
            "num_channels": self.num_channels, "depths": self.depths, "hidden_sizes": self.hidden_sizes,
            "out_features": [f"stage{number}" for number in range(1, len(self.depths) + 1)],
        }  # fmt: skip
        backbone = (
            ConvNextConfig(num_stages=len(self.depths), **sizes)
            if self.encoder == "convnext"
            else ResNetConfig(embedding_size=self.hidden_sizes[0], layer_type="basic", **sizes)
        )
        return UperNetConfig(
            backbone_config=backbone, hidden_size=self.width, pool_scales=self.pools, use_auxiliary_head=False,
            num_labels=int(self.num_labels or 2),  # type: ignore[call-arg]
        )  # fmt: skip


class UPerNetSegmenter(PreTrainedModel):
    """See `upernet`."""

    config_class = UPerNetSegmenterConfig
    main_input_name = "pixel_values"

    def __init__(self, config: UPerNetSegmenterConfig) -> None:
        super().__init__(config)
        self.standardise = Standardise(config.num_channels, config.mean, config.std)
        self.network = UperNetForSemanticSegmentation(config.transformers())
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """transformers' own initialisation stands."""

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, channels, height, width) in their natural scale -> logits (batch, classes, height, width).

        TilthError for pictures that are too small, and for a single one while training, which batch norms cannot read.
        """
        checked_size(
            tuple(pixel_values.shape[2:]), self.config.smallest, "backbone.upernet", "Take larger pictures, or fewer stages."
        )
        if self.training and len(pixel_values) == 1 and 1 in self.config.pools:
            raise TilthError(
                "batch norms of the pooled map cannot be trained on one picture a step", where="backbone.upernet.pools",
                hint="Raise training.batch_size, or take 'pools' without 1.",
            )  # fmt: skip
        return SemanticSegmenterOutput(logits=self.network(self.standardise(pixel_values)).logits)


@method("backbone", "upernet", systems=[6])
class UPerNet(Backbone):
    """UPerNet (arXiv 1807.10221) as transformers has it, on ConvNeXt (arXiv 2201.03545; by default its tiny form) or ResNet with basic
    blocks, from fresh weights.

    classes: of every pixel. encoder, depths, hidden_sizes: which one, and blocks and channels of every stage (strides 4, 8, 16, 32).
    width: channels of the decoder; pools: sides of the grids that the coarsest map is averaged to. Without the auxiliary head, whose
    logits no loss here reads. The decoder has batch norms.
    """

    tokenised = False

    def __init__(
        self,
        *,
        classes: PositiveInt,
        encoder: Literal["convnext", "resnet"] = "convnext",
        depths: tuple[PositiveInt, ...] = (3, 3, 9, 3),
        hidden_sizes: tuple[PositiveInt, ...] = (96, 192, 384, 768),
        width: PositiveInt = 512,
        pools: tuple[PositiveInt, ...] = (1, 2, 3, 6),
    ) -> None:
        self.classes, self.encoder, self.depths, self.hidden_sizes = classes, encoder, depths, hidden_sizes
        self.width, self.pools = width, pools

    def build(self, inputs: Sample) -> UPerNetSegmenter:
        """inputs: what the pictures look like. TilthError for what is no picture, or too small for the stages."""
        checked_stages("backbone.upernet", depths=self.depths, hidden_sizes=self.hidden_sizes)
        config = UPerNetSegmenterConfig(
            inputs.channels, self.encoder, self.depths, self.hidden_sizes, self.width, self.pools, inputs.mean, inputs.std,
            num_labels=self.classes,
        )  # fmt: skip
        checked_size(inputs.size, config.smallest, "backbone.upernet", "Take larger pictures, or fewer stages.")
        return UPerNetSegmenter(config)


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(UPerNetSegmenterConfig.model_type, UPerNetSegmenterConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(UPerNetSegmenterConfig, UPerNetSegmenter, exist_ok=True)
