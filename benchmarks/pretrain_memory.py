"""Memory of pre-training on a folder of pictures against its size: each size in a process of its own, from files to the last step.

    python -m benchmarks.pretrain_memory --sizes 5000 20000 40000           pictures in the folder
    python -m benchmarks.pretrain_memory --small                     seconds, to see that it runs

Writes benchmarks/results/pretrain_memory.json. JPEG files of 160 x 160 with grain (about 10 kB each), read at 32 x 32; MAE of a small ViT, every run as many steps.
Private memory (RssAnon, sampled every 20 ms) is what a process needs; resident memory also counts pages of the memory-mapped pixels,
which the kernel keeps while it has room and drops when it has not. Reading ahead in the corpus is bounded at 128 MiB, so folders up to
about that size cost more the larger they are, and larger ones no more.
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

FILE, KEPT = 160, 32  # pixels along each side, of the files and as they are trained on
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


def generate(folder: Path, count: int) -> None:
    """`count` pictures of smooth colours with grain."""
    random = np.random.default_rng(0)
    coarse = random.integers(64, 192, (200, 12, 12, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(one).resize((FILE, FILE), Image.Resampling.BICUBIC), np.int16) for one in coarse]
    grain = random.integers(-20, 20, (200, FILE, FILE, 3), dtype=np.int16)
    folder.mkdir()
    for number in range(count):
        values = smooth[number % 200] + grain[number // 200 % 200]
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(folder / f"{number:07d}.jpg", quality=90)


def measure(count: int, steps: int, folder: Path) -> dict[str, float]:
    """Make a folder, and train on it in a fresh process."""
    generate(folder / f"pictures-{count}", count)
    work = folder / f"work-{count}"
    work.mkdir()
    command = [sys.executable, "-c", _CHILD, str(folder / f"pictures-{count}"), str(work), str(steps), str(KEPT)]
    found: dict[str, float] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    if found["rows"] != count or found["steps"] != steps:
        raise SystemExit(f"{count} pictures and {steps} steps were asked for: {found}")
    size = sum(file.stat().st_size for file in (folder / f"pictures-{count}").iterdir())
    return {"pictures": count, "folder_mb": size / 1e6, "pixel_mb": count * KEPT**2 * 3 / 1e6, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5000, 20000, 40000])
    parser.add_argument("--small", action="store_true", help="two tiny folders, to see that it runs")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS / "pretrain_memory.json")
    options = parser.parse_args()
    sizes = [100, 400] if options.small else sorted(options.sizes)
    with tempfile.TemporaryDirectory(prefix="tilth-") as folder:
        runs = [measure(count, 3 if options.small else options.steps, Path(folder)) for count in sizes]
    for run in runs:
        print(json.dumps({name: round(value, 1) for name, value in run.items()}))
    last, most = runs[-2:]
    slope = (most["private_mb"] - last["private_mb"]) / (most["folder_mb"] - last["folder_mb"])
    result = {
        "name": "pretrain_memory", "unit": "MB of private memory", "runs": runs, "mb_per_mb_between_the_two_largest": slope,
        "hardware": hardware(), "versions": versions(), "commit": commit(),
    }  # fmt: skip
    print(f"between the two largest folders private memory grows by {slope:.3f} MB for each MB of files")
    if not options.small:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
