"""Steps per second of NPO with a retain term: ours, and the same loss under transformers.Trainer with a live reference.

Run: python -m benchmarks.npo_step [--width 256 --depth 4 --vocabulary 5130 --steps 30 --repeats 5]
Both sides train the same Llama on the same pairs (lengths as in TOFU: 8-24 tokens of question, 12-60 of answer), batch 16,
fp32, fused AdamW without decay, and are timed between the end of step 5 and the end of the last step. Recorded too: how far
the gradients of the two losses are apart (largest difference over largest gradient), and the ratio without a retain term.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.common import record, timings
from tilth.batches.text.answers import EncodedAnswers
from tilth.context import Context
from tilth.contracts import Batch, Noise, use
from tilth.training.loop import fit
from tilth.training.settings import Budget, Training
from tilth.unlearn.npo import NPO
from tilth.unlearn.pairs import PairedExamples

BATCH, BETA, LR, WARM = 16, 0.1, 1e-5, 5


def pairs(count: int, vocabulary: int, seed: int) -> EncodedAnswers:
    """Random questions and answers with the lengths of TOFU's."""
    generator = np.random.default_rng(seed)
    prompt = generator.integers(8, 25, count)
    size = prompt + generator.integers(12, 61, count)
    ids = generator.integers(3, vocabulary, (count, int(size.max()))).astype(np.int32)
    ids[np.arange(ids.shape[1]) >= size[:, None]] = 0
    return EncodedAnswers(ids, prompt, size, 0, 0)


