"""The mixers: orders of tokens, directions, transfer of weights, and parity with transformers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from transformers import Mamba2Config, Mamba2Model, MambaConfig, MambaModel

from tilth.backbones.mamba import Mamba2Mixer, MambaMixer, copy_to_directions, ordered
from tilth.contracts import use
from tilth.errors import TilthError

FOUR = ("forward", "backward", "columns", "columns_backward")
THREE = ("forward", "backward", "slices")


def tokens(length: int, width: int = 8) -> Tensor:
    return torch.randn(2, length, width, generator=torch.Generator().manual_seed(length))


def small(kind: type[nn.Module], **settings: object) -> nn.Module:
    """Either mixer at width 8, with every weight away from its start, so that nothing vanishes or is tied by chance."""
    torch.manual_seed(0)
    own = {"head_dim": 4, "groups": 2, "state": 3} if kind is Mamba2Mixer else {"state": 3}
    mixer = kind(8, **own, **settings)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


both = pytest.mark.parametrize("kind", [MambaMixer, Mamba2Mixer])


@pytest.mark.parametrize("expand", [1, 2])
def test_equals_transformers_mamba(expand):
    config = MambaConfig(hidden_size=24, state_size=5, num_hidden_layers=1, expand=expand, vocab_size=10, use_bias=False)
    torch.manual_seed(0)
    peer = MambaModel(config).eval().layers[0].mixer
    ours = MambaMixer(24, expand=expand, state=5)
    shared = ("in_proj", "out_proj")
    ours.load_state_dict({k if k.startswith(shared) else f"scans.0.{k}": v for k, v in peer.state_dict().items()})
    assert_equal_with_gradients(ours, peer, tokens(71, 24))


def test_equals_transformers_mamba_2():
    config = Mamba2Config(
        hidden_size=24, num_heads=6, head_dim=8, n_groups=2, state_size=5, num_hidden_layers=1, vocab_size=10, chunk_size=16
    )
    torch.manual_seed(0)
    peer = Mamba2Model(config).eval().layers[0].mixer
    with torch.no_grad():
        peer.norm.weight.add_(0.1 * torch.randn_like(peer.norm.weight))
    ours = Mamba2Mixer(24, head_dim=8, groups=2, state=5)
    names = {"norm.weight": "scale", "in_proj.weight": "in_proj.weight", "out_proj.weight": "out_proj.weight"}
    ours.load_state_dict({names.get(k, f"scans.0.{k}"): v for k, v in peer.state_dict().items()})
    assert_equal_with_gradients(ours, peer, tokens(71, 24))


def assert_equal_with_gradients(ours: nn.Module, peer: nn.Module, x: Tensor) -> None:
    one, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(one), peer(other)
    assert (y - expected).abs().max() < 1e-5
    assert expected.abs().max() > 1e-2
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_starts_as_the_papers_say():
    torch.manual_seed(0)
    mixer = MambaMixer(64, expand=2, directions=FOUR)
    assert mixer.in_proj.bias is None
    assert mixer.out_proj.bias is None
    for scan in mixer.scans:
        torch.testing.assert_close(scan.A_log, torch.arange(1.0, 17).log().expand(128, 16))
        assert (scan.D == 1).all()
        steps = softplus(scan.dt_proj.bias)
        assert (steps > 0.99e-3).all()
        assert (steps < 1.01e-1).all()
        assert steps.log().mean().item() == pytest.approx(math.log(1e-2), abs=0.5)
        assert scan.dt_proj.weight.shape == (128, 4)
        assert 0.4 < scan.dt_proj.weight.abs().max() <= 0.5
        assert scan.conv1d.bias is not None


@both
def test_names_what_takes_no_weight_decay(kind):
    for mixer in (small(kind), copy.deepcopy(small(kind))):
        spared = next(g["params"] for g in use("optimiser", "adamw").build(mixer, 1e-3).param_groups if g["weight_decay"] == 0)
        scan = mixer.scans[0]
        assert all(any(getattr(scan, name) is parameter for parameter in spared) for name in {"A_log", "D", *scan.undecayed})


@both
def test_forward_alone_is_causal_and_two_directions_are_not(kind):
    x, changed = tokens(20), tokens(20)
    changed[:, 12] += 1
    causal, both_ways = small(kind), small(kind, directions=("forward", "backward"))
    difference = (causal(changed) - causal(x)).abs().amax((0, 2))
    assert not difference[:12].any()
    assert difference[12:].all()
    assert (both_ways(changed) - both_ways(x)).abs().amax((0, 2)).all()


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("direction", FOUR)
def test_orders_of_a_grid(direction, extra):
    rows, columns = 3, 4
    places = torch.arange(12).reshape(rows, columns)
    path = {"forward": places.flatten(), "backward": places.flatten(), "columns": places.T.flatten()}
    expected = path[direction.replace("columns_backward", "columns")].tolist()
    if extra:  # class token 99 in the middle
        expected.insert(6, 99)
    if direction.endswith("backward"):
        expected.reverse()
    x = torch.tensor([*range(6), *[99] * extra, *range(6, 12)])[None, :, None]
    found = ordered(x, direction, (rows, columns), 5)
    assert found.flatten().tolist() == expected
    assert torch.equal(ordered(found, direction, (rows, columns), 5, undo=True), x)


@pytest.mark.parametrize(("length", "slices"), [(20, 5), (6, 2), (7, 7), (9, 1), (400, 5)])
def test_slices_are_interleaved_and_undone(length, slices):
    x = torch.arange(length)[None, :, None]
    found = ordered(x, "slices", None, slices)
    assert found.flatten().tolist() == [s * (length // slices) + p for p in range(length // slices) for s in range(slices)]
    assert torch.equal(ordered(found, "slices", None, slices, undo=True), x)


def scanned(mixer: nn.Module, x: Tensor) -> Tensor:
    """The part of the inward projection that is scanned: Mamba-1's first half, what Mamba-2 has behind the gate."""
    u = mixer.in_proj(x)
    return u[..., : u.shape[-1] // 2] if isinstance(mixer, MambaMixer) else u[..., mixer.inner :]


@both
def test_backward_on_a_palindrome_with_tied_weights_is_forward_reversed(kind):
    mixer = small(kind, directions=THREE, combine="sum")
    mixer.scans[1].load_state_dict(mixer.scans[0].state_dict())
    half = scanned(mixer, tokens(10))
    forward, backward, _ = mixer.scans.raw(torch.cat([half, half.flip(1)], 1))
    torch.testing.assert_close(backward, forward.flip(1))
    assert (forward - forward.flip(1)).abs().max() > 1e-3


@pytest.mark.parametrize("side", [3, 4])
@both
def test_four_ways_over_a_symmetric_grid_scan_alike(kind, side):
    """RoMA's transfer: with copied weights, a grid that half turns and transposition leave alone looks the same to all four."""
    one, four = small(kind), small(kind, directions=FOUR)
    copy_to_directions(one, four)
    grid = tokens(side**2).unflatten(1, (side, side))
    grid = grid + grid.flip(1, 2)
    x = (grid + grid.transpose(1, 2)).flatten(1, 2)
    if side % 2 == 0:
        x = torch.cat([x[:, : side**2 // 2], tokens(1), x[:, side**2 // 2 :]], 1)  # a class token: the length is odd again
    u = scanned(four, x)
    outputs = four.scans.raw(u, (side, side), undo=False)
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0])
    restored = four.scans.raw(u, (side, side))
    assert (restored[1] - restored[0]).abs().max() > 1e-3


@both
def test_directions_are_summed_or_averaged(kind):
    mixer = small(kind, directions=FOUR, combine="sum")
    u = scanned(mixer, tokens(12))
    parts = mixer.scans.raw(u, (3, 4))
    torch.testing.assert_close(mixer.scans(u, (3, 4)), sum(parts))
    mean = small(kind, directions=FOUR)
    mean.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mean.scans(u, (3, 4)), sum(parts) / 4)


@both
def test_every_weight_is_used(kind):
    mixer = small(kind, directions=(*FOUR, "slices"), slices=3)
    mixer(tokens(12), (4, 3)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in mixer.parameters())


@both
def test_transfer_reports_every_weight(kind):
    source, target = (nn.Sequential(nn.LayerNorm(8), small(kind, directions=d)) for d in (("forward",), FOUR))
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.fill_(torch.nan)
    copied = copy_to_directions(source, target)
    assert set(copied) == {name for name, _ in target[1].named_parameters(prefix="1")}
    assert not any(parameter.isnan().any() for parameter in target[1].parameters())
    assert target[0].weight.isnan().all()
    for scan in target[1].scans:
        for name, value in source[1].scans[0].state_dict().items():
            assert torch.equal(scan.state_dict()[name], value)


def test_transfer_refuses_what_does_not_fit():
    with pytest.raises(TilthError, match="one direction"):
        copy_to_directions(MambaMixer(8, directions=FOUR), MambaMixer(8, directions=FOUR))
    with pytest.raises(TilthError, match="one direction"):
        copy_to_directions(Mamba2Mixer(8, head_dim=4), MambaMixer(8, directions=FOUR))
    with pytest.raises(TilthError, match="is \\(16, 8\\), not"):
        copy_to_directions(MambaMixer(16), MambaMixer(8, directions=FOUR))


def test_clear_errors():
    with pytest.raises(TilthError, match="scans"):
        MambaMixer(8, directions=("sideways",))
    with pytest.raises(TilthError, match="scans"):
        MambaMixer(8, directions=())
    with pytest.raises(TilthError, match="heads of 3"):
        Mamba2Mixer(8, head_dim=3)
    four, three = MambaMixer(8, directions=FOUR), MambaMixer(8, directions=THREE)
    for grid in (None, (12,), (3, 5), (2, 2, 3)):
        with pytest.raises(TilthError, match="12 tokens are not a grid"):
            four(tokens(12), grid)
    with pytest.raises(TilthError, match="12 tokens cannot be cut into 5"):
        three(tokens(12))


@both
def test_bfloat16_autocast_is_near_float32(kind):
    mixer, x = small(kind, directions=FOUR), tokens(12)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x, (3, 4))
    assert (y - mixer(x, (3, 4))).abs().max() < 0.03 * y.abs().max()
