"""Change between two dates: one way down for both, their maps compared on the way up (arXiv 1810.08462)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.standardise import Standardise
from tilth.backbones.two_dates import channels_of_a_date, checked_dates, two_dates
from tilth.backbones.unet import Contracting, Expanding, UNetConfig, checked
from tilth.contracts import Backbone, Sample, method
from tilth.registry import NonNegativeInt, PositiveInt


class SiameseUNetConfig(UNetConfig):
    """As `UNetConfig`, of all channels together; comparison and shared as in `fc_siam`."""

    model_type = "tilth_siamese_unet"

    def __init__(self, *given: object, comparison: str = "diff", shared: int = 0, **others: object) -> None:
        super().__init__(*given, **others)  # type: ignore[arg-type]
        self.comparison, self.shared = comparison, shared


class SiameseUNet(PreTrainedModel):
    """See `fc_siam`."""

    config_class = SiameseUNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: SiameseUNetConfig) -> None:
        super().__init__(config)
        fine = config.widths[:-1]
        self.standardise = Standardise(config.num_channels, config.mean, config.std)
        self.contracting = Contracting(channels_of_a_date(config.num_channels, config.shared), config.widths)
        self.expanding = Expanding(config.widths, fine if config.comparison == "diff" else [2 * width for width in fine])
        self.head = nn.Conv2d(config.widths[0], int(config.num_labels or 2), 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation stands."""

    def dates(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised channels of each date, what they share behind them."""
        return two_dates(self.standardise(pixel_values), self.config.shared)

    def skips(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> list[Tensor]:
        """What joins the way up at every level, from the finest."""
        pairs = zip(before, after, strict=True)
        if self.config.comparison == "diff":
            return [(first - second).abs() for first, second in pairs]
        return [torch.cat(pair, 1) for pair in pairs]

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, channels of the first date, of the second, shared ones; height, width) -> logits of every pixel."""
        *before, _ = self.contracting((given := self.dates(pixel_values))[0])
        *after, x = self.contracting(given[1])
        return SemanticSegmenterOutput(logits=self.head(self.expanding(x, self.skips(before, after))))


@method("backbone", "fc_siam", systems=[6])
class FCSiam(Backbone):
    """FC-Siam-diff and FC-Siam-conc (arXiv 1810.08462, section 2.2) on the `unet` of this package.

    comparison: what joins the way up, the 'diff' |before - after| or both maps ('conc'); the coarsest map is the second date's, as in
    the authors' code. shared: channels at the end that both dates see (1 with an elevation model). classes, widths: as of `unet`.
    """

    tokenised = False

    def __init__(
        self,
        *,
        classes: PositiveInt,
        comparison: Literal["diff", "conc"] = "diff",
        shared: NonNegativeInt = 0,
        widths: tuple[PositiveInt, ...] = (16, 32, 64, 128),
    ) -> None:
        self.classes, self.comparison, self.shared, self.widths = classes, comparison, shared, widths

    def build(self, inputs: Sample) -> SiameseUNet:
        """inputs: what both dates look like together."""
        checked(inputs, self.widths, "backbone.fc_siam")
        checked_dates(inputs, self.shared, "backbone.fc_siam")
        return SiameseUNet(
            SiameseUNetConfig(
                inputs.channels, self.widths, inputs.mean, inputs.std, comparison=self.comparison, shared=self.shared,
                num_labels=self.classes,
            )
        )  # fmt: skip


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(SiameseUNetConfig.model_type, SiameseUNetConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(SiameseUNetConfig, SiameseUNet, exist_ok=True)
