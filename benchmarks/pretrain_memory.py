"""Memory of pre-training on a folder of pictures against its size: each size in a process of its own, from files to the last step.

    python -m benchmarks.pretrain_memory --sizes 2000 8000 32000     pictures in the folder
    python -m benchmarks.pretrain_memory --small                     seconds, to see that it runs

Writes benchmarks/results/pretrain_memory.json. JPEG files, read at their size; MAE of a small ViT, every run as many steps.
Private memory (RssAnon, sampled every 20 ms) is what a process needs; resident memory also counts pages of the memory-mapped pixels,
which the kernel keeps while it has room and drops when it has not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tilth.environment import commit, hardware, versions

RESULTS = Path(__file__).parent / "results"
_CHILD = """
import json, re, sys, threading, time
from pathlib import Path
from tilth.context import Context
from tilth.contracts import use
from tilth.corpus.ingest import ingest
from tilth.registry import configure
from tilth.stages.pretrain import Pretrain
from tilth.training.settings import Budget, Training

peak = {"RssAnon": 0, "VmRSS": 0}

def sample():
    while True:
        for name, value in re.findall(r"(RssAnon|VmRSS):\\s+(\\d+)", Path("/proc/self/status").read_text()):
            peak[name] = max(peak[name], int(value))
        time.sleep(0.02)

source, folder, steps, side = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
stage = Pretrain(
    data="pictures", backbone=use("backbone", "patches", width=96, depth=4, heads=3, patch=8),
    batches=use("batches", "pictures", size=side),
    objective=configure("pretrain", {"mae": {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2}}),
    training=Training(batch_size=64, compile=False), budget=Budget(steps=steps),
)
threading.Thread(target=sample, daemon=True).start()
begun = time.perf_counter()
done = ingest(source, folder / "corpus.lance")
ingested = dict(peak)
(folder / "stage").mkdir()
metrics = stage.run(Context(folder / "stage", corpora={"pictures": done.corpus}))
print(json.dumps({"rows": done.read, "seconds": time.perf_counter() - begun, "steps": metrics["steps"],
                  "ingest_private_mb": ingested["RssAnon"] / 1000, "private_mb": peak["RssAnon"] / 1000,
                  "resident_mb": peak["VmRSS"] / 1000}))
"""


def generate(folder: Path, count: int, side: int) -> None:
    """`count` pictures of coloured noise at several scales."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (200, 12, 12, 3), dtype=np.uint8)
    folder.mkdir()
    for number in range(count):
        picture = Image.fromarray(np.roll(coarse[number % 200], number // 200, (0, 1))).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        picture.save(folder / f"{number:07d}.jpg", quality=90)


def measure(count: int, steps: int, side: int, folder: Path) -> dict[str, float]:
    """Make a folder, and train on it in a fresh process."""
    generate(folder / f"pictures-{count}", count, side)
    work = folder / f"work-{count}"
    work.mkdir()
    command = [sys.executable, "-c", _CHILD, str(folder / f"pictures-{count}"), str(work), str(steps), str(side)]
    found: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    if found["rows"] != count or found["steps"] != steps:
        raise SystemExit(f"{count} pictures and {steps} steps were asked for: {found}")
    return {"pictures": count, "pixel_mb": count * side**2 * 3 / 1e6, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 8000, 32000])
    parser.add_argument("--small", action="store_true", help="two tiny folders, to see that it runs")
    parser.add_argument("--side", type=int, default=64, help="of the pictures, in pixels")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "pretrain_memory.json")
    options = parser.parse_args()
    sizes = [100, 400] if options.small else sorted(options.sizes)
    with tempfile.TemporaryDirectory(prefix="tilth-") as folder:
        runs = [measure(count, 3 if options.small else options.steps, options.side, Path(folder)) for count in sizes]
    for run in runs:
        print(json.dumps({name: round(value, 1) for name, value in run.items()}))
    slope = float(np.polyfit([run["pixel_mb"] for run in runs], [run["private_mb"] for run in runs], 1)[0])
    result = {
        "benchmark": "pretrain_memory", "runs": runs, "private_mb_per_mb_of_pixels": slope,
        "hardware": hardware(), "versions": versions(), "commit": commit(),
    }  # fmt: skip
    print(f"private memory grows by {slope:.3f} MB for each MB of pixels")
    if not options.small:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
