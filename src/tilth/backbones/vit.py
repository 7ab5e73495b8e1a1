"""Weights of vision transformers elsewhere, as a patch encoder's and back: transformers' ViT, and state dicts in timm's layout.

Notable: names are mapped one by one and every tensor must find its place; what belongs to a head or a pooler is left, by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from transformers import ViTConfig, ViTModel

from tilth.backbones.patches import PatchEncoder, PatchEncoderConfig
from tilth.errors import TilthError

_LEFT = ("pooler.", "head.", "fc_norm.", "classifier.", "embeddings.mask_token")
_OURS = {  # our name within a block -> timm's
    "mixer_norm.{}": "norm1.{}", "mixer.qkv.{}": "attn.qkv.{}", "mixer.out.{}": "attn.proj.{}",
    "mlp_norm.{}": "norm2.{}", "mlp.up.{}": "mlp.fc1.{}", "mlp.down.{}": "mlp.fc2.{}",
}  # fmt: skip
_HUGGING = {  # timm's name within a block -> transformers', queries, keys and values apart
    "norm1.{}": "layernorm_before.{}", "attn.proj.{}": "attention.o_proj.{}", "norm2.{}": "layernorm_after.{}",
    "mlp.fc1.{}": "mlp.fc1.{}", "mlp.fc2.{}": "mlp.fc2.{}",
}  # fmt: skip


def from_vit(model: ViTModel, mean: Sequence[float] = (), std: Sequence[float] = ()) -> PatchEncoder:
    """The encoder with a ViT's weights, giving what the ViT gives; mean, std: what its inputs were standardised with, in [0, 1]."""
    config = model.config
    state = {
        f"blocks.{key}" if (key := name.removeprefix("layers.")) != name else name: value
        for name, value in model.state_dict().items()
    }
    timm = {
        "cls_token": state["embeddings.cls_token"],
        "pos_embed": state["embeddings.position_embeddings"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for number in range(int(config.num_hidden_layers)):
        for part in ("weight", "bias"):
            block = f"blocks.{number}."
            for theirs, name in _HUGGING.items():
                timm[block + theirs.format(part)] = state[block + name.format(part)]
            apart = [state[f"{block}attention.{name}_proj.{part}"] for name in "qkv"]
            timm[f"{block}attn.qkv.{part}"] = torch.cat(apart)
    return from_timm(timm, config.num_attention_heads, mean, std, size=config.image_size, eps=config.layer_norm_eps)


def to_vit(encoder: PatchEncoder) -> ViTModel:
    """transformers' ViT with the encoder's weights; it takes inputs standardised with `config.inputs`' mean and std.

    Raises TilthError for an encoder that a ViT cannot be: of volumes, of groups of channels, with Mamba, with other positions.
    """
    config, given = encoder.config, encoder.config.inputs[0]
    plain = len(config.inputs) == 1 and len(given["size"]) == 2 and not given.get("groups") and len({*given["patch"]}) == 1
    if not (
        plain and config.position == "learned" and config.class_token and config.mixer == "attention" and config.mlp == "gelu"
    ):
        raise TilthError(
            "this encoder is not a plain vision transformer",
            hint="It takes pictures in square patches, learned positions and a class token to be saved as one.",
        )
    made = ViTModel(
        ViTConfig(
            hidden_size=config.hidden_size, num_hidden_layers=config.num_hidden_layers, num_attention_heads=config.num_attention_heads,
            intermediate_size=int(config.mlp_ratio * config.hidden_size), image_size=list(given["size"]), patch_size=given["patch"][0],
            num_channels=given["channels"], layer_norm_eps=config.layer_norm_eps, hidden_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    state = encoder.state_dict()
    kernel = made.embeddings.patch_embeddings.projection.weight.shape
    theirs: dict[str, Tensor] = {
        "embeddings.cls_token": state["class_token"],
        "embeddings.position_embeddings": torch.cat([torch.zeros_like(state["class_token"]), state["embeddings.2d.table"]], 1),
        "embeddings.patch_embeddings.projection.weight": state["embeddings.2d.projections.0.weight"].reshape(kernel),
        "embeddings.patch_embeddings.projection.bias": state["embeddings.2d.projections.0.bias"],
        "layernorm.weight": state["norm.weight"],
        "layernorm.bias": state["norm.bias"],
    }
    for number in range(config.num_hidden_layers):
        for ours, timm in _OURS.items():
            for part in ("weight", "bias"):
                value = state[f"blocks.{number}.{ours.format(part)}"]
                if timm == "attn.qkv.{}":
                    for letter, share in zip("qkv", value.chunk(3), strict=True):
                        theirs[f"layers.{number}.attention.{letter}_proj.{part}"] = share
                else:
                    theirs[f"layers.{number}.{_HUGGING[timm].format(part)}"] = value
    made.load_state_dict(theirs)
    return made.eval()


def from_timm(
    state: Mapping[str, Tensor], heads: int, mean: Sequence[float] = (), std: Sequence[float] = (), *,
    size: int | Sequence[int] | None = None, eps: float = 1e-6,
) -> PatchEncoder:  # fmt: skip
    """The encoder with weights in timm's layout (blocks.0.attn.qkv.weight ...), which do not tell the number of heads.

    size: of the pictures (height, width), None: square. Raises TilthError naming a weight that finds no place or is missing.
    """
    wanted = ("patch_embed.proj.weight", "pos_embed", "cls_token")
    if missing := [name for name in wanted if name not in state]:
        raise TilthError(
            f"the weights lack '{missing[0]}'", hint="They must be those of a plain vision transformer with a class token."
        )
    kernel, table = state[wanted[0]], state["pos_embed"]
    width, channels, *patch = kernel.shape
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    count = table.shape[1] - 1
    if size is None:
        sides = [int(count**0.5) * edge for edge in patch]
    else:
        sides = [size, size] if isinstance(size, int) else list(size)
    given = {"channels": channels, "size": sides, "patch": list(patch), "mean": list(mean), "std": list(std)}
    ratio = state["blocks.0.mlp.fc1.weight"].shape[0] / width
    config = PatchEncoderConfig(
        [given], width, depth, heads, ratio, position="learned", class_token=True, pooling="class", layer_norm_eps=eps
    )
    made = PatchEncoder(config)
    ours = {
        **{name: value for name, value in made.state_dict().items() if name.endswith((".mean", ".std"))},
        "class_token": state["cls_token"] + table[:, :1],  # the class token's own position never changes
        "embeddings.2d.table": table[:, 1:],
        "embeddings.2d.projections.0.weight": kernel.flatten(1),
        "embeddings.2d.projections.0.bias": state["patch_embed.proj.bias"],
        **dict(_renamed(state)),
    }
    known = {*wanted, "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    placed = known | {
        f"blocks.{n}.{name.format(part)}" for n in range(depth) for name in _OURS.values() for part in ("weight", "bias")
    }
    if over := sorted(name for name in state if name not in placed and not name.startswith(_LEFT)):
        raise TilthError(f"the weight '{over[0]}' has no place in this encoder", hint="Only plain vision transformers fit.")
    made.load_state_dict(ours)
    return made.eval()


def _renamed(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    theirs = {timm.format(part): ours.format(part) for ours, timm in _OURS.items() for part in ("weight", "bias")}
    for name, value in state.items():
        if name in ("norm.weight", "norm.bias"):
            yield name, value
        elif name.startswith("blocks."):
            _, number, inner = name.split(".", 2)
            if inner in theirs:
                yield f"blocks.{number}.{theirs[inner]}", value
