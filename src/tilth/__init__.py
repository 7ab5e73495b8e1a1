"""Tilth: unlabelled data through its whole life in a model. See `tilth --help` and docs/."""

import os
from typing import TYPE_CHECKING, Any

# Daft and Ray report their use to their makers unless told not to, and read this when they are imported.
for _name in ("DAFT_ANALYTICS_ENABLED", "DAFT_PROGRESS_BAR", "RAY_USAGE_STATS_ENABLED"):
    os.environ.setdefault(_name, "0")
# OpenMP threads that spin at every barrier make training some thirty times slower when another process wants the cores;
# a short spin costs nothing when none does. Read when PyTorch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from tilth.backbones.folder import load as load
    from tilth.corpus import Corpus as Corpus
    from tilth.errors import TilthError as TilthError
    from tilth.recipe import Recipe as Recipe
    from tilth.registry import use as use

__version__ = "0.1.0"

_PUBLIC = {
    "Corpus": "tilth.corpus",
    "Recipe": "tilth.recipe",
    "TilthError": "tilth.errors",
    "load": "tilth.backbones.folder",
    "use": "tilth.registry",
}
__all__ = ["Corpus", "Recipe", "TilthError", "__version__", "load", "use"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"tilth has no '{name}'")
