"""A few tiny flood scenes as a corpus."""

from pathlib import Path

from tilth.context import Context
from tilth.contracts import use
from tilth.corpus import Corpus
from tilth.stages.floods import Floods

BATCHES = use("batches", "segmentation", dates=3, clamp=0.15, mean=[0.0953, 0.0264], std=[0.0427, 0.0215])


def floods(folder: Path) -> Corpus:
    """Sixteen tiles of 16 x 16, of four events; made once per folder."""
    if not (folder / "corpus.lance").exists():
        folder.mkdir(parents=True, exist_ok=True)
        Floods(events=4, side=2, size=16, smooth=3.0).run(Context(folder))
    return Corpus.open(folder / "corpus.lance")
