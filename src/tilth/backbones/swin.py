"""Swin Transformer V2: transformers' network behind the face of the patch encoder, started as its authors start it.

Notable: attention in windows whose position bias is a function of coordinates, so that a model moves to larger pictures and
windows as it stands (`resized`); names of weights are those of transformers' `Swinv2Model`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers import initialization as init
from transformers.models.swinv2.configuration_swinv2 import Swinv2Config
from transformers.models.swinv2.modeling_swinv2 import Swinv2Model

from tilth.backbones.swin_bias import TableAttention, WindowAttention
from tilth.backbones.swin_block import BranchNorm, SwinBlock, tiled
from tilth.batches.patches.patchify import grid_of
from tilth.contracts import Backbone, Features, Sample
from tilth.errors import TilthError
from tilth.registry import Fraction, Positive, PositiveInt, method


@strict
class SwinConfig(Swinv2Config):
    """transformers' settings, and: mean, std of each channel; position, block as in `swin_v2`. pretrained_window_sizes: of each
    stage, one number or one for each axis, 0 where it is the stage's own window."""

    model_type = "tilth_swin_v2"

    pretrained_window_sizes: list[Any] | tuple[Any, ...] = (0, 0, 0, 0)
    mean: list[float] | tuple[float, ...] = ()
    std: list[float] | tuple[float, ...] = ()
    position: str = "log"
    block: str = "v2"

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """As `PatchEncoderConfig.inputs`. stride: pixels for each token of the last map."""
        stride = [side * 2 ** (len(self.depths) - 1) for side in self._pair(self.patch_size)]
        return [
            {
                "channels": self.num_channels, "size": self._pair(self.image_size), "patch": self._pair(self.patch_size),
                "mean": list(self.mean), "std": list(self.std), "groups": None, "stride": stride, "width": self.embed_dim,
            }
        ]  # fmt: skip

    def windows(self) -> list[tuple[int, int]]:
        """Sides of each stage's windows: of its map where that is no larger. Raises TilthError where windows do not tile a map."""
        [given] = self.inputs
        grid = grid_of(given["size"], given["patch"])
        grid_of(given["size"], given["stride"])
        found = []
        for stage in range(len(self.depths)):
            sides = (grid[0] >> stage, grid[1] >> stage)
            found.append((min(sides[0], self.window_size), min(sides[1], self.window_size)))
            tiled(sides, found[-1])
        return found

    def trained(self, stage: int) -> tuple[int, int] | None:
        """Sides of the windows in which a stage's position bias was trained; None: its own."""
        sides = self._pair(self.pretrained_window_sizes[stage])
        return (sides[0], sides[1]) if all(sides) else None

    @staticmethod
    def _pair(value: Any) -> list[int]:
        return [value, value] if isinstance(value, int) else list(value)


class PixelScale(nn.Module):
    """Standardises inputs; what `SwinEncoder.embedding` gives. patch, width: of the patch embedding."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        [self.given] = config.inputs
        self.patch, self.width = tuple(self.given["patch"]), config.embed_dim
        for name, values in self.values().items():
            self.register_buffer(name, values, persistent=False)

    def values(self) -> dict[str, Tensor]:
        """What the buffers start as: (channels, 1, 1) each."""
        pairs = (("mean", 0.0), ("std", 1.0))
        return {
            name: torch.tensor(self.given[name] or [default] * self.given["channels"]).reshape(-1, 1, 1)
            for name, default in pairs
        }

    def standardised(self, values: Tensor) -> Tensor:
        """(values - mean) / std of each channel, in float32."""
        return (values.float() - self.mean) / self.std


class SwinEncoder(Swinv2Model):
    """See `swin_v2`. An encoder of pictures (batch, channels, height, width)."""

    config_class = SwinConfig
    config: SwinConfig

    def __init__(self, config: SwinConfig) -> None:
        config.windows()
        super().__init__(config)
        self.scale = PixelScale(config)
        rates = iter(torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist())
        stages: Any = self.encoder.layers
        for number, stage in enumerate(stages):
            sides = stage.blocks[0].input_resolution
            stage.blocks = nn.ModuleList(
                SwinBlock(
                    config,
                    stage.dim,
                    sides,
                    config.num_heads[number],
                    stage=number,
                    shifted=index % 2 == 1,
                    drop_path=next(rates),
                )
                for index in range(config.depths[number])
            )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Block norms start at 0 and 0, so that every block is the identity (transformers': 1 and 0); the patch embedding starts as
        PyTorch's convolutions do (transformers': normal); linear layers from N(0, 0.02)."""
        if isinstance(module, WindowAttention):
            module.reset()
        elif isinstance(module, BranchNorm):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, PixelScale):
            for name, values in module.values().items():
                init.copy_(getattr(module, name), values)
        elif not isinstance(module, nn.Conv2d):
            super()._init_weights(module)

    def embedding(self, values: Tensor) -> PixelScale:
        """What knows of patches and standardises, for inputs like these."""
        if values.ndim != 4:
            raise TilthError(f"this encoder reads 2d inputs, not {values.ndim - 2}d")
        if values.shape[1] != self.config.num_channels:
            raise TilthError(f"this encoder reads {self.config.num_channels} channels, not {values.shape[1]}")
        return self.scale

    def forward(  # type: ignore[override]
        self, pixel_values: Tensor, *, hidden: Tensor | None = None, fill: Tensor | None = None, layers: Sequence[int] = ()
    ) -> Features:
        """Features of pictures in their natural scale: tokens are those of the last map, in raster order, normalised.

        hidden (batch, tokens of the first map) bool with fill (embed_dim,): these patches are replaced by `fill` before the first
        block (SimMIM). layers: numbers of stages, from 1, whose last maps are wanted, before they are merged. Pictures of another
        size than the configuration's run with the same windows.
        """
        values = self.embedding(pixel_values).standardised(pixel_values)
        grid_of(values.shape[2:], self.config.inputs[0]["stride"])
        projected = self.embeddings.patch_embeddings.projection(values)
        sides = (projected.shape[2], projected.shape[3])
        tokens = self.embeddings.norm(projected.flatten(2).transpose(1, 2))
        if hidden is not None and fill is not None:
            tokens = torch.where(hidden[:, :, None], fill.to(tokens.dtype), tokens)
        taken = {}
        for number, stage in enumerate(self.encoder.layers, 1):
            tokens, unmerged, (*_, high, wide) = stage(tokens, sides)
            sides = (high, wide)
            if number in layers:
                taken[number] = unmerged
        tokens = self.layernorm(tokens)
        return Features(tokens, tokens.mean(1), tuple(taken[number] for number in layers))


