"""Examples at rest: Lance tables with versions, readers of what people have, and the catalogue of public data sets."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilth.corpus.detection import Detected as Detected
    from tilth.corpus.detection import detect as detect
    from tilth.corpus.ingestion import Ingested as Ingested
    from tilth.corpus.ingestion import ingest as ingest
    from tilth.corpus.table import Corpus as Corpus

_PUBLIC = {
    "Corpus": "tilth.corpus.table",
    "Detected": "tilth.corpus.detection",
    "Ingested": "tilth.corpus.ingestion",
    "detect": "tilth.corpus.detection",
    "ingest": "tilth.corpus.ingestion",
}
__all__ = ["Corpus", "Detected", "Ingested", "detect", "ingest"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        from importlib import import_module

        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"tilth.corpus has no '{name}'")
