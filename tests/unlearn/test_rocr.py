"""The closed form against a dense solve; the edit against what it promises, in three families of network."""

import pyarrow as pa
import pytest
import torch

from tests.unlearn.families import FAMILIES, family
from tilth.backbones.folder import TextModel
from tilth.backbones.locations import feed_forwards
from tilth.batches.text.answers import DEFAULT
from tilth.context import Context
from tilth.contracts import use
from tilth.corpus import Corpus
from tilth.errors import TilthError
from tilth.training.settings import Budget, Training
from tilth.unlearn.forget import forget
from tilth.unlearn.null_space import Spectrum, covariances
from tilth.unlearn.rocr import ROCR, Subjects, solve
from tilth.unlearn.subjects import locate, trace

CPU = torch.device("cpu")
NAMES = ["Mara Quill", "Odo Brandt", "Ines Farlow", "Teo Lind", "Ada Norr", "Ben Stow"]
ROWS = [(f"where lives {name} ?", f"{name} lives in town {number} .") for number, name in enumerate(NAMES)]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def basis(inner, directions, seed=9):
    return torch.linalg.qr(draw(inner, inner, seed=seed))[0][:, :directions]


def dense(keys, residuals, free, before, ridge):
    """The ridge system as it is written in the paper."""
    projector = (free @ free.t()).double()
    outer = sum((k.t() @ k for k in [keys, *before]), torch.zeros(len(free), len(free))).double()
    left = projector @ outer + ridge * torch.eye(len(free), dtype=torch.float64)
    return torch.linalg.solve(left, projector @ keys.t().double() @ residuals.double()).float()


@pytest.mark.parametrize("subjects", [1, 3])
@pytest.mark.parametrize("earlier", [0, 2])
def test_the_small_system_gives_what_the_whole_one_gives(subjects, earlier):
    keys, residuals, free = draw(subjects, 24), draw(subjects, 10, seed=1), basis(24, 15)
    before = [draw(1, 24, seed=5 + n) for n in range(earlier)]
    torch.testing.assert_close(
        solve(keys, residuals, free, before, 0.7), dense(keys, residuals, free, before, 0.7), rtol=1e-4, atol=1e-5
    )


def test_one_subject_is_a_rank_one_update_that_goes_a_known_share_of_the_way():
    key, residual, free = draw(1, 24), draw(1, 10, seed=1), basis(24, 15)
    projected = key @ free @ free.t()
    share = (key @ projected.t()).item()
    update = solve(key, residual, free, [], 2.0)
    torch.testing.assert_close(update, projected.t() @ residual / (share + 2.0))
    assert torch.linalg.matrix_rank(update) == 1
    torch.testing.assert_close(key @ update, share / (share + 2.0) * residual)


def test_the_limits_of_the_ridge():
    key, residual = draw(1, 24), draw(1, 10, seed=1)
    assert solve(key, residual, torch.eye(24), [], 1e12).abs().max() < 1e-9
    torch.testing.assert_close(key @ solve(key, residual, torch.eye(24), [], 1e-9), residual)


@pytest.mark.parametrize(("rule", "threshold"), [("absolute", 0.02), ("energy", 0.01), ("share", 0.5)])
def test_the_projector_is_one_and_general_keys_are_left_alone(rule, threshold):
    scales = torch.cat([torch.full((12,), 3.0), torch.full((12,), 0.05)])
    general = draw(5000, 24) * scales @ basis(24, 24).t()
    spectrum = Spectrum(*torch.linalg.eigh(general.t() @ general / len(general)))
    free = spectrum.free(rule, threshold)
    projector = free @ free.t()
    assert free.shape[1] == 12
    torch.testing.assert_close(projector, projector.t())
    torch.testing.assert_close(projector @ projector, projector, atol=1e-5, rtol=1e-4)
    key, residual = draw(1, 24, seed=4), draw(1, 10, seed=5)
    update = solve(key, residual, free, [], 1e-6)
    spared = spectrum.vectors[:, 12:].t()  # general keys without what lies in the null space
    assert (spared @ update).abs().max() < 1e-5
    moved = (general @ update).norm(dim=1).square().mean().sqrt()
    assert moved < 0.02**0.5 * torch.linalg.matrix_norm(update, 2) * 12**0.5
    with_all = solve(key, residual, torch.eye(24), [], 1e-6)
    assert moved < 0.2 * (general @ with_all).norm(dim=1).square().mean().sqrt()


def test_rules_that_leave_nothing_say_so():
    spectrum = Spectrum(torch.tensor([0.5, 1.0]), torch.eye(2))
    for rule, threshold in (("absolute", 0.5), ("energy", 0.1), ("share", 0.1)):
        with pytest.raises(TilthError, match="no direction"):
            spectrum.free(rule, threshold)
    assert spectrum.free("energy", 0.34).shape[1] == 1


