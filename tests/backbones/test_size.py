"""Sizes: counts are the built network's, FLOPs are PaLM's, suggestions grow with time and machine."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.batches.texts import sentences, tokenizer_of
from tilth.backbones.size import count, flops_per_token, machine_flops, parameters, suggest, worth
from tilth.backbones.text import CausalLM
from tilth.errors import TilthError

TOKENIZER = tokenizer_of(sentences(100))


@pytest.mark.parametrize("settings", [{}, {"tie": False}, {"kv_heads": 2}, {"width": 96, "mlp": 100, "depth": 3}])
def test_the_count_is_that_of_the_network(settings):
    backbone = CausalLM(**{"width": 64, "depth": 2, **settings})
    assert count(backbone, len(TOKENIZER)) == parameters(backbone.build(TOKENIZER))


def test_flops_are_those_a_training_step_does():
    backbone = CausalLM(width=64, depth=2, heads=2)
    model = backbone.build(TOKENIZER)
    model.set_attn_implementation("eager")  # whose products the counter sees; of the fused kernel it knows nothing on a CPU
    ids = torch.randint(4, 400, (2, 128))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    formula = flops_per_token(count(backbone, len(TOKENIZER)), depth=2, width=64, length=128) * ids.numel()
    assert counter.get_total_flops() == pytest.approx(formula, rel=0.02)
    assert flops_per_token(540_000_000_000, depth=118, width=18432, length=2048) == pytest.approx(
        3.24e12 + 12 * 118 * 18432 * 2048
    )


def test_repeated_tokens_are_worth_less_and_less():
    assert worth(50, 100) == 50 and worth(100, 100) == 100
    assert worth(400, 100) == pytest.approx(100 + 1540 * (1 - math.exp(-3 / 15.4)))
    assert worth(1e9, 100) == pytest.approx(1640)


def test_more_time_and_more_data_suggest_no_smaller_network():
    sizes = [suggest(1e9, 60.0 * 4**n, 1e11).parameters for n in range(8)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert suggest(1e5, 36_000, 1e11).parameters < suggest(1e9, 36_000, 1e11).parameters
    chosen = suggest(1e9, 3600, 1e12)
    assert chosen.tokens >= 20 * count(chosen.backbone, 0) and chosen.width % chosen.heads == 0
    assert f"{chosen.parameters / 1e6:.1f}M weights" in chosen.why


def test_impossible_budgets_are_refused():
    with pytest.raises(TilthError):
        suggest(0, 60, 1e11)


def test_the_machine_multiplies():
    assert 1e8 < machine_flops(128, 2) < 1e16
