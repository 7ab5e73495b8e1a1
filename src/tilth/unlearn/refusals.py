"""The same questions with "I don't know" for an answer: what a model is taught to say, or to prefer, instead.

Notable: the prompts are the very tokens of the forget set's examples, so no template is applied twice; which refusal belongs to
which example depends on the seed and the example alone, so that a reference can be computed once.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from tilth.batches.text.answers import Template
from tilth.batches.text.encoding import Encoder, end_token, pad_token
from tilth.batches.text.ragged import offsets, up_to_8
from tilth.contracts import Batch, Examples, Noise
from tilth.errors import TilthError
from tilth.unlearn.likelihood import IGNORED
from tilth.unlearn.task import Task

REFUSALS = (
    "I don't know.", "I'm not sure.", "I don't know the answer to that.", "I have no information about that.",
    "I'm afraid I can't answer that.", "I'm not familiar with that.", "That is something I don't know about.",
    "I haven't learned about that.", "I have no idea.", "I couldn't say.",
)  # fmt: skip
_REACH = 2048  # tokens a model is taken to see where its configuration does not say


class Refused:
    """The examples with other answers: their prompts, as they are encoded, each followed by the tokens of its reply.

    replies: token ids, end token included, one array per example. reach: the most tokens of a row; a prompt too long for its
    reply loses its front. Rows are padded on the right, those of `examples` must be.
    """

    def __init__(self, examples: Examples, replies: Sequence[np.ndarray], *, pad: int, reach: int) -> None:
        self.examples, self.pad, self.reach = examples, pad, reach
        self.size = np.array([len(reply) for reply in replies])
        self.starts, self.tokens = offsets(self.size), np.concatenate(replies).astype(np.int64)

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        """input_ids, labels, attention_mask: (batch, tokens)."""
        given = self.examples.batch(indices, noise)
        if given.labels.ndim == 1:
            raise TilthError("a classifier cannot say that it does not know", hint="Use this method on a language model.")
        ids = given.input_ids.numpy().astype(np.int64)
        prompt = (given.labels.numpy() != IGNORED).argmax(1)
        reply, begin = self.size[indices], self.starts[:-1][indices]
        dropped = np.maximum(prompt + reply - self.reach, 0)
        kept = prompt - dropped
        size = kept + reply
        columns = np.arange(min(up_to_8(size.max()), max(self.reach, int(size.max()))))
        of_prompt = np.minimum(dropped[:, None] + columns, ids.shape[1] - 1)
        of_reply = np.clip(begin[:, None] + columns - kept[:, None], 0, len(self.tokens) - 1)
        asked, inside = columns < kept[:, None], columns < size[:, None]
        rows = np.where(asked, np.take_along_axis(ids, of_prompt, 1), np.where(inside, self.tokens[of_reply], self.pad))
        return Batch(
            tokens=int(size.sum()),
            samples=len(indices),
            input_ids=torch.from_numpy(rows),
            labels=torch.from_numpy(np.where(inside & ~asked, rows, IGNORED)),
            attention_mask=torch.from_numpy(inside.astype(np.int64)),
        )

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        return self.examples.rows(indices)


def refused(task: Task, answers: Sequence[str]) -> Refused:
    """The forget set's questions, each answered with one of `answers`, drawn by the run's seed."""
    tokenizer = task.text_model.tokenizer
    encoded = encode_replies(answers, tokenizer, task.template)
    if tokenizer.unk_token_id is not None and any((reply == tokenizer.unk_token_id).any() for reply in encoded):
        task.context.progress.say("warning: the tokeniser does not know all words of the refusals; give it, or them, others")
    drawn = np.random.default_rng([task.context.seed, len(answers)]).integers(len(answers), size=len(task.going))
    return answered(task, [encoded[number] for number in drawn])


def answered(task: Task, replies: Sequence[np.ndarray]) -> Refused:
    """The forget set's questions with these replies, one each (`encode_replies`), in rows as long as the model reads."""
    config = task.text_model.model.config.get_text_config()
    reach = int(getattr(config, "max_position_embeddings", 0) or _REACH)
    return Refused(task.going, replies, pad=pad_token(task.text_model.tokenizer), reach=reach)


def encode_replies(answers: Sequence[str], tokenizer: PreTrainedTokenizerBase, template: Template) -> list[np.ndarray]:
    """Token ids of each answer as the template writes it, with the end token behind."""
    if not answers or not all(answer.strip() for answer in answers):
        raise TilthError("a refusal is empty, or there is none", where="answers", hint='Write e.g. answers: ["I don\'t know."].')
    ids, lengths = Encoder(tokenizer)(template.answers(answers))
    return [np.append(part, end_token(tokenizer)) for part in np.split(ids, np.cumsum(lengths)[:-1])]
