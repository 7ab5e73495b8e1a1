"""Corpus -> better corpus: Daft plans whose steps say why a row is removed."""

import os
from typing import TYPE_CHECKING, Any

for _name in ("DAFT_ANALYTICS_ENABLED", "DAFT_PROGRESS_BAR", "RAY_USAGE_STATS_ENABLED"):  # read when they are imported
    os.environ.setdefault(_name, "0")

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
