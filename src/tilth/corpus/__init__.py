"""Examples at rest: Lance tables with versions, readers of what people have, and the catalogue of public data sets.

`Corpus` is here; `from tilth.corpus.ingest import ingest`, `from tilth.corpus.detect import detect`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilth.corpus.table import Corpus as Corpus

__all__ = ["Corpus"]


def __getattr__(name: str) -> Any:
    if name == "Corpus":
        from tilth.corpus.table import Corpus

        return Corpus
    raise AttributeError(f"tilth.corpus has no '{name}'")
