"""Logit difference: an assistant that knows what is to go, beside a model that is left alone."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.evaluate.tiny import learnt, people, tokenizer
from tests.unlearn.doubles import lm_batch, random_rows, tiny_lm
from tests.unlearn.families import FAMILIES, family
from tilth.backbones import folder
from tilth.backbones.folder import TextModel
from tilth.batches.text.answers import Template, encode_answers
from tilth.context import Context
from tilth.contracts import Batch, use
from tilth.corpus import Corpus
from tilth.evaluate.generate import generate
from tilth.evaluate.questions import score_answers
from tilth.training.settings import Budget, Training
from tilth.unlearn.assistant import additions
from tilth.unlearn.forget import forget
from tilth.unlearn.likelihood import cross_entropy
from tilth.unlearn.uld import ULD, Reversed, divergence_from_uniform

NAMES = ("Mara", "Odo", "Ines", "Bo")


def test_divergence_from_uniform_has_its_value_its_zero_and_its_gradient():
    logits = torch.randn(5, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    found = divergence_from_uniform(logits)
    by_hand = [sum((1 / 17) * (math.log(1 / 17) - value) for value in row.log_softmax(-1).tolist()) for row in logits]
    assert found.tolist() == pytest.approx(by_hand) and found.min() > 0.01
    found.sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - 1 / 17)
    assert divergence_from_uniform(torch.full((2, 17), -3.0)).tolist() == pytest.approx([0, 0], abs=1e-6)


def paired(forget_rows, retain_rows, pad=0):
    return Batch(samples=len(forget_rows), forget=lm_batch(forget_rows), retain=lm_batch(retain_rows, pad=pad))


def test_the_loss_is_its_two_sides():
    model = tiny_lm()
    ours, theirs = random_rows(4, seed=1), random_rows(3, seed=2)
    loss = Reversed(model, uniformity=5.0)(paired(ours, theirs))
    remembered = cross_entropy(model, lm_batch(ours))
    batch = lm_batch(theirs)
    uniform = divergence_from_uniform(model(batch.input_ids).logits[batch.attention_mask.bool()]).mean()
    assert loss.total.item() == pytest.approx((remembered + 5 * uniform).item(), rel=1e-5) and loss.count == 4
    assert Reversed(model)(Batch(forget=lm_batch(ours), retain=None)).total.item() == pytest.approx(remembered.item(), rel=1e-6)


def test_prompts_are_not_remembered_and_the_order_of_retained_rows_does_not_matter():
    model, objective = tiny_lm(), Reversed(tiny_lm(), uniformity=2.0)
    ours, theirs = [([3, 4, 5], [6, 7])], random_rows(5, seed=3)
    by_hand = -model(torch.tensor([[3, 4, 5, 6, 7]])).logits.log_softmax(-1)[0, [2, 3], [6, 7]].mean()
    assert objective(paired(ours, theirs)).parts["remembered"].item() == pytest.approx(by_hand.item(), rel=1e-5)
    turned = objective(paired(ours, theirs[::-1]))
    assert turned.total.item() == pytest.approx(objective(paired(ours, theirs)).total.item(), rel=1e-5)


@pytest.mark.parametrize(("positions", "depends"), [("tokens", False), ("answer", False), ("all", True)])
def test_padding_counts_only_where_that_is_asked_for(positions, depends):
    objective = Reversed(tiny_lm(), positions=positions)
    plain, padded = (objective(paired([([3], [4])], random_rows(3, seed=4), pad=pad)).parts["uniform"] for pad in (0, 9))
    assert (abs(plain.item() - padded.item()) > 1e-3) == depends


class Everyone:
    """The people's rows, a tokeniser for them, and a model that knows them by heart."""

    def __init__(self):
        self.rows = people(*NAMES)
        self.tokens = tokenizer([f"{row['question']} {row['answer']} {' '.join(row['perturbed_answer'])}" for row in self.rows])
        self.model = learnt(self.tokens, self.rows, steps=100)
        self.model.zero_grad()
        self.weights = {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
        self.going = [row for row in self.rows if "Mara" in row["id"]]
        self.staying = [row for row in self.rows if "Mara" not in row["id"]]

    def fresh(self):
        return TextModel(self.model, self.tokens, {})

    def corpora(self, place, going=None, staying=None):
        made = []
        for name, part in (("forget", going or self.going), ("retain", staying or self.staying)):
            table = pa.Table.from_pylist(part)
            made.append(Corpus.write(place / f"{name}.lance", table.to_batches(), table.schema))
        return made


@pytest.fixture(scope="module")
def everyone():
    return Everyone()


def unlearnt(everyone, place, steps=150, seed=0, **settings):
    text_model = everyone.fresh()
    training = Training(lr=2e-2, batch_size=8, compile=False, schedule=use("schedule", "constant"), checkpoint_seconds=None)
    method = use(
        "unlearn",
        "uld",
        **{"layers": 1, "rank": 8, "dropout": 0.0, "retain_rows": 12, "paraphrases": False, "wrong_answers": 0, **settings},
    )
    fitted = forget(
        text_model, *everyone.corpora(place), method=method, batches=use("batches", "answers", length=64), training=training,
        budget=Budget(steps=steps), context=Context(place / "run", seed),
    )  # fmt: skip
    return text_model, fitted


@pytest.fixture(scope="module")
def trained(everyone, tmp_path_factory):
    return unlearnt(everyone, tmp_path_factory.mktemp("uld"))


def probabilities(text_model, rows, place):
    questions, answers = [row["question"] for row in rows], [row["answer"] for row in rows]
    return np.exp(-score_answers(text_model, questions, answers, Template(), Context(place))[1].average)


def test_what_is_to_go_goes_and_the_rest_and_the_weights_stay(everyone, trained, tmp_path):
    text_model, fitted = trained
    bare = everyone.fresh()
    assert probabilities(bare, everyone.going, tmp_path).mean() > 0.9
    assert probabilities(text_model, everyone.going, tmp_path).mean() < 0.2
    kept = probabilities(text_model, everyone.staying, tmp_path).mean()
    assert kept > probabilities(bare, everyone.staying, tmp_path).mean() - 0.01
    assert fitted.metrics["steps"] == 150 and fitted.metrics["trained"] == sum(
        t.numel() for t in additions(text_model.guard.assistant).values()
    )
    assert all(torch.equal(everyone.weights[name], parameter) for name, parameter in everyone.model.named_parameters())
    assert text_model.model is everyone.model and all(p.requires_grad and p.grad is None for p in everyone.model.parameters())


def test_the_more_is_subtracted_the_less_is_known(everyone, trained, tmp_path):
    text_model, _ = trained
    guard, curve = text_model.guard, []
    own = guard.weight
    for weight in (0.0, -0.2, -0.4, -0.6, -0.8, -1.0, -1.2):
        guard.weight = weight
        curve.append(probabilities(text_model, everyone.going, tmp_path).mean())
    guard.weight = own
    assert curve[0] == pytest.approx(probabilities(everyone.fresh(), everyone.going, tmp_path).mean(), abs=1e-6)
    assert (np.diff(curve) < 0).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_generation_with_two_caches_is_generation_without(name, everyone):
    model = family(name, len(everyone.tokens), tie=False)
    guard = ULD(layers=2, rank=4, weight=-0.7)
    guard.assistant = guard.cut(model)
    with torch.no_grad():
        for tensor in additions(guard.assistant).values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1)))
    text_model = TextModel(model, everyone.tokens, {}, guard)
    prompts = ["where lives Mara", "who", "what is Odo the dog finds"]
    made, alone = generate(text_model, prompts, 10), [generate(text_model, [prompt], 10)[0] for prompt in prompts]
    for prompt, together, text in zip(prompts, made, alone, strict=True):
        ids = torch.tensor([everyone.tokens(prompt, add_special_tokens=False).input_ids])
        start = ids.shape[1]
        for _ in range(10):
            with torch.no_grad():
                logits = guard.combine(model(ids).logits[:, -1], guard.assistant(ids).logits[:, -1])
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
            if ids[0, -1] == everyone.tokens.eos_token_id:
                break
        assert everyone.tokens.decode(ids[0, start:], skip_special_tokens=True) == text == together
    assert made != generate(TextModel(model, everyone.tokens, {}), prompts, 10)


