"""Corpus: a Lance table of examples, seen at one version and perhaps through a predicate.

Notable: rows are written as fragments first and committed once they are all there, with their fingerprint in the table's
metadata, so a table is whole or absent; a fingerprint is content plus what was done to it (appends, deletions) plus the
predicate, so equal content has equal fingerprints in different folders.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("LANCE_LOG", "error")  # or Lance warns on the terminal of every table that it creates

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import write_fragments

from tilth.corpus import predicates
from tilth.corpus.identity import ContentHash, SeenIds
from tilth.errors import TilthError
from tilth.store import digest

if TYPE_CHECKING:
    import daft

_CONTENT, _PREFIX = "tilth.content", "tilth."
_FRAGMENT_BYTES = 256 * 2**20  # a fragment is what one process of a parallel plan reads
_NEUTRAL = ("Rewrite", "CreateIndex", "UpdateConfig")  # commits that change no row


class Corpus:
    """Examples at rest. Column 'id' (string) tells them apart; `kind` says which columns hold their content.

    uri: folder or object-store URL. version: number of the table's version. where: SQL predicate of this view, or None.
    Text lies in 'text', question/answer pairs in 'question' and 'answer', encoded images and sound in 'image' and 'sound',
    tiles of scenes and volumes in 'array' (`corpus.arrays`), classes in 'label'; every further column is metadata.
    """

    def __init__(self, dataset: lance.LanceDataset, where: str | None = None) -> None:
        self._dataset, self.where = dataset, where

    @classmethod
    def open(cls, uri: str | Path, *, version: int | None = None, where: str | None = None) -> Corpus:
        """The table at `uri`, at its newest version or a given one, filtered by an SQL predicate.

        Raises TilthError when there is no table, no such version, or the predicate does not fit the columns.
        """
        try:
            dataset = lance.dataset(str(uri), version=version)
        except (ValueError, OSError) as error:
            if "was not found" not in str(error):
                raise
            if version is not None:
                known = [entry["version"] for entry in cls.open(uri).versions()]
                raise TilthError(f"there is no version {version}", where=str(uri), hint=f"Versions: {known}") from None
            raise TilthError(
                "there is no corpus here", where=str(uri), hint="Make one with tilth.corpus.ingest(source, uri)."
            ) from None
        checked_schema(dataset.schema, str(uri))
        return cls(dataset).filter(where) if where else cls(dataset)

    @classmethod
    def write(
        cls, uri: str | Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema, *, metadata: Mapping[str, str] | None = None
    ) -> Corpus:
        """A table from record batches, streamed; a table that is already there gets a new version with only these rows.

        metadata: kept with the table, read as `corpus.metadata`; 'kind' defaults to what the columns say.
        Raises TilthError when 'id' is missing, null or not unique. An interrupted write leaves no version behind.
        """
        return cls._commit(uri, Rows(batches, checked_schema(schema, str(uri)), SeenIds(), str(uri)), metadata)

    @classmethod
    def write_checked(
        cls, uri: str | Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema, *, metadata: Mapping[str, str] | None = None
    ) -> Corpus:
        """As `write`, for rows whose ids are known to be unique."""
        return cls._commit(uri, Rows(batches, checked_schema(schema, str(uri)), None, str(uri)), metadata)

    @classmethod
    def _commit(cls, uri: str | Path, rows: Rows, metadata: Mapping[str, str] | None) -> Corpus:
        fragments = rows.write(str(uri), "overwrite")
        kept = {"kind": kind_of(rows.schema), **(metadata or {}), "content": rows.content.hexdigest()}
        described = rows.schema.with_metadata({f"{_PREFIX}{key}": value for key, value in kept.items()})
        return cls(lance.LanceDataset.commit(str(uri), lance.LanceOperation.Overwrite(described, fragments)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.uri, self.version, self.where)

    def __repr__(self) -> str:
        return f"Corpus({self.uri!r}, version={self.version}, where={self.where!r})"

    @property
    def uri(self) -> str:
        return str(self._dataset.uri)

    @property
    def version(self) -> int:
        return int(self._dataset.version)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns; the table's metadata is in `metadata`."""
        return self._dataset.schema.remove_metadata()

    @property
    def columns(self) -> list[str]:
        return list(self.schema.names)

    @property
    def metadata(self) -> dict[str, str]:
        """What was written with the table: kind, source, licence ..."""
        stored = self._dataset.schema.metadata or {}
        return {k.decode().removeprefix(_PREFIX): v.decode() for k, v in stored.items() if k.decode().startswith(_PREFIX)}

    @property
    def kind(self) -> str:
        """'text', 'answers', 'image', 'scene', 'volume', 'sound' or 'table'."""
        return self.metadata.get("kind") or kind_of(self.schema)

    @cached_property
    def _history(self) -> str:
        """Digest of content and what was done to it; of the rows as they are where others than Tilth wrote the table."""
        done: list[list[str]] = []
        later = ""
        for version in range(self.version, 0, -1):
            try:
                transaction = self._dataset.read_transaction(version)
            except (OSError, ValueError):  # cleaned away
                break
            if transaction is None:
                break
            operation, properties = transaction.operation, transaction.transaction_properties or {}
            change = type(operation).__name__
            if change == "Overwrite":
                stored = self.metadata.get("content") or ""
                if not stored:
                    break
                return digest([["write", stored], *reversed(done)])
            if change == "Append" and _CONTENT in properties:
                done.append(["append", properties[_CONTENT]])
            elif isinstance(operation, lance.LanceOperation.Delete):
                done.append(["delete", operation.predicate])
            elif change not in _NEUTRAL and (change, later) != ("BaseOperation", "Rewrite"):  # room reserved for a compaction
                break
            later = change
        content = ContentHash(self.schema)
        for batch in Corpus(self._dataset).scan():
            content.update(batch)
        return digest([["rows", content.hexdigest()]])

    @property
    def fingerprint(self) -> str:
        """24 hexadecimal digits: equal for equal content, history and predicate, wherever the table lies."""
        return digest([self._history, self.where])

    def versions(self) -> list[dict[str, Any]]:
        """One entry per version, oldest first: version, timestamp, rows."""
        listed = self._dataset.versions()
        return [
            {"version": v["version"], "timestamp": v["timestamp"], "rows": int(v["metadata"].get("total_rows", -1))}
            for v in listed
        ]

    def filter(self, where: str | None) -> Corpus:
        """The rows of this view that also meet `where`; TilthError when it does not fit the columns."""
        predicates.check(self._dataset, where, place=self.uri)
        return Corpus(self._dataset, predicates.both(self.where, where))

    def count(self) -> int:
        """Rows of this view."""
        return int(self._dataset.count_rows(filter=self.where))

    def scan(self, columns: Sequence[str] | None = None, batch_size: int = 8192) -> Iterator[pa.RecordBatch]:
        """The rows of this view in row order, at most `batch_size` at a time; read ahead is bounded in bytes."""
        names = predicates.columns(self.columns, list(columns) if columns is not None else None, place=self.uri)
        scanner = self._dataset.scanner(
            columns=names,
            filter=self.where,
            batch_size=batch_size,
            batch_readahead=2,
            fragment_readahead=1,
            io_buffer_size=128 * 2**20,
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield batch.select(names)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """The whole view in memory; for what is known to be small."""
        names = predicates.columns(self.columns, list(columns) if columns is not None else None, place=self.uri)
        schema = pa.schema([self.schema.field(name) for name in names])
        return pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in self.scan(names)], schema)

    @cached_property
    def _rows(self) -> np.ndarray:
        """Row numbers of the view in the table at this version, int64: 8 bytes a row, made on the first `take`."""
        found = [
            batch.column(0).to_numpy() for batch in self._dataset.scanner(columns=["_rowoffset"], filter=self.where).to_batches()
        ]
        return np.concatenate(found).astype(np.int64) if found else np.empty(0, np.int64)

    def take(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows by their number within this view, in the order asked for, repeats allowed. Raises IndexError."""
        names = predicates.columns(self.columns, list(columns) if columns is not None else None, place=self.uri)
        numbers = np.asarray(rows, dtype=np.int64)
        size = len(self._rows) if self.where else self.count()
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= size):
            raise IndexError(f"rows {numbers.min()} to {numbers.max()} of a corpus of {size} rows")
        if not len(numbers):
            return pa.schema([self.schema.field(name) for name in names]).empty_table()
        offsets = self._rows[numbers] if self.where else numbers
        return self._dataset.take(pa.array(offsets), columns=names).select(names).replace_schema_metadata(None)

    def append(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Add rows; this object then shows the new version. The ids already there are read once, to keep them unique."""
        self._writable()
        if self.where:
            raise TilthError(
                "rows cannot be appended to a filtered view", where=self.uri, hint="Open the corpus without 'where'."
            )
        seen = SeenIds()
        for batch in self.scan(["id"]):
            seen.add(batch.column(0))
        rows = Rows(batches, self.schema, seen, self.uri)
        fragments = rows.write(self.uri, "append")
        properties = {_CONTENT: rows.content.hexdigest()}
        append = lance.Transaction(self.version, lance.LanceOperation.Append(fragments), transaction_properties=properties)
        self._show(lance.LanceDataset.commit(self._dataset, append))

    def delete(self, where: str) -> int:
        """Delete the rows of this view that meet `where`; returns how many. This object then shows the new version.

        Earlier versions still hold the rows until `drop_history`.
        """
        self._writable()
        predicate = self.filter(where).where
        before = self._dataset.count_rows()
        self._dataset.delete(predicate)
        removed = before - self._dataset.count_rows()
        self._show(self._dataset)
        return int(removed)

    def drop_history(self) -> None:
        """Rewrite the table without its deleted rows and remove earlier versions: what was deleted is then off the disk."""
        self._writable()
        self._dataset.optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0.0)
        dataset = lance.dataset(self.uri)
        dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
        self._show(dataset)

    def frame(self) -> daft.DataFrame:
        """A lazy Daft frame of this view: version and predicate included, streamed fragment by fragment."""
        from tilth.corpus.frame import frame

        return frame(self._dataset, self.where)

    def _writable(self) -> None:
        if self.version != self._dataset.latest_version:
            raise TilthError(
                f"version {self.version} is not the newest ({self._dataset.latest_version}) and cannot be changed",
                where=self.uri,
                hint="Open the corpus without 'version'.",
            )

    def _show(self, dataset: lance.LanceDataset) -> None:
        self._dataset = dataset
        self.__dict__.pop("_rows", None)
        self.__dict__.pop("_history", None)


