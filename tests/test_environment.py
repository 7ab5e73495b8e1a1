"""On what a result was made."""

import json
import os
import shutil
import subprocess

import pytest

from tilth import environment


def test_what_is_recorded_is_json_and_true_of_this_process():
    hardware, versions = environment.hardware(), environment.versions()
    json.dumps([hardware, versions], allow_nan=False)
    assert 1 <= hardware["cores"] <= (os.cpu_count() or 1)
    assert hardware["memory_gib"] > 0.1 and hardware["cpu"] and isinstance(hardware["gpu"], list)
    assert versions["torch"] and versions["python"].startswith("3.")


def test_a_control_group_limits_cores_and_memory(monkeypatch):
    limits = {"cpu.max": "100000 100000", "memory.max": str(2**30)}
    monkeypatch.setattr(environment, "_control_group", limits.__getitem__)
    hardware = environment.hardware()
    assert (hardware["cores"], hardware["memory_gib"]) == (1, 1.0)
    monkeypatch.setattr(environment, "_control_group", {"cpu.max": "max 100000", "memory.max": "max"}.__getitem__)
    assert environment.hardware()["memory_gib"] > 1


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository that tracks a package with a copy of environment.py."""
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    package = tmp_path / "src" / "tilth"
    package.mkdir(parents=True)
    copy = shutil.copy(environment.__file__, package)
    (tmp_path / "pyproject.toml").write_text("")
    git(tmp_path, "init", "-q")
    monkeypatch.setattr(environment, "__file__", str(copy))
    return tmp_path


def git(folder, *arguments):
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_dirty_when_code_differs_and_not_when_evidence_was_written(checkout):
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    head = git(checkout, "rev-parse", "HEAD")
    assert environment.commit() == head
    (checkout / "evidence.json").write_text("{}")
    assert environment.commit() == head
    (checkout / "src/tilth/new.py").write_text("")
    assert environment.commit() == head + "+dirty"
    (checkout / "src/tilth/new.py").unlink()
    (checkout / "pyproject.toml").write_text("changed")
    assert environment.commit() == head + "+dirty"


def test_a_copy_installed_inside_another_repository_has_no_commit_of_its_own(checkout):
    git(checkout, "add", "pyproject.toml")
    git(checkout, "commit", "-qm", "not ours")
    assert environment.commit() is None


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert environment.commit() is None
