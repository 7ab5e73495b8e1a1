"""The table of the 97 published systems."""

import json

import pytest

from tilth.claims import systems as module
from tilth.claims.systems import evidence_name, systems
from tilth.errors import TilthError


def row(number, evidence=None):
    return next(entry for entry in systems(evidence) if entry["number"] == number)


def test_there_are_97_numbered_rows_with_the_published_fields(tmp_path):
    table = systems(tmp_path)
    assert [entry["number"] for entry in table] == list(range(1, 98))
    assert len({entry["key"] for entry in table}) == 97
    fields = {"number", "key", "title", "stages", "methods", "recipe", "verdict", "evidence"}
    assert all(entry.keys() == fields and entry["stages"] and entry["title"] for entry in table)
    assert {stage for entry in table for stage in entry["stages"]} >= {"curate", "pretrain", "adapt", "unlearn", "evaluate"}
    json.dumps(table, allow_nan=False)


def test_methods_are_the_registered_ones(tmp_path):
    assert "npo" in row(33, tmp_path)["methods"]


def test_a_recipe_makes_a_system_run_and_evidence_says_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "packaged", lambda: ["33-npo"])
    assert (row(33, tmp_path)["verdict"], row(33, tmp_path)["recipe"]) == ("runs", "33-npo")
    assert (row(1, tmp_path)["verdict"], row(1, tmp_path)["recipe"]) == ("planned", None)
    for verdict in ("holds", "fails", "inconclusive"):
        (tmp_path / "33-npo.json").write_text(json.dumps({"verdict": verdict}))
        assert row(33, tmp_path)["verdict"] == verdict
        assert row(33, tmp_path)["evidence"] == str(tmp_path / "33-npo.json")


def test_evidence_of_the_current_project_comes_first(tmp_path, monkeypatch):
    package = tmp_path / "site" / "tilth"
    for folder, verdict in [(package / "evidence", "fails"), (tmp_path / "project" / "evidence", "holds")]:
        folder.mkdir(parents=True)
        (folder / "33-npo.json").write_text(json.dumps({"verdict": verdict}))
    monkeypatch.setattr(module, "_PACKAGE", package)
    monkeypatch.chdir(tmp_path)
    assert row(33)["verdict"] == "fails"
    monkeypatch.chdir(tmp_path / "project")
    assert (row(33)["verdict"], row(33)["evidence"]) == ("holds", "evidence/33-npo.json")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"verdict": "splendid"}'])
def test_a_file_that_is_not_evidence_is_named(tmp_path, content):
    (tmp_path / "33-npo.json").write_text(content)
    with pytest.raises(TilthError, match=r"33-npo\.json"):
        systems(tmp_path)


def test_names_have_two_digits():
    assert evidence_name(2) == "02-opera"
    with pytest.raises(TilthError, match="no system 98"):
        evidence_name(98)
