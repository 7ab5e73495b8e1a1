"""Shared by all tests: small data where TILTH_DATA points, a store of their own, no network."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "TILTH_TEST_CUDA" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # tests compare with tensors on the CPU, and bit for bit
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share the cores
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as tilth does, but tests may import torch first
_SHARED = Path(__file__).parents[2] / "shared" / "data"
if "TILTH_DATA" not in os.environ and _SHARED.is_dir():
    os.environ["TILTH_DATA"] = str(_SHARED)


@pytest.fixture(autouse=True)
def _own_store(tmp_path, monkeypatch):
    """No test reads or fills the user's store of stages."""
    monkeypatch.setenv("TILTH_STORE", str(tmp_path / "store"))


@pytest.fixture
def data() -> Path:
    """The folder of small real data; tests that need it are skipped without it."""
    folder = os.environ.get("TILTH_DATA")
    if not folder:
        pytest.skip("TILTH_DATA is not set")
    return Path(folder)
