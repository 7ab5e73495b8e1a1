"""Data sets of the Hugging Face Hub, streamed, and folders that `datasets` saved.

Notable: nothing of a data set's own code is run (`datasets` has no such door any more); class numbers become their names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from tilth.corpus.columns import fit, merged_schema, storable
from tilth.corpus.readers.base import PLACE, Reader, places
from tilth.corpus.skipped import SkipList
from tilth.errors import TilthError
from tilth.registry import PositiveInt, method


@method("reader", "hub")
class Hub(Reader):
    """`owner/name` or `owner/name:config` on the Hub, or a local folder that `datasets` can load: all splits, one after another.

    Columns of the data set and `split`, where there are several, and `config`, where none was named and there are several.
    """

    unique_places = True

    def __init__(self, path: str | Path, /, *, batch_rows: PositiveInt = 1024) -> None:
        super().__init__(path)
        self.source, self.batch_rows = str(path).removeprefix("hf:"), batch_rows
        self._parts: list[tuple[dict[str, str], Any]] | None = None

    def parts(self) -> list[tuple[dict[str, str], Any]]:
        """(columns to add, data set) of each config and split; streams, or memory-mapped folders."""
        if self._parts is None:
            self._parts = list(load(self.source))
        return self._parts

    def schema(self) -> pa.Schema:
        schemas = [next(self._tables(data)).schema for _, data in self.parts() if self._any(data)]
        columns = storable(merged_schema(schemas))
        added = [(name, pa.string()) for name in (self.parts()[0][0] if self.parts() else {})]
        return pa.schema(
            [(PLACE, pa.string()), *added, *((n, t) for n, t in zip(columns.names, columns.types) if n not in dict(added))]
        )

    def batches(self, skip: SkipList) -> Iterator[pa.RecordBatch]:
        schema = self.schema()
        for added, data in self.parts():
            row, name = 0, "/".join(added.values()) or "row"
            for table in self._tables(data):
                for batch in table.combine_chunks().to_batches():
                    place = places(name, "#", range(row, row + batch.num_rows))
                    row += batch.num_rows
                    constant = [pa.array([value] * batch.num_rows, pa.string()) for value in added.values()]
                    own = [n for n in batch.schema.names if n not in added]
                    arrays = [place, *constant, *(batch.column(n) for n in own)]
                    yield fit(pa.RecordBatch.from_arrays(arrays, [PLACE, *added, *own]), schema)

    def _any(self, data: Any) -> bool:
        return next(self._tables(data), None) is not None

    def _tables(self, data: Any) -> Iterator[pa.Table]:
        classes = {
            name: feature.names for name, feature in (data.features or {}).items() if type(feature).__name__ == "ClassLabel"
        }
        for table in data.with_format("arrow").iter(batch_size=self.batch_rows):
            for name, names in classes.items():
                index = table.schema.get_field_index(name)
                known = pa.array(names, pa.string())
                numbers = [None if n is None or n < 0 else n for n in table.column(name).to_pylist()]
                table = table.set_column(index, name, known.take(pa.array(numbers, pa.int64())))
            yield table.cast(pa.schema([(f.name, _storage(f.type)) for f in table.schema]))


def load(source: str) -> Iterator[tuple[dict[str, str], Any]]:
    """Every config and split of a data set; TilthError when it cannot be reached or `datasets` is not installed."""
    try:
        import datasets
    except ImportError:
        hint = "Install it with: pip install 'tilth[hub]'"
        raise TilthError("Hugging Face data sets need the package `datasets`", where=source, hint=hint) from None
    local = Path(source).expanduser()
    name, _, config = (source, "", "") if local.exists() else source.partition(":")
    try:
        if local.is_dir() and any((local / mark).exists() for mark in ("dataset_dict.json", "state.json")):
            saved = datasets.load_from_disk(str(local))
            yield from [({"split": k}, v) for k, v in saved.items()] if isinstance(saved, datasets.DatasetDict) else [({}, saved)]
            return
        known = [config] if config else datasets.get_dataset_config_names(name)
        for one in known:
            loaded = datasets.load_dataset(name, one, streaming=True)
            for split, data in loaded.items():
                yield ({"config": one} if len(known) > 1 else {}) | ({"split": str(split)}), data
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "Check the name and the network, or download the files and name their folder instead."
        raise TilthError(f"cannot be read from the Hub: {reason}", where=source, hint=hint) from None


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
