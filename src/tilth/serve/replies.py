"""Rows -> OpenAI's replies: whole, or as server-sent events, one per piece of text."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tilth.serve.answer import Answer
from tilth.serve.decoding import Piece, Row
from tilth.serve.prompts import Prompt, Prompter
from tilth.serve.sampling import Sampling

if TYPE_CHECKING:
    from fastapi import Request

    from tilth.serve.protocol import Generating

Form = Literal["completion", "chat"]
_LOOK = 0.5  # seconds between two looks whether the client is still there


@dataclass
class Reply:
    """What a request is waiting for; `head` opens every object of its reply. form: whose objects they are."""

    rows: list[Row]
    pieces: asyncio.Queue[Piece]
    form: Form
    head: dict[str, Any]
    prompt_tokens: int
    prompter: Prompter

    def usage(self, said: list[str]) -> dict[str, int]:
        """Tokens read and made; a guard's own words count as the tokeniser would cut them."""
        made = sum(len(row.answer.ids) or self.prompter.count(text) for row, text in zip(self.rows, said, strict=True))
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": made, "total_tokens": self.prompt_tokens + made}

    def cancel(self) -> None:
        for row in self.rows:
            row.cancelled = True


def begun(request: Generating, prompts: list[Prompt], longest: int, prompter: Prompter, form: Form, name: str) -> Reply:
    """Rows for `n` continuations of each prompt, ready to be submitted. longest: tokens at most. Call within the event loop."""
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece]()
    seed = request.seed if request.seed is not None else secrets.randbits(63)

    def receive(piece: Piece) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    def decode(ids: list[int]) -> str:
        return str(prompter.tokenizer.decode(ids, skip_special_tokens=True))

    rows: list[Row] = []
    for prompt in prompts:
        for _ in range(request.n):
            limit = min(longest, prompter.room - len(prompt.ids))
            sampling = Sampling(request.temperature, request.top_p, seed, len(rows))
            answer = Answer(decode, request.stops, piecewise=request.stream)
            rows.append(Row(len(rows), prompt, limit, sampling, answer, receive))
    kind = "chat.completion" if form == "chat" else "text_completion"
    kind += ".chunk" if form == "chat" and request.stream else ""
    identity = f"{'chatcmpl' if form == 'chat' else 'cmpl'}-{secrets.token_hex(12)}"
    head = {"id": identity, "object": kind, "created": int(time.time()), "model": name}
    return Reply(rows, pieces, form, head, sum(len(prompt.ids) for prompt in prompts), prompter)


async def whole(reply: Reply, http: Request) -> dict[str, Any]:
    """The reply once all rows have ended. A client who has left ends them; raises the RequestError of a row that failed."""
    texts, finish = [""] * len(reply.rows), [""] * len(reply.rows)
    try:
        while not all(finish):
            try:
                piece = await asyncio.wait_for(reply.pieces.get(), _LOOK)
            except TimeoutError:
                if await http.is_disconnected():
                    reply.cancel()
                continue
            if piece.error:
                raise piece.error
            texts[piece.index] += piece.text
            finish[piece.index] = piece.finish or ""
    finally:
        reply.cancel()
    choices = [
        {"index": index, "finish_reason": reason, "logprobs": None, **_said(reply.form, text)}
        for index, (text, reason) in enumerate(zip(texts, finish, strict=True))
    ]
    return {**reply.head, "choices": choices, "usage": reply.usage(texts)}


def _said(form: Form, text: str) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": text}} if form == "chat" else {"text": text}


async def written(reply: Reply, *, include_usage: bool) -> AsyncIterator[str]:
    """Events, one for each piece; the last says [DONE]. When the client leaves, its rows end."""
    texts, going = [""] * len(reply.rows), len(reply.rows)

    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        return f"data: {json.dumps({**reply.head, 'choices': choices, **more}, ensure_ascii=False)}\n\n"

    def chosen(index: int, content: dict[str, Any], finish: str | None = None) -> list[dict[str, Any]]:
        return [{"index": index, "finish_reason": finish, "logprobs": None, **content}]

    try:
        if reply.form == "chat":
            for row in reply.rows:
                yield event(chosen(row.index, {"delta": {"role": "assistant", "content": ""}}))
        while going:
            piece = await reply.pieces.get()
            if piece.error:
                yield f"data: {json.dumps(piece.error.body)}\n\n"
                return
            texts[piece.index] += piece.text
            going -= piece.finish is not None
            if reply.form == "completion":
                yield event(chosen(piece.index, {"text": piece.text}, piece.finish))
                continue
            if piece.text:
                yield event(chosen(piece.index, {"delta": {"content": piece.text}}))
            if piece.finish:
                yield event(chosen(piece.index, {"delta": {}}, piece.finish))
        if include_usage:
            yield event([], usage=reply.usage(texts))
        yield "data: [DONE]\n\n"
    finally:
        reply.cancel()
