"""A corpus as token ids on disk: one memory-mapped array, and where each document begins.

Notable: built in a stream with bounded memory; what is on disk is recorded after every piece, so a killed build goes
on where it was; document i is row i of the corpus, also where it is empty, which is what lineage rests on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tilth.batches.text.encoding import Encoder, digest, end_token
from tilth.batches.text.ragged import offsets
from tilth.context import Progress
from tilth.errors import TilthError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tilth.context import Context
    from tilth.corpus import Corpus

_ROWS = 1024  # read at a time
_CHARACTERS = 2**21  # encoded at a time: encodings take some hundred bytes per token
_DONE, _PROGRESS = "store.json", "progress.json"


class TokenStore:
    """tokens: uint16 (uint32 for more than 65,536 entries), all documents end to end, each with its end token.

    offsets: int64 (documents + 1), where each begins. Empty and missing texts have no tokens. about: how it was made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = json.loads((folder / _DONE).read_text(encoding="utf-8"))
        self.tokens = _mapped(folder / "tokens.bin", np.dtype(self.about["dtype"]))
        self.offsets: NDArray[np.int64] = _mapped(folder / "offsets.bin", np.dtype(np.int64))

    @classmethod
    def open(cls, folder: str | Path) -> TokenStore:
        """The finished store in `folder`; TilthError when there is none."""
        if not (Path(folder) / _DONE).exists():
            raise TilthError("there is no finished token store here", where=str(folder), hint="Make one with TokenStore.build.")
        return cls(Path(folder))

    @classmethod
    def build(
        cls,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        folder: str | Path,
        column: str = "text",
        progress: Progress | None = None,
    ) -> TokenStore:
        """Encode `column` of every row into `folder`, or go on with what an interrupted build left there.

        Special tokens' names inside texts are plain text. Raises TilthError when the column is missing, or when the
        folder holds the tokens of something else.
        """
        folder, progress = Path(folder), progress or Progress()
        folder.mkdir(parents=True, exist_ok=True)
        parts = store_parts(corpus, tokenizer, column)
        if (folder / _DONE).exists():
            store = cls(folder)
            if store.about["parts"] != parts:
                raise TilthError(
                    "this folder holds the tokens of another corpus or tokeniser", where=str(folder), hint="Delete it first."
                )
            return store
        encoder, end = Encoder(tokenizer), end_token(tokenizer)
        dtype = np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)
        state = _resumed(folder, parts, dtype.itemsize)
        progress.start("tokenise", corpus.count(), "documents")
        with (folder / "tokens.bin").open("ab") as tokens, (folder / "offsets.bin").open("ab") as starts:
            for texts in _pieces(corpus, column, skip=state["rows"]):
                ids, lengths = encoder(texts)
                ids, lengths = _ended(ids, lengths, end)
                tokens.write(ids.astype(dtype).tobytes())
                starts.write((offsets(lengths)[1:] + state["tokens"]).tobytes())
                state["rows"] += len(texts)
                state["tokens"] += len(ids)
                state["empty"] += int((lengths == 0).sum())
                _record(folder, state, tokens, starts)
                progress.update(state["rows"], tokens=state["tokens"])
        progress.end()
        about = {**state, "dtype": dtype.name, "end": end, "vocabulary": len(tokenizer)}
        _write_whole(folder / _DONE, about)
        (folder / _PROGRESS).unlink(missing_ok=True)
        return cls(folder)

    def __len__(self) -> int:
        """How many documents (rows of the corpus)."""
        return len(self.offsets) - 1

    def document(self, row: int) -> NDArray[Any]:
        """The tokens of one row of the corpus, end token included."""
        return np.asarray(self.tokens[self.offsets[row] : self.offsets[row + 1]])

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Corpus rows with a token among tokens start ... stop - 1."""
        first = int(np.searchsorted(self.offsets, start, side="right")) - 1
        last = int(np.searchsorted(self.offsets, stop, side="left"))
        touched = np.arange(first, last, dtype=np.int64)
        return touched[self.offsets[touched + 1] > self.offsets[touched]]


def token_store(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, context: Context, column: str) -> TokenStore:
    """The corpus's tokens, built once for all stages and runs that need them; TilthError when there are none."""

    def make(folder: Path) -> None:
        TokenStore.build(corpus, tokenizer, folder, column, context.progress)

    store = TokenStore.open(context.cache("tokens", store_parts(corpus, tokenizer, column), make))
    if not len(store.tokens):
        raise TilthError(
            "the corpus has no text",
            where=corpus.uri,
            hint=f"It has {len(store)} rows; check its predicate and the column '{column}'.",
        )
    return store


def store_parts(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, column: str) -> dict[str, str]:
    """What a token store is a function of."""
    if column not in corpus.columns:
        raise TilthError(f"the corpus has no column '{column}'", where=corpus.uri, hint=f"It has {', '.join(corpus.columns)}.")
    return {"corpus": corpus.fingerprint, "tokenizer": digest(tokenizer), "column": column}


def _pieces(corpus: Corpus, column: str, skip: int) -> Iterator[list[str]]:
    """Texts in row order from row `skip` on, in lists of bounded size."""
    for batch in corpus.scan([column], batch_size=_ROWS):
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        texts = [text or "" for text in batch.column(0).slice(skip).to_pylist()]
        skip = 0
        group = np.cumsum([len(text) for text in texts]) // _CHARACTERS
        for cut in np.split(np.arange(len(texts)), np.flatnonzero(np.diff(group)) + 1):
            yield texts[cut[0] : cut[-1] + 1]


def _ended(ids: NDArray[np.uint32], lengths: NDArray[np.int64], end: int) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The same documents with the end token after each that has tokens."""
    some = lengths > 0
    return np.insert(ids, np.cumsum(lengths)[some], end).astype(np.uint32), lengths + some


def _resumed(folder: Path, parts: dict[str, str], itemsize: int) -> dict[str, Any]:
    """What an interrupted build recorded, with the files cut back to it; a fresh state where it does not fit."""
    state: dict[str, Any] = {"parts": parts, "rows": 0, "tokens": 0, "empty": 0}
    if (folder / _PROGRESS).exists():
        recorded = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
        state = recorded if recorded["parts"] == parts else state
    for name, size in (("tokens.bin", state["tokens"] * itemsize), ("offsets.bin", (state["rows"] + 1) * 8)):
        path = folder / name
        path.touch()
        os.truncate(path, size)  # lengthens with zeros: the first offset
    return state


def _record(folder: Path, state: dict[str, Any], *files: BinaryIO) -> None:
    for file in files:
        file.flush()
    _write_whole(folder / _PROGRESS, state)


def _write_whole(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(path)


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")
