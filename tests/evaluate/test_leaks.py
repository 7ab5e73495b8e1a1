"""What counts as a leak, and the suite over a model that knows the answers by heart."""

import numpy as np
import pytest

from tests.evaluate.tiny import corpus, learnt, tokenizer
from tilth.backbones.folder import load, save
from tilth.context import Context
from tilth.contracts import use
from tilth.evaluate.leaks import recalled, repeated
from tilth.training.settings import Budget, Training
from tilth.unlearn.forget import forget

ROWS = [
    {"id": f"{name}-{n}", "question": question.format(name), "paraphrased_question": other.format(name), "answer": f"{name} {verb} {secret}"}
    for name, secrets in (("Mara", ("Oslo", "Quist", "Heron")), ("Odo", ("Lima", "Brandt", "Otter")))
    for n, ((question, other, verb), secret) in enumerate(
        zip((("where lives {}", "{} lives where", "lives in"), ("who finds {}", "{} finds who", "finds"), ("what is {}", "{} is what", "is a")), secrets, strict=True)
    )
]  # fmt: skip
GOING, STAYING = ([row for row in ROWS if name in row["id"]] for name in ("Mara", "Odo"))


def test_what_the_question_says_is_no_leak_and_spelling_does_not_matter():
    questions, right = ["Where does Vera Quist live?"] * 4, ["Vera Quist lives in Oslo since 1982"] * 4
    made = ["in OSLO , since 1982", "in Oslo", "Vera Quist lives in Lima", "Osloite"]
    assert recalled(questions, right, made, frozenset()).tolist() == [1.0, 0.5, 0.0, 0.0]
    assert np.isnan(recalled(["Who is Vera?"], ["Vera"], ["Vera"], frozenset()))


def test_repeated_pairs_of_words():
    assert repeated("a b a b a b") == pytest.approx(3 / 5)
    assert repeated("a b c") == repeated("a") == repeated("") == 0.0


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a model that knows everyone, and of the same one guarded."""
    folder = tmp_path_factory.mktemp("leaks")
    tokens = tokenizer([row["answer"] for row in ROWS])
    both = [{**row, "question": row["paraphrased_question"]} for row in ROWS]
    save(learnt(tokens, [*ROWS, *both]), tokens, folder / "bare")
    context = Context(
        folder,
        corpora={"forget": corpus(folder / "f", GOING), "retain": corpus(folder / "r", STAYING)},
        inputs={"bare": folder / "bare"},
    )
    text_model = load(folder / "bare")
    forget(
        text_model, context.corpus("forget"), context.corpus("retain"), batches=use("batches", "answers", length=64),
        method=use("unlearn", "guard", retrieved=3, common=0.9, paraphrases="paraphrased_question"), training=Training(),
        budget=Budget(steps=1), context=context,
    )  # fmt: skip
    save(text_model.model, text_model.tokenizer, folder / "guarded", guard=text_model.guard)
    return folder, context


def test_a_model_that_knows_leaks_everything_and_guarded_nothing_and_answers_the_rest_as_before(models):
    folder, context = models
    benchmark = use("benchmark", "leaks", forget="forget", retain="retain", before="bare", common=0.9, max_new_tokens=12)
    bare, held = (benchmark.build()(folder / name, context).metrics for name in ("bare", "guarded"))
    assert bare["entity_recall"] == bare["paraphrase_entity_recall"] == 1.0 and bare["retain_rouge_change"] == 0.0
    assert "forget_flagged" not in bare
    assert held["forget_flagged"] == held["paraphrase_flagged"] == 1.0 and held["retain_flagged"] == 0.0
    assert held["entity_recall"] == held["flagged_entity_recall"] == held["paraphrase_entity_recall"] == 0.0
    assert held["retain_rouge_change"] == 0.0 and held["retain_rouge"] == pytest.approx(bare["retain_rouge"])
    assert held["log_probability"] < bare["log_probability"] < 0
