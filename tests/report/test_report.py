"""The page as text: what it says, what it escapes, and that no state of a run's folder stops it."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from tests.report.runs import HOSTILE, LONG, RunFolder, demo, hostile
from tilth.errors import TilthError
from tilth.report import write


class Page(HTMLParser):
    """Tags with their attributes, visible text, and whether every element was closed in order."""

    VOID = {"meta", "link", "br", "img", "hr", "input"}

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.texts, self.badly_nested = [], [], [], []
        self.feed(html)
        self.text = " ".join("".join(self.texts).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.texts.append(" ")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.texts.append(" ")
        if not self.open or self.open.pop() != tag:
            self.badly_nested.append(tag)

    def handle_data(self, data):
        if "style" not in self.open[-1:]:
            self.texts.append(data)

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def page(run):
    return Page(write(run.save()).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return page(demo(tmp_path_factory.mktemp("whole") / "run"))


def test_it_is_one_file_that_loads_nothing(tmp_path):
    path = write(demo(tmp_path / "run").save())
    html = path.read_text(encoding="utf-8")
    assert path == tmp_path / "run" / "report.html"
    assert not re.search(r"<script|<iframe|@import|url\((?!#)", html)
    assert {value for value in re.findall(r'(?:src|href)="([^"]*)"', html) if not value.startswith("#")} == {"data:,"}
    assert "http" not in re.sub(r"http-equiv", "", html)
    assert path.stat().st_size < 400_000


def test_it_is_well_formed_and_accessible(whole):
    assert whole.badly_nested == [] and whole.open == []
    tags = dict(whole.tags)
    assert tags["html"]["lang"] == "en" and "width=device-width" in str(whole.tags)
    assert whole.count("h1") == 1 and whole.count("main") == 1
    levels = [int(tag[1]) for tag, _ in whole.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels))
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in whole.tags if tag == "th")
    assert whole.count("table") == sum("scroll" in attrs.get("class", "") for _, attrs in whole.tags)
    svgs = [attrs for tag, attrs in whole.tags if tag == "svg"]
    assert len(svgs) == 11 and all(attrs["role"] == "img" and len(attrs["aria-label"]) > 20 for attrs in svgs)
    ids = [attrs["id"] for _, attrs in whole.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    linked = {attrs["href"][1:] for tag, attrs in whole.tags if tag in ("a", "use") and attrs.get("href", "").startswith("#")}
    assert linked <= set(ids)


def test_the_story_is_told_in_words_and_figures(whole):
    assert "read 8,363 rows of data, curated a corpus" in whole.text  # the forget set is a part of people, not more data
    assert "pre-trained a model twice, measured a model 6 times and took something out of a model" in whole.text
    assert "in 3 min 32 s on AMD EPYC, 2 cores, 23.5 GiB of memory" in whole.text
    assert "forget probability 0.994 → 0.11 target → npo" in whole.text
    assert "perplexity 27.4" in whole.text and "parameters 2.36M" in whole.text


def test_curation_says_how_much_and_why_with_examples(whole):
    assert "near dedup 6,644 456 0" in whole.text
    assert "exact dedup: same text as … 12" in whole.text and "quality: words, fewer than … 8" in whole.text
    assert "exact_dedup: same text as lib/module_0.py" in whole.text and "def function_0(x):" in whole.text
    assert "Some of the rows removed, and why" not in whole.text  # shown better from removed.parquet


def test_stages_of_one_benchmark_are_one_table_with_glosses(whole):
    assert "forget quality ↑ model utility ↑ forget probability ≈ retain probability ↑" in whole.text.replace("\xa0", " ")
    assert "after_npo of npo 0.420 0.540 0.110 0.890 0.310 0.880" in whole.text
    assert "4.4 × 10 −25" in whole.text
    assert "Should match the gold model, which never saw the forget set." in whole.text
    assert "Kneser-Ney" in whole.text


def test_answers_stand_side_by_side(whole):
    text = whole.text
    start = text.index("Where was Tomas Arrieta born?")
    shown = text[start : text.index("tofu: retain", start)]
    said = ["right answer", "word for word", "never_saw gold He was born in Oslo.", "after_npo npo Born in the north.", "nothing"]
    assert [shown.find(part) for part in said] == sorted(shown.find(part) for part in said) and -1 not in [
        shown.find(p) for p in said
    ]


def test_questions_are_spread_over_the_rows_and_each_model_is_asked_the_same(tmp_path):
    run = RunFolder(tmp_path / "run")
    questions = [f"question {number:02}" for number in range(22)]
    for stage, rows in [("before", questions), ("after", questions[::-1])]:
        details = {"question": rows, "generated": [f"{stage} says {question[-2:]}" for question in rows]}
        run.stage(
            stage, "evaluate", 1.0, settings={"model": stage, "benchmark": {"generation": {}}}, files={"details.parquet": details}
        )
    text = page(run).text
    assert re.findall(r"question (\d\d) before before before says (\d\d) after after after says (\d\d)", text) == [
        ("00",) * 3, ("07",) * 3, ("14",) * 3, ("21",) * 3,
    ]  # fmt: skip


def test_data_environment_settings_and_how_to_repeat_are_there(whole):
    assert "people 240 people.parquet not stated" in whole.text and "where part = 'forget'" in whole.text
    assert "PSF-2.0" in whole.text and "9f3a" * 6 in whole.text
    assert "torch 2.13.0" in whole.text and "3058989150e8f7c2ef2f4ee3c0427d6b6440b53f" in whole.text
    assert "tilth run recipe.yaml --seed 0" in whole.text and "source: library.parquet" in whole.text
    assert "causal_lm: width: 192" in whole.text
    assert "What is missing" not in whole.text


def test_hostile_texts_stay_text(tmp_path):
    html = write(hostile(tmp_path / "run").save()).read_text(encoding="utf-8")
    seen = Page(html)
    assert seen.badly_nested == [] and seen.open == []
    assert seen.count("script") == seen.count("img") == 0
    assert not any(name.startswith("on") for _, attrs in seen.tags for name in attrs)
    assert HOSTILE in seen.text and "49" not in re.findall(r"&lt;!-- (\S+)", html)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e\u2066-\u2069]", html)
    assert 'dir="auto"' in html


def test_long_texts_are_folded_and_very_long_ones_cut_openly(tmp_path):
    run = RunFolder(tmp_path / "run")
    long, longer = "word " * 2_000, "z" * 50_000
    run.stage("s", "pretrain", 1.0, exhibits=[{"kind": "examples", "title": "t", "columns": ["c"], "rows": [[long], [longer]]}])
    seen = page(run)
    assert long.strip() in seen.text and "10,000 characters" in seen.text
    assert longer not in seen.text and longer[:20_000] in seen.text and "Cut here" in seen.text
    assert sum("fold" in attrs.get("class", "") for _, attrs in seen.tags) == 2


def test_a_title_of_ten_thousand_characters_is_cut(tmp_path):
    run = RunFolder(tmp_path / "run", recipe=LONG)
    assert LONG[:119] + "…" in page(run).text


def test_a_failed_run_says_where_and_why(tmp_path):
    run = demo(tmp_path / "run", failed={"stage": "npo", "what": "the loss is not a number at step 12"}, finished=None)
    run.record["stages"] = run.record["stages"][:6]
    text = page(run).text
    assert "This run failed in npo" in text and "the loss is not a number at step 12" in text
    assert "Until it stopped, this run read" in text and "goes on from there" in text


def test_an_unfinished_run_says_so(tmp_path):
    text = page(RunFolder(tmp_path / "run", finished=None, data=[], seconds=0.0)).text
    assert "This run is not finished" in text and "No stage of this run was finished" in text


def test_nearly_nothing_is_enough(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    seen = Page(write(tmp_path).read_text(encoding="utf-8"))
    assert seen.badly_nested == [] and "not finished" in seen.text


def test_the_wrong_types_are_no_reason_to_crash(tmp_path):
    wrong = {"stages": [3, {"name": None, "metrics": [1], "settings": "x", "seconds": "long"}], "data": {"a": 1}, "hardware": [], "versions": 3,
             "seconds": None, "failed": "out of memory", "tree": "x", "recipe": 5, "summary": None}  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(wrong))
    text = Page(write(tmp_path).read_text(encoding="utf-8")).text
    assert "out of memory" in text and "stage 1" in text


@pytest.mark.parametrize("content", [None, "{", "[]", ""])
def test_what_is_no_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(TilthError, match=r"run\.json"):
        write(tmp_path)


def test_what_cannot_be_read_is_listed(tmp_path):
    run = demo(tmp_path / "run")
    (run.path / "clean" / "removed.parquet").write_bytes(b"PAR1 but not really")
    with (run.path / "base" / "log.jsonl").open("a") as file:
        file.write('{"step": 801, "lo')
    with (run.path / "relearning" / "exhibits.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "hologram", "title": "?"}) + "\n" + json.dumps({"kind": "table", "rows": 3}) + "\n")
    shutil.rmtree(run.path / "npo")
    text = page(run).text
    missing = text[text.rindex("What is missing") :]
    assert "clean/removed.parquet could not be read" in missing
    assert "1 line of base/log.jsonl could not be read" in missing
    assert "hologram" in missing and "folder of stage 'npo' is gone" in missing
    assert "near dedup 6,644" in text


def test_a_stage_is_found_through_its_link_and_else_where_the_store_has_it(tmp_path):
    run = demo(tmp_path / "run")
    (run.path / "base").rename(tmp_path / "elsewhere")
    next(stage for stage in run.record["stages"] if stage["name"] == "base")["folder"] = str(tmp_path / "elsewhere")
    assert "gone" not in page(run).text


def test_numbers_that_are_none_are_left_out_of_curves_and_said_in_tables(tmp_path):
    run = RunFolder(tmp_path / "run")
    lines = [{"step": step, "loss": math.nan if step > 5 else 2.0} for step in range(10)]
    run.stage("model", "pretrain", 1.0, log=lines, metrics={"loss": math.nan})
    run.stage("audit", "evaluate", 1.0, metrics={"perplexity": math.inf}, settings={"benchmark": "perplexity"})
    text = page(run).text
    assert "4 points left out: not a number." in text
    assert "perplexity ∞" in text or "∞" in text


def test_it_is_written_whole_or_not_at_all(tmp_path):
    run = demo(tmp_path / "run")
    first = write(run.save()).read_text(encoding="utf-8")
    assert write(run.path).read_text(encoding="utf-8") == first
    assert not list(run.path.glob("*.partial"))
    assert write(run.path, tmp_path / "other.html").read_text(encoding="utf-8") == first
