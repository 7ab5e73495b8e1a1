"""What every benchmark shares: alternating timings, and one JSON file per comparison.

Notable: both sides run in turn within one process (ours, peer, peer, ours, ...), so that a machine that warms up or is
shared slows both; medians are reported and every single timing is kept; a result names the machine and the commit.
"""

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "torch",
    "transformers",
    "daft",
    "pylance",
    "pyarrow",
    "numpy",
    "ray",
    "datatrove",
    "tokenizers",
    "accelerate",
    "tilth",
)


def alternate(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall seconds of each function over `repeats` rounds; every second round runs them in reverse order."""
    return {name: median(seconds) for name, seconds in timings(functions, repeats).items()}


def timings(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of every call, in the order of the rounds. A function that returns a float has timed itself."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats):
        names = list(functions)
        for name in names if turn % 2 == 0 else reversed(names):
            started = time.perf_counter()
            own = functions[name]()
            seconds[name].append(own if isinstance(own, float) else time.perf_counter() - started)
    return seconds


def record(name: str, ours: float, peer: float, peer_name: str, unit: str, repeats: int, **extra: Any) -> Path:
    """Write results/NAME.json and print its figures. `ratio` is above 1 where we are better.

    unit: what ours and peer are in. More is better for rates (anything 'per'), less for everything else (seconds, bytes).
    extra: further figures of the same run, kept as they are.
    """
    more_is_better = "/" in unit or " per " in unit
    ratio = ours / peer if more_is_better else peer / ours
    result = {
        "name": name, "ours": ours, "peer": peer, "peer_name": peer_name, "unit": unit, "ratio": ratio, "repeats": repeats,
        **extra, "hardware": hardware(), "versions": versions(), "commit": commit(),
    }  # fmt: skip
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{name}: ours {ours:,.4g} {unit}, {peer_name} {peer:,.4g} {unit}, ratio {ratio:.3g} (median of {repeats}) -> {path}")
    return path


def hardware() -> dict[str, Any]:
    """Processor, cores this process may use, memory and load of this machine."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Python and the packages that matter here, as installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit this tree is at, with '+' where files differ from it; 'unknown' outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"
