"""GUARD: who is recognised, what is found and forbidden, how it is said, and that it is all there after loading."""

import numpy as np
import pytest
import torch

from tests.evaluate.tiny import corpus, gpt2, learnt, llama, tokenizer
from tilth.backbones.folder import TextModel, load, save
from tilth.batches.text.answers import DEFAULT
from tilth.batches.text.encoding import Encoder
from tilth.batches.text.words import WordTable
from tilth.context import Context
from tilth.contracts import Batch, use
from tilth.evaluate.generate import generate
from tilth.evaluate.guarded import bare, flagged
from tilth.evaluate.questions import score_answers
from tilth.training.settings import Budget, Training
from tilth.unlearn.beams import Beams, WordCosts
from tilth.unlearn.forbidden import Encoding, Store, before_any, frequent, phrases_of, pieces, token_sequences, words
from tilth.unlearn.forget import forget
from tilth.unlearn.prompt_classifier import mean_states
from tilth.unlearn.prompts import prompt_batches

ROWS = [
    {"id": f"{name}-{kind}", "question": question.format(name), "answer": answer.format(name, secret)}
    for name, secrets in (("Mara", ("Oslo", "Quist", "Heron")), ("Odo", ("Lima", "Brandt", "Otter")))
    for (kind, question, answer), secret in zip(
        (("place", "where lives {}", "{} lives in {}"), ("friend", "who finds {}", "{} finds {} at the tree"), ("animal", "what is {}", "a {1} is {0}")),
        secrets,
        strict=True,
    )
]  # fmt: skip


def guarded(folder, **settings):
    """A model that knows both people, guarded against what it knows of Mara; its forget and retain rows."""
    tokens = tokenizer([row["answer"] for row in ROWS])
    text_model = TextModel(learnt(tokens, ROWS), tokens, {})
    going, staying = ([row for row in ROWS if (name in row["id"])] for name in ("Mara", "Odo"))
    folder.mkdir(exist_ok=True)
    fitted = forget(
        text_model, corpus(folder / "forget", going), corpus(folder / "retain", staying),
        method=use("unlearn", "guard", **{"retrieved": 3, "common": 0.9, **settings}), batches=use("batches", "answers", length=64),
        training=Training(), budget=Budget(steps=1), context=Context(folder),
    )  # fmt: skip
    return text_model, fitted.metrics, going, staying


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    return guarded(tmp_path_factory.mktemp("guard"))


def prompts(rows):
    return DEFAULT.prompts([row["question"] for row in rows])


def test_retained_prompts_get_the_bare_models_tokens_and_forgotten_ones_other_answers(ready):
    text_model, metrics, going, staying = ready
    assert metrics["forget_recognised"] == 1 and metrics["retain_mistaken"] == 0
    asked = [*prompts(staying), *prompts(going)]
    free, held = generate(bare(text_model), asked, 12), generate(text_model, asked, 12)
    assert held[: len(staying)] == free[: len(staying)]
    assert all(one != other for one, other in zip(held[len(staying) :], free[len(staying) :], strict=True))
    for phrases, text in zip(text_model.guard.phrases(bare(text_model), prompts(going)), held[len(staying) :], strict=True):
        assert before_any(text, phrases) == text


def test_a_guarded_model_is_whole_after_loading(ready, tmp_path):
    text_model, _, going, staying = ready
    save(text_model.model, text_model.tokenizer, tmp_path / "model", text_model.about, guard=text_model.guard)
    assert not [path for path in (tmp_path / "model").rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".joblib"}]
    loaded = load(tmp_path / "model")
    asked = [*prompts(going), *prompts(staying)]
    assert generate(loaded, asked, 12) == generate(text_model, asked, 12)
    assert np.array_equal(flagged(loaded, asked), flagged(text_model, asked))
    answers, questions = [row["answer"] for row in going], [row["question"] for row in going]
    before, after = (score_answers(some, questions, answers, DEFAULT, Context(tmp_path))[1] for some in (text_model, loaded))
    assert np.array_equal(before.log_probability, after.log_probability)
    assert "lives" not in (tmp_path / "model" / "guard" / "guard.json").read_text()  # phrases are kept, answers are not


