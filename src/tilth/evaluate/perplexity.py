"""Held-out perplexity of a causal language model, beside an n-gram model's over the very same tokens.

Notable: every token of every document is scored exactly once, the first one from the end token that training put before it,
and each with at least `length - stride` tokens of context where the document has them; bits per byte and per character do not
depend on the tokeniser, perplexity per token does.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Ge

from tilth.backbones.folder import load
from tilth.batches.text.encoding import end_token
from tilth.batches.text.ragged import offsets, ranges
from tilth.batches.text.store import token_store
from tilth.context import Context
from tilth.contracts import Benchmark, CorpusRef, Scores, method
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.evaluate import ngram
from tilth.evaluate.likelihood import Sequences, context_length, token_statistics
from tilth.evaluate.ngram import KneserNey
from tilth.registry import PositiveInt


@method("benchmark", "perplexity")
class Perplexity(Benchmark):
    """exp of the mean -log p of a token; bits per byte and character: -log2 p of the whole text over its bytes and characters.

    data: held-out texts. length: tokens of a window (None: the model's context); stride: by how much windows move, i.e. how many
    tokens the later ones score (None: half the length). tokens: score only the first documents, up to this many tokens.
    against: texts to train an interpolated Kneser-Ney model of `order` on, with the model's own tokeniser; it scores the same
    tokens, end tokens included: `ngram_perplexity`, `ngram_bits_per_byte`.
    """

    def __init__(
        self,
        *,
        data: CorpusRef,
        against: CorpusRef | None = None,
        length: Annotated[int, Ge(2)] | None = None,
        stride: PositiveInt | None = None,
        order: PositiveInt = 5,
        tokens: PositiveInt | None = None,
        column: str = "text",
    ) -> None:
        if length is not None and stride is not None and stride >= length:
            raise TilthError(
                f"a stride of {stride} leaves no context in windows of {length} tokens",
                where="benchmark.perplexity.stride",
                hint="Set it below 'length', for instance to half of it.",
            )
        self.data, self.against, self.length, self.stride = data, against, length, stride
        self.order, self.tokens, self.column = order, tokens, column

    def __call__(self, model: Path, context: Context) -> Scores:
        """Raises TilthError when the corpus has no text or the column is missing."""
        text_model = load(model)
        corpus = context.corpus(self.data)
        store = token_store(corpus, text_model.tokenizer, context, self.column)
        documents = _first(store.offsets, self.tokens)
        tokens, starts = np.asarray(store.tokens[: documents[-1]]).astype(np.int64), documents
        length = min(self.length or 2**31, context_length(text_model.model))
        stride = min(self.stride or max(1, length // 2), length - 1)
        windows = cut(tokens, starts, end_token(text_model.tokenizer), length, stride)
        found = token_statistics(text_model.model, windows.sequences, progress=context.progress)
        log_probability = np.empty(len(tokens))
        log_probability[windows.tokens] = found.log_probability
        size = _size(corpus, self.column, len(starts) - 1)
        metrics = {"tokens": float(len(tokens)), "loss": float(-log_probability.mean())} | _figures(log_probability, size)
        details: dict[str, list[Any]] = {
            "id": corpus.table(["id"]).column("id").to_pylist()[: len(starts) - 1],
            "tokens": np.diff(starts).tolist(),
            "nll": _per_document(log_probability, starts),
        }
        rows = [["this model", *(metrics[name] for name in _FIGURES)]]
        if self.against is not None:
            rival = self.rival(text_model.tokenizer, tokens, starts, context)
            metrics |= {f"ngram_{name}": value for name, value in _figures(rival, size).items()}
            details["ngram_nll"] = _per_document(rival, starts)
            rows.append([f"{self.order}-gram, Kneser-Ney", *(metrics[f"ngram_{name}"] for name in _FIGURES)])
        context.exhibit(
            "table",
            "Held-out perplexity",
            columns=["model", "perplexity per token", "bits per byte", "bits per character"],
            rows=rows,
            note=f"Over the same {len(tokens):,} tokens of {len(starts) - 1:,} documents; lower is better.",
        )
        return Scores(metrics, details)

    def rival(self, tokenizer: Any, tokens: np.ndarray, starts: np.ndarray, context: Context) -> np.ndarray:
        """Log-probabilities of the tokens under the n-gram model; kept for all models with this tokeniser."""
        corpus = context.corpus(str(self.against))
        store = token_store(corpus, tokenizer, context, self.column)
        code = hashlib.sha256(Path(ngram.__file__).read_bytes()).hexdigest()
        scored = hashlib.sha256(tokens.tobytes() + starts.tobytes()).hexdigest()
        parts = {"train": store.about["parts"], "scored": scored, "order": self.order, "code": code}

        def make(folder: Path) -> None:
            context.progress.say(f"counting {self.order}-grams of {len(store.tokens):,} tokens")
            model = KneserNey(
                np.asarray(store.tokens), store.offsets, vocabulary=len(tokenizer), start=end_token(tokenizer), order=self.order
            )
            np.save(folder / "log_probability.npy", model.log_probabilities(tokens, starts))

        found: np.ndarray = np.load(context.cache("ngram", parts, make) / "log_probability.npy")
        return found


@dataclass(frozen=True)
class Windows:
    """sequences: overlapping windows over documents; tokens: which token each scored one is, in the order of the windows."""

    sequences: Sequences
    tokens: np.ndarray


def cut(tokens: np.ndarray, starts: np.ndarray, begin: int, length: int, stride: int) -> Windows:
    """Windows of at most `length` inputs over documents that each begin with the token `begin`, moving by `stride`.

    Window j of a document holds its inputs j stride ... j stride + length - 1 and scores those that window j - 1 did not
    hold, so every token once. tokens, starts: documents end to end, where each begins.
    """
    sizes = np.diff(starts) + (np.diff(starts) > 0)  # inputs of a document, `begin` included
    count = np.where(sizes > 0, 1 + np.maximum(0, -(-(sizes - length) // stride)), 0)
    document = np.repeat(np.arange(len(sizes)), count)
    first = (np.arange(len(document)) - np.repeat(offsets(count)[:-1], count)) * stride
    lengths = np.minimum(length, sizes[document] - first)
    place = ranges(first, lengths)  # of each input within its document; 0 is `begin`
    owner = np.repeat(document, lengths)
    token = starts[owner] + place - 1
    ids = np.where(place == 0, begin, tokens[np.maximum(token, 0)])
    new = np.where(first == 0, 1, first + length - stride)  # the first input that a window scores
    scored = place >= np.repeat(new, lengths)
    return Windows(Sequences(ids, offsets(lengths), scored), token[scored])


_FIGURES = ("perplexity", "bits_per_byte", "bits_per_character")


def _figures(log_probability: np.ndarray, size: tuple[int, int]) -> dict[str, float]:
    bits = -log_probability.sum() / np.log(2)
    values = (np.exp(-log_probability.mean()), bits / size[0], bits / size[1])
    return dict(zip(_FIGURES, map(float, values), strict=True))


def _per_document(log_probability: np.ndarray, starts: np.ndarray) -> list[float]:
    total = np.concatenate([np.zeros(1), np.cumsum(-log_probability)])
    return np.diff(total[starts]).tolist()


def _first(starts: np.ndarray, limit: int | None) -> np.ndarray:
    """Where the first documents begin and the last of them ends: all, or as few as hold `limit` tokens."""
    last = len(starts) - 1 if limit is None else min(int(np.searchsorted(starts, limit)), len(starts) - 1)
    return np.asarray(starts[: last + 1])


def _size(corpus: Corpus, column: str, documents: int) -> tuple[int, int]:
    """Bytes (UTF-8) and characters of the first texts."""
    total = np.zeros(2, dtype=np.int64)
    for batch in corpus.scan([column]):
        texts = batch.column(0).slice(0, documents).cast(pa.large_string())
        documents -= len(texts)
        total += [pc.sum(pc.binary_length(texts)).as_py() or 0, pc.sum(pc.utf8_length(texts)).as_py() or 0]
    return int(total[0]), int(total[1])
