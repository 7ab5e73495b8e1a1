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
from tilth.contracts import Sample
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


def tilth(count: int, epochs: int, precision: str) -> float:
    """Seconds from a table of JPEG files to a trained model."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        table = pa.table({"id": [str(row) for row in range(count)], "image": pa.array(jpegs(count), pa.binary())})
        corpus = Corpus.write(folder / "corpus.lance", table.to_batches(), table.schema)
        begun = time.perf_counter()
        context = Context(folder / "run")
        context.folder.mkdir()
        rows = Pictures(size=SIZE).build(corpus, None, context)
        torch.manual_seed(0)
        model = Patches(width=WIDTH, depth=DEPTH, heads=HEADS, patch=PATCH, class_token=True).build(rows.sample)
        objective = MAE(model, decoder_width=128, decoder_depth=2, decoder_heads=4)
        training = Training(lr=1e-3, batch_size=BATCH, precision=precision, compile=False, checkpoint_seconds=None)  # type: ignore[arg-type]
        fit(objective, rows, training=training, budget=Budget(epochs=epochs), folder=folder / "fit", seed=0)
        return time.perf_counter() - begun


def trainer(count: int, epochs: int, precision: str) -> float:
    """The same of transformers."""
    from transformers import Trainer, TrainingArguments, ViTImageProcessor, ViTMAEConfig, ViTMAEForPreTraining

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
        Trainer(model=ViTMAEForPreTraining(config), args=arguments, train_dataset=made, data_collator=collate).train()  # type: ignore[arg-type]
    return time.perf_counter() - begun


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


def timed(side: str, given: argparse.Namespace) -> float:
    """What `side` took, in a process of its own."""
    settings = {"--side": side, "--pictures": given.pictures, "--epochs": given.epochs, "--precision": given.precision}
    command = [sys.executable, "-m", "benchmarks.mae_pretraining", *(str(word) for pair in settings.items() for word in pair)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr}")
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=2560)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--side", choices=SIDES)
    given = parser.parse_args()
    if given.side:
        print({"tilth": tilth, "trainer": trainer}[given.side](given.pictures, given.epochs, given.precision))
        return
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for turn in range(given.repeats):
        for side in SIDES if turn % 2 == 0 else reversed(SIDES):
            times[side].append(timed(side, given))
            print(json.dumps({side: times[side][-1]}), file=sys.stderr, flush=True)
    cost = encoder_cost(2 * given.repeats + 1)
    seen = given.pictures * given.epochs
    rate = {side: seen / median(values) for side, values in times.items()}
    record(
        f"mae_pretraining{'_bf16' * (given.precision == 'bf16')}_vs_trainer", rate["tilth"], rate["trainer"], "transformers' ViTMAEForPreTraining in Trainer",
        "pictures per second", given.repeats, pictures=given.pictures, epochs=given.epochs, precision=given.precision, seconds=times,
        encoder_seconds=cost, encoder_cost_at_mask_075=cost["masked"] / cost["whole"],
    )  # fmt: skip
    print(f"encoder at mask 0.75: {cost['masked'] / cost['whole']:.3f} of the whole")


if __name__ == "__main__":
    main()
