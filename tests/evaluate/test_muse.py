import pytest

from tests.evaluate.tiny import corpus, learnt, llama, people, tokenizer
from tilth.backbones.folder import save
from tilth.context import Context, exhibits
from tilth.errors import TilthError
from tilth.evaluate import metrics
from tilth.evaluate.muse import Muse, cut_answer


@pytest.fixture
def bed(tmp_path):
    (tmp_path / "stage").mkdir()
    tokens = tokenizer()
    both = [*people("Mara"), *people("Odo")]
    passages = [{"id": row["id"], "text": f"Question: {row['question']} Answer: {row['answer']}"} for row in people("Mara")]
    sets = {"forget": people("Mara"), "retain": people("Odo"), "holdout": people("Mara"), "passages": passages}
    models = {"target": learnt(tokens, both), "gold": learnt(tokens, people("Odo")), "fresh": llama(len(tokens))}
    return Context(
        folder=tmp_path / "stage",
        corpora={name: corpus(tmp_path / f"{name}.lance", rows) for name, rows in sets.items()},
        inputs={name: save(model, tokens, tmp_path / name) for name, model in models.items()},
        shared=tmp_path / "shared",
    )


def test_a_model_that_knows_says_and_answers(bed):
    found = Muse(forget="forget", retain="retain", gold="gold")(bed.model("target"), bed).metrics
    assert found["knowmem_forget"] == found["knowmem_retain"] == 1.0 and found["verbmem_forget"] > 0.9
    assert found["gold_knowmem_forget"] < 0.9 and found["gold_knowmem_retain"] == 1.0
    assert found["chosen"] == 0.0


def test_the_gold_model_is_chosen_and_leaks_nothing(bed):
    found = Muse(forget="forget", retain="retain", holdout="holdout", gold="gold")(bed.model("gold"), bed).metrics
    assert found["chosen"] == 1.0 and found["privleak"] == 0.0
    assert all(found[f"gold_{name}"] == found[name] for name in ("verbmem_forget", "knowmem_forget", "knowmem_retain"))


def test_a_passage_is_begun_and_its_true_continuation_is_cut_at_the_new_tokens(bed):
    scores = Muse(forget="passages", retain="retain", prompt_tokens=3, new_tokens=2)(bed.model("fresh"), bed)
    text = bed.corpus("passages").table(["text"])["text"][0].as_py()
    begun, rest = scores.details["question"][0], scores.details["answer"][0]
    assert text.startswith(begun) and begun == "Question: where" and rest == "lives Mara"
    assert scores.details["set"][:4] == ["verbmem_forget"] * 4
    assert "knowmem_forget" not in scores.metrics  # passages, and no questions about them


def test_an_answer_is_begun_behind_its_question(bed):
    scores = Muse(forget="forget")(bed.model("target"), bed)
    assert (
        scores.details["question"][0] == "Question: where lives Mara\nAnswer: Mara lives"
        and scores.details["answer"][0] == "at the town"
    )


def test_f1_without_stemming(bed):
    scores = Muse(forget="forget", retain="retain")(bed.model("gold"), bed)
    f1 = metrics.rouge_l(scores.details["generated"], scores.details["answer"], stem=False)[1]
    assert scores.details["rouge_f1"] == pytest.approx(f1.tolist())


def test_shots_stand_before_the_question_and_answers_end_at_the_next(bed):
    bench = Muse(forget="forget", shots="retain")
    from tilth.backbones.folder import load

    [prompt] = bench.prompts(load(bed.model("gold")), ["who?"], bed)
    assert prompt.startswith("Question: where lives Odo\nAnswer: Odo lives at the") and prompt.endswith(
        "\n\nQuestion: who?\nAnswer:"
    )
    assert cut_answer(" Paris.\n\nQuestion: next") == "Paris." == cut_answer("Paris.\nQuestion: next") == cut_answer("Paris.")


def test_nothing_to_ask_is_said(bed):
    bed.corpora["word"] = corpus(bed.folder / "word.lance", [{"id": "0", "text": "cat"}])
    with pytest.raises(TilthError, match="nothing to ask"):
        Muse(forget="word")(bed.model("fresh"), bed)


def test_the_report_has_gold_beside_the_model(bed):
    Muse(forget="forget", gold="gold", show=0)(bed.model("gold"), bed)
    [table] = exhibits(bed.folder)
    assert table["columns"] == ["metric", "value", "gold model"]
