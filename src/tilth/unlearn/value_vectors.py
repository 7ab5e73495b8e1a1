"""Value vectors read as words: where in the feed-forward parts a concept is written down.

Notable: nothing is run: a value vector is multiplied with the unembedding (without the final norm), and its most likely
tokens are compared, by id, with the words that mark the concept's text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tilth.backbones.locations import feed_forwards, unembedding
from tilth.batches.text.encoding import Encoder
from tilth.batches.text.ragged import offsets
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.registry import Fraction, NonNegativeInt, PositiveInt

if TYPE_CHECKING:
    from tilth.backbones.folder import TextModel

_LOGITS = 2**26  # float32 logits made at once: 256 MB
_OTHERS = 200  # documents of the retain set that words are compared with


@dataclass(frozen=True)
class Locate:
    """Which vectors encode a concept (arXiv 2406.11614, section 3; keyword overlap in place of a judging language model).

    concept: the column that names each row's concept; rows_per_concept: so many rows in a row are one; with neither the
    whole forget set is one. keywords: how many words mark a concept. top: tokens a vector is read as. count: vectors per
    concept. sharpest: share of each layer's vectors, those with the greatest mean logit of their top tokens, that is
    looked at; from_layer: shallower layers are not. signs: 'both' also reads minus each vector, since the coefficient of a
    gated feed-forward part may be negative.
    """

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    concept: str | None = None
    rows_per_concept: PositiveInt | None = None
    keywords: PositiveInt = 30
    top: PositiveInt = 200
    count: PositiveInt = 5
    sharpest: Fraction = 0.3
    from_layer: NonNegativeInt = 0
    signs: Literal["positive", "both"] = "positive"


class Place(NamedTuple):
    """A value vector: row `column` of the values of block `layer` (column of the weight of a Linear). score: its overlap."""

    layer: int
    column: int
    score: float = 0.0
    sign: int = 1


class Concept(NamedTuple):
    """rows: numbers of its rows in the forget set; keywords: token ids, the most telling first; tokens: all of its text's ids."""

    name: str
    rows: np.ndarray
    keywords: np.ndarray
    tokens: np.ndarray
    places: list[Place]


def concepts(text_model: TextModel, forget: Corpus, retain: Corpus | None, locate: Locate) -> list[Concept]:
    """The concepts of a forget set, each with its keywords and the vectors of the model that encode it."""
    groups = _groups(forget, locate)
    telling = keywords(_documents(text_model, forget, retain, groups), len(groups), text_model.tokenizer, locate.keywords)
    return [
        Concept(name, rows, words, ids, find(text_model.model, words, locate))
        for (name, rows), (words, ids) in zip(groups.items(), telling, strict=True)
    ]


def find(model: Any, words: Sequence[int] | np.ndarray, locate: Locate) -> list[Place]:
    """The `count` vectors whose `top` tokens hold most of `words`; of equals, the one that favours them more, per unit of length.

    score: |top tokens and words| / top, or / |words| where there are fewer words than top tokens.
    """
    head = unembedding(model).detach()
    wanted = torch.zeros(len(head), dtype=torch.bool, device=head.device)
    wanted[torch.as_tensor(np.asarray(words, dtype=np.int64), device=head.device)] = True
    centre = head[wanted].float().mean(0)
    top = min(locate.top, len(head))
    found: list[Place] = []
    favour: list[float] = []
    for part in feed_forwards(model)[locate.from_layer :]:
        values = part.values().detach()
        for sign in (1, -1) if locate.signs == "both" else (1,):
            tokens, logits = top_tokens(model, sign * values, top)
            overlap = wanted[tokens].sum(1) / min(top, int(wanted.sum()))
            sharp = logits.mean(1)
            kept = sharp.topk(max(1, round(locate.sharpest * len(sharp)))).indices
            towards = sign * (values[kept].float() @ centre) / values[kept].float().norm(dim=1).clamp(min=1e-12)
            columns, scores = kept.tolist(), overlap[kept].tolist()
            found += [Place(part.layer, column, score, sign) for column, score in zip(columns, scores, strict=True)]
            favour += towards.tolist()
    order = sorted(range(len(found)), key=lambda i: (-found[i].score, -favour[i]))
    return [found[i] for i in order[: locate.count]]


