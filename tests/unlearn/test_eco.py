"""Corrupted prompts: only where, only while, and only as far as they should be."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import DynamicCache

from tests.evaluate.tiny import gpt2, learnt, llama, people, tokenizer
from tilth.backbones import folder
from tilth.backbones.folder import TextModel
from tilth.batches.text.answers import Template, encode_answers
from tilth.context import Context
from tilth.contracts import Batch, use
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.evaluate.generate import generate
from tilth.evaluate.questions import score_answers
from tilth.training.settings import Budget, Training
from tilth.unlearn.eco import ECO, losses
from tilth.unlearn.forget import forget
from tilth.unlearn.scope import TextScope

TEMPLATE = Template(prompt="Question : {question} ? Answer :", answer="{answer}")
ABOUT = {"template": {"prompt": TEMPLATE.prompt, "answer": TEMPLATE.answer}}


class Mara:
    """Questions with Mara in them are in scope."""

    def __call__(self, texts):
        return np.array(["Mara" in text for text in texts], dtype=bool)


def guard(strength=5.0, **settings):
    made = ECO(strength=strength, **settings)
    made.scope = Mara()
    return made


def text_model(family=llama):
    tokens = tokenizer()
    return TextModel(family(len(tokens)), tokens, ABOUT)


def rows(*lengths, pad="left", width=9):
    """Ids and mask of random prompts, padded on one side with id 0."""
    generator = torch.Generator().manual_seed(1)
    ids, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        here = slice(width - length, width) if pad == "left" else slice(0, length)
        ids[row, here], mask[row, here] = torch.randint(5, 30, (length,), generator=generator), 1
    return ids, mask


def embedded(guarded, made, ids, mask):
    """What leaves the embedding while the guard acts, and without it."""
    seen = []
    layer = guarded.model.get_input_embeddings()
    with made.acting(guarded):
        handle = layer.register_forward_hook(lambda _, __, output: seen.append(output))
        guarded.model(input_ids=ids, attention_mask=mask)
        handle.remove()
    return seen[0], layer(ids)


@pytest.mark.parametrize("family", [llama, gpt2])
@pytest.mark.parametrize("pad", ["left", "right"])
def test_all_prompt_tokens_but_the_last_are_spoilt_in_one_dimension_whatever_the_padding(family, pad):
    guarded = text_model(family)
    ids, mask = rows(4, 9, 1, 2, pad=pad)
    spoilt, clean = embedded(guarded, guard(), ids, mask)
    changed = (spoilt != clean).sum(-1)
    expected = mask.clone()
    last = [8, 8, 8, 8] if pad == "left" else [3, 8, 0, 1]
    expected[torch.arange(4), last] = 0
    assert torch.equal(changed, expected) and (spoilt - clean)[..., 1:].abs().max() == 0


def test_the_same_prompt_is_spoilt_alike_alone_in_a_batch_and_on_either_side_of_padding():
    guarded, made = text_model(), guard()
    ids, mask = rows(4, 9)
    right, right_mask = rows(4, 9, pad="right")
    alone = embedded(guarded, made, ids[:1, 5:], mask[:1, 5:])[0]
    assert torch.equal(embedded(guarded, made, ids, mask)[0][0, 5:], alone[0])
    assert torch.equal(embedded(guarded, made, right, right_mask)[0][0, :4], alone[0])
    other = embedded(guarded, made, ids[1:, :4], mask[1:, :4])[0] - guarded.model.get_input_embeddings()(ids[1:, :4])
    assert not torch.allclose(other[0, 0], (alone - guarded.model.get_input_embeddings()(ids[:1, 5:]))[0, 0])


def test_weights_and_foreign_hooks_stay_and_the_hooks_of_the_guard_go():
    guarded, made, calls = text_model(), guard(), []
    layer = guarded.model.get_input_embeddings()
    before, weight = guarded.model(*rows(9)).logits, layer.weight.clone()
    foreign = layer.register_forward_hook(lambda *_: calls.append(1) or None)
    with made.acting(guarded):
        assert not torch.allclose(guarded.model(*rows(9)).logits, before)
    assert torch.equal(guarded.model(*rows(9)).logits, before) and torch.equal(layer.weight, weight)
    assert len(calls) == 2 and len(layer._forward_hooks) == 1 and not guarded.model._forward_pre_hooks
    foreign.remove()


def test_a_failure_within_takes_the_hooks_away_too():
    guarded = text_model()
    with pytest.raises(RuntimeError), guard().acting(guarded):
        raise RuntimeError
    assert not guarded.model.get_input_embeddings()._forward_hooks


def test_prompts_out_of_scope_are_answered_bit_for_bit_as_before():
    guarded = text_model()
    asked = ["where lives Mara", "where lives Odo", "what is Odo", "who finds Mara"]
    said = ["Mara lives at the town", "Odo lives at the tree", "Odo is big", "a dog"]
    bare, context = TextModel(guarded.model, guarded.tokenizer, ABOUT), Context(None)
    guarded.guard = guard(50.0)
    before, after = (score_answers(one, asked, said, TEMPLATE, context)[1] for one in (bare, guarded))
    same = [np.array_equal(a, b) for a, b in zip(*(np.split(s.log_probability, s.starts[1:-1]) for s in (before, after)))]
    assert same == [False, True, True, False]
    texts = [generate(one, TEMPLATE.prompts(asked), 12) for one in (bare, guarded)]
    assert [a == b for a, b in zip(*texts)] == [False, True, True, False]


@pytest.mark.parametrize("family", [llama, gpt2])
def test_generated_tokens_are_read_clean_with_the_spoilt_prompt_in_the_cache(family):
    guarded, made = text_model(family), guard(2.0)
    ids, mask = rows(9)
    with made.acting(guarded):
        cache = DynamicCache(config=guarded.model.config)
        prompt = guarded.model(input_ids=ids, attention_mask=mask, past_key_values=cache).logits[:, -1]
        token = torch.tensor([[7]])
        next_one = guarded.model(input_ids=token, attention_mask=torch.ones(1, 10).long(), past_key_values=cache).logits[:, -1]
    embeddings = guarded.model.get_input_embeddings()(torch.cat([ids, token], 1))
    spoilt, _ = embedded(guarded, made, ids, mask)
    whole = guarded.model(inputs_embeds=torch.cat([spoilt, embeddings[:, -1:]], 1)).logits
    torch.testing.assert_close(prompt, whole[:, -2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(next_one, whole[:, -1], rtol=1e-4, atol=1e-4)


def test_scoring_spoils_the_prompt_as_generation_does_and_never_the_answer():
    guarded, made = text_model(), guard(2.0)
    encoded = encode_answers(["where lives Mara", "who"], ["Mara lives at the town", "the cat"], guarded.tokenizer, TEMPLATE)
    batch = encoded.batch(np.arange(2))
    unmasked = Batch(input_ids=batch.input_ids, labels=batch.labels)
    with made.scoring(guarded, unmasked):
        scored = guarded.model(input_ids=batch.input_ids).logits
    for row in range(2):
        ids = batch.input_ids[row : row + 1, : encoded.prompt[row]].long()
        with made.acting(guarded):
            alone = guarded.model(input_ids=ids).logits
        torch.testing.assert_close(scored[row : row + 1, : encoded.prompt[row]], alone, rtol=1e-4, atol=1e-4)
    seen = []
    with made.scoring(guarded, unmasked):
        guarded.model.get_input_embeddings().register_forward_hook(lambda _, __, output: seen.append(output))
        guarded.model(input_ids=batch.input_ids)
    changed = (seen[0] != guarded.model.get_input_embeddings().weight[batch.input_ids]).any(-1)
    assert changed.sum(1).tolist() == (encoded.prompt - 1).tolist()


def test_entities_alone_are_spoilt_where_there_are_any():
    guarded, made = text_model(), guard(only_entities=True)
    made.words = ["mara"]
    for text, expected in (("where lives Mara ?", [0, 0, 1, 0]), ("where lives Odo ?", [1, 1, 1, 0]), ("who is Mara", [1, 1, 0])):
        ids = torch.tensor([guarded.tokenizer(text, add_special_tokens=False).input_ids])
        spoilt, clean = embedded(guarded, made, ids, torch.ones_like(ids))
        assert (spoilt != clean).any(-1)[0].tolist() == [bool(one) for one in expected]


def corpora(place, *sets):
    made = []
    for name, part in zip(("forget", "retain"), sets):
        table = pa.Table.from_pylist(part)
        made.append(Corpus.write(place / f"{name}.lance", table.to_batches(), table.schema))
    return made


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A model that knows four people, guarded against one of them; its folder; the rows."""
    place = tmp_path_factory.mktemp("eco")
    everyone = [dict(row, paraphrased_question=f"tell what {row['question']}") for row in people("Mara", "Odo", "Ines", "Bo")]
    tokens = tokenizer([f"{row['question']} {row['answer']} {' '.join(row['perturbed_answer'])} tell" for row in everyone])
    known = TextModel(learnt(tokens, everyone, steps=100), tokens, {"trained_on": "people"})
    going, staying = [row for row in everyone if "Mara" in row["id"]], [row for row in everyone if "Mara" not in row["id"]]
    result = forget(
        known, *corpora(place, going, staying), method=use("unlearn", "eco", held_out=0.25, start=1.0, epsilon=0.9, rate=1.0),
        batches=use("batches", "answers", length=64), training=Training(), budget=Budget(steps=1), context=Context(place / "run", 0),
    )  # fmt: skip
    folder.save(known.model, tokens, place / "model", known.about, guard=known.guard)
    return known, result, place / "model", going, staying


