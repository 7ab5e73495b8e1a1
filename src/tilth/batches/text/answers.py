"""Question and answer pairs: the prompt is given, the answer and its end are what is learnt or scored.

Notable: prompt and answer are encoded apart, so the prompt's tokens are exactly those a generation starts from; padding
is on the right, where a causal model never sees it; the columns of the targets come with the batch, so that logits are
computed only there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray

from tilth.batches.text.encoding import Encoder, end_token, pad_token
from tilth.batches.text.ragged import offsets, ranges, trimmed, up_to_8
from tilth.contracts import Batch, Examples, Noise
from tilth.errors import TilthError
from tilth.registry import method

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tilth.context import Context
    from tilth.corpus import Corpus

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Template:
    """How a pair is written: {question} in the prompt, {answer} in the answer; both may hold braces of their own."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    prompt: str = "Question: {question}\nAnswer:"
    answer: str = " {answer}"

    def prompts(self, questions: Sequence[str]) -> list[str]:
        """What a generation starts from."""
        return [self.prompt.replace("{question}", question) for question in questions]

    def answers(self, answers: Sequence[str]) -> list[str]:
        return [self.answer.replace("{answer}", answer) for answer in answers]


DEFAULT = Template()


@method("batches", "answers")
class Answers:
    """Question/answer rows as prompt + answer + end token; labels are -100 outside the answer and its end.

    Rows longer than `length` tokens lose the front of their prompt (at most to its last token), then the end of their
    answer, its end token first; how many did is said while building.
    """

    def __init__(
        self,
        *,
        length: Annotated[int, Ge(4)] = 256,
        template: Template = DEFAULT,
        question: str = "question",
        answer: str = "answer",
    ) -> None:
        if "{question}" not in template.prompt or "{answer}" not in template.answer:
            raise TilthError(
                "the template's prompt must hold {question} and its answer {answer}",
                where="batches.answers.template",
                hint=f"It is {template.prompt!r} and {template.answer!r}.",
            )
        self.length, self.template, self.question, self.answer = length, template, question, answer

    def build(self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, context: Context) -> Examples:
        for column in (self.question, self.answer):
            if column not in corpus.columns:
                raise TilthError(
                    f"the corpus has no column '{column}'", where=corpus.uri, hint=f"It has {', '.join(corpus.columns)}."
                )
        table = corpus.table(["id", self.question, self.answer])
        ids, questions, answers = (table.column(name).to_pylist() for name in ("id", self.question, self.answer))
        encoded = encode_answers(questions, answers, tokenizer, self.template, self.length, ids=ids)
        if encoded.truncated:
            context.progress.say(
                f"answers: {encoded.truncated} of {len(encoded)} pairs of {corpus.uri} are longer than {self.length} tokens and are cut"
            )
        return encoded


@dataclass(frozen=True)
class EncodedAnswers:
    """Encoded pairs, padded on the right; Examples in the order they were given.

    input_ids: int32 (pairs, longest). prompt, size: tokens of the prompt, and of prompt + answer + end, int64 (pairs).
    truncated: how many were longer than the limit.
    """

    input_ids: NDArray[np.int32]
    prompt: Ints
    size: Ints
    pad: int
    truncated: int

    def __len__(self) -> int:
        return len(self.input_ids)

    @cached_property
    def attention_mask(self) -> Ints:
        """1 on tokens, 0 on padding, int64 (pairs, longest)."""
        return (np.arange(self.input_ids.shape[1]) < self.size[:, None]).astype(np.int64)

    @cached_property
    def labels(self) -> Ints:
        """The answer's tokens and its end where they stand, -100 elsewhere, int64 (pairs, longest)."""
        columns = np.arange(self.input_ids.shape[1])
        answer = (columns >= self.prompt[:, None]) & (columns < self.size[:, None])
        return np.where(answer, self.input_ids, -100).astype(np.int64)

    def batch(self, indices: np.ndarray, noise: Noise | None = None) -> Batch:
        """input_ids, labels, attention_mask (batch, tokens), tokens: of the longest pair, up to a multiple of 8.

        positions (batch, targets): columns of the labels that are not -100; shorter rows are filled with column 0, whose
        label is -100.
        """
        size, prompt = self.size[indices], self.prompt[indices]
        ids, inside = trimmed(self.input_ids[indices], size, self.pad)
        labels = np.where(inside & (np.arange(ids.shape[1]) >= prompt[:, None]), ids, -100)
        steps = np.arange(up_to_8((size - prompt).max()))
        positions = np.where(steps < (size - prompt)[:, None], prompt[:, None] + steps, 0)
        return Batch(
            tokens=int(size.sum()),
            samples=len(size),
            input_ids=torch.from_numpy(ids),
            labels=torch.from_numpy(labels),
            attention_mask=torch.from_numpy(inside.astype(np.int64)),
            positions=torch.from_numpy(positions),
        )

    def rows(self, indices: np.ndarray) -> list[Ints]:
        return [np.array([index]) for index in np.asarray(indices).tolist()]


def encode_answers(
    questions: Sequence[str],
    answers: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    template: Template = DEFAULT,
    length: int = 256,
    *,
    ids: Sequence[str] | None = None,
) -> EncodedAnswers:
    """Pairs as prompt + answer + end token, at most `length` tokens each; see Answers for what is cut.

    The prompt starts as the tokeniser starts its sequences (Llama's <s>). ids: names of the rows, for messages.
    Raises TilthError when there is no pair, or a question or answer is missing or empty.
    """
    _check(questions, answers, ids)
    encoder, end = Encoder(tokenizer), end_token(tokenizer)
    prompts, prompt_size = encoder(template.prompts(questions))
    replies, reply_size = encoder(template.answers(answers))
    head, _ = encoder.frame()
    full = prompt_size + reply_size + 1
    kept_reply = np.minimum(reply_size + 1, length - 1 - len(head))  # with its end token, if that fits
    kept_prompt = np.minimum(prompt_size, length - len(head) - kept_reply)
    size = len(head) + kept_prompt + kept_reply
    rows = np.full((len(size), int(size.max())), pad_token(tokenizer), dtype=np.int32)
    rows[:, : len(head)] = head
    columns = np.arange(rows.shape[1])
    begin = len(head) + kept_prompt
    rows[(columns >= len(head)) & (columns < begin[:, None])] = prompts[
        ranges(offsets(prompt_size)[1:] - kept_prompt, kept_prompt)
    ]
    ended = np.insert(replies, np.cumsum(reply_size), end)
    rows[(columns >= begin[:, None]) & (columns < size[:, None])] = ended[ranges(offsets(reply_size + 1)[:-1], kept_reply)]
    return EncodedAnswers(rows, begin, size, pad_token(tokenizer), int((full + len(head) > length).sum()))


def _check(questions: Sequence[str | None], answers: Sequence[str | None], ids: Sequence[str] | None) -> None:
    if not len(questions) or len(questions) != len(answers):
        raise TilthError(f"there are {len(questions)} questions and {len(answers)} answers")
    for what, texts in (("question", questions), ("answer", answers)):
        for row, text in enumerate(texts):
            if not text or not text.strip():
                name = f"row '{ids[row]}'" if ids is not None else f"row {row}"
                raise TilthError(f"the {what} is empty", where=name, hint="Remove the row, or filter it away with 'where'.")
