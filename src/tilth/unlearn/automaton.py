"""Many forbidden token sequences looked for at once: the Aho-Corasick automaton as arrays.

Notable: failure links are folded into the table of next states, so a step is one look-up for all beams of all prompts; columns
exist only for tokens that occur in a phrase, so the table does not grow with the vocabulary; the phrase sets of several prompts
stand side by side in one table, each with a root of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


class Automaton:
    """Aho and Corasick, CACM 18(6), 1975, over token ids below `vocabulary`. sets: for each prompt, its phrases.

    roots (sets,): the state of each prompt before its first token. column (vocabulary,): a token's column, 0 for tokens of no
    phrase. next (states, columns): the state after a token. ratio (states,): max over phrases f of m / |f|, m the length of the
    longest suffix of what was read that begins f; 1 says that f has just been completed.
    """

    def __init__(self, sets: Sequence[Sequence[Sequence[int]]], vocabulary: int) -> None:
        used = sorted({token for phrases in sets for phrase in phrases for token in phrase})
        column = np.zeros(vocabulary, dtype=np.int64)
        column[used] = np.arange(1, len(used) + 1)
        children: list[dict[int, int]] = []
        depth: list[int] = []
        shortest: list[float] = []  # length of the shortest phrase through each state
        roots = []

        def state(at: int) -> int:
            children.append({})
            depth.append(at)
            shortest.append(np.inf)
            return len(children) - 1

        for phrases in sets:
            roots.append(state(0))
            for phrase in phrases:
                here = roots[-1]
                for at, token in enumerate(phrase, start=1):
                    child = children[here].get(token)
                    if child is None:
                        child = children[here][token] = state(at)
                    here = child
                    shortest[here] = min(shortest[here], len(phrase))
        self.next, self.ratio = self._filled(children, depth, shortest, roots, column)
        self.column, self.roots = torch.from_numpy(column), torch.tensor(roots, dtype=torch.int64)

    @staticmethod
    def _filled(
        children: list[dict[int, int]], depth: list[int], shortest: list[float], roots: list[int], column: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Next states with failure links folded in, and ratios, breadth first from every root."""
        table = np.zeros((len(children), int(column.max(initial=0)) + 1), dtype=np.int64)
        ratio = np.array(depth) / np.array(shortest)
        for root in roots:
            table[root] = root
            waiting = [(root, root)]  # (state, its longest proper suffix that is a state)
            for here, behind in waiting:
                if here != root:
                    table[here] = table[behind]
                    ratio[here] = max(ratio[here], ratio[behind])
                for token, child in children[here].items():
                    at = column[token]
                    suffix = int(table[here, at]) if here != root else root
                    table[here, at] = child
                    waiting.append((child, suffix))
        return torch.from_numpy(table), torch.from_numpy(ratio).float()

    def to(self, device: torch.device) -> Automaton:
        """Moved in place."""
        for name in ("next", "ratio", "column", "roots"):
            setattr(self, name, getattr(self, name).to(device))
        return self

    def step(self, states: Tensor, tokens: Tensor) -> Tensor:
        """The state of each row after one more token: (rows,)."""
        return self.next[states, self.column[tokens]]

    def forbidden(self, states: Tensor, beta: float) -> Tensor:
        """Which tokens would bring a row to a ratio of at least `beta`: bool (rows, vocabulary)."""
        return (self.ratio[self.next[states]] >= beta)[:, self.column]
