import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from tests.images import BATCHES, cnn, digits, resnet
from tilth.backbones.folder import TextModel
from tilth.backbones.heads import embed_all, extractor_parameters, head_of
from tilth.context import Context
from tilth.contracts import use
from tilth.errors import TilthError
from tilth.training.loop import fit
from tilth.training.settings import Budget, Training
from tilth.unlearn.embedding_vae import EmbeddingVAE, divergence, fitted_vae
from tilth.unlearn.forget import forget
from tilth.unlearn.laf import LAF, alignment_loss, bounded, extractor_loss, steps_of
from tilth.unlearn.task import Task


def unlearnt(folder, model, *, labels=None, steps=3, **settings):
    """The model after LAF took class 0 from it; labels: put in the place of every label."""
    context, rows = Context(folder, seed=1), digits(folder / "data")
    parts = [rows.filter(f"label {relation} 0") for relation in ("=", "!=")]
    encoded = [BATCHES.build().build(part, None, context) for part in parts]
    if labels is not None:
        for part in encoded:
            part.labels.setflags(write=True)
            part.__dict__["labels"] = np.full(len(part), labels)
    task = Task(TextModel(model, None, {}), *parts, *encoded, Training(batch_size=8), Budget(steps=steps), context)
    settings = {"extractor_lr": 1e-2, "alignment_lr": 1e-2, "vae_epochs": 1, "decoder": "linear"} | settings
    return model, LAF(**settings)(task)


def weights(model):
    return torch.cat([value.detach().flatten() for value in model.state_dict().values()])


def test_the_bound_is_1_at_0_and_tends_to_e_with_a_gradient_that_vanishes():
    errors = torch.tensor([0.0, 1.0, 1e12, math.inf], dtype=torch.float64, requires_grad=True)
    values = bounded(errors)
    assert values.tolist() == pytest.approx([1, math.exp(0.5), math.e, math.e])
    values.sum().backward()
    assert errors.grad.tolist() == pytest.approx([1, math.exp(0.5) / 4, 0, 0], abs=1e-20)


def test_the_extractor_loss_is_least_when_the_remaining_are_reconstructed_and_the_forgotten_are_far():
    n = 7
    assert extractor_loss(torch.zeros(n), torch.full((n,), 1e9)).item() == pytest.approx(n * (1 - math.e), rel=1e-5)
    assert extractor_loss(torch.full((n,), 1e9), torch.zeros(n)).item() == pytest.approx(n * (math.e - 1), rel=1e-5)
    errors = torch.rand(2, n) * 100
    assert n * (1 - math.e) < extractor_loss(*errors).item() < n * (math.e - 1)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 20.0])
def test_at_the_original_embeddings_the_alignment_loss_is_known_and_at_the_maximum_of_the_cosine(temperature):
    remaining, forgotten = torch.randn(5, 12, dtype=torch.float64), torch.randn(3, 12, dtype=torch.float64)
    now = remaining.clone().requires_grad_()
    loss = alignment_loss(now, remaining, forgotten, forgotten, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(-5 * math.log(3))
    assert now.grad.abs().max().item() < 1e-12


def test_the_alignment_loss_falls_with_every_forgotten_distance_and_ignores_scale():
    torch.manual_seed(0)
    was, gone_was = torch.randn(4, 6), torch.randn(3, 6)
    now, gone = was + 0.3 * torch.randn(4, 6), gone_was.clone()
    losses = [alignment_loss(now, was, gone, gone_was, 2.0).item()]
    for row in range(3):
        gone[row] = -gone_was[row]
        losses.append(alignment_loss(now, was, gone, gone_was, 2.0).item())
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 4
    assert alignment_loss(7 * now, was, 0.1 * gone, gone_was, 2.0).item() == pytest.approx(losses[-1], rel=1e-5)


def test_only_forgotten_distances_are_divided_by_the_temperature():
    kept, gone = torch.eye(3)[:1], torch.eye(3)[1:]
    loss = alignment_loss(kept, -kept, gone, -gone, 4.0)
    assert loss.item() == pytest.approx(2 - math.log(2 * math.exp(2 / 4)))


def test_the_divergence_is_torchs_and_0_at_the_standard_normal():
    mean, log_variance = torch.randn(6, 8), torch.randn(6, 8)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros(8), torch.ones(8))).sum(1)
    torch.testing.assert_close(divergence(mean, log_variance), expected)
    assert divergence(torch.zeros(2, 8), torch.zeros(2, 8)).tolist() == [0, 0]


