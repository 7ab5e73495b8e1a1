"""Sections of one volume as crops of it: pictures stacked in their order, and ids of the cells where these are drawn.

Notable: sections pass through a window as deep as a crop, so a volume of any depth needs no more memory than that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.ndimage import label

from tilth.context import Context
from tilth.contracts import CorpusRef, Stage, method
from tilth.corpus import Corpus
from tilth.corpus.arrays import packed
from tilth.corpus.pictures import decoded
from tilth.corpus.tiling import starts, windows
from tilth.errors import TilthError
from tilth.registry import NonNegativeInt, PositiveInt

Section = tuple[NDArray[np.uint8], NDArray[np.int32] | None]  # grey values and ids, (height, width) each


@method("stage", "sections", systems=[12, 47])
class Sections(Stage):
    """Grey pictures of the sections of one volume, stacked and cut into crops.

    data: one row for each section. size: voxels of a crop along depth, height and width; overlap: voxels that neighbours share
    along each (the last of an axis is moved back). order: column whose values say which section follows which; image: column of
    pictures.
    cells: column of pictures whose pixels are 0 on membranes and something else within cells; None: no ids. A cell's id is that
    of its connected component in its section (pixels that share an edge), counted from 1 through all sections, so that no two
    share one; membranes have 0. labelled: values of `order` whose sections have labels, in the others every id is -1; None: all.

    Columns: id, number, array (.npy, uint8 (1, *size)) and, with `cells`, mask (.npy, int32 size).
    """

    gives = "corpus"
    seeded = False

    def __init__(
        self,
        *,
        data: CorpusRef,
        size: tuple[PositiveInt, PositiveInt, PositiveInt] = (16, 160, 160),
        overlap: tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt] = (0, 0, 0),
        order: str = "slice",
        image: str = "image",
        cells: str | None = None,
        mask: Literal["ids", "membranes"] = "ids",
        labelled: list[NonNegativeInt] | None = None,
    ) -> None:
        if labelled is not None and cells is None:
            raise TilthError(
                "'labelled' is of sections with cells", where="sections.labelled", hint="Name their column in 'cells'."
            )
        windows(size, size, overlap)  # raises where crops cannot overlap by so much
        self.data, self.size, self.overlap, self.order, self.image = data, size, overlap, order, image
        self.cells, self.mask, self.labelled = cells, mask, labelled

    def run(self, context: Context) -> dict[str, float]:
        """Write 'corpus.lance'; metrics: rows, sections.

        Raises TilthError for no rows, sections of several sizes or one number, fewer or smaller ones than a crop needs, labelled
        ones that do not exist, and pictures that cannot be read.
        """
        given = context.corpus(self.data)
        numbers = self._numbers(given)
        fields: list[Any] = [("id", pa.string()), ("number", pa.int64()), ("array", pa.large_binary())]
        schema = pa.schema(fields + ([("mask", pa.large_binary())] if self.cells else []))
        crops = self._batches(given, numbers, schema)
        corpus = Corpus.write(context.folder / "corpus.lance", crops, schema, metadata={"kind": "volume"})
        return {"rows": float(corpus.count()), "sections": float(len(numbers))}

    def _numbers(self, given: Corpus) -> list[Any]:
        """What `order` says of every row, checked."""
        numbers = given.table([self.order])[self.order].to_pylist()
        if not numbers:
            raise TilthError("there are no sections", where=self.data, hint="Check the predicate of its rows.")
        if None in numbers or len(set(numbers)) < len(numbers):
            raise TilthError(
                f"'{self.order}' does not give every section a number of its own", where=self.data,
                hint="Choose the rows of one volume with 'where'.",
            )  # fmt: skip
        if missing := set(self.labelled or ()) - set(numbers):
            raise TilthError(f"there is no section {min(missing)}", where="sections.labelled")
        if len(numbers) < self.size[0]:
            raise TilthError(
                f"{len(numbers)} sections are too few for crops of {self.size[0]}", where=self.data, hint="Set a smaller 'size'."
            )
        return numbers

    def _batches(self, given: Corpus, numbers: list[Any], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        depth, *sides = self.size
        sections = self._sections(given, numbers)
        held: deque[Section] = deque(maxlen=depth)
        read = crop = 0
        for start in starts(len(numbers), depth, self.overlap[0]):
            while read < start + depth:
                held.append(next(sections))
                read += 1
            for window in windows(held[0][0].shape, sides, self.overlap[1:]):
                row = {
                    "id": f"crop-{crop:06d}",
                    "number": crop,
                    "array": packed(np.stack([picture[window] for picture, _ in held])[None]),
                    "mask": packed(np.stack([ids[window] for _, ids in held if ids is not None])) if self.cells else None,
                }
                yield pa.RecordBatch.from_pylist([row], schema)
                crop += 1

    def _sections(self, given: Corpus, numbers: list[Any]) -> Iterator[Section]:
        """Every section in its order, read when it is asked for."""
        columns = ["id", self.image, *([self.cells] if self.cells else [])]
        shape: tuple[int, ...] = ()
        known = 0  # cells so far
        for row in sorted(range(len(numbers)), key=numbers.__getitem__):
            [content] = given.take([row], columns).to_pylist()
            where = f"{given.uri}, row '{content['id']}'"
            picture = _read(content[self.image], where)
            shape = shape or picture.shape
            if picture.shape != shape:
                raise TilthError(f"a section of {_shown(picture.shape)} among sections of {_shown(shape)}", where=where)
            if shape[0] < self.size[1] or shape[1] < self.size[2]:
                raise TilthError(
                    f"a section of {_shown(shape)} has no crop of {_shown(self.size[1:])}",
                    where=where,
                    hint="Set a smaller 'size'.",
                )
            ids = None
            if self.cells and self.labelled is not None and numbers[row] not in self.labelled:
                ids = np.full(shape, -1, np.int32)
            elif self.cells:
                cells = _read(content[self.cells], where)
                if cells.shape != shape:
                    raise TilthError(f"cells of {_shown(cells.shape)} in a section of {_shown(shape)}", where=where)
                if self.mask == "membranes":
                    ids = (cells == 0).astype(np.int32)
                else:
                    found, count = label(cells)
                    ids = np.where(found > 0, found + known, 0).astype(np.int32)
                    known += count
            yield picture, ids


def _read(data: bytes | None, where: str) -> NDArray[np.uint8]:
    """An encoded picture as grey (height, width)."""
    try:
        return decoded(data or b"", 1)[0]  # type: ignore[no-any-return]
    except ValueError as error:
        raise TilthError(f"the picture cannot be read: {error}", where=where) from error


def _shown(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
