"""Which rows are which: fingerprints of content that do not depend on how rows were batched, and ids seen before.

Notable: both are vectorised; a column's bytes are hashed as one stream, so the fingerprint is the same whatever the batch
size; ids are remembered as 8-byte hashes in an open-addressed NumPy table.
"""

from __future__ import annotations

import daft
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash


class ContentHash:
    """A running fingerprint of rows: of names, types, values and order, and not of how they were cut into batches."""

    def __init__(self, schema: pa.Schema) -> None:
        self.names = [f"{field.name}:{field.type}" for field in schema]
        self.streams: dict[tuple[str, ...], xxhash.xxh3_128] = {}
        self.rows = 0

    def update(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch; its columns must be those of the schema, in the same order."""
        self.rows += batch.num_rows
        for name, column in zip(self.names, batch.columns):
            self._add((name,), column)

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        whole = xxhash.xxh3_128(f"{self.names} {self.rows}".encode())
        for path, stream in sorted(self.streams.items()):
            whole.update("/".join(path).encode() + b"\0" + stream.digest())
        return str(whole.hexdigest())

    def _feed(self, path: tuple[str, ...], values: np.ndarray) -> None:
        stream = self.streams.get(path)
        if stream is None:
            stream = self.streams[path] = xxhash.xxh3_128()
        stream.update(np.ascontiguousarray(values).view(np.uint8).data)

    def _add(self, path: tuple[str, ...], array: pa.Array) -> None:
        """Null-ness, then lengths and values of what is not null; nested types one level down."""
        kind = array.type
        if isinstance(array, pa.ExtensionArray):
            return self._add(path, array.storage)
        if pa.types.is_null(kind) or not len(array):
            return None
        self._feed((*path, "valid"), pc.is_valid(array).cast(pa.uint8()).to_numpy())
        if array.null_count:
            array = array.drop_null()
        if pa.types.is_dictionary(kind):
            return self._add(path, array.dictionary_decode())
        if pa.types.is_struct(kind):
            for field, child in zip(kind, array.flatten()):
                self._add((*path, field.name), child)
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_map(kind):
            if pa.types.is_map(kind):
                array = array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
            self._feed((*path, "lengths"), pc.list_value_length(array).cast(pa.int64()).to_numpy())
            self._add((*path, "items"), pc.list_flatten(array))
        elif pa.types.is_boolean(kind):
            self._feed(path, array.cast(pa.uint8()).to_numpy())
        elif (
            pa.types.is_string(kind)
            or pa.types.is_binary(kind)
            or pa.types.is_large_string(kind)
            or pa.types.is_large_binary(kind)
        ):
            self._feed((*path, "lengths"), pc.binary_length(array).cast(pa.int64()).to_numpy())
            wide = pa.types.is_large_string(kind) or pa.types.is_large_binary(kind)
            _, offsets, data = array.buffers()
            ends = np.frombuffer(offsets, np.int64 if wide else np.int32)[array.offset : array.offset + len(array) + 1]
            if data is not None:
                self._feed(path, np.frombuffer(data, np.uint8)[ends[0] : ends[-1]])
        elif pa.types.is_primitive(kind):
            width = kind.bit_width // 8
            start = array.offset * width
            self._feed(path, np.frombuffer(array.buffers()[1], np.uint8)[start : start + len(array) * width])
        else:
            self._feed(path, np.frombuffer("\0".join(map(str, array.to_pylist())).encode(), np.uint8))
        return None


class SeenIds:
    """The ids met so far, as 64-bit hashes: 11 to 23 bytes an id, so 10 million ids fit in a quarter of a gigabyte.

    Two different ids are taken for the same with probability n^2 / 2^65: one in a hundred thousand at 20 million ids.
    """

    def __init__(self) -> None:
        self.table = np.zeros(1 << 16, dtype=np.uint64)
        self.count = 0

    def add(self, ids: pa.Array) -> np.ndarray:
        """Remember ids; bool (len(ids),): True where an equal id came before, in this call or an earlier one."""
        hashes = daft.Series.from_arrow(ids.cast(pa.large_string())).hash().to_arrow().to_numpy(zero_copy_only=False)
        hashes = np.where(hashes == 0, np.uint64(1), hashes.astype(np.uint64))  # 0 marks an empty place
        unique, first = np.unique(hashes, return_index=True)
        repeated = np.ones(len(hashes), dtype=bool)
        while (self.count + len(unique)) * 10 > len(self.table) * 7:
            self._grow()
        repeated[first] = ~self._insert(unique)
        return repeated

    def _insert(self, hashes: np.ndarray) -> np.ndarray:
        """Put distinct hashes into the table by linear probing; True where a hash was new."""
        mask = np.uint64(len(self.table) - 1)
        new = np.zeros(len(hashes), dtype=bool)
        waiting = np.arange(len(hashes))
        places = hashes & mask
        while len(waiting):
            found = self.table[places]
            empty = found == 0
            self.table[places[empty]] = hashes[waiting[empty]]  # of several that meet here the last one stays
            placed = empty & (self.table[places] == hashes[waiting])
            new[waiting[placed]] = True
            on = ~(placed | (~empty & (found == hashes[waiting])))
            waiting, places = waiting[on], (places[on] + np.uint64(1)) & mask
        self.count += int(new.sum())
        return new

    def _grow(self) -> None:
        old, self.table, self.count = self.table, np.zeros(len(self.table) * 2, dtype=np.uint64), 0
        for start in range(0, len(old), 1 << 20):  # in pieces: no second array of the whole
            piece = old[start : start + (1 << 20)]
            self._insert(piece[piece != 0])
