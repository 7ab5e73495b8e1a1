"""`tilth audit` as a user types it."""

import json

import pytest
from typer.testing import CliRunner

from tests.evaluate.tiny import learnt, people, tokenizer
from tilth.backbones.folder import save
from tilth.cli import app
from tilth.errors import TilthError


@pytest.fixture
def bed(tmp_path):
    tokens = tokenizer()
    for name, who in (("forget", ["Mara"]), ("retain", ["Odo"]), ("concepts", ["Tristram"])):
        rows = [{**row, "paraphrased_question": row["question"]} for row in people(*who)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save(learnt(tokens, people("Mara", "Odo")), tokens, tmp_path / "run" / "model")
    save(learnt(tokens, people("Odo")), tokens, tmp_path / "gold")
    return tmp_path


def audit(bed, *more):
    command = ["audit", str(bed / "run"), "--forget", str(bed / "forget.jsonl"), "--out", str(bed / "out"), "--quiet", *more]
    return CliRunner().invoke(app, command, catch_exceptions=False)


def test_the_page_and_the_json_lie_where_they_were_asked_for(bed):
    done = audit(
        bed, "--retain", f"{bed / 'retain.jsonl'} where id LIKE 'Odo%'", "--gold", str(bed / "gold"), "--only", "tofu",
        "--only", "membership", "--limit", "3", "--json",
    )  # fmt: skip
    assert done.exit_code == 0
    about = json.loads((bed / "out" / "audit.json").read_text())
    assert "<!DOCTYPE html>" in (bed / "out" / "audit.html").read_text()
    assert [section["name"] for section in about["sections"]] == ["tofu", "membership"]
    assert about["sections"][0]["measures"][0]["values"]["model"]["count"] == 3
    assert about["asked"]["sets"][1]["where"] == "id LIKE 'Odo%'" and "holdout" in about["sections"][1]["missing"][0]
    record = json.loads((bed / "out" / "run.json").read_text())
    assert record["finished"] and record["stages"][0]["metrics"]["tofu_forget_rouge"] > 0.9


def test_what_cannot_be_is_said_before_anything_is_computed(bed):
    with pytest.raises(TilthError, match="there is no model folder"):
        audit(bed, "--gold", str(bed / "nowhere"))
    with pytest.raises(TilthError, match="overlap"):
        audit(bed, "--retain", str(bed / "forget.jsonl"))
