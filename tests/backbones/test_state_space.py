"""The scans against the recurrence itself, and against each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import softplus

from tilth.backbones import state_space
from tilth.backbones.state_space import selective_scan, state_space_dual

CHUNKS = (1, 2, 7, 16, 64)
LENGTHS = (1, 2, 31, 64, 97)


def recurrence(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """One step after the other, as it is written."""
    h, ys = u.new_zeros(u.shape[0], u.shape[2], A.shape[1]), []
    for t in range(u.shape[1]):
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
        ys.append((h * C[:, t, None]).sum(-1))
    y = torch.stack(ys, 1)
    return y if D is None else y + D * u


def recurrence_of_heads(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None) -> Tensor:
    """Mamba-2 as a Mamba-1 whose channels share their head's step size and decay, head by head."""
    heads, groups, ys = x.shape[2], B.shape[2], []
    for head in range(heads):
        group = head * groups // heads
        steps = delta[:, :, head, None].expand_as(x[:, :, head])
        decay = A[head].expand(x.shape[3], B.shape[3])
        skip = None if D is None else D[head].expand(x.shape[3])
        ys.append(recurrence(x[:, :, head], steps, decay, B[:, :, group], C[:, :, group], skip))
    return torch.stack(ys, 2)


def inputs(length: int, dtype: torch.dtype = torch.float32, channels: int = 6, state: int = 4) -> list[Tensor]:
    """u, delta, A, B, C, D."""
    g = torch.Generator().manual_seed(length)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    made = [
        normal(2, length, channels), softplus(normal(2, length, channels)), -normal(channels, state).exp(),
        normal(2, length, state), normal(2, length, state), normal(channels),
    ]  # fmt: skip
    return [one.to(dtype) for one in made]


