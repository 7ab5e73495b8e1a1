"""Generic labels: the logit rule, what stands where, which positions are left out, and that the whole forgets."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.nn import functional as F

from tilth.backbones.folder import TextModel
from tilth.context import Context
from tilth.contracts import Batch, Noise, use
from tilth.corpus import Corpus
from tilth.training.settings import Budget, Training
from tilth.unlearn.anchors import Anchors
from tilth.unlearn.forget import forget
from tilth.unlearn.generic import generic_labels, generic_logits
from tilth.unlearn.harry_potter import soft_cross_entropy
from tilth.unlearn.likelihood import answers
from tilth.unlearn.translation import Translator

TEXTS = [
    "Ben is at mill of Ada",
    "at mill Ben met old Ada",
    "the dog Ben saw met Ada",
    "of mill Ben said is Ada",
]  # 7 tokens with its end
OTHERS = [
    "Lou is at lake of Kim",
    "at lake Lou met new Kim",
    "the cat Lou saw met Kim",
    "of lake Lou said is Kim",
    "the lake of Kim is Lou",
]
TERMS = {"Ada": "Kim", "mill": "big lake"}


def corpus(folder, texts, name):
    table = pa.table({"id": [f"{name}{i}" for i in range(len(texts))], "text": texts})
    return Corpus.write(folder / f"{name}.lance", table.to_batches(), table.schema)


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    """Tokeniser, two different models and packed examples of the forget texts."""
    folder = tmp_path_factory.mktemp("bed")
    tokenizer = use("tokenizer", "word").build().train(iter([*TEXTS, *OTHERS, "a big"]))
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = use("backbone", "causal_lm", width=32, depth=2, heads=2, context=64).build().build(tokenizer)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.0 if parameter.ndim == 1 else 8.0)
        models.append(model.eval())
    examples = use("batches", "packed", length=14).build().build(corpus(folder, TEXTS, "forget"), tokenizer, Context(folder))
    return tokenizer, models, examples


def labels_of(bed, *, terms=TERMS, alpha=5.0, lowered=0.0, reinforced=1, relu_ref="original", top=None, limit=64):
    tokenizer, models, examples = bed
    made = generic_labels(
        models[0], models[reinforced], examples, Translator(tokenizer, Anchors(terms)), Context(None), alpha=alpha,
        relu_ref=relu_ref, lowered=lowered, limit=limit, top=top,
    )  # fmt: skip
    everything = np.arange(len(examples))
    return {name: torch.from_numpy(np.ascontiguousarray(values[everything])) for name, values in made.items()}, examples.batch(
        everything, Noise(0, everything)
    )


def test_the_rule_leaves_what_did_not_rise_and_lowers_more_with_alpha():
    translated, baseline, reinforced = torch.randn(3, 5, 11, dtype=torch.float64).unbind()
    results = [generic_logits(translated, baseline, reinforced, alpha, "original") for alpha in (0.0, 1.0, 5.0, 1e9)]
    assert torch.equal(results[0], translated)
    risen = reinforced > baseline
    for less, more in pairwise(results):
        assert (more <= less).all() and (more < less)[risen].all()
        assert torch.equal(more[~risen], translated[~risen])
    never = translated.masked_fill(risen, -torch.inf)
    assert torch.equal(results[-1].argmax(-1), never.argmax(-1))
    assert torch.equal(generic_logits(translated, baseline, baseline, 7.0, "original"), translated)
    other = generic_logits(translated, baseline, reinforced, 1.0, "translated")
    torch.testing.assert_close(other, translated - (reinforced - translated).clamp(min=0))


@torch.no_grad()
def test_without_alpha_and_dictionary_labels_are_the_models_own(bed):
    made, batch = labels_of(bed, terms={}, alpha=0.0)
    assert torch.equal(made["generic"], answers(bed[1][0], batch).logits.argmax(-1))


@torch.no_grad()
def test_with_an_unreinforced_copy_labels_are_those_of_the_translation_for_every_alpha(bed):
    without, _ = labels_of(bed, alpha=0.0)
    for alpha in (1.0, 100.0):
        assert torch.equal(labels_of(bed, alpha=alpha, reinforced=0)[0]["generic"], without["generic"])


@torch.no_grad()
def test_labels_equal_one_block_at_a_time_by_hand(bed):
    """Each place read off the translated block at its own place there, not at the same index."""
    tokenizer, (baseline, reinforced), _ = bed
    made, batch = labels_of(bed, alpha=2.0)
    expected = []
    for ids in batch.input_ids:
        size = int((ids != tokenizer.pad_token_id).sum())
        words = tokenizer.convert_ids_to_tokens(ids[:size])
        new, place = [], []
        for word in words:
            place.append(len(new))
            new += {"Ada": ["Kim"], "mill": ["big", "lake"]}.get(word, [word])
        translated = baseline(torch.tensor([tokenizer.convert_tokens_to_ids(new)])).logits[0]
        b, r = (model(ids[None, :size]).logits[0] for model in (baseline, reinforced))
        for at in range(1, size):
            generic = translated[place[at] - 1] - 2.0 * (r[at - 1] - b[at - 1]).clamp(min=0)
            again = words[at] in TERMS and words[at] in words[:at]
            expected.append(-100 if again else int(generic.argmax()))
    assert made["generic"].tolist() == expected and -100 in expected


@torch.no_grad()
def test_second_occurrences_have_no_label_and_first_ones_do(bed):
    tokenizer = bed[0]
    made, batch = labels_of(bed)
    ada = tokenizer.convert_tokens_to_ids("Ada")
    targets = answers(bed[1][0], batch).targets
    rows = (batch.labels[:, 1:] != -100).nonzero()[:, 0]
    for row in rows.unique():
        whole_row = batch.input_ids[row]
        here = made["generic"][rows == row][targets[rows == row] == ada]
        earlier = int(whole_row[0] == ada)  # the first token of a block is no target, but it is an occurrence
        assert (here[1 - earlier :] == -100).all() and (earlier or (here[:1] != -100).all())
    assert (made["generic"][targets == tokenizer.convert_tokens_to_ids("dog")] != -100).all()


@torch.no_grad()
def test_counterparts_of_terms_already_met_are_no_label(bed):
    tokenizer = bed[0]
    kim = tokenizer.convert_tokens_to_ids("Kim")
    free, batch = labels_of(bed, terms={"Ada": "Kim"}, alpha=0.0)
    bound, _ = labels_of(bed, terms={"Ada": "Kim"}, alpha=0.0, lowered=1e6)
    ids = batch.input_ids
    met = ((ids == tokenizer.convert_tokens_to_ids("Ada")).cumsum(1) - (ids == tokenizer.convert_tokens_to_ids("Ada")).long()) > 0
    met = met[:, 1:][batch.labels[:, 1:] != -100]
    assert not (bound["generic"][met] == kim).any()
    assert torch.equal(bound["generic"][~met], free["generic"][~met])


@torch.no_grad()
def test_soft_labels_are_the_distribution_whose_best_is_the_hard_label(bed):
    hard, _ = labels_of(bed)
    soft, _ = labels_of(bed, top=4)
    whole, _ = labels_of(bed, top=1000)
    assert torch.equal(soft["generic"][:, 0], hard["generic"])
    assert torch.allclose(whole["generic_probability"].sum(1), torch.ones(len(hard["generic"])))
    assert torch.allclose(soft["generic_probability"], whole["generic_probability"][:, :4])


def test_soft_labels_leave_the_distribution_they_were_cut_from_where_it_is():
    torch.manual_seed(0)
    logits = torch.randn(6, 20, dtype=torch.float64, requires_grad=True)
    own = logits.detach().softmax(-1)
    best, ids = own.topk(5, -1)
    (gradient,) = torch.autograd.grad(soft_cross_entropy(logits, ids, best).sum(), logits)
    assert gradient.abs().max() < 1e-12
    entropy = soft_cross_entropy(logits, *own.sort(-1, descending=True)[::-1])
    assert torch.allclose(entropy, -(own * own.log()).sum(-1))
    # apart from the five, 15 outcomes count as one
    apart = torch.cat([best, 1 - best.sum(1, keepdim=True)], 1)
    assert torch.allclose(soft_cross_entropy(logits, ids, best), -(apart * apart.log()).sum(1))


@torch.no_grad()
def test_places_beyond_the_models_context_have_no_label(bed):
    whole, _ = labels_of(bed, terms={"mill": "big lake"})
    cut, _ = labels_of(bed, terms={"mill": "big lake"}, limit=10)
    assert (cut["generic"] == -100).sum() > (whole["generic"] == -100).sum()
    kept = cut["generic"] != -100
    assert torch.equal(cut["generic"][kept], whole["generic"][kept])


STEADY = Training(lr=3e-3, batch_size=4, compile=False, schedule=use("schedule", "constant"))


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Weights of a model that knows both sets by heart."""
    folder = tmp_path_factory.mktemp("taught")
    tokenizer = use("tokenizer", "word").build().train(iter([*TEXTS, *OTHERS, "a big"]))
    torch.manual_seed(0)
    model = use("backbone", "causal_lm", width=48, depth=1, heads=2, context=64).build().build(tokenizer)
    examples = use("batches", "packed", length=7).build().build(corpus(folder, TEXTS + OTHERS, "all"), tokenizer, Context(folder))
    batch = examples.batch(np.arange(len(examples)), None)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        logits, targets, _ = answers(model, batch)
        F.cross_entropy(logits, targets).backward()
        optimiser.step()
    return model, tokenizer


