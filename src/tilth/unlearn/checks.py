"""What must hold of a forget set and a retain set before anything is computed.

Notable: sets are compared by content, column by column of what is learnt, not by id or file, and the retain set is
streamed, so it may be of any size.
"""

import math
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import nn

from tilth.backbones.evaluating import evaluating
from tilth.context import Context
from tilth.contracts import Examples, Noise
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.unlearn.likelihood import IGNORED, cross_entropy

_CONTENT = {
    "answers": ["question", "answer"],
    "text": ["text"],
    "image": ["image"],
    "sound": ["sound"],
    "scene": ["array"],
    "volume": ["array"],
}
_TOGETHER = 1024  # examples
_LOOKED_AT = 32  # examples of each set, to see whether the model knows it
_KNOWN = 0.2  # probability per token


def check_sets(forget: Corpus, retain: Corpus | None) -> None:
    """Raise TilthError if the forget set is empty, or shares rows with the retain set: a model cannot lose and keep the same."""
    if not forget.count():
        raise TilthError("the forget set is empty", where=forget.uri, hint="Check its predicate ('where').")
    if retain is None:
        return
    if not retain.count():
        raise TilthError("the retain set is empty", where=retain.uri, hint="Check its predicate ('where'), or leave it out.")
    columns = content_columns(forget)
    if not set(columns) <= set(retain.columns):
        return  # rows of different kinds cannot be equal; whether they can be encoded is for the batches to say
    known = pa.concat_arrays(content for _, content in _contents(forget, columns))
    shared, examples = 0, list[str]()
    for ids, content in _contents(retain, columns):
        equal = pc.filter(ids, pc.is_in(content, value_set=known))
        shared += len(equal)
        examples += equal.slice(0, 5 - len(examples)).to_pylist() if len(examples) < 5 else []
    if shared:
        total = retain.count()
        what = "the same rows" if shared == total == len(known) else f"{shared} of {total} rows of the retain set"
        raise TilthError(
            f"the forget set and the retain set overlap: {what} are in both, e.g. {', '.join(map(repr, examples))}",
            where=f"forget {forget.uri}, retain {retain.uri}",
            hint="Filter the retain set so that it holds none of what shall be forgotten.",
        )


def check_known(forget: Corpus, about: dict[str, object], context: Context) -> None:
    """Say so if the forget set is not in what the model was trained on, as far as the model's history names data at hand."""
    history = about.get("history")
    prints = {entry.get("data") for entry in history if isinstance(entry, dict)} if isinstance(history, list) else set()
    trained = [corpus for corpus in context.corpora.values() if corpus.fingerprint in prints]
    columns = content_columns(forget)
    trained = [corpus for corpus in trained if set(columns) <= set(corpus.columns)]
    if not trained:
        return
    wanted = pa.concat_arrays(content for _, content in _contents(forget, columns))
    found = np.zeros(len(wanted), dtype=bool)
    for corpus in trained:
        for _, content in _contents(corpus, columns):
            found |= pc.is_in(wanted, value_set=content).to_numpy(zero_copy_only=False)
    if not found.all():
        context.progress.say(
            f"warning: {int((~found).sum())} of {len(found)} rows of the forget set are not in the data this model was trained on"
        )


def check_learnt(model: nn.Module, forget: Examples, retain: Examples | None, context: Context) -> None:
    """Say so if the model hardly knows what it is to forget, before an hour is spent on it; and how well it knows both sets.

    Known is what its answers' tokens have a geometric mean probability of at least 0.2 for, over the first examples of each set.
    """
    if (forget.batch(np.arange(1), Noise(0, np.arange(1))).labels == IGNORED).all():
        return  # labels are hidden from this method: there is nothing to look at
    with evaluating(model) as device:
        known = [
            math.exp(-float(cross_entropy(model, examples.batch(first, Noise(0, first)).to(device))))
            for examples in (forget, retain)
            if examples is not None
            for first in [np.arange(min(len(examples), _LOOKED_AT))]
        ]
    shown = f"probability per answer token {known[0]:.2g}" + (f", on the retain set {known[1]:.2g}" if len(known) > 1 else "")
    if known[0] < _KNOWN:
        context.progress.say(
            f"warning: the model hardly knows the forget set ({shown}): it may never have learnt it, or have learnt it in another "
            "template or language; there may be nothing to take out"
        )
    else:
        context.progress.say(f"the model knows the forget set: {shown}")


def check_answers(corpus: Corpus, examples: Examples) -> None:
    """Raise TilthError naming the rows of the forget set that were encoded without a single target: they cannot be forgotten."""
    empty: list[int] = []
    for start in range(0, len(examples), _TOGETHER):
        indices = np.arange(start, min(start + _TOGETHER, len(examples)))
        labels = examples.batch(indices, Noise(0, indices)).labels.numpy()
        targets = np.ones(len(labels)) if labels.ndim == 1 else (labels[:, 1:] != IGNORED).sum(1)
        empty += indices[targets == 0].tolist()
    if empty:
        rows = np.concatenate(examples.rows(np.array(empty[:5])))
        ids = corpus.take(np.unique(rows), ["id"]).column("id").to_pylist()
        raise TilthError(
            f"{len(empty)} of {len(examples)} examples of the forget set have an empty answer, e.g. of rows {', '.join(map(repr, ids))}",
            where=corpus.uri,
            hint="Remove the rows, or give the batches a greater 'length'.",
        )


def content_columns(corpus: Corpus) -> list[str]:
    """The columns that hold what is learnt; of a table, all but 'id' that are not nested."""
    flat = [field.name for field in corpus.schema if field.name != "id" and not pa.types.is_nested(field.type)]
    return _CONTENT.get(corpus.kind, flat)


def _contents(corpus: Corpus, columns: list[str]) -> Iterator[tuple[pa.Array, pa.Array]]:
    """(ids, contents) batch by batch; one content is its columns' bytes, each behind its length so that no two rows mix."""
    for batch in corpus.scan(["id", *columns]):
        parts: list[pa.Array] = []
        for name in columns:
            values = batch.column(name)
            if not pa.types.is_large_binary(values.type):
                values = values.cast(pa.string()) if not pa.types.is_binary(values.type) else values
                values = values.cast(pa.large_binary())
            lengths = pc.binary_length(values).cast(pa.string()).cast(pa.large_binary())
            parts += [pc.fill_null(lengths, b"-"), pc.fill_null(values, b"")]
        yield batch.column("id"), pc.binary_join_element_wise(*parts, pa.scalar(b":", pa.large_binary()))
