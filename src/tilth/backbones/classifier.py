"""A classifier of pictures: an encoder and a linear head, saved and loaded as one transformers model.

Notable: the encoder is whatever gives `Features` (patches, Swin), and stays a module of its own, so that it goes in trained and
comes out trained.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from tilth.backbones.blocks import CrossAttention
from tilth.contracts import Backbone, Configured, Kind, method, use
from tilth.registry import PositiveInt


class PictureClassifierConfig(PretrainedConfig):
    """encoder: the encoder's own configuration as a dict, with its model_type. The number of classes is `num_labels`.

    pool: what stands for the whole picture: 'encoder' as the encoder says, 'attention' a learned query over its tokens.
    """

    model_type = "tilth_picture_classifier"

    def __init__(self, encoder: dict[str, Any] | None = None, pool: str = "encoder", **others: Any) -> None:
        super().__init__(**others)
        self.encoder, self.pool = dict(encoder or {}), pool


class AttentionPool(nn.Module):
    """One learned query attends to all tokens   (CoCa, arXiv 2205.01917, section 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm, self.attention = nn.LayerNorm(width), CrossAttention(width, heads)
        nn.init.trunc_normal_(self.query, std=0.02)

    undecayed = ("query",)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, width) -> (batch, width)."""
        tokens = self.norm(tokens)
        return self.attention(self.query.expand(len(tokens), -1, -1), tokens)[:, 0]  # type: ignore[no-any-return]


class PictureClassifier(PreTrainedModel):
    """logits = head(features of the whole picture). encoder: taken as it is, weights and all; None: a fresh one."""

    config_class = PictureClassifierConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PictureClassifierConfig, encoder: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        fresh = AutoModel.from_config(AutoConfig.for_model(**config.encoder)) if encoder is None else encoder
        self.encoder: PreTrainedModel = fresh
        heads = getattr(fresh.config, "num_attention_heads", 1)
        heads = heads if isinstance(heads, int) else heads[-1]
        self.pool = AttentionPool(fresh.config.hidden_size, heads) if config.pool == "attention" else None
        self.head = nn.Linear(fresh.config.hidden_size, int(config.num_labels or 2))
        self.post_init()

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutputWithNoAttention:
        """pixel_values (batch, channels, *size) in their natural scale."""
        features = self.encoder(pixel_values)
        pooled = features.pooled if self.pool is None else self.pool(features.tokens)
        return ImageClassifierOutputWithNoAttention(logits=self.head(pooled))


def with_head(encoder: PreTrainedModel, classes: int, pool: str = "encoder") -> PictureClassifier:
    """The encoder, shared and not copied, under a fresh head, which is drawn from torch's generator."""
    return PictureClassifier(PictureClassifierConfig(encoder.config.to_dict(), pool, num_labels=classes), encoder)


@method("backbone", "picture_classifier", systems=[52])
class FreshPictureClassifier(Backbone):
    """encoder: a backbone for pictures; classes: outputs of the linear head on its features of the whole picture."""

    tokenised = False

    def __init__(
        self, *, classes: PositiveInt, encoder: Annotated[Configured, Kind("backbone")] = use("backbone", "patches")
    ) -> None:
        self.classes, self.encoder = classes, encoder

    def build(self, inputs: Any) -> PictureClassifier:
        """inputs: what the encoder must fit."""
        return with_head(self.encoder.build().build(inputs), self.classes)


def register() -> None:
    """Make transformers' Auto classes know the network; `backbones.folder` calls it."""
    AutoConfig.register(PictureClassifierConfig.model_type, PictureClassifierConfig, exist_ok=True)
    AutoModelForImageClassification.register(PictureClassifierConfig, PictureClassifier, exist_ok=True)
