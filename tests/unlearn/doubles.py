"""Models whose answers' log-probabilities we choose, tiny real ones, and batches and examples to go with them."""

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tilth.contracts import Batch, Noise

VOCABULARY = 23


class FixedLogProbabilities(nn.Module):
    """A classifier that gives class 0 of example i the log-probability values[i], and the rest to class 1."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        chosen = self.values[inputs]
        return torch.stack([chosen, torch.log1p(-chosen.exp())], -1)


def forget_batch(reference: Tensor) -> Batch:
    """All examples of a FixedLogProbabilities, each of class 0; no retain examples."""
    count = len(reference)
    examples = Batch(inputs=torch.arange(count), labels=torch.zeros(count, dtype=torch.long), reference=reference)
    return Batch(samples=count, forget=examples, retain=None)


def tiny_lm(seed: int = 0, *, dropout: float = 0.0, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    """Two layers, width 16, sharply initialised so that predictions differ between tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.3, attention_dropout=dropout, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def lm_batch(rows: list[tuple[list[int], list[int]]], *, pad: int = 0, left: bool = False) -> Batch:
    """Right-padded (or left-padded) batch from (prompt, answer) pairs, with `pad` more columns of padding than needed."""
    width = max(len(prompt) + len(answer) for prompt, answer in rows) + pad
    ids, labels, mask = (np.full((len(rows), width), fill) for fill in (0, -100, 0))
    for row, (prompt, answer) in enumerate(rows):
        start = width - len(prompt) - len(answer) if left else 0
        end = start + len(prompt) + len(answer)
        ids[row, start:end] = prompt + answer
        labels[row, start + len(prompt) : end] = answer
        mask[row, start:end] = 1
    tensors = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    return Batch(tokens=int(mask.sum()), samples=len(rows), **{name: torch.from_numpy(array) for name, array in tensors.items()})


def random_rows(count: int, seed: int) -> list[tuple[list[int], list[int]]]:
    """Prompts of 2-5 and answers of 1-6 random tokens."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers([2, 1], [6, 7], (count, 2)).tolist()
    return [(generator.integers(3, VOCABULARY, p).tolist(), generator.integers(3, VOCABULARY, a).tolist()) for p, a in lengths]


class ListExamples:
    """Examples from (prompt, answer) pairs; example i was made from corpus row i."""

    def __init__(self, rows: list[tuple[list[int], list[int]]]) -> None:
        self.all = rows

    def __len__(self) -> int:
        return len(self.all)

    def batch(self, indices: np.ndarray, noise: Noise) -> Batch:
        return lm_batch([self.all[i] for i in indices])

    def rows(self, indices: np.ndarray) -> list[np.ndarray]:
        return [np.array([i]) for i in indices]
