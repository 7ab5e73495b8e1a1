"""The whole way through the command line, on small real data, as a user would go it."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tilth.cli import app
from tilth.demo.people import write_people
from tilth.errors import TilthError

RECIPE = """
data:
  people: {source: people.parquet}
  forget: {source: people.parquet, where: "part = 'forget'"}
  retain: {source: people.parquet, where: "part = 'retain'"}
stages:
  words: {tokenizer: {data: [people], method: word}}
  target:
    pretrain:
      data: people
      tokenizer: words
      backbone: {causal_lm: {width: 32, depth: 1, heads: 2}}
      batches: answers
      training: {lr: 5.0e-3, batch_size: 16, checkpoint_every: 5, keep_checkpoints: null}
      budget: {steps: 20}
"""


def tilth(*arguments: str) -> str:
    """Run a command in this process; what it printed. Errors are raised as they are."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with people, a recipe, a run of it."""
    folder = tmp_path_factory.mktemp("home")
    write_people(folder / "people.parquet", count=10, seed=1)
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TILTH_STORE", str(folder / "store"))
        tilth("run", str(folder / "recipe.yaml"), "--out", str(folder / "run"), "-q")
    return folder


@pytest.fixture(autouse=True)
def in_home(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("TILTH_STORE", str(home / "store"))


def test_a_run_leaves_its_record_a_model_that_transformers_reads_and_a_report(home):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record = json.loads((home / "run" / "run.json").read_text())
    assert [stage["name"] for stage in record["stages"]] == ["words", "target"] and record["failed"] is None
    model = AutoModelForCausalLM.from_pretrained(home / "run" / "target" / "model")
    assert model.config.hidden_size == 32
    assert len(AutoTokenizer.from_pretrained(home / "run" / "target" / "model")) <= model.config.vocab_size
    assert "target" in (home / "run" / "report.html").read_text()


def test_running_again_computes_nothing(home):
    before = {path: path.stat().st_mtime_ns for path in (home / "store").glob("*/stage.json")}
    record = json.loads(tilth("run", "recipe.yaml", "--out", "run2", "-q", "--json"))
    assert all(stage["cached"] for stage in record["stages"])
    assert before == {path: path.stat().st_mtime_ns for path in (home / "store").glob("*/stage.json")}


def test_trace_says_when_rows_were_read_and_which_checkpoint_is_clean_of_them():
    rows = json.loads(tilth("trace", "run", "--where", "part = 'forget'", "--json"))
    assert len(rows) == 8 and all(row["stage"] == "target" for row in rows)
    for row in rows:
        assert row["times"] == len(row["steps"]) == 4  # 20 steps of 16 are 4 epochs of 80
        clean = row["clean_checkpoint"]
        assert clean is None or (clean % 5 == 0 and clean < row["first_step"] <= clean + 5 + 5)
    with pytest.raises(TilthError, match="no training stage has read"):
        tilth("trace", "run", "--where", "part = 'other'")


def test_unlearn_then_evaluate_then_generate_then_embed():
    tilth("unlearn", "run/target", "--forget", "people.parquet where part = 'forget'", "--retain", "people.parquet where part = 'retain'",
          "--method", "npo", "--epochs", "2", "--lr", "1e-3", "--set", "training.batch_size=4", "--out", "gone", "-q")  # fmt: skip
    scored = json.loads(tilth(
        "evaluate", "gone/model", "--benchmark", "tofu", "--data", "forget=people.parquet where part = 'forget'",
        "--data", "retain=people.parquet where part = 'retain'", "--set", "gold=run/target", "--out", "scores", "-q", "--json",
    ))  # fmt: skip
    metrics = scored["stages"][-1]["metrics"]
    assert 0 <= metrics["forget_quality"] <= 1 and 0 < metrics["retain_probability"] < 1
    answers = json.loads(tilth("generate", "gone/model", "Where was Mara Aldane born?", "--question", "--tokens", "8", "--json"))
    assert len(answers) == 1 and isinstance(answers[0]["answer"], str)
    tilth("embed", "gone/model", "people.parquet where part = 'forget'", "vectors.parquet", "-q")
    vectors = pq.read_table("vectors.parquet")
    assert vectors.num_rows == 8 and vectors.schema.field("embedding").type.list_size == 32


def test_adapt_a_probe(home):
    rows = pq.read_table("people.parquet", columns=["id", "question", "part"]).rename_columns(["id", "text", "label"])
    pq.write_table(rows, "labelled.parquet")
    record = json.loads(tilth("adapt", "run/target", "labelled.parquet", "--out", "probe", "-q", "--json"))
    assert record["stages"][-1]["metrics"]["accuracy"] >= 0.5


def test_pretrain_looks_at_the_data_and_says_why(home):
    texts = home / "texts"
    texts.mkdir()
    for number in range(30):
        (texts / f"{number}.txt").write_text(
            f"Story {number}. " + " ".join(f"word{(number * 7 + i * i) % 97}" for i in range(120))
        )
    result = CliRunner().invoke(app, ["pretrain", "texts", "--minutes", "0.05", "--out", "mine", "-q"], catch_exceptions=False)
    assert result.exit_code == 0 and "weights" in result.stderr and "30 of its 30 files are text" in result.stderr
    assert tilth("generate", "mine/model", "Story", "--tokens", "4").startswith("Story")


def test_curate_keeps_what_it_removes(home):
    Path("raw.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ["The same line of text, twice over."] * 2 + ["Another one that stands alone here."]))  # fmt: skip
    Path("dedup.yaml").write_text(
        "data: {corpus: {source: raw.jsonl}}\nstages: {clean: {curate: {data: corpus, steps: [normalise, exact_dedup]}}}\n"
    )
    tilth("curate", "raw.jsonl", "clean.jsonl", "--recipe", "dedup.yaml", "-q")
    kept = [json.loads(line)["text"] for line in Path("clean.jsonl").read_text().splitlines()]
    assert len(kept) == 2 and len(set(kept)) == 2
    assert pq.read_table("clean.run/removed.parquet").num_rows == 1


def test_recipe_check_show_schema_and_methods():
    assert "2 stages" in tilth("recipe", "check", "recipe.yaml")
    assert tilth("recipe", "show", "33").startswith("system: 33")
    assert json.loads(tilth("recipe", "schema"))["title"] == "Tilth recipe"
    [npo] = json.loads(tilth("methods", "npo", "--json"))
    assert npo["systems"] == [33] and npo["shape"] == "Objective"
    assert {"setting": "beta", "type": "float, > 0", "default": 0.1} in npo["settings"]
    assert len(json.loads(tilth("systems", "--json"))) == 97


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "nothing.yaml"], "no recipe file"),
        (["run", "recipe.yaml", "--set", "target.pretrain.budget.stepps=3"], "stepps"),
        (["run", "recipe.yaml", "--data", "people=missing.parquet"], "missing.parquet"),
        (["run", "recipe.yaml", "--set", "nonsense"], "not NAME=VALUE"),
        (["unlearn", "nowhere/at/all", "--forget", "people.parquet"], "no model folder"),
        (["unlearn", "run/target", "--forget", "people.parquet", "--retain", "people.parquet"], "retain"),
        (["evaluate", "run/target", "--benchmark", "tofo"], "Did you mean 'tofu'?"),
        (["trace", "texts-that-are-not", "--where", "x"], "not the folder of a run"),
        (["methods", "--kind", "unlern"], "Did you mean 'unlearn'?"),
        (["embed", "run/target", "people.parquet", "out.csv"], "does not end in .parquet"),
        (["claim", "recipe.yaml"], "makes no claim"),
    ],
)
def test_mistakes_are_explained(arguments, words):
    with pytest.raises(TilthError) as caught:
        tilth(*arguments)
    assert words in str(caught.value)


