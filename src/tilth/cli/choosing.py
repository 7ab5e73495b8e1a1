"""`tilth pretrain DATA`: look at the data, pick a recipe and the size of the model, and say why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilth.errors import TilthError

_RECIPES = {"text": "text", "answers": "answers", "image": "pictures", "scene": "tiles", "volume": "tiles"}


@dataclass(frozen=True)
class Choice:
    """A recipe ready to run, and the reasons, one line each."""

    recipe: Any
    why: list[str]


def choose(
    data: Mapping[str, Any], *, recipe: str | None, minutes: float, overrides: Mapping[str, Any], purpose: str | None = None
) -> Choice:
    """A recipe for `data` (an entry of `data:`) that trains for about `minutes` on this machine; purpose: see `objective_for`.

    Raises TilthError when there is no recipe for this kind of data, or no choice by purpose.
    """
    from tilth.backbones.size import machine_flops, suggest
    from tilth.corpus import catalogue
    from tilth.corpus.detect import detect
    from tilth.recipe import Recipe

    source = catalogue.resolve(data["source"])
    why = []
    if recipe is None:
        found = detect(source.path)
        why.append(f"{data['source']}: {found.why}")
        if found.kind not in _RECIPES:
            raise TilthError(
                f"this is {found.kind} data, and there is no recipe yet that pre-trains on it",
                where=str(data["source"]),
                hint="With your own recipe: --recipe FILE. What there is: tilth methods --kind pretrain",
            )
        recipe = _RECIPES[found.kind]
    tree = Recipe.load(recipe).tree
    if "corpus" not in tree["data"]:
        raise TilthError(f"recipe '{recipe}' has no data called 'corpus' to put yours in", hint="See: tilth recipe show text")
    stage = next((name for name, spec in tree["stages"].items() if "pretrain" in spec and "backbone" in spec["pretrain"]), None)
    changed: dict[str, Any] = {}
    chooses = False
    if stage and "causal_lm" in tree["stages"][stage]["pretrain"]["backbone"]:
        seconds = 60 * minutes
        size = suggest(max(1, _bytes(Path(source.path)) // 4), seconds, machine_flops())
        changed = {
            f"stages.{stage}.pretrain.backbone": {"causal_lm": {"width": size.width, "depth": size.depth, "heads": size.heads}},
            f"stages.{stage}.pretrain.budget": {"seconds": seconds},
        }
        why.append(size.why)
    elif stage:
        changed = {f"stages.{stage}.pretrain.budget": {"seconds": 60 * minutes}}
        planned = Recipe.load(tree, overrides=overrides).tree["stages"][stage]["pretrain"]
        settings, reasons, chooses = _encoder(source, planned, purpose)
        changed |= {f"stages.{stage}.pretrain.{path}": value for path, value in settings.items()}
        why += reasons
    if purpose is not None and not chooses:
        raise TilthError(
            f"recipe '{recipe}' has no objective to be chosen by what its encoder is for",
            where="--for",
            hint="--for goes with pictures, scenes and volumes.",
        )
    why.append(f"Recipe '{recipe}' (see: tilth recipe show {recipe}), {minutes:g} minutes of training.")
    tree = {**tree, "data": {**tree["data"], "corpus": dict(data)}}
    return Choice(Recipe.load({**tree, "name": f"pretrain-{recipe}"}, overrides={**changed, **overrides}), why)


def _encoder(source: Any, planned: Mapping[str, Any], purpose: str | None) -> tuple[dict[str, Any], list[str], bool]:
    """Settings of a pretrain stage for such data, reasons, and whether its objective goes by purpose; of other data than these none."""
    from tilth.pretrain.images.choosing import objective_for
    from tilth.training.settings import Training

    batches = planned.get("batches", {})
    look = next((look for name, look in (("pictures", pictures), ("tiles", tiles)) if name in batches), None)
    if look is None:
        return {}, [], False
    settings, reason = look(source)
    objective = planned["objective"]
    if (objective if isinstance(objective, str) else next(iter(objective), "")) != "mae":
        return settings, [reason], False
    batch_size = planned.get("training", {}).get("batch_size", Training().batch_size)
    suggestion = objective_for(purpose, natural="pictures" in batches, batch_size=batch_size)
    if suggestion.objective:
        settings = {path: value for path, value in settings.items() if not path.startswith("objective.")}
        settings["objective"] = suggestion.objective
    return settings, [reason, suggestion.why], True


def pictures(source: Any) -> tuple[dict[str, Any], str]:
    """Settings of a pretrain stage for pictures like the first ones of a source, and why: size, patch, channels.

    Sizes are multiples of 8, at most 96 (on a CPU), and patches an eighth of that: 64 tokens.
    """
    import io

    import numpy as np
    from PIL import Image

    from tilth.corpus.detect import READERS, detect

    found = detect(source.path)
    head = READERS[found.reader](source.path).peek()
    column = found.columns.get("image", "image")
    sides, colours = [], []
    for data in head.column(column).to_pylist()[:64] if head is not None else []:
        image = Image.open(io.BytesIO(data["bytes"] if isinstance(data, dict) else data))
        sides.append(min(image.size))
        colours.append(image.mode not in ("1", "L", "I", "F", "I;16"))
    side = int(np.median(sides)) if sides else 32
    size, channels = max(8, min(96, side // 8 * 8)), 3 if any(colours) else 1
    kind = "colour" if channels == 3 else "grey"
    why = (
        f"Shorter sides are about {side} pixels, in {kind}: kept at {size} x {size}, in 64 patches of {size // 8} x {size // 8}."
    )
    return {"batches.pictures": {"size": size, "channels": channels}, "backbone.patches.patch": size // 8}, why


def tiles(source: Any) -> tuple[dict[str, Any], str]:
    """The same for scenes and volumes: whole arrays in tiles of 64 patches, of at most 64 pixels a side, of volumes 32 voxels.

    Raises TilthError for arrays that are too small.
    """
    from tilth.corpus.arrays import unpacked
    from tilth.corpus.detect import READERS, detect

    found = detect(source.path)
    head = READERS[found.reader](source.path).peek()
    column = head.column(found.columns.get("array", "array")).to_pylist()[:64] if head is not None else []
    shapes = [unpacked(data).shape for data in column]
    dims, least = len(shapes[0]) - 1, min(min(shape[1:]) for shape in shapes)
    across, most = (8, 64) if dims == 2 else (4, 32)
    if least < across:
        raise TilthError(f"arrays of {least} along one axis are too small for {across} patches", where=str(source.path))
    size = min(most, least // across * across)
    # In volumes positions have three axes, so widths are multiples of 6.
    mae: dict[str, Any] = (
        {"objective.mae.views": {"mae": {}}}
        if dims == 2
        else {"objective.mae.views": {"volumes": {"flip": 0.5, "rot90": 0}}, "objective.mae.decoder_width": 120}
    )
    shown = "x".join([str(size)] * dims)
    why = f"{shapes[0][0]} channels, sides from {least}: tiles of {shown}, in {across**dims} patches of {size // across} a side."
    return {"batches.tiles": {"size": size, "overlap": 0}, "backbone.patches.patch": size // across, **mae}, why


def _bytes(path: Path) -> int:
    """Size on disk: what there is to read, roughly."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
