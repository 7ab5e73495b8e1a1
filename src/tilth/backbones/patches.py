"""One encoder for signals, pictures and volumes: patches in, features out; every patch, or only those that are seen.

Notable: inputs come in their natural scale and are standardised inside, so that a saved encoder needs nothing beside it; the number
of axes of an input chooses its embedding (`patch_embedding`), everything behind is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from tilth.backbones.blocks import MLP, Attention, Block, SwiGLU, initialise
from tilth.backbones.patch_embedding import PatchEmbedding
from tilth.backbones.positions import coordinates
from tilth.backbones.relative import RelativeAttention, buckets
from tilth.batches.patches.masks import pick
from tilth.batches.patches.patchify import grid_of
from tilth.contracts import Backbone, Features, Sample
from tilth.errors import TilthError
from tilth.registry import Fraction, NonNegative, Positive, PositiveInt, method


class PatchEncoderConfig(PretrainedConfig):
    """inputs: one dict per kind of input, told apart by their number of axes: channels, size, patch, mean, std (per channel),
    groups (lists of channels embedded apart; one of all without). The other arguments are those of `patches`."""

    model_type = "tilth_patch_encoder"

    def __init__(
        self,
        inputs: Sequence[dict[str, Any]] = (),
        hidden_size: int = 192,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 3,
        mlp_ratio: float = 4.0,
        mlp: str = "gelu",
        mixer: str = "attention",
        directions: Sequence[str] = ("forward",),
        position: str = "sincos",
        class_token: bool = False,
        pooling: str = "mean",
        drop_path: float = 0.0,
        layer_norm_eps: float = 1e-6,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.inputs, self.hidden_size, self.num_hidden_layers = [dict(given) for given in inputs], hidden_size, num_hidden_layers
        self.num_attention_heads, self.mlp_ratio, self.mlp = num_attention_heads, mlp_ratio, mlp
        self.mixer, self.directions = mixer, list(directions)
        self.position, self.class_token, self.pooling = position, class_token, pooling
        self.drop_path, self.layer_norm_eps = drop_path, layer_norm_eps


class PatchEncoder(PreTrainedModel):
    """See `patches`."""

    config_class = PatchEncoderConfig
    base_model_prefix = "encoder"
    main_input_name = "pixel_values"
    undecayed = ("class_token",)

    def __init__(self, config: PatchEncoderConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embeddings = nn.ModuleDict(
            {f"{len(given['size'])}d": PatchEmbedding(given, width, config.position) for given in config.inputs}
        )
        if config.class_token:
            self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        rates = torch.linspace(0, config.drop_path, config.num_hidden_layers).tolist()
        self.blocks = nn.ModuleList(_block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        initialise(module)
        if isinstance(module, PatchEmbedding) and module.position == "learned":
            nn.init.trunc_normal_(module.table, std=0.02)
        if module is self and self.config.class_token:
            nn.init.normal_(self.class_token, std=0.02)

    def embedding(self, values: Tensor) -> PatchEmbedding:
        """The embedding for inputs (batch, channels, *size) with as many axes as these."""
        name = f"{values.ndim - 2}d"
        if name not in self.embeddings:
            raise TilthError(f"this encoder reads {', '.join(self.embeddings)} inputs, not {name}")
        found: PatchEmbedding = self.embeddings[name]  # type: ignore[assignment]
        if values.shape[1] != found.channels:
            raise TilthError(f"this encoder reads {found.channels} channels, not {values.shape[1]}")
        return found

    def forward(
        self,
        pixel_values: Tensor,
        *,
        kept: Tensor | None = None,
        hidden: Tensor | None = None,
        fill: Tensor | None = None,
        scale: Tensor | None = None,
        extra: Tensor | None = None,
        layers: Sequence[int] = (),
    ) -> Features:
        """Features of inputs (batch, channels, *size) in their natural scale.

        kept (batch, n): only these patches are encoded (`Mask.kept`). hidden (batch, tokens) bool with fill (width,): these
        patches' content is replaced by `fill` before positions are added (SimMIM). scale (batch,): of coordinates, the ground
        sample distance over the reference one (Scale-MAE, arXiv 2212.14532, eq. 1); sine-cosine positions alone. extra (batch,
        tokens, width): added to the tokens before the first block. layers: numbers of blocks, from 1, whose outputs are wanted,
        unnormalised and with the class token where there is one.
        """
        embedding = self.embedding(pixel_values)
        tokens = embedding(embedding.standardised(pixel_values), kept, hidden, fill, scale)
        if extra is not None:
            tokens = tokens + (pick(extra, kept) if kept is not None else extra)
        grid = grid_of(pixel_values.shape[2:], embedding.patch)
        places = None
        if self.config.position == "relative":
            places = coordinates(grid).to(tokens.device)[None]
            places = pick(places, kept) if kept is not None else places
        return self.encode(tokens, layers, grid if kept is None and len(embedding.groups) == 1 else None, places)

    def encode(
        self, tokens: Tensor, layers: Sequence[int] = (), grid: tuple[int, ...] | None = None, places: Tensor | None = None
    ) -> Features:
        """The blocks on embedded tokens (batch, tokens, width); grid: how they lie, where that is known and all are there.

        places (batch or 1, tokens, axes): where they lie, in patches from anywhere; relative positions need them.
        """
        middle = tokens.shape[1] // 2 if self.config.mixer == "mamba" else 0
        if self.config.class_token:
            summary = self.class_token.expand(len(tokens), -1, -1).to(tokens.dtype)
            tokens = torch.cat([tokens[:, :middle], summary, tokens[:, middle:]], 1)
        given: tuple[object, ...] = (grid,) if self.config.mixer == "mamba" else ()
        if self.config.position == "relative":
            if places is None:
                raise TilthError("relative positions need to know where the tokens lie", where="backbone.patches.position")
            given = (buckets(places, self.config.class_token),)
        taken = {}
        for number, block in enumerate(self.blocks, 1):
            tokens = block(tokens, *given)
            if number in layers:
                taken[number] = tokens
        tokens = self.norm(tokens)
        told = None
        if self.config.class_token:
            told = tokens[:, middle]
            tokens = torch.cat([tokens[:, :middle], tokens[:, middle + 1 :]], 1)
        pooled = told if told is not None and self.config.pooling == "class" else tokens.mean(1)
        return Features(tokens, pooled, tuple(taken[number] for number in layers), told)


def _block(config: PatchEncoderConfig, drop_path: float) -> Block:
    width = config.hidden_size
    mixer: nn.Module
    if config.mixer == "mamba":
        from tilth.backbones.mamba import MambaMixer

        mixer = MambaMixer(width, directions=tuple(config.directions))  # type: ignore[arg-type]
    elif config.position == "relative":
        mixer = RelativeAttention(width, config.num_attention_heads, len(config.inputs[0]["size"]))
    else:
        mixer = Attention(width, config.num_attention_heads)
    inner = int(config.mlp_ratio * width)
    mlp = SwiGLU(width, inner) if config.mlp == "swiglu" else MLP(width, inner)
    return Block(width, mixer, mlp, eps=config.layer_norm_eps, drop_path=drop_path)


@method("backbone", "patches", systems=[6, 7, 12, 13, 29, 82, 88])
class Patches(Backbone):
    """A vision transformer (arXiv 2010.11929) over patches of signals, pictures or volumes, or the same with Mamba for attention.

    width, depth, heads: of the blocks. patch: sides of a patch, one number for all axes; patch_3d: of volumes, where both
    pictures and volumes are read. channels, size, mean, std come from the data. groups: lists of channels (or bands) that are
    embedded apart, as tokens of their own (arXiv 2207.08051). position: 'sincos' (fixed), 'learned', 'none', or 'relative', which
    attention learns from offsets alone (`relative`). class_token: a token that belongs to no patch; pooling: what stands for the
    whole input, the 'mean' of its tokens or the 'class' token. mixer: 'attention', or 'mamba', whose scans run in `directions`.
    drop_path: of the last block, rising from 0 at the first.
    """

    tokenised = False

    def __init__(
        self,
        *,
        width: PositiveInt = 192,
        depth: PositiveInt = 12,
        heads: PositiveInt = 3,
        patch: PositiveInt | list[PositiveInt] = 16,
        patch_3d: PositiveInt | list[PositiveInt] | None = None,
        mlp_ratio: Positive = 4.0,
        mlp: Literal["gelu", "swiglu"] = "gelu",
        mixer: Literal["attention", "mamba"] = "attention",
        directions: tuple[str, ...] = ("forward",),
        position: Literal["sincos", "learned", "relative", "none"] = "sincos",
        class_token: bool = False,
        pooling: Literal["mean", "class"] = "mean",
        groups: list[list[int]] | None = None,
        drop_path: Fraction = 0.0,
        layer_norm_eps: NonNegative = 1e-6,
    ) -> None:
        if pooling == "class" and not class_token:
            raise TilthError(
                "pooling by the class token needs one", where="backbone.patches.pooling", hint="Set 'class_token: true'."
            )
        if width % heads:
            raise TilthError(f"a width of {width} does not split into {heads} heads", where="backbone.patches.heads")
        if position == "relative" and (mixer != "attention" or (groups is not None and len(groups) > 1)):
            raise TilthError(
                "relative positions go with attention and channels embedded together", where="backbone.patches.position"
            )
        self.width, self.depth, self.heads, self.patch, self.patch_3d = width, depth, heads, patch, patch_3d
        self.mlp_ratio, self.mlp, self.mixer, self.directions = mlp_ratio, mlp, mixer, directions
        self.position, self.class_token, self.pooling, self.groups = position, class_token, pooling, groups
        self.drop_path, self.layer_norm_eps = drop_path, layer_norm_eps

    def build(self, inputs: Sample | Sequence[Sample]) -> PatchEncoder:
        """inputs: what the data look like, one sample per kind of input."""
        samples = [inputs] if isinstance(inputs, Sample) else list(inputs)
        if self.position == "relative" and len(samples) > 1:
            raise TilthError("relative positions are of one kind of input", where="backbone.patches.position")
        config = PatchEncoderConfig(
            [self._input(sample) for sample in samples], self.width, self.depth, self.heads, self.mlp_ratio, self.mlp, self.mixer,
            self.directions, self.position, self.class_token, self.pooling, self.drop_path, self.layer_norm_eps,
        )  # fmt: skip
        return PatchEncoder(config)

    def _input(self, sample: Sample) -> dict[str, Any]:
        patch = self.patch_3d if self.patch_3d is not None and len(sample.size) == 3 else self.patch
        sides = [patch] * len(sample.size) if isinstance(patch, int) else list(patch)
        grid_of(sample.size, sides)
        return {
            "channels": sample.channels, "size": list(sample.size), "patch": sides, "mean": list(sample.mean),
            "std": list(sample.std), "groups": self.groups,
        }  # fmt: skip


def register() -> None:
    """Make transformers' Auto classes know the encoder; `backbones.folder` calls it."""
    AutoConfig.register(PatchEncoderConfig.model_type, PatchEncoderConfig, exist_ok=True)
    AutoModel.register(PatchEncoderConfig, PatchEncoder, exist_ok=True)
