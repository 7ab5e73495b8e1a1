"""What was asked -> what the model goes on from, as text and as token ids.

Notable: text is data. A special token's name in a prompt is encoded as letters; in a chat, where the template's own special
tokens must count, a message that holds one is refused, so nobody can end his turn and speak as another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from tilth.batches.text.encoding import Encoder
from tilth.evaluate.likelihood import context_length
from tilth.evaluate.questions import template_of
from tilth.serve.errors import BadRequest

if TYPE_CHECKING:
    from tilth.backbones.folder import TextModel


@dataclass(frozen=True)
class Prompt:
    """text: what a guard reads. ids: what the model reads; never empty, and shorter than the model's context."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Turn:
    """One message of a conversation; role: 'system', 'user' or 'assistant'."""

    role: str
    content: str


class Prompter:
    """Makes prompts for one model. Its encoders are its own, so any thread may use them."""

    def __init__(self, text_model: TextModel) -> None:
        self.tokenizer, self.template = text_model.tokenizer, template_of(text_model, None)
        self.room = context_length(text_model.model)
        self.encoder, self.chat_encoder = Encoder(self.tokenizer), Encoder(self.tokenizer)
        self.chat_encoder.core.encode_special_tokens = False
        self.head: list[int] = self.encoder.frame()[0].tolist()
        self.special = sorted(token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special)

    def count(self, text: str) -> int:
        """How many tokens a text has."""
        return int(self.encoder([text])[1][0])

    def completion(self, text: str) -> Prompt:
        """The text as it is, begun as the tokeniser begins a sequence."""
        return self._checked(text, self.head + self.encoder([text])[0].tolist(), "prompt")

    def chat(self, turns: Sequence[Turn]) -> Prompt:
        """By the tokeniser's chat template; without one, by the template in which the model was taught questions."""
        if not self.tokenizer.chat_template:
            text = self._as_questions(turns)
            return self._checked(text, self.head + self.encoder([text])[0].tolist(), "messages")
        for turn in turns:
            if found := next((name for name in self.special if name in turn.content), None):
                raise BadRequest(f"a message holds {found!r}, which is one of the model's special tokens", "messages")
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except TemplateError as error:
            raise BadRequest(f"the model's chat template cannot write this conversation: {error}", "messages") from None
        return self._checked(text, self.chat_encoder([text])[0].tolist(), "messages")

    def _as_questions(self, turns: Sequence[Turn]) -> str:
        """Questions and answers one below the other; what the system says stands as it is. The last turn is a question."""
        if turns[-1].role != "user":
            raise BadRequest("the last message must be the user's: this model answers questions", "messages")
        lines = []
        for turn in turns:
            if turn.role == "user":
                lines.append(self.template.prompts([turn.content])[0])
            elif turn.role == "assistant" and lines:
                lines[-1] += self.template.answers([turn.content])[0]
            else:
                lines.append(turn.content)
        return "\n".join(lines)

    def _checked(self, text: str, ids: list[int], parameter: str) -> Prompt:
        if not ids:
            raise BadRequest("the prompt is empty: give at least one word to go on from", parameter)
        if len(ids) >= self.room:
            raise BadRequest(
                f"the prompt has {len(ids)} tokens; the model sees {self.room}, its answer included",
                parameter,
                code="context_length_exceeded",
            )
        return Prompt(text, ids)
