"""Attention: the same numbers by the fused kernel and by products, whichever a precision takes."""

import pytest
import torch
from torch.nn import functional as F

from tilth.backbones import blocks
from tilth.backbones.blocks import Attention, attend, attention_block


def drawn(n, m, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(2, 3, tokens, 8, generator=generator).to(dtype).requires_grad_() for tokens in (n, m, m)]
    return made, torch.randn(1, 3, n, m, generator=generator).to(dtype)


@pytest.mark.parametrize(("n", "m"), [(17, 17), (5, 40), (40, 5)])
@pytest.mark.parametrize("biased", [False, True])
def test_sixteen_bits_give_what_64_do_within_their_rounding(n, m, biased):
    """Values and gradients; the roundings of 8 bits of mantissa add up to a few hundredths."""
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        (q, k, v), bias = drawn(n, m, torch.bfloat16)
        q, k, v = (x.detach().to(dtype).requires_grad_() for x in (q, k, v))
        mixed = attend(q, k, v, bias.to(dtype) if biased else None)
        assert mixed.dtype == dtype
        mixed.square().sum().backward()
        found.append([mixed.detach().double(), *(x.grad.double() for x in (q, k, v))])
    for ours, exact in zip(*found, strict=True):
        assert (ours - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_sequences_take_products_and_long_ones_the_kernel(monkeypatch, dtype):
    (q, k, v), bias = drawn(6, 6, torch.float32)
    q, k, v, bias = (x.detach().to(dtype) for x in (q, k, v, bias))
    by_products = attend(q, k, v, bias)
    monkeypatch.setattr(blocks, "_SHORT", {dtype: 5})
    by_kernel = attend(q, k, v, bias)
    assert torch.equal(by_kernel, F.scaled_dot_product_attention(q, k, v, attn_mask=bias)) and not torch.equal(
        by_kernel, by_products
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_truth_values_say_what_is_attended_to(dtype):
    (q, k, v), bias = drawn(6, 9, torch.float32)
    q, k, v = (x.detach().to(dtype) for x in (q, k, v))
    visible = bias.detach() > 0
    visible[..., 0] = True
    within = 1e-6 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(
        attend(q, k, v, visible), F.scaled_dot_product_attention(q, k, v, attn_mask=visible), rtol=0, atol=within
    )


def test_products_are_the_kernel_to_rounding():
    (q, k, v), bias = drawn(17, 9, torch.float32)
    found = []
    for attention in (attend, lambda q, k, v, bias: F.scaled_dot_product_attention(q, k, v, attn_mask=bias)):
        leaves = [x.detach().requires_grad_() for x in (q, k, v, bias)]
        attention(*leaves).square().sum().backward()
        found.append([x.grad for x in leaves])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_the_tail_of_a_block_is_the_end_of_what_the_whole_gives():
    torch.manual_seed(0)
    block, x = attention_block(24, 3).double(), torch.randn(2, 9, 24, dtype=torch.float64)
    found = []
    for whole in (True, False):
        block.zero_grad()
        tokens = x.clone().requires_grad_()
        end = block(tokens)[:, -4:] if whole else block(tokens, tail=4)
        end.square().sum().backward()
        found.append([end.detach(), tokens.grad, *(parameter.grad for parameter in block.parameters())])
    for all_of_it, tail in zip(*found, strict=True):
        torch.testing.assert_close(tail, all_of_it, rtol=1e-12, atol=1e-12)


def test_a_block_under_autocast_is_near_the_one_without():
    torch.manual_seed(0)
    layer, x = Attention(24, 3), torch.randn(2, 9, 24)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
    exact = layer(x)
    assert rounded.dtype == torch.bfloat16 and 0 < (rounded - exact).abs().max() < 0.03 * exact.abs().max()