class Rows:
    """Record batches on their way into a table: fitted to its schema, ids checked, content hashed."""

    def __init__(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema, seen: SeenIds | None, place: str) -> None:
        self.batches, self.schema, self.seen, self.place = batches, schema, seen, place
        self.content = ContentHash(schema)
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self.batches:
                fitted = self._fit(batch)
                if fitted.num_rows:
                    self.content.update(fitted)
                    yield fitted
        except BaseException as error:  # Lance would hand on only its text; `write` raises the error itself
            self.failure = error
            raise

    def _fit(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        missing = [name for name in self.schema.names if name not in batch.schema.names]
        if missing:
            raise TilthError(f"a batch of rows lacks the column '{missing[0]}'", where=self.place)
        extra = [name for name in batch.schema.names if name not in self.schema.names]
        if extra:
            raise TilthError(f"a batch of rows has the column '{extra[0]}', which the corpus has not", where=self.place)
        fitted = batch.select(self.schema.names).cast(self.schema)
        ids = fitted.column("id")
        if ids.null_count:
            raise TilthError("a row has no id", where=self.place, hint="Give every row a string in the column 'id'.")
        if self.seen is not None:
            repeated = self.seen.add(ids)
            if repeated.any():
                raise TilthError(
                    f"two rows have the id '{ids[int(repeated.argmax())]}'", where=self.place, hint="Ids tell rows apart."
                )
        return fitted

    def write(self, uri: str, mode: str) -> list[Any]:
        """The rows as fragments that belong to no version yet. mode: 'overwrite', or 'append' to the table's schema."""
        reader = pa.RecordBatchReader.from_batches(self.schema, iter(self))
        try:
            return list(write_fragments(reader, uri, schema=self.schema, mode=mode, max_bytes_per_file=_FRAGMENT_BYTES))
        except (OSError, ValueError, RuntimeError):
            if self.failure is not None:
                raise self.failure from None
            raise


def checked_schema(schema: pa.Schema, place: str) -> pa.Schema:
    """The schema as a table holds it: 'id' a string, dictionaries as their values."""
    if "id" not in schema.names or not (
        pa.types.is_string(schema.field("id").type) or pa.types.is_large_string(schema.field("id").type)
    ):
        raise TilthError("a corpus needs a column 'id' of type string", where=place, hint=f"It has {schema.names}.")
    plain = [f.with_type(f.type.value_type) if pa.types.is_dictionary(f.type) else f for f in schema]
    return pa.schema([field.remove_metadata() for field in plain])


def kind_of(schema: pa.Schema) -> str:
    """What the columns say a corpus is of."""
    names = set(schema.names)
    if {"question", "answer"} <= names:
        return "answers"
    if {"array", "bands"} <= names:
        return "volume" if "plane" in names else "scene"
    return next((kind for kind in ("text", "image", "sound") if kind in names), "table")


def _reopen(uri: str, version: int, where: str | None) -> Corpus:
    return Corpus.open(uri, version=version, where=where)