def inputs_of_heads(length: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, delta, A, B, C, D: four heads of 3 in two groups."""
    g = torch.Generator().manual_seed(length)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    made = [
        normal(2, length, 4, 3), softplus(normal(2, length, 4)), -normal(4).exp(),
        normal(2, length, 2, 5), normal(2, length, 2, 5), normal(4),
    ]  # fmt: skip
    return [one.to(dtype) for one in made]


FORMS = [(selective_scan, recurrence, inputs), (state_space_dual, recurrence_of_heads, inputs_of_heads)]
both = pytest.mark.parametrize(("scan", "reference", "inputs"), FORMS, ids=["selective_scan", "state_space_dual"])


@pytest.fixture(params=[1, 600, None], ids=["chunk by chunk", "several chunks", "all chunks"])
def segments(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is worked on side by side."""
    if request.param:
        monkeypatch.setitem(state_space._TOGETHER, "cpu", request.param)


@both
@pytest.mark.parametrize("length", LENGTHS)
def test_equals_the_recurrence_for_any_chunk(scan, reference, inputs, length, segments):
    given = inputs(length)
    expected = reference(*(one.double() for one in given))
    for chunk in CHUNKS:
        assert (scan(*given, chunk=chunk) - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    without = reference(*(one.double() for one in given[:-1]))
    assert (scan(*given[:-1]) - without).abs().max() < 1e-5 * max(1, without.abs().max())


@both
def test_gradients_are_those_of_the_recurrence(scan, reference, inputs, segments):
    given = [one.requires_grad_() for one in inputs(37, torch.float64)]
    y = reference(*given)
    weights = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad(y, given, weights)
    for chunk in CHUNKS:
        found = torch.autograd.grad(scan(*given, chunk=chunk), given, weights)
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@both
def test_gradcheck(scan, reference, inputs):
    given = inputs(9, torch.float64)
    assert torch.autograd.gradcheck(lambda *these: scan(*these, chunk=4), [one.requires_grad_() for one in given])


@both
def test_past_does_not_depend_on_the_future(scan, reference, inputs):
    given = [one.requires_grad_() for one in inputs(50, torch.float64)]
    sequences = [one for one in given if one.ndim > 2]
    for gradient in torch.autograd.grad(scan(*given, chunk=8)[:, 20].sum(), sequences):
        assert not gradient[:, 21:].any()
        assert gradient[:, 20].any()
    for gradient in torch.autograd.grad(scan(*given, chunk=8)[:, 20].sum(), sequences[:2]):
        assert gradient[:, 3].any()


def test_constant_parameters_are_a_linear_filter():
    """y = u * k with k_n = C exp(A delta n) delta B."""
    u, delta, A, B, C, _ = inputs(80, torch.float64)
    delta, B, C = (one[:1, :1].expand(2, 80, -1) for one in (0.1 * delta, B, C))
    steps = torch.arange(80, dtype=torch.float64)[:, None, None]
    kernel = (torch.exp(steps * delta[0, 0, :, None] * A) * (delta[0, 0, :, None] * B[0, 0] * C[0, 0])).sum(-1)
    expected = torch.stack([(u[:, : t + 1] * kernel[: t + 1].flip(0)).sum(1) for t in range(80)], 1)
    torch.testing.assert_close(selective_scan(u, delta, A, B, C, chunk=16), expected)


def test_both_forms_agree_where_they_are_the_same():
    x, delta, A, B, C, D = inputs_of_heads(70)
    for head in range(4):
        steps, decay = delta[:, :, head, None].expand_as(x[:, :, head]).contiguous(), A[head].expand(3, 5)
        one = selective_scan(x[:, :, head], steps, decay, B[:, :, head // 2], C[:, :, head // 2], D[head].expand(3))
        torch.testing.assert_close(state_space_dual(x, delta, A, B, C, D)[:, :, head], one, rtol=1e-5, atol=1e-5)


@both
def test_strong_and_vanishing_decays_stay_exact_and_finite(scan, reference, inputs):
    """Log-decays of -1e4 a step beside ones of -1e-6: no overflow, and no rounding of large sums in small differences."""
    given = inputs(200)
    given[1] = given[1] * torch.where(torch.arange(200) % 50 < 3, 1e4, 1e-6).reshape(1, -1, *[1] * (given[1].ndim - 2))
    given[0] = given[0] / given[1].reshape(*given[1].shape, *[1] * (given[0].ndim - given[1].ndim))
    given = [one.requires_grad_() for one in given]
    exact = reference(*(one.double() for one in given))
    y = scan(*given, chunk=64)
    assert (y - exact).abs().max() < 1e-5 * exact.abs().max()
    for gradient in torch.autograd.grad(y.sum(), given):
        assert gradient.isfinite().all()


def test_duality_is_exact_where_decays_of_a_chunk_sum_to_thousands():
    """Differences of float32 sums would be wrong by their rounding, 1e-4."""
    given = inputs_of_heads(128)
    given[1][:, 5] = 3e3
    exact = recurrence_of_heads(*(one.double() for one in given))
    assert ((state_space_dual(*given, chunk=128) - exact)[:, 6:].abs().max() / exact[:, 6:].abs().max()) < 1e-5


@both
def test_bfloat16_is_rounded_at_the_ends_only(scan, reference, inputs):
    """States and products are float32, under autocast too: only what comes in and goes out is bfloat16."""
    given = [one.to(torch.bfloat16) if one.ndim > 2 else one for one in inputs(150)]
    exact = reference(*(one.double() for one in given))
    with torch.autocast("cpu", torch.bfloat16):
        y = scan(*given)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, scan(*given))
    assert ((y - exact).abs() <= 2**-8 * exact.abs() + 1e-4).all()


@both
def test_bfloat16_gradients_under_autocast(scan, reference, inputs):
    given = [one.to(torch.bfloat16) if one.ndim > 2 else one for one in inputs(60)]
    gradients = []
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [(one if dtype == torch.bfloat16 else one.double()).clone().requires_grad_() for one in given]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            gradients.append(torch.autograd.grad(scan(*leaves).float().sum(), leaves))
    for rounded, exact, one in zip(*gradients, given):
        assert rounded.dtype == one.dtype
        assert (rounded - exact).abs().max() < 0.02 * exact.abs().max()


@both
def test_compiles_as_one_graph(scan, reference, inputs):
    given = [one.requires_grad_() for one in inputs(40)]
    loss = lambda *these: scan(*these).square().sum()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found, expected = (torch.autograd.grad(f(*given), given) for f in (compiled, loss))
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other)


@both
def test_memory_for_gradients_is_small(scan, reference, inputs):
    """What is kept for the backward pass: no tensor of all states (tokens x channels x state)."""
    given = [one.requires_grad_() for one in inputs(2000)]
    kept: dict[int, int] = {}

    def pack(one: Tensor) -> Tensor:
        kept[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        return one

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one):
        scan(*given)
    assert sum(kept.values()) < 6 * sum(one.untyped_storage().nbytes() for one in given)
