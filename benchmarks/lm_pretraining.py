"""Causal-LM pre-training: Tilth's loop beside transformers.Trainer, a bare compiled PyTorch loop and the matmul peak.

Notable: every side trains the same Llama from the same weights on the same rows in the same order with AdamW, a cosine rate
and clipping at 1; each timing is a fresh process (so that no side profits from another's memory or compiled code) which
leaves out its first steps; sides take turns, and medians are reported.

    python -m benchmarks.lm_pretraining [--repeats 5] [--sizes 5M 0.6M] [--quick]

Sides
    tilth       fit with compile on, its defaults otherwise
    trainer     transformers.Trainer as it comes: eager, its default collator, fused AdamW
    trainer_compiled   the same with torch_compile=True (kept as a further figure)
    bare        torch.compile(model), loss.backward(), clip_grad_norm_, fused AdamW; batches made beforehand, nothing logged
    peak        the best of several fp32 matrix products, each kept up for seconds, in FLOP/s
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.common import record
from tilth.backbones.size import flops_per_token
from tilth.batches.order import Order
from tilth.batches.text.packed import Chunks
from tilth.contracts import Noise
from tilth.pretrain.text.causal import Causal
from tilth.training.loop import Budget, Training, fit

THREADS = 2
SIDES = ("trainer", "bare", "tilth", "peak", "trainer_compiled")  # those compared most closely stand side by side


@dataclass(frozen=True)
class Model:
    """A size, and how many steps of it are left out and timed."""

    width: int
    depth: int
    heads: int
    length: int
    batch: int
    vocabulary: int = 8192
    warm: int = 10
    timed: int = 20


SIZES = {
    "5M": Model(width=256, depth=4, heads=4, length=256, batch=16),
    "0.6M": Model(width=64, depth=2, heads=4, length=64, batch=16, warm=30, timed=150),
}


class Tokens:
    """A token store of random tokens."""

    def __init__(self, count: int, vocabulary: int) -> None:
        self.tokens = np.random.default_rng(0).integers(0, vocabulary, count, dtype=np.uint16)


def examples(model: Model) -> Chunks:
    """Rows enough for every step of the benchmark without repeating one."""
    rows = (model.warm + model.timed) * model.batch
    return Chunks(Tokens(rows * model.length, model.vocabulary), model.length, pad=0)  # type: ignore[arg-type]


def network(model: Model) -> LlamaForCausalLM:
    """A Llama with tied embeddings."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=model.vocabulary, hidden_size=model.width, num_hidden_layers=model.depth,
        num_attention_heads=model.heads, intermediate_size=round(model.width * 8 / 3 / 32) * 32,
        max_position_embeddings=model.length, tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tilth(model: Model) -> float:
    """Seconds per step, from its own log."""
    steps = model.warm + model.timed
    training = Training(lr=1e-3, batch_size=model.batch, compile=True, log_every=10)
    with tempfile.TemporaryDirectory() as folder:
        fitted = fit(
            Causal(network(model)), examples(model), training=training, budget=Budget(steps=steps), folder=Path(folder), seed=0
        )
        lines = [json.loads(line) for line in fitted.log.read_text(encoding="utf-8").splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines}
    return (seconds[steps] - seconds[model.warm]) / model.timed


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """The rows in the order in which the other sides draw them, as Trainer's users give them: one at a time."""

    def __init__(self, model: Model) -> None:
        made = examples(model)
        indices = Order(len(made), 0).indices(0, len(made))
        self.batch = made.batch(indices, Noise(0, indices))

    def __len__(self) -> int:
        return len(self.batch.input_ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.batch.input_ids[index], "labels": self.batch.labels[index]}


class Clock(TrainerCallback):
    """When the steps of interest began and ended."""

    def __init__(self, model: Model) -> None:
        self.at = {model.warm: 0.0, model.warm + model.timed: 0.0}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step in self.at:
            self.at[state.global_step] = time.perf_counter()


class InOrder(Trainer):
    """Draws the rows as they lie, which is the order of the other sides."""

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:  # type: ignore[type-arg]
        return torch.utils.data.SequentialSampler(self.train_dataset)  # type: ignore[arg-type]


def trainer(model: Model, *, compiled: bool = False) -> float:
    """Seconds per step of transformers.Trainer."""
    clock = Clock(model)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=model.batch, max_steps=model.warm + model.timed,
            learning_rate=1e-3, lr_scheduler_type="cosine", weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0,
            save_strategy="no", report_to=[], use_cpu=not torch.cuda.is_available(), torch_compile=compiled,
            disable_tqdm=True,
        )  # fmt: skip
        InOrder(model=network(model), args=arguments, train_dataset=Rows(model), callbacks=[clock]).train()
    return (clock.at[model.warm + model.timed] - clock.at[model.warm]) / model.timed


