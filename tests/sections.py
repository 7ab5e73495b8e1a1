"""Drawn sections of one volume: bright cells in dark membranes."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from tilth.context import Context
from tilth.corpus import Corpus
from tilth.corpus.pictures import encoded
from tilth.stages.sections import Sections


def drawn(count=8, side=32, seed=0):
    """Grey values and cells, uint8 (count, side, side) each: other walls in every section, 3 to 12 pixels apart."""
    rng = np.random.default_rng(seed)
    cells = np.full((count, side, side), 255, np.uint8)
    for section in cells:
        for lines in (section, section.T):
            walls = np.cumsum(rng.integers(5, 11, side))
            lines[walls[walls < side - 3]] = 0
    grey = (np.where(cells, 180, 60) + rng.normal(0, 15, cells.shape)).clip(0, 255).astype(np.uint8)
    return grey, cells


def sections(folder: Path, given=None, backwards=False) -> Corpus:
    """A row for each section, with slice (0, 2, 4 ...), image and cells; backwards: the last section is the first row."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"section-{i}", "slice": 2 * i, "image": encoded(grey), "cells": encoded(cells)}
        for i, (grey, cells) in enumerate(zip(*(given or drawn()), strict=True))
    ]
    table = pa.Table.from_pylist(rows[::-1] if backwards else rows)
    return Corpus.write(folder / "given.lance", table.to_batches(), table.schema)


def crops(folder: Path, rows: Corpus, **settings) -> Corpus:
    """What the stage makes of them."""
    (folder / "crops").mkdir(parents=True, exist_ok=True)
    Sections(**{"data": "rows", "cells": "cells", **settings}).run(Context(folder / "crops", corpora={"rows": rows}))
    return Corpus.open(folder / "crops" / "corpus.lance")
