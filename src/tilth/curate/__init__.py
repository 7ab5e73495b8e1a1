"""Corpus -> better corpus: Daft plans whose steps say why a row is removed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilth.curate.plan import Curated as Curated
    from tilth.curate.plan import StepCount as StepCount
    from tilth.curate.plan import curate as curate

__all__ = ["Curated", "StepCount", "curate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from tilth.curate import plan

        return getattr(plan, name)
    raise AttributeError(f"tilth.curate has no '{name}'")
