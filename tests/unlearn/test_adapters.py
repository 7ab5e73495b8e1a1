"""LoRA and FILA put into models of several layouts and folded back."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

from tests.unlearn.doubles import VOCABULARY, ListExamples, lm_batch, random_rows, tiny_lm
from tilth.backbones.locations import linear_names
from tilth.context import Context
from tilth.contracts import Noise
from tilth.errors import TilthError
from tilth.unlearn.fila import Fila, factors
from tilth.unlearn.fisher import fisher, one_pass, row_weights
from tilth.unlearn.likelihood import cross_entropy
from tilth.unlearn.lora import NAME, Lora, lora_layers
from tilth.unlearn.pairs import PairedExamples

PAIRS = PairedExamples(ListExamples(random_rows(6, seed=1)), ListExamples(random_rows(9, seed=2)))


def tiny_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3,
            bos_token_id=1, eos_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip


MODELS = pytest.mark.parametrize("make", [tiny_lm, tiny_gpt2], ids=["llama", "gpt2"])


def outputs(model):
    batch = lm_batch(random_rows(4, seed=5))
    with torch.no_grad():
        return model.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def started(adapter, model, folder, seed=0):
    adapter.apply(model)
    adapter.prepare(model, PAIRS, Context(folder, seed))
    return model


def trained(model, steps=5):
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        cross_entropy(model, PAIRS.forget.batch(np.arange(6), Noise(0, np.arange(6)))).backward()
        optimiser.step()
    return model


@MODELS
@pytest.mark.parametrize("kind", [Lora, Fila])
@pytest.mark.parametrize(("rank", "alpha"), [(1, None), (4, 1.0), (8, 64.0), (64, 3.0)])
def test_the_function_is_unchanged_at_the_start(make, kind, rank, alpha, tmp_path):
    """Any rank, also beyond the rank a weight can have, and any alpha."""
    before = outputs(make())
    torch.testing.assert_close(
        outputs(started(kind(rank=rank, alpha=alpha), make(), tmp_path)), before, rtol=1e-4, atol=1e-4 * before.abs().max().item()
    )


@MODELS
@pytest.mark.parametrize("kind", [Lora, Fila])
def test_only_the_adapters_of_all_linear_layers_but_the_head_are_trained(make, kind, tmp_path):
    model = make()
    names = linear_names(model)
    started(kind(rank=2), model, tmp_path)
    assert [name for name, _ in lora_layers(model)] == names and names
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * len(names) and all(".lora_A." in name or ".lora_B." in name for name in trainable)
    trained(model, steps=1)
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


@MODELS
@pytest.mark.parametrize("kind", [Lora, Fila])
def test_folding_gives_the_same_function_in_the_original_layout(make, kind, tmp_path):
    plain, adapter = make(), kind(rank=4)
    plain.get_input_embeddings().weight.requires_grad_(False)
    before = {name: (value.shape, value.requires_grad) for name, value in plain.named_parameters()}
    original = {name: value.detach().clone() for name, value in plain.named_parameters()}
    model = trained(started(adapter, plain, tmp_path))
    expected = outputs(model)
    adapter.fold(model)
    torch.testing.assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5 * max(1.0, expected.abs().max().item()))
    assert {name: (value.shape, value.requires_grad) for name, value in model.named_parameters()} == before
    assert not hasattr(model, "peft_config")
    moved = [name for name, value in model.named_parameters() if not torch.equal(value, original[name])]
    assert {name.rsplit(".", 1)[0] for name in moved} == set(linear_names(model))
    model.save_pretrained(tmp_path / "saved")
    torch.testing.assert_close(outputs(type(model).from_pretrained(tmp_path / "saved")), outputs(model))


@MODELS
def test_lora_is_pefts(make, tmp_path):
    """The same factors in peft's own model, merged by peft, give the same weights."""
    adapter, ours = Lora(rank=3, alpha=5.0), make()
    theirs = get_peft_model(
        make(), LoraConfig(r=3, lora_alpha=5, target_modules=linear_names(ours), fan_in_fan_out=make is tiny_gpt2)
    )
    started(adapter, ours, tmp_path)
    trained(ours)
    learnt = {name: value for name, value in ours.state_dict().items() if ".lora_" in name}
    assert learnt
    theirs.base_model.model.load_state_dict(learnt, strict=False)
    adapter.fold(ours)
    merged = theirs.merge_and_unload().state_dict()
    assert merged.keys() == ours.state_dict().keys()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, merged[name], rtol=0, atol=0)