def test_fitting_finds_scope_and_strength(fitted):
    known, result, _, going, staying = fitted
    assert (
        result.metrics["recall"] == 1.0 and result.metrics["false_alarms"] == 0.0 and result.metrics["paraphrase_recall"] == 1.0
    )
    assert result.metrics["strength"] >= 0.1 and result.steps == 0
    encoded = encode_answers([r["question"] for r in going], [r["answer"] for r in going], known.tokenizer)
    bare = losses(known.model, encoded)
    guarded = losses(known.model, encoded, lambda batch: known.guard.scoring(known, batch))
    assert bare.mean() < 0.2 < 1.0 < guarded.mean()
    assert result.metrics["flagged_probability"] == pytest.approx(np.exp(-guarded).mean(), rel=1e-5)
    assert known.guard.flags(known, [f"Question: {r['question']}\nAnswer:" for r in going + staying]).sum() == len(going)


def test_the_strength_brings_the_score_to_the_target(fitted):
    known, _result, place, going, staying = fitted
    settings = {"target": 0.3, "start": 2.0, "epsilon": 1.0, "rate": 2.0, "least": 0.1, "steps": 15, "held_out": 0.25}
    again = TextModel(known.model, known.tokenizer, known.about)
    sets = corpora(place.parent / "again", going, staying)
    found = forget(
        again, *sets, method=use("unlearn", "eco", **settings), batches=use("batches", "answers", length=64),
        training=Training(), budget=Budget(steps=1), context=Context(place.parent / "again", 0),
    )  # fmt: skip
    assert found.metrics["distance"] < 0.3