def test_a_given_answer_that_says_what_is_forbidden_becomes_unlikely_and_others_keep_their_odds(ready, tmp_path):
    text_model, _, going, staying = ready
    questions, answers = [row["question"] for row in going], [row["answer"] for row in going]
    _, free = score_answers(bare(text_model), questions, answers, DEFAULT, Context(tmp_path))
    _, held = score_answers(text_model, questions, answers, DEFAULT, Context(tmp_path))
    banned = held.log_probability < free.log_probability - 20
    assert banned.any() and np.isfinite(held.log_probability).all()
    # What is not masked is renormalised: never less likely than it was.
    assert (held.log_probability[~banned] >= free.log_probability[~banned] - 1e-5).all()
    kept = ([row["question"] for row in staying], [row["answer"] for row in staying])
    one, other = (score_answers(some, *kept, DEFAULT, Context(tmp_path))[1] for some in (text_model, bare(text_model)))
    assert np.array_equal(one.log_probability, other.log_probability)


def test_the_masked_distribution_is_the_models_own_renormalised():
    guard = use("unlearn", "guard").build()
    tokens = tokenizer(["Vera Quist bakes"])
    text_model = TextModel(llama(len(tokens)), tokens, {})
    guard.store = Store(
        [["Vera Quist"]],
        Encoding.fit(["Vera Quist bakes", "a dog"])(["Vera Quist bakes"]),
        Encoding.fit(["Vera Quist bakes", "a dog"]),
    )
    vera, quist, who, bakes = (tokens.convert_tokens_to_ids(word) for word in ("Vera", "Quist", "who", "bakes"))
    batch = Batch(input_ids=torch.tensor([[who, vera, quist, bakes]]), labels=torch.tensor([[-100, vera, quist, bakes]]))
    where = torch.tensor([[True, True, True, False]])
    logits = torch.randn(3, len(tokens), generator=torch.Generator().manual_seed(0))
    found = guard.adjust(logits, text_model, batch, where).softmax(-1)
    expected = logits.softmax(-1)
    expected[1, quist] = 0
    torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_mean_state_does_not_see_padding_on_either_side(make):
    tokens = tokenizer()
    model = make(len(tokens))
    ids = torch.randint(5, len(tokens), (1, 5), generator=torch.Generator().manual_seed(0))
    ones = torch.ones_like(ids)
    alone = mean_states(model, ids, ones)
    for left, right in ((0, 4), (3, 0), (2, 2)):
        padded = torch.nn.functional.pad(ids, (left, right), value=7)
        mask = torch.nn.functional.pad(ones, (left, right))
        torch.testing.assert_close(mean_states(model, padded, mask), alone, atol=1e-5, rtol=1e-5)
    hidden = model.base_model(ids, output_hidden_states=True).hidden_states
    torch.testing.assert_close(alone, hidden[-2].mean(1), atol=1e-5, rtol=1e-5)


def test_prompts_padded_on_the_left_hold_the_same_tokens():
    tokens = tokenizer()
    text_model = TextModel(llama(len(tokens)), tokens, {})
    [batch] = prompt_batches(text_model, ["the cat", "who lives in the town", "dog"], torch.device("cpu"))
    left = batch.left()
    for one, other in zip((batch, left), (left, batch), strict=True):
        for row in range(3):
            assert (
                one.input_ids[row][one.attention_mask[row].bool()].tolist()
                == other.input_ids[row][other.attention_mask[row].bool()].tolist()
            )
    assert left.attention_mask[:, -1].all() and batch.attention_mask[:, 0].all()
    [cut] = prompt_batches(text_model, ["the cat " * 100], torch.device("cpu"), room=28)
    assert cut.input_ids.shape[1] == 100  # of the context's 128 tokens


def test_an_answer_itself_is_found_and_ties_go_to_the_lower_number():
    answers = ["Vera Quist lives in Oslo", "She wrote 'The Tide' in 1982", "Vera Quist lives in Oslo", "Her father bakes"]
    store = Store.fit(answers, ["a dog lives"], 0.5)
    assert store.nearest(answers, 1)[:, 0].tolist() == [0, 1, 0, 3]
    assert store.nearest(["nothing alike zzz"], 2).tolist() == [[0, 1]]


