"""What a model says: prompts in, texts out, in batches.

Notable: transformers' own generate does the decoding, in rounds of a few tokens: rows that have ended leave the batch
between rounds and take their keys and values with them, so a model that ends its answers is not held up by the one row that
does not; keys and values are written into room kept for them instead of being copied at every token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList
from transformers.cache_utils import DynamicCache, DynamicLayer

from tilth.backbones.evaluating import evaluating
from tilth.batches.text.encoding import Encoder, end_token, pad_token
from tilth.batches.text.ragged import offsets, ranges
from tilth.context import Progress
from tilth.errors import TilthError
from tilth.evaluate.guarded import continued
from tilth.evaluate.likelihood import context_length

if TYPE_CHECKING:
    from tilth.backbones.folder import TextModel

_ROUND = 16  # tokens between two looks at which rows have ended
_ROOM = 64  # tokens of room that a cache grows by
_BATCH_TOKENS = 2**18  # keys and values kept at once


def generate(
    text_model: TextModel,
    prompts: Sequence[str],
    max_new_tokens: int = 128,
    batch_size: int = 128,
    *,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[str]:
    """The continuation of each prompt, without its end token, special tokens left out.

    A guarded model answers through its guard. Greedy at temperature 0; otherwise sampled with `seed`, and then what a prompt gives depends on the batch it is in.
    Stops at the end token, after max_new_tokens, or where the model's context ends. A prompt that fills the context loses
    its front. Raises TilthError for models that cannot generate.
    """
    sampling: dict[str, Any] = {"temperature": temperature, "top_p": top_p, "seed": seed, "progress": progress}
    if (guard := text_model.guard) is not None:

        def some(without: TextModel, chosen: list[str], guarded: bool) -> list[str]:
            fresh = (lambda: guard.processors(without)) if guarded else None
            return _generate(without, chosen, max_new_tokens, batch_size, processors=fresh, **sampling)

        return continued(text_model, prompts, max_new_tokens, some)
    return _generate(text_model, prompts, max_new_tokens, batch_size, **sampling)


def _generate(
    text_model: TextModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    *,
    temperature: float,
    top_p: float,
    seed: int,
    progress: Progress | None,
    processors: Callable[[], list[Any]] | None = None,
) -> list[str]:
    """See `generate`; processors: makes the LogitsProcessors of one batch."""
    ids, starts = _encoded(prompts, text_model, longest_prompt(text_model, max_new_tokens))
    with torch.random.fork_rng(enabled=temperature > 0):
        if temperature > 0:
            torch.manual_seed(seed)
            sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        else:
            sampling = {"do_sample": False}
        made = continue_ids(
            text_model, ids, starts, max_new_tokens, batch_size, sampling=sampling, processors=processors, progress=progress
        )
    return list(text_model.tokenizer.batch_decode(made, skip_special_tokens=True))


def longest_prompt(text_model: TextModel, max_new_tokens: int) -> int:
    """The most tokens a prompt may have so that the answer finds room in the model's context; TilthError if it cannot generate."""
    model = text_model.model
    if not getattr(model, "can_generate", lambda: False)():
        raise TilthError(f"{type(model).__name__} cannot generate text", hint="Use a causal language model.")
    room = context_length(model)
    return room - min(max_new_tokens, max(1, room // 2))


def continue_ids(
    text_model: TextModel,
    ids: np.ndarray,
    starts: np.ndarray,
    max_new_tokens: int,
    batch_size: int = 128,
    *,
    sampling: dict[str, Any] | None = None,
    processors: Callable[[], list[Any]] | None = None,
    progress: Progress | None = None,
) -> list[list[int]]:
    """Token ids with which the bare model goes on from each prompt, end token excluded; greedy without `sampling`.

    ids: of all prompts end to end, each with what its sequence begins with; starts (prompts + 1,): where each begins.
    """
    model, tokenizer = text_model.model, text_model.tokenizer
    longest_prompt(text_model, max_new_tokens)  # or it cannot generate
    settings: dict[str, Any] = {"eos_token_id": end_token(tokenizer), "pad_token_id": pad_token(tokenizer)}
    settings |= sampling or {"do_sample": False}
    room, lengths = context_length(model), np.diff(starts)
    order = np.argsort(-lengths, kind="stable")
    found: list[list[int]] = [[]] * len(lengths)
    progress = progress or Progress()
    with evaluating(model) as device:
        progress.start("generate", len(lengths), "answers")
        done = 0
        for rows in _batches(order, lengths, max_new_tokens, batch_size):
            tokens = ids[ranges(starts[rows], lengths[rows])]
            new = min(max_new_tokens, room - int(lengths[rows].max()))
            made = _continue(model, tokens, lengths[rows], new, device, settings, processors() if processors else [])
            for row, continued_ids in zip(rows.tolist(), made, strict=True):
                found[row] = continued_ids
            done += len(rows)
            progress.update(done)
        progress.end()
    return found


def _continue(
    model: Any,
    tokens: np.ndarray,
    lengths: np.ndarray,
    new: int,
    device: torch.device,
    settings: dict[str, Any],
    processors: list[Any],
) -> list[list[int]]:
    """At most `new` token ids that follow each prompt, end token excluded; settings: of transformers' GenerationConfig.

    processors: LogitsProcessors; they may keep states of rows, so with them no row leaves the batch before all have ended.
    """
    end, width = settings["eos_token_id"], int(lengths.max())
    inside = np.arange(width) >= width - lengths[:, None]
    padded = np.full(inside.shape, settings["pad_token_id"], dtype=np.int64)
    padded[inside] = tokens
    ids, mask = torch.from_numpy(padded).to(device), torch.from_numpy(inside.astype(np.int64)).to(device)
    made = np.full((len(lengths), new), end, dtype=np.int64)
    alive = torch.arange(len(lengths), device=device)
    cache = roomy_cache(model)
    several = {"logits_processor": LogitsProcessorList(processors)} if processors else {}
    step = new if processors else _ROUND
    for start in range(0, new, step):
        config = GenerationConfig(max_new_tokens=min(step, new - start), **settings)
        ids = model.generate(ids, attention_mask=mask, generation_config=config, past_key_values=cache, **several)
        fresh = ids[:, width + start :]
        made[alive.cpu().numpy(), start : start + fresh.shape[1]] = fresh.cpu().numpy()
        going = ~(fresh == end).any(1)
        if not going.any():
            break
        mask = torch.cat([mask, mask.new_ones(fresh.shape)], 1)
        if not going.all():
            kept = going.nonzero()[:, 0]
            ids, mask, alive = ids[kept], mask[kept], alive[kept]
            cache.batch_select_indices(kept)
    stop = np.where((made == end).any(1), (made == end).argmax(1), new)
    return [row[:length] for row, length in zip(made.tolist(), stop.tolist(), strict=True)]


class _RoomyLayer(DynamicLayer):
    """Keys and values of one layer as views of larger tensors, so that a new token is written and nothing is copied."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Tensor | None = None  # the keys last handed out: others mean that someone selected or cut rows
        self.larger: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        new = (key_states, value_states)
        if self.keys is not self.seen or self.larger[0].shape[-2] < stop:
            self.larger = [states.new_empty((*states.shape[:-2], stop + _ROOM, states.shape[-1])) for states in new]
            if start:
                assert self.keys is not None and self.values is not None
                for larger, old in zip(self.larger, (self.keys, self.values), strict=True):
                    larger[..., :start, :] = old
        for larger, states in zip(self.larger, new, strict=True):
            larger[..., start:stop, :] = states
        self.keys, self.values = (larger[..., :stop, :] for larger in self.larger)
        self.seen = self.keys
        return self.keys, self.values


def roomy_cache(model: Any) -> DynamicCache:
    """transformers' own cache for `model`, its plain attention layers replaced by roomy ones."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _encoded(prompts: Sequence[str], text_model: TextModel, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all prompts end to end, each begun as the tokeniser begins a sequence and at most `longest` long; where each begins."""
    encoder = Encoder(text_model.tokenizer)
    ids, lengths = encoder(prompts)
    head, _ = encoder.frame()
    if not len(head) and (lengths == 0).any():
        raise TilthError("a prompt is empty", hint="Give at least one word to go on from.")
    kept = np.minimum(lengths, longest - len(head))
    starts = offsets(kept + len(head))
    out = np.empty(int(starts[-1]), dtype=np.int64)
    if len(head):
        out[starts[:-1][:, None] + np.arange(len(head))] = head
    out[ranges(starts[:-1] + len(head), kept)] = ids[ranges(offsets(lengths)[1:] - kept, kept)]
    return out, starts


def _batches(order: np.ndarray, lengths: np.ndarray, new: int, batch_size: int) -> Iterator[np.ndarray]:
    """Prompts in batches of similar length, with a bounded number of tokens to remember."""
    at = 0
    while at < len(order):
        rows = order[at : at + max(1, min(batch_size, _BATCH_TOKENS // (int(lengths[order[at]]) + new)))]
        at += len(rows)
        yield rows