def test_lora_starts_from_the_seed_and_leaves_other_randomness_alone(tmp_path):
    def first(seed):
        torch.manual_seed(99)
        _, layer = next(lora_layers(started(Lora(rank=2), tiny_lm(), tmp_path, seed)))
        return layer.lora_A[NAME].weight.detach().clone()

    assert torch.equal(first(1), first(1)) and not torch.equal(first(1), first(2))
    model = tiny_lm()
    adapter = Lora(rank=2)
    adapter.apply(model)
    before = torch.get_rng_state()
    adapter.prepare(model, PAIRS, Context(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


def test_targets_may_be_named():
    model = tiny_lm()
    Lora(targets=("q_proj", "model.layers.1.mlp.down_proj")).apply(model)
    assert sorted(name for name, _ in lora_layers(model)) == [
        "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj", "model.layers.1.self_attn.q_proj",
    ]  # fmt: skip
    with pytest.raises(TilthError, match="already has adapters"):
        Lora().apply(model)
    with pytest.raises(TilthError, match=r"ends in, 'query'.*") as caught:
        Lora(targets=("query",)).apply(tiny_lm())
    assert "down_proj" in caught.value.hint


def weighted(weight, rows, other):
    return (rows[:, None] * (weight - other)).double().norm().square().item()


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_fila_is_the_best_approximation_under_its_weights(rank):
    generator = torch.Generator().manual_seed(rank)
    weight, rows = torch.randn(12, 9, generator=generator), torch.rand(12, generator=generator) * 10 + 0.01
    a, b = factors(weight, rows, rank, 2.5, epsilon=0.0)
    left = weighted(weight, rows, 2.5 * b @ a)
    values = torch.linalg.svdvals((rows[:, None] * weight).double())
    assert left == pytest.approx(values[rank:].square().sum().item(), rel=1e-4)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    assert left < weighted(weight, rows, u[:, :rank] * s[:rank] @ v[:rank])
    others = [torch.randn(12, rank, generator=generator) @ torch.randn(rank, 9, generator=generator) for _ in range(20)]
    assert all(left < weighted(weight, rows, other) for other in others)


def test_where_all_rows_matter_alike_fila_is_the_ordinary_truncation():
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    a, b = factors(weight, torch.full((8,), 3.0), 2, 4.0)
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(4.0 * b @ a, u[:, :2] * s[:2] @ v[:2], rtol=1e-4, atol=1e-4)


def test_a_row_that_does_not_matter_is_hardly_reconstructed():
    weight = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    rows = torch.ones(8)
    rows[3] = 0.0
    a, b = factors(weight, rows, 5, 1.0)
    without = torch.cat([weight[:3], weight[4:]])
    expected = torch.linalg.svdvals(without)[5:].square().sum().item()
    assert weighted(weight, rows, b @ a) == pytest.approx(expected, rel=1e-3)  # the rank goes to the other rows alone


def test_the_gradient_of_forgetting_picks_the_rows(tmp_path):
    """The layer's own weights: Fisher information of the forget set over the retain set's, summed over inputs."""
    model = tiny_lm()
    weight = model.model.layers[0].mlp.up_proj.weight
    found = {}
    for part in ("forget", "retain"):
        sums, tokens = torch.zeros_like(weight), 0
        for batch in one_pass(PAIRS, 2, 0, part):
            model.zero_grad()
            count = int((batch.labels[:, 1:] != -100).sum())
            cross_entropy(model, batch).backward()
            sums, tokens = sums + weight.grad.square() * count, tokens + count
        found[part] = sums / tokens
    got = [fisher(model, {"w": weight}, one_pass(PAIRS, 2, 0, part))["w"] for part in ("forget", "retain")]
    for ours, by_hand in zip(got, found.values(), strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=1e-4, atol=1e-10)
    expected = (found["forget"] / (found["retain"] + 1e-5)).sum(1).sqrt()
    torch.testing.assert_close(row_weights(*got), expected, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(row_weights(got[0].t(), got[1].t(), transposed=True), expected, rtol=1e-4, atol=1e-8)


def test_fisher_per_sample_is_more_than_that_of_batches_and_may_lie_elsewhere():
    """Squared gradients of single examples do not cancel; and nothing of the model is left changed."""
    model = tiny_lm()
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    model.train()
    before = {name: (value.detach().clone(), value.requires_grad) for name, value in model.named_parameters()}
    weights = {name: model.get_submodule(name).weight for name in linear_names(model)}
    alone = fisher(model, weights, one_pass(PAIRS, 1, 0, "forget"), offload=True)
    together = fisher(model, weights, one_pass(PAIRS, 6, 0, "forget"))
    assert sum(v.sum() for v in alone.values()) > 1.5 * sum(v.sum() for v in together.values())
    assert set(alone) == set(weights) and model.training
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name][0]) and value.requires_grad == before[name][1] and value.grad is None


def test_fila_is_deterministic_and_reuses_its_weights_for_other_ranks(tmp_path):
    first, second = (started(Fila(rank=4), tiny_lm(), tmp_path) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    started(Fila(rank=2), tiny_lm(), tmp_path)
    assert len(list((tmp_path / "shared").glob("fisher-*/weights.safetensors"))) == 1
    started(Fila(rank=2, fisher_batch=1), tiny_lm(), tmp_path)
    assert len(list((tmp_path / "shared").glob("fisher-*/weights.safetensors"))) == 2


def test_fila_needs_a_retain_set(tmp_path):
    model, adapter = tiny_lm(), Fila()
    adapter.apply(model)
    with pytest.raises(TilthError, match="there is none"):
        adapter.prepare(model, PairedExamples(PAIRS.forget, None), Context(tmp_path))


def test_fila_splits_what_the_importance_says(tmp_path):
    """In the model: residual + g B* A* is the weight, and B* A* is the approximation under the layer's own row weights."""
    model = tiny_lm()
    plain = deepcopy(model)
    started(Fila(rank=2, alpha=6.0, fisher_batch=6), model, tmp_path)
    name, layer = next(lora_layers(model))
    weight = plain.get_submodule(name).weight
    rows = row_weights(*(fisher(plain, {"w": weight}, one_pass(PAIRS, 6, 0, part))["w"] for part in ("forget", "retain")))
    a, b = factors(weight.detach(), rows, 2, 3.0)
    taken = 3.0 * layer.lora_B[NAME].weight @ layer.lora_A[NAME].weight
    torch.testing.assert_close(taken, 3.0 * b @ a, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(layer.base_layer.weight + taken, weight, rtol=1e-4, atol=1e-5)
