"""An encoder with a head that names every pixel or voxel, saved and loaded as one transformers model.

Notable: the encoder is whatever gives `Features`, and stays a module of its own, so that it goes in trained and comes out trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSemanticSegmentation, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SemanticSegmenterOutput

from tilth.backbones.dense_heads import Pointwise, Transposed, Unetr
from tilth.backbones.standardise import Standardise
from tilth.batches.patches.patchify import grid_of
from tilth.contracts import Backbone, Configured, Kind, Sample, method, use
from tilth.errors import TilthError
from tilth.registry import PositiveInt

Head = Literal["linear", "mlp", "transposed", "unetr"]
HIDDEN = 512  # width of the head 'mlp' (arXiv 2311.12056)


class DenseClassifierConfig(PretrainedConfig):
    """encoder: the encoder's own configuration as a dict, with its model_type. head, taps: as in `dense_classifier`. The number of
    classes is `num_labels`."""

    model_type = "tilth_dense_classifier"

    def __init__(
        self, encoder: dict[str, Any] | None = None, head: str = "linear", taps: Sequence[int] = (), **others: Any
    ) -> None:
        super().__init__(**others)
        self.encoder, self.head, self.taps = dict(encoder or {}), head, list(taps)


class DenseClassifier(PreTrainedModel):
    """logits = head(maps of the encoder's tokens). encoder: taken as it is, weights and all; None: a fresh one."""

    config_class = DenseClassifierConfig
    main_input_name = "pixel_values"

    def __init__(self, config: DenseClassifierConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        fresh = AutoModel.from_config(AutoConfig.for_model(**config.encoder)) if encoder is None else encoder
        self.encoder: PreTrainedModel = fresh
        inputs = fresh.config.inputs
        if len(inputs) != 1:
            raise TilthError("an encoder of several kinds of inputs has no one size to name pixels of", where="dense_classifier")
        self.given = inputs[0]
        self.stride = tuple(self.given.get("stride") or self.given["patch"])
        width = getattr(fresh.config, "widths", [fresh.config.hidden_size])[-1]
        classes, dims = int(config.num_labels or 2), len(self.given["size"])
        self.head: nn.Module
        if config.head == "unetr":
            channels = int(self.given["channels"])
            self.standardise = Standardise(channels, self.given.get("mean") or (), self.given.get("std") or ())
            self.head = Unetr(width, classes, dims, channels, self.stride)
        elif config.head == "transposed":
            self.head = Transposed(width, classes, dims)
        else:
            self.head = Pointwise(width, classes, dims, HIDDEN if config.head == "mlp" else 0)
        if len(config.taps) != getattr(self.head, "taps", 0):
            raise TilthError(
                f"the head '{config.head}' reads {getattr(self.head, 'taps', 0)} early layers and 'taps' names {len(config.taps)}",
                where="dense_classifier.taps", hint="With patches of 2^k pixels 'unetr' reads k - 1, the other heads none.",
            )  # fmt: skip
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation of the head stands; the encoder has seen to its own."""

    def forward(self, pixel_values: Tensor) -> SemanticSegmenterOutput:
        """pixel_values (batch, channels, *size) in their natural scale -> logits (batch, classes, *size)."""
        features = self.encoder(pixel_values, layers=self.config.taps)
        grid = grid_of(pixel_values.shape[2:], self.stride)
        maps = [self._map(tokens, grid) for tokens in features.layers] + [self._map(features.tokens, grid)]
        values = self.standardise(pixel_values) if self.config.head == "unetr" else pixel_values
        return SemanticSegmenterOutput(logits=self.head(maps, values))

    def _map(self, tokens: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(batch, width, *grid): the mean over groups of channels where these are tokens of their own; a class token left out."""
        count = prod(grid)
        if tokens.shape[1] % count:
            place = tokens.shape[1] // 2 if getattr(self.encoder.config, "mixer", "") == "mamba" else 0
            tokens = torch.cat([tokens[:, :place], tokens[:, place + 1 :]], 1)
        return tokens.unflatten(1, (-1, count)).mean(1).transpose(1, 2).unflatten(2, grid)


def with_dense_head(encoder: PreTrainedModel, classes: int, head: Head, taps: Sequence[int] = ()) -> DenseClassifier:
    """The encoder, shared and not copied, under a fresh head, which is drawn from torch's generator."""
    return DenseClassifier(DenseClassifierConfig(encoder.config.to_dict(), head, taps, num_labels=classes), encoder)


@method("backbone", "dense_classifier", systems=[6])
class FreshDenseClassifier(Backbone):
    """encoder: a backbone that gives tokens; classes: of every pixel or voxel.

    head: what turns the tokens' map into classes at the size of the input: 'linear' (interpolated), 'mlp' (interpolated, then one
    hidden layer), 'transposed' (three transposed convolutions): heads (a), (b) and (c) of FloodViT (arXiv 2311.12056); 'unetr'
    (arXiv 2103.10504), which also reads the layers `taps`, the earliest first.
    """

    tokenised = False

    def __init__(
        self,
        *,
        classes: PositiveInt,
        encoder: Annotated[Configured, Kind("backbone")] = use("backbone", "patches"),
        head: Head = "linear",
        taps: tuple[PositiveInt, ...] = (),
    ) -> None:
        self.classes, self.encoder, self.head, self.taps = classes, encoder, head, taps

    def build(self, inputs: Sample) -> DenseClassifier:
        """inputs: what the encoder must fit."""
        return with_dense_head(self.encoder.build().build(inputs), self.classes, self.head, self.taps)


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(DenseClassifierConfig.model_type, DenseClassifierConfig, exist_ok=True)
    AutoModelForSemanticSegmentation.register(DenseClassifierConfig, DenseClassifier, exist_ok=True)