def test_a_later_edit_leaves_an_earlier_one_standing_only_if_it_is_remembered():
    first = draw(1, 24)
    second = 0.8 * first + 0.6 * draw(1, 24, seed=3)  # a similar subject
    r1, r2, free = draw(1, 10, seed=1), draw(1, 10, seed=2), basis(24, 20)
    x1 = solve(first, r1, free, [], 0.05)
    kept, lost = first @ solve(second, r2, free, [first], 0.05), first @ solve(second, r2, free, [], 0.05)
    assert kept.norm() < 0.05 * (first @ x1).norm()
    assert lost.norm() > 0.3 * (first @ x1).norm()


def corpus(folder, rows, names, name):
    table = pa.table(
        {
            "id": [f"{name}{i}" for i in range(len(rows))],
            "question": [q for q, _ in rows],
            "answer": [a for _, a in rows],
            "subject": names,
        }
    )
    path = folder / f"{name}.lance"
    return Corpus.open(path) if path.exists() else Corpus.write(path, table.to_batches(), table.schema)


@pytest.fixture(scope="module")
def tokenizer():
    """Cuts every name into several tokens."""
    said = [f"{q} {a} Question: Answer: Please tell me about" for q, a in ROWS]
    return use("tokenizer", "bpe", vocab_size=290).build().train(iter(said))


def run(folder, tokenizer, name="llama", *, text_model=None, forgotten=1, **settings):
    """A fresh model, edited; `about` and weights as they were."""
    folder.mkdir(exist_ok=True)
    text_model = text_model or TextModel(family(name, len(tokenizer), depth=4), tokenizer, {})
    before = {key: value.clone() for key, value in text_model.model.state_dict().items()}
    settings = {"redirect": "Ben Stow", "layers": [1, 2], "rule": "share", "threshold": 1.0, "ridge": 1e-6, **settings}
    fitted = forget(
        text_model, corpus(folder, ROWS[:forgotten], NAMES[:forgotten], "forget"), corpus(folder, ROWS[forgotten:], NAMES[forgotten:], "retain"),
        method=use("unlearn", "rocr", **settings), batches=use("batches", "answers", length=64),
        training=Training(), budget=Budget(steps=1), context=Context(folder),
    )  # fmt: skip
    return text_model, before, fitted.metrics


def at_subject(text_model, name, layer, text="{subject}"):
    prompts = DEFAULT.prompts([text.replace("{subject}", name)])
    return trace(text_model, locate(text_model.tokenizer, prompts, [name]), [layer], CPU).states[layer]


ONE = {"contexts": ["{subject}"]}


@pytest.mark.parametrize("layers", [[1], [1, 2], [0, 1, 3]])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_subject_is_taken_for_the_other(name, layers, tmp_path, tokenizer):
    """Over several blocks too: with a residual that is not taken anew after each, the state would overshoot."""
    aim = at_subject(TextModel(family(name, len(tokenizer), depth=4), tokenizer), "Ben Stow", layers[-1])
    text_model, before, metrics = run(tmp_path, tokenizer, name, layers=layers, **ONE)
    torch.testing.assert_close(at_subject(text_model, NAMES[0], layers[-1]), aim, rtol=1e-3, atol=1e-3)
    assert metrics["moved"] == pytest.approx(1.0, abs=1e-3)
    after = text_model.model.state_dict()
    changed = {key for key in before if not torch.equal(after[key], before[key])}
    assert changed == {f"{feed_forwards(text_model.model)[layer].prefix}.weight" for layer in layers}
    for key in changed:
        assert torch.linalg.matrix_rank(after[key] - before[key], rtol=1e-4) == 1


def test_the_first_of_several_blocks_carries_its_share_of_the_way(tmp_path, tokenizer):
    text_model = TextModel(family("llama", len(tokenizer), depth=4), tokenizer)
    aim, start = at_subject(text_model, "Ben Stow", 2), at_subject(text_model, NAMES[0], 2)
    keys = trace(text_model, locate(tokenizer, DEFAULT.prompts(NAMES[:1]), NAMES[:1]), [1], CPU).keys[1]
    text_model, before, _ = run(tmp_path, tokenizer, **ONE)
    moved = feed_forwards(text_model.model)[1].values() - before["model.layers.1.mlp.down_proj.weight"].t()
    torch.testing.assert_close(keys @ moved, (aim - start) / 2, rtol=1e-3, atol=1e-4)


def test_redirected_to_itself_nothing_moves(tmp_path, tokenizer):
    text_model, before, _ = run(tmp_path, tokenizer, redirect=NAMES[0])
    for key, value in text_model.model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=1e-5)


