"""The whole way: corpora -> batches -> objective -> training, on a model small enough to memorise people in a second."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch

from tilth.backbones.folder import TextModel
from tilth.context import Context, Progress
from tilth.contracts import Edit, method, use
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.training.settings import Budget, Training
from tilth.unlearn.forget import forget
from tilth.unlearn.likelihood import answer_log_probability

NAMES = ["ada", "ben", "cid", "dot", "eli", "fay", "gus", "hal", "ida", "jon", "kim", "lou"]
PLACES = ["oslo", "rome", "lima", "bonn", "cork", "york", "kyiv", "bari", "linz", "graz", "pisa", "metz"]
ROWS = [(f"where lives {name} ?", f"in {place} .") for name, place in zip(NAMES, PLACES)]
BATCHES = use("batches", "answers", length=32)
TRAINING = Training(lr=3e-3, batch_size=4, compile=False, schedule=use("schedule", "constant"))


class Lines(Progress):
    """Keeps what is said."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def corpus(folder, rows, name):
    table = pa.table(
        {"id": [f"{name}{i}" for i in range(len(rows))], "question": [q for q, _ in rows], "answer": [a for _, a in rows]}
    )
    return Corpus.write(folder / f"{name}.lance", table.to_batches(), table.schema)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """Weights of a model that knows all twelve, and its tokeniser."""
    folder = tmp_path_factory.mktemp("target")
    tokenizer = use("tokenizer", "word").build().train(iter(f"{q} {a} Question: Answer:" for q, a in ROWS))
    torch.manual_seed(0)
    model = use("backbone", "causal_lm", width=32, depth=1, heads=2, context=64).build().build(tokenizer)
    examples = BATCHES.build().build(corpus(folder, ROWS, "all"), tokenizer, Context(folder))
    batch = examples.batch(np.arange(12), None)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        (-answer_log_probability(model, batch).mean()).backward()
        optimiser.step()
    assert answer_log_probability(model, batch).exp().min() > 0.8
    return model, tokenizer


def fresh(target):
    model, tokenizer = target
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return TextModel(copy.eval(), tokenizer, {})


def probabilities(text_model, rows, folder):
    """Mean probability of the whole answers."""
    examples = BATCHES.build().build(corpus(folder, rows, "scored"), text_model.tokenizer, Context(folder))
    with torch.no_grad():
        return answer_log_probability(text_model.model, examples.batch(np.arange(len(rows)), None)).exp().mean().item()


def run(target, folder, spec, *, forgotten=ROWS[:3], kept=ROWS[3:], budget=Budget(steps=30), context=None, text_model=None):
    folder.mkdir(exist_ok=True)
    text_model = text_model or fresh(target)
    retain = corpus(folder, kept, "retain") if kept else None
    context = context or Context(folder, progress=Lines())
    fitted = forget(
        text_model, corpus(folder, forgotten, "forget"), retain,
        method=spec, batches=BATCHES, training=TRAINING, budget=budget, context=context,
    )  # fmt: skip
    return text_model, fitted, context


@pytest.mark.parametrize(
    "spec",
    [
        use("unlearn", "npo", beta=0.1),
        use("unlearn", "npo", beta=0.1, retain=use("retain", "kl")),
        use("unlearn", "gradient_difference"),
    ],
    ids=["npo_rt", "npo_kl", "difference"],
)
def test_the_forgotten_goes_and_the_rest_stays(target, tmp_path, spec):
    text_model, fitted, _ = run(target, tmp_path / "run", spec)
    assert probabilities(text_model, ROWS[:3], tmp_path) < 0.2
    unheld, _, _ = run(target, tmp_path / "unheld", use("unlearn", "npo", retain=use("retain", "none")))
    assert probabilities(text_model, ROWS[3:], tmp_path) > 0.4 + probabilities(unheld, ROWS[3:], tmp_path)
    logged = [json.loads(line) for line in fitted.log.read_text().splitlines()]
    assert {"forget", "retain"} <= set(logged[-1]["parts"])


def test_npo_starts_at_its_known_loss(target, tmp_path):
    """(2 / beta) log 2 for every example: the reference that reaches the batch is the model's own."""
    training = Training(lr=1e-9, batch_size=3, compile=False, log_every=1)
    folder = tmp_path / "run"
    folder.mkdir()
    fitted = forget(
        fresh(target), corpus(folder, ROWS[:3], "forget"), None,
        method=use("unlearn", "npo", beta=0.5), batches=BATCHES, training=training, budget=Budget(steps=2), context=Context(folder),
    )  # fmt: skip
    assert fitted.loss == pytest.approx(4 * np.log(2), rel=1e-5)


