"""A claim from recipe to evidence, with real stages."""

import json
import os
import subprocess
import sys
import time
from importlib import import_module

import psutil
import pytest

from tilth.claims.run import run_claim
from tilth.claims.systems import systems
from tilth.context import Progress
from tilth.errors import TilthError
from tilth.recipe import Recipe

RECIPE = """\
system: 33
summary: Half of a corpus is about half of it.
data:
  notes: {source: notes.jsonl}
stages:
  part: {split: {data: notes, stop: 0.5}}
  quarter: {split: {data: part, stop: 0.25}}
claim:
  statement: A larger part has more rows.
  arms:
    half:
    most: {stages.part.split.stop: 0.9}
  seeds: 2
  expect:
    - {metric: part.rows, higher: most, than: half, by: 50}
    - {metric: quarter.rows, higher: most, than: half, times: 1, every_seed: true, reported: true}
    - {metric: part.rows, arm: half, at_least: 80, every_seed: true}
"""


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "notes.jsonl").write_text("".join(json.dumps({"id": f"n{i}", "text": f"note {i}"}) + "\n" for i in range(200)))
    path = tmp_path / "halves.yaml"
    path.write_text(RECIPE)
    return path


class Lines(Progress):
    def __init__(self):
        self.said = []

    def say(self, line):
        self.said.append(line)


def run(recipe, tmp_path, **settings):
    path = run_claim(recipe, out=tmp_path / "evidence", runs=tmp_path / "runs", store=tmp_path / "store", **settings)
    return path, json.loads(path.read_text(encoding="utf-8"))


def test_arms_and_seeds_become_evidence(recipe, tmp_path):
    progress = Lines()
    path, evidence = run(recipe, tmp_path, progress=progress)
    assert path == tmp_path / "evidence" / "33-npo.json"
    assert evidence["system"] == 33 and evidence["recipe"] == "halves" and evidence["seeds"] == [0, 1]
    half, most = evidence["arms"]["half"]["1"]["part.rows"], evidence["arms"]["most"]["1"]["part.rows"]
    assert 80 <= half <= 120 < 160 <= most <= 200
    first, ratio, level = evidence["expect"]
    assert first["difference"] == most - half and first["met"] is True
    assert ratio["form"] == "ratio" and ratio["reported"] is True and level["met"] is True
    assert evidence["verdict"] == "holds"
    assert [entry["name"] for entry in evidence["data"]] == ["notes"] and evidence["data"][0]["rows"] == 200
    assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert [line for line in progress.said if line.startswith("arm")][-1] == "arm 'most', seed 1 (4 of 4)"
    assert systems(tmp_path / "evidence")[32]["verdict"] == "holds"
    assert (tmp_path / "runs" / "33-npo" / "most-1" / "run.json").exists()


def test_arms_side_by_side_give_the_same_evidence(recipe, tmp_path):
    one, _ = run(recipe, tmp_path / "one")
    progress = Lines()
    two, evidence = run(recipe, tmp_path / "two", jobs=2, progress=progress)
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in (one, two))
    assert evidence["arms"] == first["arms"] and second["expect"] == first["expect"]
    assert [line for line in progress.said if line.startswith("arm")][-1] == "arm 'most', seed 1 is done (4 of 4)"


def test_an_arm_that_fails_in_another_process_says_why(recipe, tmp_path):
    recipe.write_text(RECIPE.replace("arms:", "arms:\n    broken: {data.notes.source: gone.jsonl}"))
    with pytest.raises(TilthError, match="gone") as told:
        run(recipe, tmp_path, jobs=2)
    assert "gone" in told.value.what + told.value.where and not (tmp_path / "evidence").exists()


SLOW = """\
import os, time
from tilth.training.interrupt import Interrupted, Stop
from tilth.contracts import CorpusRef, Stage, method

@method("stage", "slow")
class Slow(Stage):
    gives = "scores"

    def __init__(self, *, data: CorpusRef, seconds: float = 0.0) -> None:
        self.data, self.seconds = data, seconds

    def run(self, context):
        (context.folder / "pid").write_text(str(os.getpid()))
        ends = time.monotonic() + self.seconds
        with Stop() as stop:  # as training does
            while time.monotonic() < ends and not stop.asked:
                time.sleep(0.05)
        if stop.asked:
            (context.folder / "stopped").touch()
            raise Interrupted(1, 2, "")
        return {"process": float(os.getpid())}
"""

ARMS = """\
data: {notes: {source: notes.jsonl}}
stages: {wait: {slow: {data: notes, seconds: SECONDS}}}
claim:
  statement: Each arm has a process of its own.
  arms: {one: , two: {stages.wait.slow.seconds: LONGER}}
  seeds: 1
  expect: [{metric: wait.process, arm: one, at_least: 1, every_seed: true}]
"""