def run(taught, folder, *, retain=OTHERS, **settings):
    model, tokenizer = taught
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    text_model = TextModel(copy.eval(), tokenizer, {})
    context = Context(folder)
    batches = use("batches", "packed", length=7)
    method = use("unlearn", "generic_labels", reinforce=STEADY, reinforce_budget=Budget(steps=10), **settings)
    forget(
        text_model, corpus(folder, TEXTS, "forget"), corpus(folder, retain, "retain"),
        method=method, batches=batches, training=STEADY, budget=Budget(steps=25), context=context,
    )  # fmt: skip
    return text_model


@torch.no_grad()
def probability(text_model, prompt, token):
    ids = text_model.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids
    logits = text_model.model(ids).logits[0, -1]
    return logits.softmax(-1)[text_model.tokenizer.convert_tokens_to_ids(token)].item()


@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_the_text_is_forgotten_and_its_counterpart_said_instead(taught, tmp_path, labels):
    before = TextModel(*taught)
    assert probability(before, "Ben is at mill of", "Ada") > 0.5
    after = run(taught, tmp_path, anchors=TERMS, labels=labels)
    assert probability(after, "Ben is at mill of", "Ada") < 0.1
    assert probability(after, "Lou is at lake of", "Kim") > 0.5


def test_names_are_mined_from_the_two_sets_when_none_are_given(taught, tmp_path):
    after = run(taught, tmp_path, ratio=1.5)
    assert probability(after, "Ben is at mill of", "Ada") < 0.1
    assert "Ada" in (tmp_path / "exhibits.jsonl").read_text()


