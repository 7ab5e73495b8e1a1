import pytest
import torch

from tests.unlearn.families import FAMILIES, family
from tilth.backbones.locations import blocks
from tilth.errors import TilthError
from tilth.unlearn.assistant import additions, assistant_of, first_blocks, frozen, take_additions

IDS = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(0))
families = pytest.mark.parametrize("name", FAMILIES)


@families
@pytest.mark.parametrize("tie", [True, False])
def test_all_blocks_with_fresh_additions_are_the_target(name, tie):
    model = family(name, 40, tie=tie)
    whole = assistant_of(model, 3, rank=4, alpha=8.0, dropout=0.05)
    assert torch.equal(whole(IDS).logits, model(IDS).logits)


@families
def test_fewer_blocks_are_what_is_left_when_the_others_do_nothing(name):
    model = family(name, 40)
    cut = first_blocks(model, 1)
    assert len(blocks(cut)) == cut.config.num_hidden_layers == 1 and len(blocks(model)) == model.config.num_hidden_layers == 3
    full = model(IDS).logits
    expected = cut(IDS).logits
    assert not torch.allclose(full, expected, atol=1e-2)
    with torch.no_grad():  # the others' ways back to the residual stream closed
        for block in blocks(model)[1:]:
            for part, weight in block.named_parameters():
                if any(end in part for end in ("o_proj", "down_proj", "c_proj", "attention.dense", "dense_4h_to_h")):
                    weight.zero_()
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-5)


@families
def test_what_is_frozen_is_the_targets_own_and_what_is_trained_is_not(name):
    model = family(name, 40)
    cut = assistant_of(model, 2, rank=4, alpha=8.0, dropout=0.0)
    own, theirs = additions(cut), {id(parameter) for parameter in model.parameters()}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all((id(parameter) in theirs) != (part in own) for part, parameter in cut.named_parameters())
    with frozen(model):
        assert [part for part, parameter in cut.named_parameters() if parameter.requires_grad] == list(own)
        cut(IDS).logits.square().mean().backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    head = cut.get_output_embeddings()
    assert not any(part is head for part in cut.modules() if hasattr(part, "lora_A"))


def test_additions_round_trip_and_must_fit():
    model = family("llama", 40)
    cut = assistant_of(model, 2, rank=4, alpha=8.0, dropout=0.0, seed=1)
    with torch.no_grad():
        for tensor in additions(cut).values():
            tensor.add_(0.3)
    again = assistant_of(model, 2, rank=4, alpha=8.0, dropout=0.0, seed=2)
    assert not torch.allclose(again(IDS).logits, cut(IDS).logits, atol=1e-3)
    take_additions(again, additions(cut))
    assert torch.equal(again(IDS).logits, cut(IDS).logits)
    with pytest.raises(TilthError, match="does not fit"):
        take_additions(assistant_of(model, 1, rank=4, alpha=8.0, dropout=0.0), additions(cut))


def test_the_same_seed_draws_the_same_additions_and_nothing_else_is_drawn():
    model = family("llama", 40)
    torch.manual_seed(5)
    first = additions(assistant_of(model, 1, rank=4, alpha=8.0, dropout=0.0, seed=3))
    drawn = torch.rand(1)
    second = additions(assistant_of(model, 1, rank=4, alpha=8.0, dropout=0.0, seed=3))
    assert all(torch.equal(first[part], second[part]) for part in first)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)


def test_more_blocks_than_there_are_is_an_error():
    with pytest.raises(TilthError, match="of 4 blocks cannot be cut from a model of 3"):
        first_blocks(family("llama", 40), 4)
