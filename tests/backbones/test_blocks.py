"""Attention: the same numbers by the fused kernel and by products, whichever a precision takes."""

import pytest
import torch
from torch.nn import functional as F

from tilth.backbones import blocks
from tilth.backbones.blocks import Attention, attend


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


def test_float32_and_long_sequences_take_the_kernel(monkeypatch):
    (q, k, v), bias = drawn(6, 6, torch.float32)
    assert torch.equal(attend(q, k, v, bias), F.scaled_dot_product_attention(q, k, v, attn_mask=bias))
    half = [x.detach().bfloat16() for x in (q, k, v)]
    by_products = attend(*half)
    monkeypatch.setattr(blocks, "_SHORT", 5)
    by_kernel = attend(*half)
    assert torch.equal(by_kernel, F.scaled_dot_product_attention(*half)) and not torch.equal(by_kernel, by_products)


def test_a_block_under_autocast_is_near_the_one_without():
    torch.manual_seed(0)
    layer, x = Attention(24, 3), torch.randn(2, 9, 24)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = layer(x)
    exact = layer(x)
    assert rounded.dtype == torch.bfloat16 and 0 < (rounded - exact).abs().max() < 0.03 * exact.abs().max()
