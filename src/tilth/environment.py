"""On what a result was made: hardware, versions, commit. Written into run.json and evidence.

Notable: cores and memory are what this process may use (affinity, control group), not what the machine has.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = (
    "tilth", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "scikit-learn", "pyarrow", "pylance", "daft",
)  # fmt: skip


def hardware() -> dict[str, Any]:
    """cpu (model name), cores (usable), memory_gib (usable), gpu (name of each; empty list without)."""
    return {"cpu": _cpu(), "cores": _cores(), "memory_gib": round(_memory() / 2**30, 1), "gpu": _gpus()}


def versions() -> dict[str, str]:
    """Version of Python, of the system, and of each package whose numbers could move a result."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.release()} {platform.machine()}"}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The git commit of this package's checkout, with '+dirty' when its code differs from it; None outside a checkout.

    Only the package's folder and pyproject.toml count as code: evidence just written does not make a tree dirty.
    """
    package = Path(__file__).resolve().parent
    # An installed copy may lie inside someone else's repository: ours is one that tracks this very file.
    if _git(package, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    head = _git(package, "rev-parse", "HEAD")
    changed = _git(package, "status", "--porcelain", "--", ".", ":/pyproject.toml")
    return f"{head}+dirty" if head and changed else head


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, or None when it is not installed or refuses."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _control_group("cpu.max").partition(" ")
    return max(1, min(usable, round(int(quota) / int(period)))) if quota.isdigit() and period.isdigit() else usable


def _memory() -> int:
    total = psutil.virtual_memory().total
    limit = _control_group("memory.max")
    return min(total, int(limit)) if limit.isdigit() else total


def _control_group(name: str) -> str:
    """A limit of this container (cgroup v2); empty or 'max' without one."""
    path = Path("/sys/fs/cgroup") / name
    return path.read_text(encoding="ascii").strip() if path.exists() else ""


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
