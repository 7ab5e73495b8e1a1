"""What is made once stays made, is made by one process, and half-made folders are continued."""

import json
import multiprocessing
from pathlib import Path

import pytest

from tilth.store import digest, keyed_folder, write_json


def test_digest_does_not_depend_on_the_order_of_keys_but_on_every_value():
    assert digest({"a": 1, "b": [1.5, None]}) == digest({"b": [1.5, None], "a": 1})
    assert len({digest({"a": 1}), digest({"a": 2}), digest({"a": "1"}), digest({"b": 1})}) == 4
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest(float("nan"))


def test_a_failed_make_leaves_its_work_for_the_next_and_a_finished_one_is_not_repeated(tmp_path):
    calls = []

    def make(folder: Path) -> None:
        calls.append(sorted(path.name for path in folder.iterdir()))
        (folder / f"part{len(calls)}").write_text("done")
        if len(calls) == 1:
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError):
        keyed_folder(tmp_path, "thing", {"x": 1}, make)
    first = keyed_folder(tmp_path, "thing", {"x": 1}, make)
    again = keyed_folder(tmp_path, "thing", {"x": 1}, make)
    assert calls == [[], ["part1"]] and first == again
    assert sorted(path.name for path in first.iterdir()) == ["part1", "part2"]


def _slow(folder: Path) -> None:
    import time

    with (folder.parent / "calls").open("a") as file:
        file.write("x")
    time.sleep(0.5)


def _make(root: str) -> None:
    keyed_folder(Path(root), "shared", {}, _slow)


def test_processes_wait_for_the_first_instead_of_doing_the_same(tmp_path):
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_make, args=(str(tmp_path),)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0] and (tmp_path / "calls").read_text() == "x"


def test_write_json_replaces_whole_files(tmp_path):
    write_json(tmp_path / "a.json", {"x": "ä"})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"x": "ä"}