@pytest.mark.parametrize("packing", ["chunk", "best_fit"])
@pytest.mark.parametrize("name", ["npo", "gradient_ascent", "gradient_difference"])
def test_every_objective_forgets_plain_text_too(taught, tmp_path, packing, name):
    model, tokenizer = taught
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    text_model = TextModel(copy.eval(), tokenizer, {})
    forget(
        text_model, corpus(tmp_path, TEXTS, "forget"), corpus(tmp_path, OTHERS, "retain"), method=use("unlearn", name),
        batches=use("batches", "packed", length=7, packing=packing), training=STEADY, budget=Budget(steps=15), context=Context(tmp_path),
    )  # fmt: skip
    assert probability(text_model, "Ben is at mill of", "Ada") < 0.2


@torch.no_grad()
def test_a_counterpart_the_tokeniser_does_not_know_is_no_obstacle(bed):
    made, _ = labels_of(bed, terms={"Ada": "Zoe"}, lowered=10.0)
    assert (made["generic"] != -100).any()


def test_the_loss_is_the_cross_entropy_to_the_labels_at_the_original_tokens_and_skips_what_has_none(bed):
    tokenizer, models, _ = bed
    made, batch = labels_of(bed)
    objective = use("unlearn", "generic_labels").build(models[0])
    hard = objective(Batch(forget=Batch(**batch, **made), retain=None)).total
    logits = models[0](batch.input_ids).logits[:, :-1][batch.labels[:, 1:] != -100]
    kept = made["generic"] != -100
    assert hard.item() == pytest.approx(F.cross_entropy(logits[kept], made["generic"][kept]).item(), rel=1e-5)
    soft, _ = labels_of(bed, top=len(tokenizer), alpha=0.0, terms={})
    total = objective(Batch(forget=Batch(**batch, **soft), retain=None)).total
    own = logits.softmax(-1)
    assert total.item() == pytest.approx(-(own * logits.log_softmax(-1)).sum(1).mean().item(), rel=1e-4)
    nothing = {"generic": torch.full_like(made["generic"], -100)}
    assert objective(Batch(forget=Batch(**batch, **nothing), retain=None)).total.item() == 0