def trainer_compiled(model: Model) -> float:
    """Seconds per step of transformers.Trainer with torch_compile."""
    return trainer(model, compiled=True)


def bare(model: Model) -> float:
    """Seconds per step of the shortest loop one would write."""
    net = network(model).train()
    rows = Rows(model).batch
    batches = list(zip(rows.input_ids.split(model.batch), rows.labels.split(model.batch), strict=True))
    steps = model.warm + model.timed
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    compiled = torch.compile(net)
    begun = 0.0
    for step, (input_ids, labels) in enumerate(batches):
        if step == model.warm:
            begun = time.perf_counter()
        compiled(input_ids=input_ids, labels=labels, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
    return (time.perf_counter() - begun) / model.timed


def peak(model: Model) -> float:
    """Seconds per 1e9 fp32 operations of the fastest matrix product found, of those this size is made of and larger.

    Each size is kept up for as long as several training steps take: both sides of the ratio are then totals over seconds, and
    a burst too short for the processor to slow down counts for neither.
    """
    return min(sustained(size, seconds=3.0) for size in (512, 1024, 2048, 3072))


def sustained(size: int, seconds: float) -> float:
    """Seconds per 1e9 operations of square matrix products of this size, over at least so many seconds."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    for _ in range(3):
        torch.mm(left, right, out=out)
    begun, count = time.perf_counter(), 0
    while (taken := time.perf_counter() - begun) < seconds:
        torch.mm(left, right, out=out)
        count += 1
    return taken / (2 * size**3 * count) * 1e9


def timed(side: str, size: str, quick: bool) -> float:
    """What `side` took, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.lm_pretraining",
        "--side",
        side,
        "--sizes",
        size,
        *(["--quick"] if quick else []),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def compare(size: str, repeats: int, quick: bool) -> None:
    """Take turns, and write the results of one size."""
    model = SIZES[size]
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(repeats):
        for side in SIDES if turn % 2 == 0 else reversed(SIDES):
            times[side].append(timed(side, size, quick))
            print(f"{size} {side}: {times[side][-1]:.6f}", file=sys.stderr, flush=True)
    middle = {side: median(values) for side, values in times.items()}
    tokens = model.batch * model.length
    rates = {side: tokens / middle[side] for side in SIDES if side != "peak"}
    count = sum(parameter.numel() for parameter in network(model).parameters())
    per_token = flops_per_token(count, depth=model.depth, width=model.width, length=model.length)
    achieved, measured_peak = per_token * rates["tilth"] / 1e9, 1 / middle["peak"]
    extra: dict[str, Any] = {
        "parameters": count, "threads": THREADS, "tokens_per_step": tokens, "steps_timed": model.timed,
        "tokens_per_second": {side: round(rate, 1) for side, rate in rates.items()},
        "seconds_per_step": {side: values for side, values in times.items() if side != "peak"},
        "gflops": achieved, "matmul_peak_gflops": measured_peak, "share_of_matmul_peak": achieved / measured_peak,
        "share_without_attention": 6 * count * rates["tilth"] / 1e9 / measured_peak,
        "ratio_to_bare_loop": rates["tilth"] / rates["bare"],
        "ratio_to_compiled_trainer": rates["tilth"] / rates["trainer_compiled"],
    }  # fmt: skip
    unit, name = "tokens per second", "lm_pretraining_small" if size == "0.6M" else "lm_pretraining"
    record(f"{name}_vs_trainer", rates["tilth"], rates["trainer"], "transformers.Trainer", unit, repeats, **extra)
    if size == "5M":
        record("lm_pretraining_vs_bare_loop", rates["tilth"], rates["bare"], "bare compiled PyTorch loop", unit, repeats, **extra)
        what = "fp32 matmul peak of this machine, measured in the same run"
        record("lm_pretraining_vs_matmul_peak", achieved, measured_peak, what, "GFLOP/s", repeats, **extra)
    else:
        record(f"{name}_vs_bare_loop", rates["tilth"], rates["bare"], "bare compiled PyTorch loop", unit, repeats, **extra)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--side", choices=SIDES, help="time one side in this process and print seconds per step")
    parser.add_argument("--quick", action="store_true", help="few steps: to see that it runs")
    arguments = parser.parse_args()
    if arguments.side:
        torch.set_num_threads(THREADS)
        model = SIZES[arguments.sizes[0]]
        if arguments.quick:
            model = Model(**{**vars(model), "warm": 10, "timed": 10})
        print(globals()[arguments.side](model))
        return
    for size in arguments.sizes:
        compare(size, arguments.repeats, arguments.quick)


if __name__ == "__main__":
    main()
