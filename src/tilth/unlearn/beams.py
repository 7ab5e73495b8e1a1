"""Beam search that never says what it must not: candidates are masked before they are ranked.

Notable: the beams of all prompts of a batch are one forward pass with one cache of keys and values; forbidden candidates are masked
over the whole vocabulary, so no beam is lost to them; infinite costs are masks, never arithmetic; similarity is asked of whole words
only, once for each word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from tilth.batches.text.ragged import offsets
from tilth.batches.text.words import WordTable
from tilth.unlearn.automaton import Automaton
from tilth.unlearn.forbidden import Encoding, words

_NEVER = float("-inf")


class Beams(NamedTuple):
    """made (rows, new): tokens so far, `end` behind them; began (rows,): where each row's last word begins; step: tokens so far."""

    made: Tensor
    began: Tensor
    step: int


Soft = Callable[[Beams, Tensor], tuple[Tensor, Tensor]]
"""(beams, candidates (rows, k)) -> (costs, which candidates begin a new word), both (rows, k); a cost may be infinite."""


@torch.no_grad()
def beam_search(
    model: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    automaton: Automaton,
    *,
    width: int,
    new: int,
    end: int,
    beta: float = 1.0,
    soft: Soft | None = None,
) -> list[list[int]]:
    """argmin over answers of sum_t -log p(y_t | x, y_<t) + P_token + P_soft, by a beam of `width`   (arXiv 2505.13312)

    P_token is infinite for a token that brings the automaton to a ratio of at least `beta`. No length normalisation.
    input_ids, attention_mask (prompts, tokens): padded on the left. Gives token ids without the end token: the best of the answers
    that ended and, after `new` tokens, of the beams. Where every candidate of a prompt is pruned, soft costs are
    dropped; where then none is left, its best beam ends there.
    """
    count, rows = len(input_ids), len(input_ids) * width
    device = input_ids.device
    automaton = automaton.to(device)
    cache = DynamicCache(config=model.config)
    positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
    logits = _last_logits(model, input_ids, attention_mask, positions, cache).repeat_interleave(width, 0)
    cache.batch_repeat_interleave(width)
    mask = attention_mask.repeat_interleave(width, 0)
    score = torch.full((count, width), _NEVER, device=device)
    score[:, 0] = 0
    states = automaton.roots.repeat_interleave(width)
    beams = Beams(torch.full((rows, new), end, device=device), torch.zeros(rows, dtype=torch.long, device=device), 0)
    best = torch.full((count,), _NEVER, device=device)
    answer = torch.full((count, new), end, device=device)
    first = torch.arange(count, device=device)[:, None] * width
    for step in range(new):
        log_p = logits.float().log_softmax(-1).masked_fill(automaton.forbidden(states, beta), _NEVER)
        top, tokens = log_p.topk(min(2 * width, log_p.shape[1]))
        hard = (score.reshape(rows, 1) + top).reshape(count, -1)
        begins = torch.ones_like(tokens, dtype=torch.bool)
        total = hard
        if soft is not None:
            cost, begins = soft(beams, tokens)
            cost = cost.reshape(count, -1)
            total = torch.where(cost.isinf(), _NEVER, hard - cost.nan_to_num(posinf=0.0))
            total = torch.where(total.isfinite().any(1, keepdim=True), total, hard)
        stuck = ~total.isfinite().any(1) & score[:, 0].isfinite()
        best, answer = _better(best, answer, torch.where(stuck, score[:, 0], _NEVER), beams.made[first[:, 0]])
        value, at = total.topk(min(2 * width, total.shape[1]))
        parent, token = first + at // tokens.shape[1], tokens.reshape(count, -1).gather(1, at)
        ends = token == end
        closed = ends[:, :width] if step + 1 < new else torch.ones_like(ends[:, :width])
        ended, which = value[:, :width].masked_fill(~closed, _NEVER).max(1)
        whole = beams.made[parent.gather(1, which[:, None])[:, 0]]
        whole[:, step] = token.gather(1, which[:, None])[:, 0]
        best, answer = _better(best, answer, ended, whole)
        score, kept = value.masked_fill(ends, _NEVER).topk(width)
        parent, token = parent.gather(1, kept).reshape(-1), token.gather(1, kept).reshape(-1)
        began = torch.where(begins.reshape(count, -1).gather(1, at.gather(1, kept)).reshape(-1), step, beams.began[parent])
        made = beams.made[parent]
        made[:, step] = token
        beams = Beams(made, began, step + 1)
        if step + 1 == new or bool((best >= score[:, 0]).all()):  # costs only add up: no beam overtakes any more
            break
        states = automaton.step(states[parent], token)
        cache.reorder_cache(parent)  # type: ignore[arg-type]
        mask = torch.cat([mask, mask.new_ones(rows, 1)], 1)
        logits = _last_logits(model, token[:, None], mask, mask.sum(1, keepdim=True) - 1, cache)
    return [row[: row.index(end)] if end in row else row for row in answer.tolist()]