@pytest.fixture
def slow(recipe, tmp_path, monkeypatch):
    """The path of a recipe with a method from elsewhere, each of its arms some seconds long."""
    (tmp_path / "slow_stage.py").write_text(SLOW)
    monkeypatch.syspath_prepend(str(tmp_path))
    import_module("slow_stage")

    def of(seconds):
        recipe.write_text(ARMS.replace("SECONDS", str(seconds)).replace("LONGER", str(seconds + 0.1)))
        return recipe

    return of


def test_methods_from_elsewhere_are_known_in_every_process(slow, tmp_path):
    _, evidence = run(slow(1), tmp_path, jobs=2, modules=["slow_stage"])
    assert len({os.getpid(), *(found["0"]["wait.process"] for found in evidence["arms"].values())}) == 3


def test_a_claim_that_is_killed_takes_its_arms_along(slow, tmp_path):
    started = "import sys; sys.path.insert(0, sys.argv[1]); import slow_stage; from tilth.claims.run import run_claim; from pathlib import Path"
    code = f"{started}; run_claim(Path(sys.argv[2]), store=Path(sys.argv[3]), out=Path(sys.argv[3]), runs=Path(sys.argv[3]), jobs=2, modules=['slow_stage'])"
    command = [sys.executable, "-c", code, str(tmp_path), str(slow(600)), str(tmp_path / "kept")]
    with subprocess.Popen(command) as claim:
        try:
            arms = [int(path.read_text()) for path in until(lambda: sorted((tmp_path / "kept").glob("*.partial/pid")), 2)]
        finally:
            claim.kill()
    assert len(arms) == 2
    until(lambda: [pid for pid in arms if not psutil.pid_exists(pid)], 2)
    assert len(sorted((tmp_path / "kept").glob("*.partial/stopped"))) == 2


def until(found, count, seconds=60):
    """What `found` gives once it is `count` things."""
    ends = time.monotonic() + seconds
    while len(things := found()) < count:
        assert time.monotonic() < ends, things
        time.sleep(0.1)
    return things


def test_what_arms_and_seeds_share_is_computed_once(recipe, tmp_path):
    run(recipe, tmp_path)
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs" / "33-npo").glob("*/run.json"))]
    computed = [stage for record in records for stage in record["stages"] if not stage["cached"]]
    assert len(records) == 4 and len(computed) == 4  # two stages for each of two arms; splitting needs no seed


def test_a_claim_found_again_costs_what_it_cost(recipe, tmp_path):
    _, first = run(recipe, tmp_path)
    _, again = run(recipe, tmp_path)
    assert again == first


def test_fewer_seeds_than_claimed_are_a_trial(recipe, tmp_path):
    _, evidence = run(recipe, tmp_path, seeds=1)
    assert evidence["seeds"] == [0] and evidence["verdict"] == "inconclusive"


def test_a_loaded_recipe_keeps_its_overrides_in_every_arm(recipe, tmp_path):
    loaded = Recipe.load(recipe, overrides={"part.split.stop": 0.3})
    _, evidence = run(loaded, tmp_path)
    assert evidence["arms"]["half"]["0"]["part.rows"] < 80
    assert evidence["verdict"] == "fails" and evidence["expect"][2]["met"] is False


def test_a_claim_that_failed_is_remembered_when_the_recipe_changes(recipe, tmp_path):
    recipe.write_text(RECIPE.replace("by: 50", "by: 500"))
    assert run(recipe, tmp_path)[1]["verdict"] == "fails"
    recipe.write_text(RECIPE)
    _, evidence = run(recipe, tmp_path)
    assert evidence["verdict"] == "holds" and "by 500" in evidence["tried"][0]


def test_all_arms_are_checked_before_one_is_run(recipe, tmp_path):
    recipe.write_text(RECIPE.replace("stages.part.split.stop: 0.9", "stages.part.split.stopp: 0.9"))
    with pytest.raises(TilthError, match="stop"):
        run(recipe, tmp_path)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "evidence").exists()


def test_a_recipe_without_a_claim_and_a_broken_earlier_file_are_refused_at_once(recipe, tmp_path):
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "33-npo.json").write_text("half a fi")
    with pytest.raises(TilthError, match=r"33-npo\.json"):
        run(recipe, tmp_path)
    assert not (tmp_path / "runs").exists()
    recipe.write_text(RECIPE[: RECIPE.index("claim:")])
    with pytest.raises(TilthError, match="makes no claim"):
        run(recipe, tmp_path)
    recipe.write_text(RECIPE)
    with pytest.raises(TilthError, match="0 seeds"):
        run(recipe, tmp_path, seeds=0)


def test_a_recipe_of_no_published_system_gives_evidence_under_its_own_name(recipe, tmp_path):
    recipe.write_text(RECIPE.replace("system: 33\n", ""))
    path, evidence = run(recipe, tmp_path)
    assert path.name == "halves.json" and evidence["system"] is None
