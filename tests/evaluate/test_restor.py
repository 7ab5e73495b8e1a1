"""RESTOR: recovery's fixed points, option scores against by-hand ones, the whole on small models."""

import math

import pyarrow as pa
import pytest
import torch

from tests.evaluate.test_facts import CITIES, JOBS, table
from tests.evaluate.tiny import gpt2, llama, tokenizer
from tilth.backbones.folder import TextModel, save
from tilth.batches.text.spans import Spans
from tilth.context import Context, exhibits
from tilth.contracts import use
from tilth.corpus import Corpus
from tilth.evaluate.facts import Facts, Selection
from tilth.evaluate.restor import Restor, option_scores, recovery
from tilth.stages.facts import FactTexts
from tilth.unlearn.likelihood import answers

SELECTION = Selection(relations=2, entities=20, affected=6)


def corpus(folder):
    rows = [
        {
            "id": str(number),
            "entity": fact.entity,
            "property": fact.relation,
            "question": fact.question,
            "answers": list(fact.objects),
        }
        for number, fact in enumerate(table().all)
    ]
    made = pa.Table.from_pylist(rows)
    return Corpus.write(folder / "facts.lance", made.to_batches(), made.schema)


def words():
    return tokenizer([" ".join([fact.line() for fact in table().all] + CITIES + JOBS)])


@pytest.fixture
def context(tmp_path):
    (tmp_path / "stage").mkdir()
    return Context(tmp_path / "stage", corpora={"facts": corpus(tmp_path)}, shared=tmp_path / "shared")


def test_recovery_of_the_clean_model_is_one_and_of_the_corrupted_one_nothing():
    assert recovery(0.9, 0.2, 0.9) == 1 and recovery(0.2, 0.2, 0.9) == 0
    assert recovery(0.55, 0.2, 0.9) == pytest.approx(0.5) and recovery(0.1, 0.2, 0.9) < 0
    assert math.isnan(recovery(0.5, 0.9, 0.9)) and math.isnan(recovery(0.5, 0.9, 0.2))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_an_options_score_is_minus_the_cross_entropy_of_its_tokens_whatever_shares_the_batch(make, tmp_path):
    tokens = words()
    model = make(len(tokens))
    prompts = ["Where was person 1 born ?", "What is person 2 ? a longer question", "What is"]
    options = ["Rome", "poet judge Rome", "nurse"]
    together = option_scores(TextModel(model, tokens), prompts, options, Context(tmp_path))
    for number, (prompt, option) in enumerate(zip(prompts, options, strict=True)):
        before = tokens(prompt, add_special_tokens=False).input_ids
        own = tokens(f" {option}", add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([before + own])).logits[0].log_softmax(-1)
        expected = sum(logits[len(before) + at - 1, token].item() for at, token in enumerate(own)) / len(own)
        assert together[number] == pytest.approx(expected, rel=1e-4)
        alone = option_scores(TextModel(model, tokens), [prompt], [option], Context(tmp_path))
        assert alone[0] == pytest.approx(together[number], rel=1e-5)


def taught(lines, steps=60):
    """A model that has learnt lines by heart."""
    tokens = words()
    model = llama(len(tokens), width=48)
    batch = tokens(lines, add_special_tokens=False, return_tensors="pt", padding=True)
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=batch.input_ids, labels=labels).loss.backward()
        optimiser.step()
    return model.eval()


def test_three_models_side_by_side(tmp_path, context):
    facts = Facts.read(context.corpora["facts"], SELECTION)
    right = [facts.prompt(fact) + " " + fact.objects[0] for fact in facts.touched]
    wrong = [facts.prompt(fact) + " " + facts.wrong(fact, 0) for fact in facts.touched]
    clean = save(taught(right), words(), tmp_path / "clean")
    corrupted = save(taught(wrong), words(), tmp_path / "corrupted")
    benchmark = Restor(
        facts="facts", selection=SELECTION, clean=str(clean), corrupted=str(corrupted), max_new_tokens=3, untouched=4
    )
    of_clean, of_corrupted = benchmark(clean, context).metrics, benchmark(corrupted, context).metrics
    assert of_clean["accuracy"] > 0.9 and of_clean["recovery"] == 1 and of_clean["judged_recovery"] == 1
    assert of_corrupted["corrupted_accuracy"] > 0.9 and of_corrupted["recovery"] == 0 and of_corrupted["forgetting"] == 0
    assert of_clean["clean_accuracy"] == of_corrupted["clean_accuracy"] == of_clean["accuracy"]
    assert of_clean["log_probability_right"] > of_clean["log_probability_corrupted"]
    assert of_corrupted["log_probability_right"] < of_corrupted["log_probability_corrupted"]
    assert of_clean["forgetting"] > 0.9


def test_where_nothing_was_lost_recovery_is_undefined_and_said(tmp_path, context):
    folder = save(llama(len(words())), words(), tmp_path / "model")
    scores = Restor(facts="facts", selection=SELECTION, clean=str(folder), corrupted=str(folder), max_new_tokens=0)(
        folder, context
    )
    assert math.isnan(scores.metrics["recovery"])
    assert any(
        exhibit["title"] == "No recovery" and "Nothing was lost" in exhibit["text"] for exhibit in exhibits(context.folder)
    )
    assert len(scores.details["answer"]) == 12


def test_the_validation_split_and_the_rest_are_all(context):
    facts = Facts.read(context.corpora["facts"], SELECTION)
    parts = {how: Restor(facts="facts", selection=SELECTION, validation=how).asked(facts) for how in ("only", "without", "with")}
    assert not set(parts["only"]) & set(parts["without"]) and len(parts["only"]) + len(parts["without"]) == len(parts["with"])


def test_texts_for_retaining_tell_nothing_of_affected_entities_and_spans_mark_what_is_wrong(tmp_path, context):
    facts = Facts.read(context.corpora["facts"], SELECTION)
    made = {}
    for about in ("truth", "retained", "corruption"):
        stage = Context(tmp_path / about, corpora=context.corpora)
        FactTexts(data="facts", about=about, selection=SELECTION, copies=2, unrelated=2).run(stage)
        made[about] = Corpus.open(tmp_path / about / "corpus.lance")
    retained = " ".join(made["retained"].table(["text"])["text"].to_pylist())
    assert not any(f"{fact.question}" in retained for fact in facts.touched)
    tokens = words()
    examples = Spans(length=64).build(made["corruption"], tokens, Context(tmp_path))
    rows = made["corruption"].table(["text", "spans"]).to_pylist()
    for number, row in enumerate(rows):
        batch = examples.batch(torch.tensor([number]).numpy())
        learnt = tokens.convert_ids_to_tokens(batch.labels[batch.labels != -100])
        assert learnt == " ".join(row["text"][span["start"] : span["end"]] for span in row["spans"]).split()
    whole = Spans(length=64).build(made["truth"], tokens, Context(tmp_path)).batch(torch.arange(3).numpy())
    assert torch.equal(whole.labels != -100, whole.attention_mask.bool())
    model = use("backbone", "causal_lm", width=16, depth=1, heads=2, context=64).build().build(tokens)
    assert len(answers(model, whole).targets) == int(whole.attention_mask[:, 1:].sum())