def resized(model: SwinEncoder, size: int | Sequence[int], window: int) -> SwinEncoder:
    """The same network for pictures of another size and another window: every weight is copied, nothing is learnt anew.

    The position bias goes on to refer to the windows it was trained in (those of the model, or those that it was resized from);
    only a 'table' is interpolated. Raises TilthError where the window does not tile the maps.
    """
    config = copy.deepcopy(model.config)
    stages: Any = model.encoder.layers
    first = [stage.blocks[0].attention.self for stage in stages]
    config.pretrained_window_sizes = [list(attention.pretrained_window_size) for attention in first]
    config.image_size, config.window_size = [size, size] if isinstance(size, int) else list(size), window
    new = SwinEncoder(config)
    weights = dict(model.state_dict())
    for name, module in new.named_modules():
        if isinstance(module, TableAttention):
            old: Any = model.get_submodule(name)
            weights[f"{name}.relative_position_bias_table"] = old.stretched(module.window_size)
    new.load_state_dict(weights)
    return new.to(device=model.device, dtype=model.dtype).train(model.training)  # type: ignore[call-arg,return-value]


@method("backbone", "swin_v2", systems=[52])
class SwinV2(Backbone):
    """Swin Transformer V2 (arXiv 2111.09883): attention in windows, maps halved and widths doubled from stage to stage.

    width: of the first stage. depths, heads: of every stage. window: sides of the windows, in tokens. pretrained_windows: of every
    stage, the windows its position bias was trained in, 0: its own (the last stage of a 192-pixel model with windows of 12 has a
    map of 6, and so windows of 6). patch: sides of a patch in pixels. drop_path: of the last block, rising from 0.
    position: where the position bias comes from, 'log' (log-spaced continuous, the model's own), 'linear' (continuous) or 'table'.
    block: 'v2' (norms after each branch, scaled cosine attention) or 'v1' (norms before it, dot products), to compare with;
    merging is V2's in both. Channels, size, mean and deviation come from the data.
    """

    tokenised = False

    def __init__(
        self,
        *,
        width: PositiveInt = 96,
        depths: tuple[PositiveInt, ...] = (2, 2, 6, 2),
        heads: tuple[PositiveInt, ...] = (3, 6, 12, 24),
        window: PositiveInt = 8,
        pretrained_windows: list[int] | None = None,
        patch: PositiveInt = 4,
        mlp_ratio: Positive = 4.0,
        drop_path: Fraction = 0.1,
        position: Literal["log", "linear", "table"] = "log",
        block: Literal["v2", "v1"] = "v2",
    ) -> None:
        if len(heads) != len(depths) or len(pretrained_windows or depths) != len(depths):
            raise TilthError(
                f"there are {len(depths)} stages in 'depths'",
                where="backbone.swin_v2",
                hint="'heads' and 'pretrained_windows' list as many.",
            )
        if any(width * 2**stage % count for stage, count in enumerate(heads)):
            raise TilthError("a stage's width does not split into its heads", where="backbone.swin_v2.heads")
        self.width, self.depths, self.heads, self.window, self.patch = width, depths, heads, window, patch
        self.pretrained_windows = pretrained_windows or [0] * len(depths)
        self.mlp_ratio, self.drop_path, self.position, self.block = mlp_ratio, drop_path, position, block

    def build(self, inputs: Sample) -> SwinEncoder:
        """inputs: what the pictures look like."""
        if len(inputs.size) != 2:
            raise TilthError(f"swin_v2 reads pictures, not inputs of {len(inputs.size)} axes", where="backbone.swin_v2")
        return SwinEncoder(
            SwinConfig(
                image_size=list(inputs.size), patch_size=self.patch, num_channels=inputs.channels, embed_dim=self.width,
                depths=list(self.depths), num_heads=list(self.heads), window_size=self.window, mlp_ratio=self.mlp_ratio,
                pretrained_window_sizes=list(self.pretrained_windows), drop_path_rate=self.drop_path,
                mean=list(inputs.mean), std=list(inputs.std), position=self.position, block=self.block,
            )
        )  # fmt: skip


def register() -> None:
    """Make transformers' Auto classes know the encoder; `backbones.folder` calls it."""
    AutoConfig.register(SwinConfig.model_type, SwinConfig, exist_ok=True)
    AutoModel.register(SwinConfig, SwinEncoder, exist_ok=True)
