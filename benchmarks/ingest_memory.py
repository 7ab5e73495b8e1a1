"""Memory of ingesting JSONL against its size: each size in a process of its own, peak resident memory, and the slope.

    python benchmarks/ingest_memory.py --sizes 0.1 0.5 1 2      sizes in GB (10^9 bytes)
    python benchmarks/ingest_memory.py --small                  seconds, to see that it runs

Writes benchmarks/results/ingest_memory.json. Documents of about 2 kB with an id of their own, a nested field, and one line
in a hundred thousand that is not JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tilth.environment import commit, hardware, versions

RESULTS = Path(__file__).parent / "results"
_CHILD = """
import json, resource, sys, time
from tilth.corpus.ingest import ingest
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
done = ingest(sys.argv[1], sys.argv[2])
print(json.dumps({"seconds": time.perf_counter() - start, "rows": done.read, "skipped": done.skipped_count,
                  "imported_mb": before / 1000, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}))
"""


def generate(path: Path, size: int) -> int:
    """A JSONL file of `size` bytes; returns its lines."""
    random = np.random.default_rng(0)
    words = np.array(["".join(chr(97 + c) for c in random.integers(0, 26, random.integers(2, 10))) for _ in range(5000)])
    texts = [" ".join(words[random.integers(0, len(words), random.integers(100, 500))]) for _ in range(2000)]
    written = lines = 0
    with path.open("wb") as file:
        while written < size:
            row = {"id": f"document-{lines}", "text": texts[lines % 2000] + f" {lines}", "meta": {"n": lines, "tags": ["a", "b"]}}
            line = b'{"broken\n' if lines % 100_000 == 99_999 else json.dumps(row).encode() + b"\n"
            written += file.write(line)
            lines += 1
    return lines


def measure(size_gb: float, folder: Path) -> dict[str, float]:
    """Generate, ingest in a fresh process, clean up."""
    source, target = folder / "data.jsonl", folder / "out" / "corpus.lance"
    lines = generate(source, int(size_gb * 1e9))
    bytes_read = source.stat().st_size
    output = subprocess.run([sys.executable, "-c", _CHILD, source, target], check=True, capture_output=True, text=True).stdout
    found = json.loads(output)
    if found["rows"] + found["skipped"] != lines:
        raise SystemExit(f"{lines} lines went in, {found} came out")
    shutil.rmtree(target.parent)
    source.unlink()
    return {"gb": bytes_read / 1e9, "mb_per_second": bytes_read / 1e6 / found.pop("seconds"), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.1, 0.5, 1, 2])
    parser.add_argument("--small", action="store_true", help="two tiny sizes, to see that it runs")
    parser.add_argument("--folder", type=Path, help="where the files are generated (default: the temporary folder)")
    parser.add_argument("--out", type=Path, default=RESULTS / "ingest_memory.json")
    options = parser.parse_args()
    sizes = [0.005, 0.02] if options.small else sorted(options.sizes)
    runs = []
    with tempfile.TemporaryDirectory(prefix="tilth-", dir=options.folder) as folder:
        free = shutil.disk_usage(folder).free / 1e9
        for size in sizes:
            if size * 2.5 > free:
                print(f"{size:g} GB: left out, {free:.1f} GB of disk are free")
                continue
            runs.append(measure(size, Path(folder)))
            print("{gb:.3f} GB: {rows} rows, peak {peak_mb:.0f} MB, {mb_per_second:.0f} MB/s".format(**runs[-1]), flush=True)
    slope = float(np.polyfit([run["gb"] for run in runs], [run["peak_mb"] for run in runs], 1)[0]) if len(runs) > 1 else None
    record = {
        "name": "ingest_memory",
        "unit": "MB of peak resident memory",
        "runs": runs,
        "slope_mb_per_gb": slope,
        "peak_mb_at_5_gb_by_the_slope": runs[-1]["peak_mb"] + max(slope or 0, 0) * (5 - runs[-1]["gb"]),
        "hardware": hardware(),
        "versions": versions(),
        "commit": commit(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"slope {slope} MB per GB -> {options.out}")


if __name__ == "__main__":
    main()
