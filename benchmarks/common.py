"""What every benchmark shares: alternating timings, and one JSON file per comparison.

Notable: both sides run in turn within one process (ours, peer, peer, ours, ...), so that a machine that warms up or is
shared slows both; medians are reported and every single timing is kept; a result names the machine and the commit.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from tilth import environment

RESULTS = Path(__file__).parent / "results"
_PEERS = ("accelerate", "datatrove", "ray")


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
        **extra, **where(),
    }  # fmt: skip
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"{name}: ours {ours:,.4g} {unit}, {peer_name} {peer:,.4g} {unit}, ratio {ratio:.3g} (median of {repeats}) -> {path}")
    return path


def where() -> dict[str, Any]:
    """On what a figure was measured: hardware with its load, versions (peers' too), commit."""
    load = {"load_average": round(os.getloadavg()[0], 2)}
    peers = {}
    for package in _PEERS:
        with suppress(PackageNotFoundError):  # not every comparison needs all of them
            peers[package] = version(package)
    return {"hardware": environment.hardware() | load, "versions": environment.versions() | peers, "commit": environment.commit()}
