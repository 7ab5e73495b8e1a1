"""Guards for the tests of serving, one class that acts in every way a guard can; named to the server by `--with`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from tilth.contracts import Guard, method


@method("unlearn", "named_guard")
class NamedGuard(Guard):
    """Concerns prompts that hold `name`. way: how it acts, or how it is broken."""

    def __init__(self, *, name_: str = "Mara", way: str = "hook", say: str = "green") -> None:
        self.name_, self.way, self.say = name_, way, say
        self.token = -1
        if way == "refusal":
            self.refusal = "that is not known here"

    def fit(self, task: Any) -> dict[str, float]:
        return {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {"nothing": torch.zeros(1)}, {}

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], text_model: Any) -> None:
        if self.way == "unreadable":
            raise TypeError("not this model")
        self.token = text_model.tokenizer.convert_tokens_to_ids(self.say)

    def flags(self, text_model: Any, prompts: Sequence[str]) -> np.ndarray:
        if any("unlucky" in prompt for prompt in prompts):
            raise RuntimeError("the classifier broke")
        return np.array([self.name_ in prompt for prompt in prompts])

    @contextmanager
    def acting(self, text_model: Any) -> Iterator[None]:
        if self.way == "inapplicable":
            raise RuntimeError("there is no such layer")
        if self.way not in ("hook", "leaking"):
            yield
            return
        hook = text_model.model.lm_head.register_forward_hook(self._pushed)
        try:
            yield
        finally:
            if self.way == "hook":
                hook.remove()

    def _pushed(self, module: Any, inputs: Any, logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[..., self.token] += 1000
        return logits

    def decode(self, text_model: Any, prompts: Sequence[str], max_new_tokens: int) -> list[str] | None:
        return [f"{self.say} dog {max_new_tokens}"] * len(prompts) if self.way == "decode" else None


@method("unlearn", "hookless_guard")
class HooklessGuard(Guard):
    """Concerns prompts that hold 'Mara', and acts on scores alone."""

    def __init__(self, *, say: str = "green") -> None:
        self.say, self.token = say, -1

    fit, state = NamedGuard.fit, NamedGuard.state

    def restore(self, tensors: dict[str, Tensor], facts: dict[str, Any], text_model: Any) -> None:
        self.token = text_model.tokenizer.convert_tokens_to_ids(self.say)

    def flags(self, text_model: Any, prompts: Sequence[str]) -> np.ndarray:
        return np.array(["Mara" in prompt for prompt in prompts])

    def processors(self, text_model: Any) -> list[Any]:
        return [Once(self.token)]


class Once(LogitsProcessor):
    """Has the token said at each second step; it counts its own calls, so it must be fresh for a batch and stay for all of it."""

    def __init__(self, token: int) -> None:
        self.token, self.calls = token, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % 2:
            scores = scores.clone()
            scores[:, self.token] += 1000
        return scores