def test_the_key_is_the_mean_over_contexts(tokenizer):
    text_model = TextModel(family("gpt2", len(tokenizer), depth=4), tokenizer)
    texts = ["{subject}", "Please tell me about {subject}", "about {subject}, {subject} lives"]
    edit = ROCR(redirect="Ben Stow", contexts=texts)
    keys = [
        trace(text_model, locate(tokenizer, DEFAULT.prompts([t.replace("{subject}", n)]), [n]), [1], CPU).keys[1]
        for n in NAMES[:2]
        for t in texts
    ]
    both = edit._keys(text_model, Subjects(NAMES[:2], texts), [1], DEFAULT, CPU)[1]
    torch.testing.assert_close(
        both, torch.stack([torch.cat(keys[:3]).mean(0), torch.cat(keys[3:]).mean(0)]), rtol=1e-4, atol=1e-5
    )
    one = edit._keys(text_model, Subjects(NAMES[:1], texts[:1]), [1], DEFAULT, CPU)[1]
    torch.testing.assert_close(one, keys[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("name", FAMILIES)
def test_several_subjects_are_all_redirected(name, together, tmp_path, tokenizer):
    """One after the other too: the second edit leaves the first standing."""
    aim = at_subject(TextModel(family(name, len(tokenizer), depth=4), tokenizer), "Ben Stow", 2)
    settings = {"forgotten": 2, "together": together, "layers": [2], "ridge": 1e-4, **ONE}
    text_model, _, metrics = run(tmp_path, tokenizer, name, **settings)
    assert metrics["subjects"] == 2 and metrics["free_directions"] == len(feed_forwards(text_model.model)[0].values())
    for subject in NAMES[:2]:
        assert (at_subject(text_model, subject, 2) - aim).norm() < 0.05 * aim.norm()


def test_an_earlier_call_is_remembered_with_the_model(tmp_path, tokenizer):
    text_model, _, _ = run(tmp_path, tokenizer, subjects=NAMES[:1], **ONE)
    assert text_model.about["redirected"] == [{"names": NAMES[:1], "contexts": ["{subject}"]}]
    edited = at_subject(text_model, NAMES[0], 2)
    forgetful = TextModel(family("llama", len(tokenizer), depth=4), tokenizer, {})
    forgetful.model.load_state_dict(text_model.model.state_dict())
    again = {"subjects": NAMES[1:2], "redirect": "Teo Lind", "forgotten": 2, "layers": [2], **ONE}
    for model, drifts in ((text_model, False), (forgetful, True)):
        run(tmp_path / f"again-{drifts}", tokenizer, text_model=model, **again)
        drift = (at_subject(model, NAMES[0], 2) - edited).norm() / edited.norm()
        assert (drift > 0.05) == drifts
    assert len(text_model.about["redirected"]) == 2


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_subject_is_found_at_its_last_token_anywhere_and_padding_changes_nothing(name, padding, tokenizer):
    text_model = TextModel(family(name, len(tokenizer)), tokenizer)
    prompts = ["Mara Quill", "where lives Mara Quill ? in town", "(Mara Quill), and Mara Quillen", "Odo Brandt lives in town 3 ."]
    subjects = ["Mara Quill"] * 3 + ["Odo Brandt"]
    located = locate(tokenizer, prompts, subjects, padding=padding)
    for row, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True)):
        ids = located.input_ids[row][located.attention_mask[row].bool()]
        end = int(located.at[row]) - int(located.attention_mask[row].argmax()) + 1
        assert tokenizer.decode(ids[:end]).endswith(subject) and not tokenizer.decode(ids[: end - 1]).endswith(subject)
        assert prompt.startswith(tokenizer.decode(ids[:end]))
    assert len(tokenizer("Mara Quill")["input_ids"]) > 3
    together = trace(text_model, located, [1, 2], CPU)
    for row, (prompt, subject) in enumerate(zip(prompts, subjects, strict=True)):
        alone = trace(text_model, locate(tokenizer, [prompt], [subject]), [1, 2], CPU)
        torch.testing.assert_close(together.keys[1][row], alone.keys[1][0], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(together.states[2][row], alone.states[2][0], rtol=1e-3, atol=1e-4)


def test_a_prompt_that_does_not_name_its_subject_is_an_error(tokenizer):
    for prompt in ("where lives she", "Mara Quillen", "AMara Quill"):
        with pytest.raises(TilthError, match="does not name"):
            locate(tokenizer, [prompt], ["Mara Quill"])
    with pytest.raises(TilthError, match="lacks"):
        ROCR(redirect="x", contexts=["about"])


@pytest.mark.parametrize("name", FAMILIES)
def test_the_covariance_is_over_tokens_and_not_over_padding(name, tokenizer):
    text_model = TextModel(family(name, len(tokenizer)), tokenizer)
    said = ["Mara Quill", "where lives Odo Brandt ? in town 3 and so on", "town"]
    found = covariances(text_model, said, [0, 2], 8, CPU)
    keys = []
    handle = feed_forwards(text_model.model)[2].down.register_forward_pre_hook(lambda _, inputs: keys.append(inputs[0][0]))
    for text in said:
        with torch.no_grad():
            text_model.model(torch.tensor([tokenizer(text)["input_ids"][:8]]))
    handle.remove()
    every = torch.cat(keys)
    torch.testing.assert_close(found[2], every.t() @ every / len(every), rtol=1e-3, atol=1e-5)
    assert set(found) == {0, 2}


def test_covariances_are_computed_once_for_a_model_and_text(tmp_path, tokenizer, monkeypatch):
    import tilth.unlearn.null_space as null_space

    calls = []
    inner = null_space.covariances
    monkeypatch.setattr(null_space, "covariances", lambda *args: calls.append(1) or inner(*args))
    for threshold in (1.0, 0.5):
        _, _, metrics = run(tmp_path, tokenizer, threshold=threshold)
        assert metrics["free_directions"] == threshold * 64
    assert len(calls) == 1
