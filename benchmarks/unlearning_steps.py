"""Seconds per step and peak memory of unlearning objectives: ours, and the same losses under transformers.Trainer.

Run: python -m benchmarks.unlearning_steps [--width 256 --depth 4 --vocabulary 5130 --steps 30 --repeats 3]
The peer is what one would write: a Trainer whose compute_loss takes all logits of the batch. Model, pairs, batch and
optimiser are those of `npo_step` (which has NPO, with its reference). Every timing is a process of its own, sides in turn;
peak memory is the process's, and so holds the libraries too (`imported_mb`).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from benchmarks.common import record
from benchmarks.npo_step import BATCH, LR, WARM, Clock, Positions, collate, pairs, peer_log_probability
from tilth.context import Context
from tilth.contracts import use
from tilth.training.loop import fit
from tilth.training.settings import Budget, Training
from tilth.unlearn.forget import prepared
from tilth.unlearn.pairs import PairedExamples
from tilth.unlearn.task import Task

Inputs = dict[str, Any]


def mean_cross_entropy(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """transformers' own loss, a mean over answer tokens."""
    return model(**{name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}).loss  # type: ignore[no-any-return]


def ascent(model: nn.Module, inputs: Inputs) -> Tensor:
    return -mean_cross_entropy(model, inputs["forget"])


def difference(model: nn.Module, inputs: Inputs) -> Tensor:
    return ascent(model, inputs) + mean_cross_entropy(model, inputs["retain"])


def simnpo(model: nn.Module, inputs: Inputs) -> Tensor:
    length = (inputs["forget"]["labels"][:, 1:] != -100).sum(1)
    average = peer_log_probability(model, inputs["forget"]) / length
    return -2 / 4.5 * logsigmoid(-4.5 * average).mean() + mean_cross_entropy(model, inputs["retain"])


def inverted_hinge(model: nn.Module, inputs: Inputs) -> Tensor:
    forget = inputs["forget"]
    logits = model(input_ids=forget["input_ids"], attention_mask=forget["attention_mask"]).logits[:, :-1]
    labels = forget["labels"][:, 1:]
    probability = logits.softmax(-1)[labels != -100]
    target = labels[labels != -100].unsqueeze(1)
    own = probability.gather(1, target)
    rival = probability.scatter(1, target, -1.0).max(1, keepdim=True).values
    return (1 + own - rival).mean() + mean_cross_entropy(model, inputs["retain"])


PEERS: dict[str, Callable[[nn.Module, Inputs], Tensor]] = {
    "gradient_ascent": ascent, "gradient_difference": difference, "simnpo": simnpo, "loku": inverted_hinge,
}  # fmt: skip


def network(given: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=given.vocabulary, hidden_size=given.width, intermediate_size=8 * given.width // 3, num_hidden_layers=given.depth,
        num_attention_heads=4, max_position_embeddings=256, tie_word_embeddings=True, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def examples(given: argparse.Namespace) -> PairedExamples:
    return PairedExamples(pairs(400, given.vocabulary, 0), pairs(1600, given.vocabulary, 1))


def ours(name: str, given: argparse.Namespace, folder: Path) -> float:
    """Seconds per step of `fit`, by its own log."""
    objective = use("unlearn", name).build(network(given))
    both = examples(given)
    training = Training(
        lr=LR, batch_size=BATCH, schedule=use("schedule", "constant"), optimiser=use("optimiser", "adamw", weight_decay=0.0),
        compile=False, log_every=WARM,
    )  # fmt: skip
    budget = Budget(steps=given.steps)
    task = Task(None, None, None, both.forget, both.retain, training, budget, Context(folder))  # type: ignore[arg-type]
    fitted = fit(objective, prepared(objective, task), training=training, budget=budget, folder=folder / "run", seed=0)
    lines = [json.loads(line) for line in fitted.log.read_text(encoding="utf-8").splitlines()]
    return float(lines[-1]["seconds"] - lines[0]["seconds"]) / (given.steps - WARM)


def peer(name: str, given: argparse.Namespace, folder: Path) -> float:
    """Seconds per step of the Trainer."""

    class Peer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            return PEERS[name](model, inputs)

    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=given.steps, per_device_train_batch_size=BATCH, learning_rate=LR,
        lr_scheduler_type="constant", weight_decay=0.0, optim="adamw_torch_fused", save_strategy="no", report_to=[],
        disable_tqdm=True, logging_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False, max_grad_norm=1.0,
    )  # fmt: skip
    clock = Clock()
    rows = Positions(given.steps * BATCH)
    Peer(network(given), arguments, train_dataset=rows, data_collator=collate(examples(given)), callbacks=[clock]).train()
    return (clock.at[-1] - clock.at[WARM - 1]) / (given.steps - WARM)


def measured(side: str, name: str, given: argparse.Namespace) -> dict[str, float]:
    """Seconds per step and peak memory of one side of one method, in a process of its own."""
    sizes = [f"--{key}={getattr(given, key)}" for key in ("width", "depth", "vocabulary", "steps")]
    command = [sys.executable, "-m", "benchmarks.unlearning_steps", "--side", side, "--method", name, *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise SystemExit(f"{side} {name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def gradients_apart(name: str, given: argparse.Namespace) -> float:
    """Largest difference between the gradients of both sides' losses, relative to the largest gradient."""
    import numpy as np

    from tilth.contracts import Noise

    flat, indices, both = [], np.arange(BATCH), examples(given)
    for loss in (lambda net: use("unlearn", name).build(net)(both.batch(indices, Noise(0, indices))).total,
                 lambda net: PEERS[name](net, collate(both)(list(range(BATCH))))):  # fmt: skip
        net = network(given)
        loss(net).backward()
        flat.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    return float((flat[0] - flat[1]).abs().max() / flat[1].abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, default in {"width": 256, "depth": 4, "vocabulary": 5130, "steps": 30, "repeats": 3}.items():
        parser.add_argument(f"--{key}", type=int, default=default)
    parser.add_argument("--side", choices=["ours", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--method", choices=list(PEERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        with tempfile.TemporaryDirectory() as folder:
            seconds = globals()[given.side](given.method, given, Path(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(json.dumps({"seconds": seconds, "peak_mb": peak, "imported_mb": imported}))
        return
    began, methods, ratios = time.perf_counter(), {}, []
    for name in PEERS:
        runs: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
        for turn in range(given.repeats):
            for side in list(runs) if turn % 2 == 0 else reversed(list(runs)):
                runs[side].append(measured(side, name, given))
        middle = {
            side: {key: median(run[key] for run in of) for key in ("seconds", "peak_mb", "imported_mb")}
            for side, of in runs.items()
        }
        ratios.append(middle["peer"]["seconds"] / middle["ours"]["seconds"])
        apart = gradients_apart(name, given)
        methods[name] = {**middle, "ratio": ratios[-1], "gradients_apart": apart}
        print(f"{name}: {ratios[-1]:.2f} times the Trainer's steps per second; gradients apart by {apart:.1e}", file=sys.stderr)
    slowest = min(methods, key=lambda name: methods[name]["ratio"])
    record(
        "unlearning_steps", methods[slowest]["ours"]["seconds"], methods[slowest]["peer"]["seconds"],
        f"transformers.Trainer ({slowest}, where we gain least)", "seconds a step", given.repeats,
        parameters=network(given).num_parameters(), methods=methods, took=time.perf_counter() - began,
    )  # fmt: skip


if __name__ == "__main__":
    main()