def _better(best: Tensor, answer: Tensor, score: Tensor, made: Tensor) -> tuple[Tensor, Tensor]:
    """Of two answers to each prompt the one with the higher score: (prompts,), (prompts, new)."""
    higher = score > best
    return torch.where(higher, score, best), torch.where(higher[:, None], made, answer)


def _last_logits(model: Any, input_ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
    """(rows, vocabulary): of the last column of rows padded on the left."""
    only = {"logits_to_keep": 1} if model._supports_logits_to_keep() else {}
    said = model(input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, **only)
    logits: Tensor = said.logits[:, -1]
    return logits


class WordCosts:
    """P_soft: a word that is complete costs its greatest cosine with a forbidden phrase, in nats; infinite from `delta` on.

    A word is complete when the next token begins another one or ends the answer; so what costs is that next token. Each word is
    encoded once, for all prompts of the batch. phrases: of each prompt, what must not be said; all prompts have `width` rows.
    """

    def __init__(
        self, tokenizer: Any, table: WordTable, encoding: Encoding, phrases: Sequence[Sequence[str]], delta: float, width: int
    ) -> None:
        self.tokenizer, self.table, self.encoding, self.delta, self.width = tokenizer, table, encoding, delta, width
        self.known: dict[tuple[int, ...], np.ndarray] = {(): np.zeros(len(phrases), dtype=np.float32)}
        # In front of each prompt's phrases an empty text, which is like nothing: so that no prompt is without any.
        self.starts = offsets(np.array([1 + len(some) for some in phrases]))[:-1]
        self.phrases = encoding([text for some in phrases for text in ("", *some)])

    def __call__(self, beams: Beams, tokens: Tensor) -> tuple[Tensor, Tensor]:
        if beams.step == 0:
            return torch.zeros(tokens.shape, device=tokens.device), torch.ones_like(tokens, dtype=torch.bool)
        made, candidates = beams.made[:, : beams.step].cpu().numpy(), tokens.cpu().numpy()
        pairs = np.stack([np.broadcast_to(made[:, -1:], candidates.shape), candidates], -1)
        begins = self.table.starts(pairs.reshape(-1, 2))[:, 1].reshape(candidates.shape)
        last = [tuple(row[start:]) for row, start in zip(made.tolist(), beams.began.tolist(), strict=True)]
        self.learn(list(set(last) - self.known.keys()))
        cost = np.array([self.known[word][row // self.width] for row, word in enumerate(last)])
        costs = np.where(begins, cost[:, None], np.float32(0))
        return torch.from_numpy(costs).to(tokens.device), torch.from_numpy(begins).to(tokens.device)

    def learn(self, fresh: list[tuple[int, ...]]) -> None:
        """Costs of complete words, by their tokens, for every prompt."""
        if fresh:
            texts = [" ".join(words(self.tokenizer.decode(list(word)))) for word in fresh]
            alike = (self.encoding(texts) @ self.phrases.T).toarray()
            highest = np.maximum.reduceat(alike, self.starts, axis=1)
            self.known |= zip(fresh, np.where(highest >= self.delta, np.float32(np.inf), highest), strict=True)