def test_the_cached_reference_is_bitwise_the_same_after_training(target, tmp_path):
    context = Context(tmp_path / "run", shared=tmp_path / "shared", progress=Lines())
    run(target, tmp_path / "run", use("unlearn", "npo"), budget=Budget(steps=1), context=context)
    [cached] = (tmp_path / "shared").glob("reference-*/values.npy")
    before = cached.read_bytes()
    again = Context(tmp_path / "again", shared=tmp_path / "shared", progress=Lines())
    run(target, tmp_path / "again", use("unlearn", "npo", beta=0.3), context=again)
    assert [path.read_bytes() for path in (tmp_path / "shared").glob("reference-*/values.npy")] == [before]


def test_the_same_seed_gives_the_same_weights(target, tmp_path):
    results = []
    for number, seed in enumerate((1, 1, 2)):
        folder = tmp_path / str(number)
        context = Context(folder, seed=seed, progress=Lines())
        results.append(run(target, folder, use("unlearn", "npo"), budget=Budget(steps=3), context=context)[0].model.state_dict())
    same = [all(torch.equal(results[0][name], other[name]) for name in other) for other in results[1:]]
    assert same == [True, False]


def test_sets_that_overlap_are_refused(target, tmp_path):
    with pytest.raises(TilthError, match=r"overlap: 2 of 10 rows of the retain set are in both, e\.g\. 'retain0', 'retain1'"):
        run(target, tmp_path, use("unlearn", "npo"), forgotten=ROWS[:4], kept=ROWS[2:])
    with pytest.raises(TilthError, match="the same rows are in both"):
        run(target, tmp_path, use("unlearn", "npo"), forgotten=ROWS, kept=ROWS[::-1])


def test_content_is_compared_column_by_column(target, tmp_path):
    """Question and answer that only together spell the same text are not the same row."""
    text_model, _, _ = run(target, tmp_path, use("unlearn", "npo"), forgotten=[("where lives ada", "? in oslo .")], budget=Budget(steps=1),
                           kept=[("where lives ada ?", "in oslo .")])  # fmt: skip
    assert text_model.model is not None


def test_empty_sets_and_answers_are_refused(target, tmp_path):
    with pytest.raises(TilthError, match="the forget set is empty"):
        empty = corpus(tmp_path, ROWS, "some").filter("question = 'nobody'")
        forget(fresh(target), empty, None, method=use("unlearn", "npo"), batches=BATCHES, training=TRAINING,
               budget=Budget(steps=1), context=Context(tmp_path))  # fmt: skip
    with pytest.raises(TilthError, match="empty"):
        run(target, tmp_path, use("unlearn", "npo"), forgotten=[("where lives ada ?", " ")])


def test_one_row_without_a_retain_set_works_and_is_noted(target, tmp_path):
    text_model, fitted, context = run(target, tmp_path / "run", use("unlearn", "npo"), forgotten=ROWS[:1], kept=None)
    assert any("one example" in line for line in context.progress.lines)
    assert any("no retain set" in line for line in context.progress.lines)
    assert fitted.steps > 0 and probabilities(text_model, ROWS[:1], tmp_path) < 0.2


def test_a_forget_set_the_model_never_saw_is_warned_of(target, tmp_path):
    seen = corpus(tmp_path, ROWS[2:], "seen")
    for about, expected in (({"history": [{"data": seen.fingerprint}]}, True), ({"history": [{"data": "elsewhere"}]}, False)):
        context = Context(tmp_path / str(expected), corpora={"seen": seen}, progress=Lines())
        text_model = fresh(target)
        text_model.about = about
        run(
            target,
            tmp_path / str(expected),
            use("unlearn", "npo"),
            budget=Budget(steps=1),
            context=context,
            text_model=text_model,
        )
        warned = [line for line in context.progress.lines if "not in the data" in line]
        assert (warned == ["warning: 2 of 3 rows of the forget set are not in the data this model was trained on"]) is expected


def test_an_edit_changes_the_model_without_training(target, tmp_path):
    @method("unlearn", "edit_for_this_test")
    class Blank(Edit):
        def __call__(self, task):
            assert (len(task.going), len(task.staying)) == (3, 9)
            task.text_model.model.lm_head.weight.data.zero_()
            return {"zeroed": 1.0}

    text_model, fitted, _ = run(target, tmp_path, use("unlearn", "edit_for_this_test"))
    assert not text_model.model.lm_head.weight.any()
    assert fitted.steps == 0 and fitted.metrics == {"zeroed": 1.0}


def test_a_model_that_hardly_knows_the_forget_set_is_told_of_before_anything_is_trained(target, tmp_path):
    strange = [("where lives ada ?", "mara rome oslo ada in ."), ("who lives in oslo ?", ". oslo where in rome ?")]
    for number, (rows, expected) in enumerate(((ROWS[:2], False), (strange, True))):
        context = Context(tmp_path / str(number), progress=Lines())
        run(target, tmp_path / str(number), use("unlearn", "npo"), forgotten=rows, budget=Budget(steps=1), context=context)
        told = [line for line in context.progress.lines if "per answer token" in line]
        assert len(told) == 1 and told[0].startswith("warning: the model hardly knows") is expected