@pytest.mark.slow
def test_a_recipe_under_torchrun_is_the_recipe_with_the_doubled_batch(home):
    """Two processes: training on both, a stage that trains on its own (relearning) and scores on the first alone."""
    stages = """
  gone: {unlearn: {model: target, forget: forget, retain: retain, budget: {steps: 3}, training: {batch_size: BATCH}}}
  attack: {evaluate: {model: gone, benchmark: {relearning: {forget: forget, steps: [0, 2], share: 0.5}}}}
"""
    found = []
    for processes, batch in ((1, 16), (2, 8)):
        Path("both.yaml").write_text(
            (RECIPE + stages).replace("batch_size: 16", f"batch_size: {batch}").replace("BATCH", str(batch))
        )
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        arguments = ["-m", "tilth", "run", "both.yaml", "--out", f"both{processes}", "-q", "--json"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TILTH_STORE": str(home / f"store{processes}")}
        done = subprocess.run([*start, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=240)
        assert done.returncode == 0, done.stderr
        stages_run = json.loads(done.stdout)["stages"]
        found.append({f"{s['name']}.{k}": v for s in stages_run for k, v in s["metrics"].items() if "second" not in k})
    assert found[0] == pytest.approx(found[1], rel=1e-3) and len(found[0]) > 8


def test_exit_statuses_and_quick_help():
    def status(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "tilth", *arguments], capture_output=True, text=True, check=False)

    mistake = status("recipe", "check", "nothing.yaml")
    assert mistake.returncode == 2 and "Traceback" not in mistake.stderr and "no recipe file" in mistake.stderr
    assert status("recipe", "chek").returncode == 2
    # Processor time, so that a neighbour's load is not ours; on a free machine it is the time a user waits.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(3):
        assert status("--help").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 3 < 0.5