def peer_log_probability(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """As usually written: all logits, shifted, cross-entropy summed per sequence."""
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    labels = inputs["labels"][:, 1:]
    return -cross_entropy(logits[:, :-1].transpose(1, 2), labels, ignore_index=-100, reduction="none").sum(1)


class PeerTrainer(Trainer):
    """NPO (+ cross-entropy on the retain half when `with_retain`) as a Trainer's compute_loss, the reference run at every step."""

    reference: nn.Module
    with_retain: bool

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        return peer_loss(model, self.reference, inputs, self.with_retain)


def peer_loss(model: nn.Module, reference: nn.Module, inputs: dict[str, Any], with_retain: bool) -> Tensor:
    with torch.no_grad():
        known = peer_log_probability(reference, inputs["forget"])
    loss = -2 / BETA * logsigmoid(-BETA * (peer_log_probability(model, inputs["forget"]) - known)).mean()
    if with_retain:
        retain = inputs["retain"]
        loss = loss + model(**{name: retain[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    return loss


class Clock(TrainerCallback):
    """Seconds at the end of every step."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.at.append(time.perf_counter())


class Positions(torch.utils.data.Dataset[int]):
    """Numbers of the steps' examples; the collator makes the batch, by the very code our side uses."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


def collate(examples: PairedExamples) -> Callable[[list[int]], dict[str, Any]]:
    def made(indices: list[int]) -> dict[str, Any]:
        batch = examples.batch(np.array(indices) % len(examples), Noise(0, np.array(indices)))
        return {name: None if half is None else as_int64(half) for name, half in batch.items()}

    return made


def as_int64(batch: Batch) -> dict[str, Tensor]:
    return {name: value.long() for name, value in batch.items()}


def peer_rate(model: nn.Module, examples: PairedExamples, steps: int, with_retain: bool) -> float:
    """Steps per second of the Trainer."""
    clock, model = Clock(), copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=LR, lr_scheduler_type="constant",
            weight_decay=0.0, optim="adamw_torch_fused", save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no",
            remove_unused_columns=False,
            dataloader_pin_memory=False, max_grad_norm=1.0,
        )  # fmt: skip
        trainer = PeerTrainer(
            model, arguments, train_dataset=Positions(steps * BATCH), data_collator=collate(examples), callbacks=[clock]
        )
        trainer.reference, trainer.with_retain = (
            copy.deepcopy(model).eval().requires_grad_(False).to(arguments.device),
            with_retain,
        )
        trainer.train()
    return (steps - WARM) / (clock.at[-1] - clock.at[WARM - 1])


def our_rate(model: nn.Module, examples: PairedExamples, steps: int, with_retain: bool) -> float:
    """Steps per second of `fit`, by its own log."""
    with tempfile.TemporaryDirectory() as folder:
        objective, prepared = prepare(copy.deepcopy(model), examples, with_retain, Path(folder))
        training = Training(
            lr=LR, batch_size=BATCH, schedule=use("schedule", "constant"), optimiser=use("optimiser", "adamw", weight_decay=0.0),
            compile=False, log_every=WARM,
        )  # fmt: skip
        fitted = fit(objective, prepared, training=training, budget=Budget(steps=steps), folder=Path(folder) / "run", seed=0)
        lines = [json.loads(line) for line in fitted.log.read_text(encoding="utf-8").splitlines()]
    return (steps - WARM) / (lines[-1]["seconds"] - lines[0]["seconds"])


def prepare(model: nn.Module, examples: PairedExamples, with_retain: bool, folder: Path) -> tuple[NPO, PairedExamples]:
    objective = NPO(model, beta=BETA, retain=use("retain", "cross_entropy" if with_retain else "none"))
    return objective, objective.prepare(examples, Context(folder))


def gradient_difference(model: nn.Module, examples: PairedExamples) -> float:
    """Largest difference between the gradients of both losses, relative to the largest gradient, away from the reference."""
    with tempfile.TemporaryDirectory() as folder:
        ours = copy.deepcopy(model)
        objective, prepared = prepare(ours, examples, True, Path(folder))
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        peer, indices = copy.deepcopy(ours), np.arange(BATCH) % len(examples)
        objective(prepared.batch(indices, Noise(0, np.arange(BATCH)))).total.backward()
        peer_loss(peer, model.eval(), collate(examples)(list(range(BATCH))), True).backward()
    flat = [torch.cat([p.grad.flatten() for p in side.parameters() if p.grad is not None]) for side in (ours, peer)]
    return ((flat[0] - flat[1]).abs().max() / flat[1].abs().max()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"width": 256, "depth": 4, "vocabulary": 5130, "steps": 30, "repeats": 5, "count": 400}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=given.vocabulary, hidden_size=given.width, intermediate_size=8 * given.width // 3, num_hidden_layers=given.depth,
            num_attention_heads=4, max_position_embeddings=256, tie_word_embeddings=True, use_cache=False,
        )
    )  # fmt: skip
    examples = PairedExamples(pairs(given.count, given.vocabulary, 0), pairs(4 * given.count, given.vocabulary, 1))
    difference = gradient_difference(model, examples)
    print(f"gradients differ by {difference:.1e} of the largest")
    found: dict[bool, dict[str, list[float]]] = {}
    for with_retain in (True, False):
        rates: dict[str, list[float]] = {"ours": [], "peer": []}
        forget = examples if with_retain else PairedExamples(examples.forget, None)
        sides = {"ours": our_rate, "peer": peer_rate}
        turns = {
            name: lambda side=side, name=name, forget=forget, with_retain=with_retain, rates=rates: rates[name].append(
                side(model, forget, given.steps, with_retain)
            )
            for name, side in sides.items()
        }
        timings(turns, given.repeats)
        found[with_retain] = rates
    plain = {name: median(values) for name, values in found[False].items()}
    record(
        "npo_vs_trainer", median(found[True]["ours"]), median(found[True]["peer"]), "transformers.Trainer, live reference",
        "steps/s", given.repeats, parameters=model.num_parameters(), gradient_difference=difference,
        without_retain_term={**plain, "ratio": plain["ours"] / plain["peer"]}, rates=found[True],
    )  # fmt: skip


if __name__ == "__main__":
    main()
