"""Masked autoencoding from JPEG bytes to the optimiser step: Tilth beside transformers' ViTMAEForPreTraining in its Trainer.

Notable: the same pictures, network (ViT-tiny, 64x64, patches of 8, decoder 128 x 2), batch and optimiser; each side is timed in a
process of its own over a whole run, decoding included: Tilth decodes every picture once and then crops and flips on whole
batches; the other side's image processor decodes as pictures are drawn and does not augment. Sides take turns.

    python -m benchmarks.mae_pretraining [--repeats 3] [--pictures 2560] [--epochs 2] [--precision bf16]

precision: of both sides, each by its own setting (Training(precision=...), TrainingArguments(bf16=...)).

Besides: what the encoder costs when it sees a quarter of the patches, against all of them.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from benchmarks.common import record, timings
from tilth.backbones.patches import Patches
from tilth.batches import draws
from tilth.batches.images.pictures import Pictures
from tilth.batches.patches.masks import random
from tilth.context import Context
from tilth.contracts import Sample, use
from tilth.corpus import Corpus
from tilth.pretrain.images.mae import MAE
from tilth.training.loop import Budget, Training, fit

BATCH, SIZE, PATCH, WIDTH, DEPTH, HEADS = 128, 64, 8, 192, 12, 3
SIDES = ("trainer", "tilth")


def jpegs(count: int) -> list[bytes]:
    """Pictures of smooth colours with some texture, as JPEG files of 96 x 96 pixels."""
    generator, made = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
        grain = generator.normal(0, 12, (96, 96, 3))
        file = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


@dataclass(frozen=True)
class Took:
    """Seconds: of the whole run; to decode every picture ahead; once, before and within the first epoch; of a step after it."""

    whole: float
    decoding: float
    once: float
    step: float


def split(whole: float, decoding: float, epochs: Sequence[float], steps: int) -> Took:
    """epochs: seconds from the beginning to the end of each; steps: in an epoch."""
    later = median(np.diff(epochs).tolist()) if len(epochs) > 1 else epochs[0] - decoding
    return Took(whole, decoding, max(epochs[0] - decoding - later, 0.0), later / steps)


def tilth(count: int, epochs: int, precision: str, compiled: bool, views: str) -> Took:
    """From a table of JPEG files to a trained model."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        table = pa.table({"id": [str(row) for row in range(count)], "image": pa.array(jpegs(count), pa.binary())})
        corpus = Corpus.write(folder / "corpus.lance", table.to_batches(), table.schema)
        begun = time.perf_counter()
        context = Context(folder / "run")
        context.folder.mkdir()
        rows = Pictures(size=SIZE).build(corpus, None, context)
        decoded = time.perf_counter() - begun
        torch.manual_seed(0)
        model = Patches(width=WIDTH, depth=DEPTH, heads=HEADS, patch=PATCH, class_token=True).build(rows.sample)
        objective = MAE(model, decoder_width=128, decoder_depth=2, decoder_heads=4, views=use("views", views))
        training = Training(
            lr=1e-3, batch_size=BATCH, precision=precision, compile=compiled, checkpoint_seconds=None, log_every=count // BATCH
        )  # type: ignore[arg-type]
        ready = time.perf_counter() - begun
        fit(objective, rows, training=training, budget=Budget(epochs=epochs), folder=folder / "fit", seed=0)
        whole = time.perf_counter() - begun
        ends = [ready + json.loads(line)["seconds"] for line in (folder / "fit" / "log.jsonl").read_text().splitlines()]
        return split(whole, decoded, ends, count // BATCH)


def trainer(count: int, epochs: int, precision: str) -> Took:
    """The same of transformers, neither compiled nor augmented."""
    from transformers import Trainer, TrainerCallback, TrainingArguments, ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining

    ends: list[float] = []

    class Ends(TrainerCallback):
        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter() - begun)

    made = jpegs(count)
    processor = ViTImageProcessor(size={"height": SIZE, "width": SIZE})

    def collate(files: list[bytes]) -> Any:
        return processor([Image.open(io.BytesIO(data)).convert("RGB") for data in files], return_tensors="pt")

    begun = time.perf_counter()
    torch.manual_seed(0)
    config = ViTMAEConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH, image_size=SIZE,
        patch_size=PATCH, decoder_hidden_size=128, decoder_num_hidden_layers=2, decoder_num_attention_heads=4,
        decoder_intermediate_size=512, mask_ratio=0.75, norm_pix_loss=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=epochs, learning_rate=1e-3,
            lr_scheduler_type="cosine", weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0, save_strategy="no", report_to=[],
            use_cpu=not torch.cuda.is_available(), disable_tqdm=True, remove_unused_columns=False, bf16=precision == "bf16",
        )  # fmt: skip
        model = ViTMAEForPreTraining(config)
        Trainer(model=model, args=arguments, train_dataset=made, data_collator=collate, callbacks=[Ends()]).train()  # type: ignore[arg-type]
    return split(time.perf_counter() - begun, 0.0, ends, count // BATCH)


def encoder_cost(repeats: int) -> dict[str, float]:
    """Seconds of the encoder's forward and backward pass, seeing every patch and a quarter of them."""
    model = Patches(width=WIDTH, depth=DEPTH, heads=HEADS, patch=PATCH).build(Sample(3, (SIZE, SIZE)))
    pixels = torch.randn(BATCH, 3, SIZE, SIZE)
    tokens = (SIZE // PATCH) ** 2
    mask = random(draws.split(torch.arange(BATCH), "cost"), tokens, int(0.75 * tokens))
    functions = {
        "whole": lambda: model(pixels).pooled.sum().backward(),
        "masked": lambda: model(pixels, kept=mask.kept).pooled.sum().backward(),
    }
    for function in functions.values():
        function()
    return {name: median(values) for name, values in timings(functions, repeats).items()}


def timed(side: str, given: argparse.Namespace) -> Took:
    """What `side` took, in a process of its own."""
    settings = {
        "--side": side,
        "--pictures": given.pictures,
        "--epochs": given.epochs,
        "--precision": given.precision,
        "--views": given.views,
    }
    command = [
        sys.executable,
        "-m",
        "benchmarks.mae_pretraining",
        *(str(word) for pair in settings.items() for word in pair),
        *["--compiled"] * given.compiled,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    return Took(**json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=2560)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--views", choices=("mae", "none"), default="mae")
    parser.add_argument("--run-steps", type=int, default=1000)
    parser.add_argument("--side", choices=SIDES)
    given = parser.parse_args()
    if given.pictures % BATCH:
        parser.error(f"pictures must be a multiple of the batch, {BATCH}")
    if given.side:
        size = (given.pictures, given.epochs, given.precision)
        took = trainer(*size) if given.side == "trainer" else tilth(*size, given.compiled, given.views)
        print(json.dumps(asdict(took)))
        return
    times: dict[str, list[Took]] = {side: [] for side in SIDES}
    for turn in range(given.repeats):
        for side in SIDES if turn % 2 == 0 else reversed(SIDES):
            times[side].append(timed(side, given))
            print(json.dumps({side: asdict(times[side][-1])}), file=sys.stderr, flush=True)
    cost = encoder_cost(2 * given.repeats + 1)
    seen = given.pictures * given.epochs
    whole = {side: seen / median(took.whole for took in taken) for side, taken in times.items()}
    drawn = given.run_steps * BATCH
    a_run = {
        side: drawn
        / median(took.decoding / given.pictures * drawn / 10 + took.once + given.run_steps * took.step for took in taken)
        for side, taken in times.items()
    }
    rate = a_run if given.compiled else whole
    record(
        f"mae_pretraining{'_bf16' * (given.precision == 'bf16')}{'_compiled' * given.compiled}{'_unaugmented' * (given.views == 'none')}_vs_trainer", rate["tilth"], rate["trainer"],
        "transformers' ViTMAEForPreTraining in Trainer", "pictures per second", given.repeats, pictures=given.pictures, epochs=given.epochs,
        precision=given.precision, compiled=given.compiled, views=given.views, seconds={side: [asdict(took) for took in taken] for side, taken in times.items()},
        whole_runs=whole, runs_of_so_many_steps={"steps": given.run_steps, **a_run},
        encoder_seconds=cost, encoder_cost_at_mask_075=cost["masked"] / cost["whole"],
    )  # fmt: skip
    print(f"encoder at mask 0.75: {cost['masked'] / cost['whole']:.3f} of the whole")


if __name__ == "__main__":
    main()
