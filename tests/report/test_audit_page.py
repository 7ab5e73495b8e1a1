"""The page of an audit: says what is in the JSON, escapes what the data hold, and stands in a real browser."""

import json
from html import unescape

import pytest

from tests.evaluate.tiny import corpus, learnt, people, tokenizer
from tests.report import test_browser as browsing
from tilth.backbones.folder import save
from tilth.context import Context
from tilth.errors import TilthError
from tilth.evaluate.audit.audit import Audit
from tilth.report.audit import render, write_audit

browser = browsing.browser


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """The folder of an audit of a tiny model, its data holding what would disturb a page."""
    folder = tmp_path_factory.mktemp("audit")
    tokens = tokenizer()
    mara = [{**row, "paraphrased_question": f"<script>alert(1)</script> {row['question']}"} for row in people("Mara")]
    mara[0] = {**mara[0], "question": "<script>alert(1)</script> \u202e where " + "lives" * 60}
    sets = {"forget": mara, "retain": people("Odo")}
    models = {"target": learnt(tokens, [*mara, *people("Odo")]), "gold": learnt(tokens, people("Odo"))}
    history = [{"forgot": "x", "method": {"npo": {"beta": 0.1}}}, "not a step", {"other": "<b>"}]
    context = Context(
        folder=folder,
        corpora={name: corpus(folder / f"{name}.lance", rows) for name, rows in sets.items()},
        inputs={name: save(model, tokens, folder / name, {"history": history}) for name, model in models.items()},
    )
    only = ("extraction", "tofu", "membership", "relearning")
    bench = Audit(forget="forget", retain="retain", gold="gold", before="target", max_new_tokens=12, only=only)
    bench(context.model("target"), context)
    return folder


@pytest.fixture(scope="module")
def page(stage, tmp_path_factory):
    return write_audit(stage, tmp_path_factory.mktemp("out"))[0]


def test_every_sentence_and_figure_of_the_json_is_on_the_page(stage, page):
    about, html = json.loads((stage / "audit.json").read_text()), unescape(page.read_text())
    assert json.loads((page.parent / "audit.json").read_text()) == about
    assert about["headline"] in html and about["done"]["matches"] in html
    for section in about["sections"]:
        assert section["title"] in html and all(line in html for line in section["missing"])
        assert all(row["title"] in html for row in section["measures"])
    for heading in ("What was asked", "What was done", "What was tested, and what remains", "What could not be tested"):
        assert f">{heading}<" in html


def test_data_cannot_become_markup_and_the_page_asks_nobody(page):
    html = page.read_text()
    assert "<script" not in html and "&lt;script&gt;" in html and "\u202e" not in html and '<b>"' not in html
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html


def test_the_page_is_made_of_the_json_alone(stage, page):
    about = json.loads((stage / "audit.json").read_text())
    assert render(about) == page.read_text()


def test_a_folder_without_an_audit_is_refused(tmp_path):
    with pytest.raises(TilthError, match="holds no audit"):
        write_audit(tmp_path, tmp_path / "out")


@pytest.mark.browser
@browsing.pytestmark[1]
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_complains_sticks_out_or_is_too_faint(browser, page, width, scheme):
    browsing.show(browser, page, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.get_log("browser") == []
    assert browser.execute_script(browsing.CONTRAST) == []