def top_tokens(model: Any, values: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Ids and logits (vectors, top) of the tokens that each of `values` (vectors, hidden) favours most: E v."""
    head = unembedding(model).detach()
    chunks = values.split(max(1, _LOGITS // len(head)))
    best = [(chunk.to(head.dtype) @ head.t()).float().topk(min(top, len(head)), dim=1) for chunk in chunks]
    return torch.cat([one.indices for one in best]), torch.cat([one.values for one in best])


def vector(model: Any, place: Place) -> Tensor:
    """The value vector at a place, with its sign: (hidden,), a copy."""
    values = feed_forwards(model)[place.layer].values().detach()
    return place.sign * values[place.column]


def keywords(documents: Sequence[np.ndarray], count: int, tokenizer: Any, words: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each of the first `count` documents (ids): its `words` ids of greatest tf-idf, and all ids, both letters only.

    tf-idf = occurrences * log((1 + documents) / documents that hold the token).
    """
    size = 1 + max(int(ids.max(initial=0)) for ids in documents)
    holding = np.zeros(size, dtype=np.int64)
    for ids in documents:
        holding[np.unique(ids)] += 1
    found = []
    for ids in documents[:count]:
        distinct, often = np.unique(ids, return_counts=True)
        spoken = np.array(
            [any(letter.isalpha() for letter in tokenizer.decode([token])) for token in distinct.tolist()], dtype=bool
        )
        distinct, often = distinct[spoken].astype(np.int64), often[spoken]
        weight = often * np.log((1 + len(documents)) / holding[distinct])
        found.append((distinct[np.argsort(-weight, kind="stable")[:words]], distinct[weight > 0]))
    return found


def _groups(forget: Corpus, locate: Locate) -> dict[str, np.ndarray]:
    """Rows of the forget set by concept, in the order in which the concepts appear."""
    count = forget.count()
    if locate.concept is not None:
        if locate.concept not in forget.columns:
            raise TilthError(
                f"the forget set has no column '{locate.concept}'", where=forget.uri, hint=f"It has {', '.join(forget.columns)}."
            )
        names = np.array([str(name) for name in forget.table([locate.concept])[locate.concept].to_pylist()])
        return {name: np.flatnonzero(names == name) for name in dict.fromkeys(names.tolist())}
    size = locate.rows_per_concept or count
    return {f"rows {at}-{min(at + size, count) - 1}": np.arange(at, min(at + size, count)) for at in range(0, count, size)}


def _documents(text_model: TextModel, forget: Corpus, retain: Corpus | None, groups: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Token ids of each concept's text, then of stretches of the retain set of as many rows."""
    encoder = Encoder(text_model.tokenizer)
    ids, lengths = encoder(list(texts(forget)))
    starts = offsets(lengths)
    own = [np.concatenate([ids[starts[row] : starts[row + 1]] for row in rows.tolist()]) for rows in groups.values()]
    size = max(len(rows) for rows in groups.values())
    others: list[np.ndarray] = []
    waiting: list[str] = []
    for text in texts(retain) if retain is not None else ():
        waiting.append(text)
        if len(waiting) == size:
            others.append(encoder(waiting)[0])
            waiting = []
        if len(others) == _OTHERS:
            break
    return [*own, *others, *([encoder(waiting)[0]] if waiting else [])]


def texts(corpus: Corpus) -> Iterator[str]:
    """Question and answer of each row as one text, or its text."""
    columns = ["question", "answer"] if "question" in corpus.columns else ["text"]
    for batch in corpus.scan(columns):
        for row in zip(*(batch[column].to_pylist() for column in columns), strict=True):
            yield " ".join(part or "" for part in row)