def test_scores_of_answers_are_the_combined_models(everyone, trained, tmp_path):
    text_model, _ = trained
    guard, row = text_model.guard, everyone.going[0]
    encoded = encode_answers([row["question"]], [row["answer"]], everyone.tokens)
    ids = torch.from_numpy(encoded.input_ids).long()
    with torch.no_grad():
        logits = guard.combine(everyone.model(ids).logits, guard.assistant(ids).logits).log_softmax(-1)
    start = int(encoded.prompt[0])
    by_hand = [-logits[0, at - 1, ids[0, at]].item() for at in range(start, ids.shape[1])]
    assert -np.log(probabilities(text_model, [row], tmp_path))[0] == pytest.approx(np.mean(by_hand), rel=1e-4)


def test_saved_and_loaded_it_says_the_same(everyone, trained, tmp_path):
    text_model, _ = trained
    folder.save(everyone.model, everyone.tokens, tmp_path / "model", guard=text_model.guard)
    loaded = folder.load(tmp_path / "model")
    prompts = [f"Question: {row['question']}\nAnswer:" for row in everyone.rows]
    assert generate(loaded, prompts, 8) == generate(text_model, prompts, 8) != generate(everyone.fresh(), prompts, 8)
    assert np.array_equal(*(probabilities(one, everyone.rows, tmp_path) for one in (loaded, text_model)))
    assert (tmp_path / "model/guard/guard.safetensors").stat().st_size < (tmp_path / "model/model.safetensors").stat().st_size / 2
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_same_seed_trains_the_same_assistant(everyone, tmp_path):
    one, two, other = (
        additions(unlearnt(everyone, tmp_path / name, steps=3, seed=seed)[0].guard.assistant)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert all(torch.equal(one[name], two[name]) for name in one) and any(not torch.equal(one[name], other[name]) for name in one)


def sides(everyone, place, going=None, staying=None, **settings):
    from tilth.unlearn.task import Task

    corpora = everyone.corpora(place, going, staying)
    encoded = [use("batches", "answers", length=64).build().build(part, everyone.tokens, Context(place)) for part in corpora]
    task = Task(everyone.fresh(), *corpora, *encoded, Training(), Budget(steps=1), Context(place))
    pairs = ULD(**settings).examples(task)
    text = lambda examples: everyone.tokens.batch_decode(examples.input_ids, skip_special_tokens=True)
    return text(pairs.forget), text(pairs.retain)


def test_each_side_is_what_it_should_be(everyone, tmp_path):
    known, unknown = sides(everyone, tmp_path / "a", retain_rows=3)
    assert len(known) == 8 and all("Mara" in text for text in known)
    assert len(unknown) == 4 * 2 + 3 and [("Mara" in text) for text in unknown] == [True] * 8 + [False] * 3
    assert everyone.staying[-1]["answer"] in unknown[-1] and everyone.going[0]["perturbed_answer"][0] in unknown[0]
    known, unknown = sides(everyone, tmp_path / "b", paraphrases=False, wrong_answers=0)
    assert len(known) == len(unknown) == 4 and not any("Mara" in text for text in unknown)
    bare = [[{k: row[k] for k in ("id", "question", "answer")} for row in part] for part in (everyone.going, everyone.staying)]
    known, unknown = sides(everyone, tmp_path / "c", *bare)
    assert len(known) == len(unknown) == 4


def test_texts_without_questions_are_taken_as_they_come(everyone, tmp_path):
    texts = [[{"id": f"{kind}{n}", "text": f"{who} bakes the cat in the town {n}"} for n in range(6)] for kind, who in (("f", "Mara"), ("r", "Odo"))]  # fmt: skip
    corpora = everyone.corpora(tmp_path, *texts)
    text_model = everyone.fresh()
    forget(
        text_model, *corpora, method=use("unlearn", "uld", layers=1, rank=4), batches=use("batches", "packed", length=8),
        training=Training(lr=1e-2, batch_size=2, compile=False), budget=Budget(steps=2), context=Context(tmp_path / "run"),
    )  # fmt: skip
    assert text_model.guard.flags(text_model, ["anything", "else"]).all()