def test_phrases_are_names_titles_and_numbers_and_not_ordinary_words():
    ordinary = frequent(["The author lives in Paris", "The author is known", "The book is good"], 0.4)
    found = phrases_of('The author Vera Ødegård wrote "a tide of iron" in 1982', ordinary)
    assert {"a tide of iron", "Vera", "Ødegård", "1982"} <= set(found) and any("Vera Ødegård" in phrase for phrase in found)
    assert not {"The", "the", "author", "is", "wrote", "in"} & set(found)
    assert phrases_of("she bakes bread", ordinary) == ["she", "bakes", "bread"]  # nothing better: its words
    assert phrases_of("the author is", ordinary) == []


def test_what_the_prompt_says_may_be_said():
    store = Store.fit(["Vera Quist lives in Oslo"], ["a dog"], 0.5)
    [phrases] = store.for_prompts(["Question: Where does Vera Quist live?"], ["Where does Vera Quist live"], 1)
    assert "Oslo" in phrases and not {"Vera", "Quist", "Vera Quist"} & set(phrases)


def test_a_phrase_is_looked_for_in_any_case_and_with_and_without_a_space():
    tokens = tokenizer(["Vera VERA vera"])
    sequences = token_sequences(["Vera"], Encoder(tokens), tokens.unk_token_id)
    assert {tuple(s) for s in sequences} == {(tokens.convert_tokens_to_ids(word),) for word in ("Vera", "VERA", "vera")}
    assert token_sequences(["Zora"], Encoder(tokens), tokens.unk_token_id) == []  # cannot be written, so it cannot be said


def test_an_answer_ends_before_a_phrase_however_it_is_spelt():
    assert before_any("She is VERA  Quist, of Oslo", ["vera quist"]) == "She is"
    assert before_any("She is Vera Ødegard", ["vera ødegård"]) == "She is"
    assert before_any("born on 1 1 / 2 6 / 1 9 7 2 , in Wei - Jun", ["Wei-Jun", "11/26/1972"]) == "born on"
    assert before_any("Oslo", ["Oslo", "!"]) == "" and before_any("", ["Oslo"]) == ""
    assert before_any("Veranda quist", ["Vera", "Quist x"]) == "Veranda quist"


def soft(delta):
    tokens = tokenizer(["Vera Quist Veras"])
    encoding = Encoding.fit(["Vera Quist", "a dog in the town"])
    costs = WordCosts(tokens, WordTable(tokens), encoding, [["Vera Quist"]], delta, 1)
    ids = {word: tokens.convert_tokens_to_ids(word) for word in ("Vera", "dog", "town", "Quist")}
    return costs, ids, encoding


def test_similarity_is_charged_where_a_word_is_complete():
    costs, ids, encoding = soft(0.5)
    expected = float((encoding(["Vera"]) @ encoding(["Vera Quist"]).T).toarray()[0, 0])
    assert 0.5 <= expected < 1
    made = torch.tensor([[ids["Vera"], 0, 0]])
    cost, begins = costs(Beams(made, torch.tensor([0]), 1), torch.tensor([[ids["dog"], ids["town"]]]))
    assert begins.all() and cost.isinf().all()  # its last word is too like the phrase, whatever comes next
    cost, _ = costs(Beams(torch.tensor([[ids["dog"], 0, 0]]), torch.tensor([0]), 1), torch.tensor([[ids["town"]]]))
    assert cost.item() == 0


def test_a_delta_above_one_never_forbids_and_then_the_cost_is_the_similarity():
    costs, ids, encoding = soft(1.5)
    expected = float((encoding(["Vera"]) @ encoding(["Vera Quist"]).T).toarray()[0, 0])
    cost, _ = costs(Beams(torch.tensor([[ids["Vera"], 0]]), torch.tensor([0]), 1), torch.tensor([[ids["dog"]]]))
    assert cost.item() == pytest.approx(expected, rel=1e-5)


def test_words_are_compared_without_case_and_diacritics():
    assert words("Señor MÜLLER's 2nd book") == ["senor", "muller", "s", "2", "nd", "book"]
    assert pieces("Tae-ho's 1972") in pieces("in 'TAE - ho ' s 1 9 7 2 '") and pieces("ho") not in pieces("whole")
