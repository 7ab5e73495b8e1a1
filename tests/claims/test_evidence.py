"""What an evidence file holds, and what it does not forget."""

import json
import math

from tilth.claim_spec import ClaimSpec
from tilth.claims.evidence import write_evidence
from tilth.claims.judge import judge

DATA = [{"name": "forget", "source": "tofu", "where": "split = 'forget10'", "rows": 400, "fingerprint": "abc", "licence": "MIT"}]


def write(path, values, *, tried=(), tree=None, by=0.05):
    arms = {"npo": {}, "ascent": {"stages.unlearned.unlearn.method": "gradient_ascent"}}
    expect = [{"metric": "audit.utility", "higher": "npo", "than": "ascent", "by": by}]
    claim = ClaimSpec(statement="NPO keeps more.", arms=arms, seeds=3, expect=expect, tried=list(tried))
    metrics = {
        "npo": {s: {"audit.utility": v} for s, v in enumerate(values)},
        "ascent": {s: {"audit.utility": 0.1} for s in range(3)},
    }
    judgement = judge(metrics, claim.expectations, seeds=claim.seeds)
    write_evidence(
        path, system=33, recipe="33-npo", tree=tree or {"by": by}, claim=claim, metrics=metrics, judgement=judgement,
        seconds=12.34, data=DATA, scale="cpu",
    )  # fmt: skip

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def test_it_holds_what_was_measured_on_what_and_how(tmp_path):
    evidence = write(tmp_path / "evidence" / "33-npo.json", [0.6, 0.61, 0.62])
    assert evidence["system"] == 33 and evidence["statement"] == "NPO keeps more." and evidence["verdict"] == "holds"
    assert evidence["seeds"] == [0, 1, 2] and evidence["arms"]["npo"]["2"] == {"audit.utility": 0.62}
    [expected] = evidence["expect"]
    assert expected["met"] is True and abs(expected["difference"] - 0.51) < 1e-12 and expected["interval"][0] > 0
    assert evidence["data"] == DATA and evidence["seconds"] == 12.3
    assert evidence["hardware"]["cores"] >= 1 and evidence["versions"]["torch"] and "commit" in evidence
    assert not list(tmp_path.rglob("*.partial"))


def test_numbers_that_are_none_are_strict_json(tmp_path):
    evidence = write(tmp_path / "e.json", [math.nan, math.inf, 0.5])
    assert [evidence["arms"]["npo"][seed]["audit.utility"] for seed in "012"] == [None, "Infinity", 0.5]
    assert evidence["verdict"] == "fails"


def test_what_was_tried_is_not_forgotten(tmp_path):
    path = tmp_path / "e.json"
    assert write(path, [0.6, 0.6, 0.6], by=0.9, tried=["lr 1e-3: collapses"])["tried"] == ["lr 1e-3: collapses"]
    again = write(path, [0.6, 0.6, 0.6], by=0.9, tried=["lr 1e-3: collapses"])
    assert again["tried"] == ["lr 1e-3: collapses"]
    weaker = write(path, [0.6, 0.6, 0.6], by=0.1)
    assert weaker["verdict"] == "holds"
    assert weaker["tried"][0] == "lr 1e-3: collapses"
    assert "fails" in weaker["tried"][1] and "higher than of ascent by 0.9" in weaker["tried"][1]
    assert write(path, [0.6, 0.6, 0.6], by=0.05)["tried"] == weaker["tried"]