@pytest.mark.parametrize("decoder", ["sigmoid", "linear"])
def test_a_vae_reconstructs_what_it_learnt_better_than_other_vectors(decoder, tmp_path):
    random = np.random.default_rng(0)
    known = random.normal(size=(400, 2)) @ random.normal(size=(2, 32)) + (0.5 if decoder == "sigmoid" else 30)
    known = (1 / (1 + np.exp(-known)) if decoder == "sigmoid" else known).astype(np.float32)
    others = random.permuted(known, axis=1)
    vae = fitted_vae(known, latent=4, decoder=decoder, epochs=40, folder=tmp_path, context=Context(tmp_path))
    with torch.no_grad():
        errors = [vae(torch.from_numpy(values))[0].mean().item() for values in (known, others)]
    assert errors[0] < 0.6 * errors[1]
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_gradients_pass_through_a_frozen_vae():
    vae = EmbeddingVAE(16, 4, "sigmoid", torch.zeros(16), torch.ones(16)).requires_grad_(False)
    embeddings = torch.randn(3, 16, requires_grad=True)
    vae(embeddings)[0].sum().backward()
    assert embeddings.grad.abs().sum() > 0


def test_the_extractor_moves_and_the_head_does_not(tmp_path):
    before, (after, metrics) = cnn(), unlearnt(tmp_path, cnn())
    assert all(torch.equal(a, b) for a, b in zip(head_of(before).parameters(), head_of(after).parameters()))
    assert all(not torch.equal(a, b) for a, b in zip(extractor_parameters(before), extractor_parameters(after)))
    assert metrics["steps"] == 3 and not after.training


@pytest.mark.parametrize("labels", [math.nan, 4])
def test_labels_are_never_read(labels, tmp_path):
    plain, blind = (unlearnt(tmp_path, cnn(), labels=given)[0] for given in (None, labels))
    assert torch.equal(weights(plain), weights(blind))


def test_either_term_can_be_left_out(tmp_path):
    for settings, present in (({"extractor_lr": 0}, "alignment"), ({"alignment_lr": 0}, "extractor")):
        _, metrics = unlearnt(tmp_path, cnn(), **settings)
        assert set(metrics) == {"steps", f"{present}_loss"}
    with pytest.raises(TilthError, match="does nothing"):
        LAF(extractor_lr=0, alignment_lr=0)


def test_batch_norms_see_nothing_unless_asked(tmp_path):
    for kept, choice in ((True, "frozen"), (False, "train")):
        before, (after, _) = resnet(), unlearnt(tmp_path, resnet(), batch_norm=choice)
        same = [torch.equal(a, b) for a, b in zip(before.buffers(), after.buffers())]
        assert same and all(same) is kept


def test_the_budget_counts_the_forget_set():
    assert steps_of(Budget(epochs=3), 100, 32) == 10 and steps_of(Budget(samples=65), 100, 32) == 3
    with pytest.raises(TilthError, match="steps, epochs or samples"):
        steps_of(Budget(seconds=3), 100, 32)


def test_nothing_is_said_of_what_a_model_knows_where_labels_are_hidden(tmp_path):
    rows, said = digits(tmp_path / "data"), list[str]()
    context = Context(tmp_path)
    context.progress.say = said.append
    for label in ("label", None):
        said.append(f"labels: {label}")
        forget(
            TextModel(cnn(), None, {}), rows.filter("label = 0"), rows.filter("label != 0"), method=use("unlearn", "laf", vae_epochs=1),
            batches=use("batches", "images", channels=1, label=label), training=Training(batch_size=8), budget=Budget(steps=1), context=context,
        )  # fmt: skip
    told = "\n".join(said).split("labels: None")
    assert "hardly knows" in told[0] and "knows" not in told[1]


def test_a_class_is_forgotten_and_the_others_are_not_through_the_one_entrance(tmp_path):
    context, rows = Context(tmp_path, seed=0), digits(tmp_path / "data")
    model, everything = cnn(), BATCHES.build().build(rows, None, context)
    fit(
        use("pretrain", "classification").build(model), everything, folder=tmp_path / "fit", seed=0, budget=Budget(epochs=25),
        training=Training(lr=5e-3, batch_size=32, compile=False),
    )  # fmt: skip
    blind = use("batches", "images", channels=1, label=None)
    forget(
        TextModel(model, None, {}), rows.filter("label = 0"), rows.filter("label != 0"),
        method=use("unlearn", "laf", extractor_lr=2e-3, alignment_lr=5e-3, decoder="linear", vae_epochs=20), batches=blind,
        training=Training(batch_size=16), budget=Budget(steps=60), context=context,
    )  # fmt: skip
    right = embed_all(model, everything)[1].argmax(1) == everything.labels
    assert right[everything.labels == 0].mean() < 0.3 and right[everything.labels != 0].mean() > 0.9