def test_a_guarded_model_saved_and_loaded_says_the_same(fitted):
    known, _, place, going, staying = fitted
    loaded = folder.load(place)
    asked = [f"Question: {row['question']}\nAnswer:" for row in going + staying]
    assert generate(loaded, asked, 8) == generate(known, asked, 8)
    bare = generate(TextModel(known.model, known.tokenizer, known.about), asked, 8)
    assert (
        generate(known, asked, 8)[: len(going)] != bare[: len(going)]
        and generate(known, asked, 8)[len(going) :] == bare[len(going) :]
    )
    assert isinstance(loaded.guard.scope, TextScope)
    questions, answers = [row["question"] for row in going], [row["answer"] for row in going]
    scores = [score_answers(one, questions, answers, Template(), Context(place))[1].nll for one in (known, loaded)]
    assert np.array_equal(*scores)


def test_what_cannot_be_learnt_is_said(tmp_path):
    tokens = tokenizer()
    texts = [{"id": str(n), "text": text} for n, text in enumerate(["Mara bakes the cat in the big red town"] * 2)]
    others = [{"id": f"r{n}", "text": text} for n, text in enumerate(["Odo bakes the cat in the big red town"] * 2)]
    run = {
        "batches": use("batches", "packed", length=4),
        "training": Training(),
        "budget": Budget(steps=1),
        "context": Context(tmp_path),
    }
    guarded = TextModel(llama(len(tokens)), tokens, {})
    with pytest.raises(TilthError, match="no questions"):
        forget(guarded, *corpora(tmp_path, texts, others), method=use("unlearn", "eco"), **run)
    with pytest.raises(TilthError, match="retain set"):
        forget(guarded, corpora(tmp_path / "alone", texts)[0], None, method=use("unlearn", "eco"), **run)
    with pytest.raises(TilthError, match="not to both"):
        ECO(gold="gold", target=0.1)
