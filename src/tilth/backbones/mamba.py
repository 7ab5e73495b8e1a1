"""Token mixers built on state-space scans, in one or several directions: causal, bidirectional, four-way, by slices.

Notable: the projections in and out are shared, each direction has its own convolution and scan; a direction is an order of the
tokens, put on before the convolution and undone after the scan, made of views, so that its gradient is a view too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, silu, softplus

from tilth.backbones.state_space import selective_scan, state_space_dual
from tilth.errors import TilthError

Direction = Literal["forward", "backward", "columns", "columns_backward", "slices"]
Combine = Literal["mean", "sum"]


class MambaMixer(nn.Module):
    """Mamba-1's mixer (arXiv 2312.00752, section 3.4), along several directions as RoMA and TokenUnify use it.

    Causal with `directions=("forward",)`, bidirectional with "backward" too. RoMA's four-way mixer (arXiv 2503.10392) adds
    "columns" and "columns_backward" and averages; TokenUnify's (arXiv 2405.16847) is ("forward", "backward", "slices") with
    combine="sum", expand=2. slices: into how many equal runs "slices" cuts the sequence, to read their first tokens, then their
    second ones, and so on; None: as many as the first axis of the grid is long, so that a run is a section of a volume. The papers gate each direction's output and then combine; the gate is common, so here it comes after.
    A_log and D are used in float32 and take no weight decay (`undecayed`).
    """

    def __init__(
        self,
        width: int,
        *,
        expand: int = 1,
        state: int = 16,
        conv: int = 4,
        directions: Sequence[Direction] = ("forward",),
        combine: Combine = "mean",
        slices: int | None = 5,
    ) -> None:
        super().__init__()
        inner = expand * width
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.scans = Scans(lambda: _Selective(inner, math.ceil(width / 16), state, conv), directions, combine, slices)
        self.out_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """x (batch, tokens, width) to the same shape. grid: rows and columns of the tokens, which lie row by row.

        One token more than the grid has is a class token in the middle, at rows * columns // 2, where it stays in every order.
        Raises TilthError when columns are scanned without a fitting grid, and when `slices` does not divide the tokens.
        """
        u, z = self.in_proj(x).chunk(2, -1)
        return self.out_proj(self.scans(u, grid) * silu(z))  # type: ignore[no-any-return]


class Mamba2Mixer(nn.Module):
    """Mamba-2's mixer (arXiv 2405.21060, section 7.1): heads with one decay each, and a gated RMS norm over each group.

    Directions, `combine`, `slices` and the arguments of `forward` as for `MambaMixer`; combined before gate and norm.
    """

    def __init__(
        self,
        width: int,
        *,
        expand: int = 2,
        head_dim: int = 64,
        groups: int = 1,
        state: int = 128,
        conv: int = 4,
        directions: Sequence[Direction] = ("forward",),
        combine: Combine = "mean",
        slices: int | None = 5,
    ) -> None:
        super().__init__()
        self.inner, self.groups, heads = expand * width, groups, expand * width // head_dim
        if heads * head_dim != self.inner or heads % groups:
            raise TilthError(
                f"{self.inner} channels do not make heads of {head_dim} in {groups} group(s) of as many heads",
                hint="head_dim must divide expand * width, and groups the number of heads.",
            )
        self.in_proj = nn.Linear(width, 2 * self.inner + 2 * groups * state + heads, bias=False)
        self.scans = Scans(lambda: _Dual(self.inner, head_dim, groups, state, conv), directions, combine, slices)
        self.scale = nn.Parameter(torch.ones(self.inner))
        self.out_proj = nn.Linear(self.inner, width, bias=False)

    def forward(self, x: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """As `MambaMixer.forward`."""
        z, u = self.in_proj(x).tensor_split([self.inner], -1)
        y = (self.scans(u, grid) * silu(z)).float().unflatten(-1, (self.groups, -1))
        return self.out_proj(rms_norm(y, y.shape[-1:], eps=1e-5).flatten(-2) * self.scale)  # type: ignore[no-any-return]


class Scans(nn.ModuleList):
    """One scan per direction, each with weights of its own, averaged or summed: (batch, tokens, n) -> (batch, tokens, inner)."""

    def __init__(
        self, scan: Callable[[], nn.Module], directions: Sequence[Direction], combine: Combine, slices: int | None
    ) -> None:
        unknown = [one for one in directions if one not in _ORDERS]
        if unknown or not directions or len(set(directions)) < len(directions):
            raise TilthError(
                f"directions {list(directions)} are not scans", hint=f"One or more of {', '.join(_ORDERS)}, each once."
            )
        super().__init__(scan() for _ in directions)
        self.directions, self.combine, self.slices = tuple(directions), combine, slices

    def forward(self, u: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """u: tokens in their own order, as what comes out. grid and errors as in `MambaMixer.forward`."""
        total: Tensor | None = None
        for y in self.raw(u, grid):
            total = y if total is None else total + y
        assert total is not None
        return total / len(self) if self.combine == "mean" else total

    def raw(self, u: Tensor, grid: tuple[int, ...] | None = None, *, undo: bool = True) -> list[Tensor]:
        """Each direction's output; undo=False: in the order it was scanned in."""
        found = []
        for direction, scan in zip(self.directions, self):
            y = scan(ordered(u, direction, grid, self.slices))
            found.append(ordered(y, direction, grid, self.slices, undo=True) if undo else y)
        return found


# direction: (how the tokens are transposed, whether they are then reversed)
_ORDERS: dict[str, tuple[Literal["no", "grid", "slices"], bool]] = {
    "forward": ("no", False), "backward": ("no", True), "columns": ("grid", False), "columns_backward": ("grid", True),
    "slices": ("slices", False),
}  # fmt: skip


def ordered(x: Tensor, direction: Direction, grid: tuple[int, ...] | None, slices: int | None, *, undo: bool = False) -> Tensor:
    """x (batch, tokens, n) in the order a direction scans it, or back in its own. Errors as in `MambaMixer.forward`."""
    transposed, reverse = _ORDERS[direction]
    if transposed == "no":
        return x.flip(1) if reverse else x
    rows, columns = _grid(x.shape[1], grid) if transposed == "grid" else _slices(x.shape[1], grid, slices)
    if undo:
        return _transposed(x.flip(1) if reverse else x, columns, rows)
    x = _transposed(x, rows, columns)
    return x.flip(1) if reverse else x


def _transposed(x: Tensor, rows: int, columns: int) -> Tensor:
    """Row by row to column by column; a token more than there are places is a class token, and stays in the middle."""
    middle = rows * columns // 2
    if x.shape[1] == rows * columns:
        return x.unflatten(1, (rows, columns)).transpose(1, 2).flatten(1, 2)
    patches = torch.cat([x[:, :middle], x[:, middle + 1 :]], 1).unflatten(1, (rows, columns)).transpose(1, 2).flatten(1, 2)
    return torch.cat([patches[:, :middle], x[:, middle : middle + 1], patches[:, middle:]], 1)


def _grid(tokens: int, grid: tuple[int, ...] | None) -> tuple[int, int]:
    if grid is None or len(grid) != 2 or tokens - math.prod(grid) not in (0, 1):
        raise TilthError(
            f"columns cannot be scanned: {tokens} tokens are not a grid of {grid}, with or without a class token",
            hint="Give the tokens' rows and columns, all of them present; or scan forward and backward only.",
        )
    return grid[0], grid[1]


def _slices(tokens: int, grid: tuple[int, ...] | None, slices: int | None) -> tuple[int, int]:
    """How many runs there are, and how long each is."""
    if slices is None:
        if grid is None:
            raise TilthError("there is no grid to tell the sections of", hint="Give the tokens' grid, or a number of slices.")
        slices = grid[0]
    if tokens % slices:
        raise TilthError(
            f"{tokens} tokens cannot be cut into {slices} equal slices",
            hint="Choose slices that divide the number of tokens (a class token counts), or pad the input.",
        )
    return slices, tokens // slices


class _Selective(nn.Module):
    """Convolution, projections to delta, B and C, and the scan: what MambaMixer has once per direction."""

    undecayed: ClassVar[tuple[str, ...]] = ("A_log", "D")

    def __init__(self, inner: int, rank: int, state: int, conv: int) -> None:
        super().__init__()
        self.rank, self.state = rank, state
        self.conv1d = nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1)
        self.x_proj = nn.Linear(inner, rank + 2 * state, bias=False)
        self.dt_proj = _StepSizes(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))

    def forward(self, u: Tensor) -> Tensor:
        u = _convolved(self.conv1d, u)
        dt, B, C = self.x_proj(u).split([self.rank, self.state, self.state], -1)
        return selective_scan(u, self.dt_proj(dt), -self.A_log.float().exp(), B, C, self.D.float())


class _Dual(nn.Module):
    """Convolution and state-space duality: what Mamba2Mixer has once per direction."""

    undecayed: ClassVar[tuple[str, ...]] = ("A_log", "D", "dt_bias")

    def __init__(self, inner: int, head_dim: int, groups: int, state: int, conv: int) -> None:
        super().__init__()
        heads, mixed = inner // head_dim, inner + 2 * groups * state
        self.sizes, self.head_dim, self.groups = (inner, groups * state), head_dim, groups
        self.conv1d = nn.Conv1d(mixed, mixed, conv, groups=mixed, padding=conv - 1)
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.dt_bias = nn.Parameter(_initial_step_bias(heads))

    def forward(self, u: Tensor) -> Tensor:
        """u (batch, length, inner + 2 groups state + heads): x, B and C side by side, then step sizes -> (batch, length, inner)."""
        inner, each = self.sizes
        mixed, dt = u.split([inner + 2 * each, u.shape[-1] - inner - 2 * each], -1)
        x, B, C = _convolved(self.conv1d, mixed).split([inner, each, each], -1)
        x, B, C = x.unflatten(-1, (-1, self.head_dim)), B.unflatten(-1, (self.groups, -1)), C.unflatten(-1, (self.groups, -1))
        delta = softplus(dt.float() + self.dt_bias.float())
        return state_space_dual(x, delta, -self.A_log.float().exp(), B, C, self.D.float()).flatten(-2)


class _StepSizes(nn.Module):
    """softplus(W dt + b) in float32. Not an nn.Linear, so that a network that draws those anew leaves this start alone."""

    def __init__(self, rank: int, inner: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inner, rank).uniform_(-(rank**-0.5), rank**-0.5))
        self.bias = nn.Parameter(_initial_step_bias(inner))

    def forward(self, dt: Tensor) -> Tensor:
        return softplus(linear(dt, self.weight).float() + self.bias.float())


def _initial_step_bias(count: int) -> Tensor:
    """softplus's inverse of step sizes drawn log-uniformly from 1e-3 to 1e-1, at least 1e-4 (arXiv 2312.00752, section 3.6)."""
    low, high = math.log(1e-3), math.log(1e-1)
    steps = torch.empty(count).uniform_(low, high).exp().clamp(min=1e-4)
    return steps + torch.log(-torch.expm1(-steps))


def _convolved(conv: nn.Conv1d, u: Tensor) -> Tensor:
    """silu of the causal depthwise convolution over (batch, tokens, channels)."""
    return silu(conv(u.mT)[..., : u.shape[1]].mT)


def copy_to_directions(source: nn.Module, target: nn.Module) -> list[str]:
    """RoMA's transfer: every mixer of `target` takes over its namesake in `source`, whose one scan goes to every direction.

    Gives the names of target's parameters that were set; those outside mixers are left alone. Raises TilthError when a mixer
    has no namesake of one direction with weights of the same shapes.
    """
    mixers = {name: part for name, part in source.named_modules() if isinstance(part, (MambaMixer, Mamba2Mixer))}
    copied = []
    for name, part in target.named_modules():
        if not isinstance(part, (MambaMixer, Mamba2Mixer)):
            continue
        given, where = mixers.get(name), name or type(part).__name__
        if type(given) is not type(part) or len(given.scans) != 1:
            raise TilthError("there is no mixer with one direction to copy from", where=where)
        single = dict(given.named_parameters())
        for own, parameter in part.named_parameters():
            value = single[_single(own)]
            if parameter.shape != value.shape:
                raise TilthError(f"{own} is {tuple(parameter.shape)}, not {tuple(value.shape)} as its source", where=where)
            with torch.no_grad():
                parameter.copy_(value)
            copied.append(f"{name}.{own}" if name else own)
    return copied


def _single(name: str) -> str:
    """'scans.3.dt_proj.bias' -> 'scans.0.dt_proj.bias'; other names as they are."""
    first, *rest = name.split(".")
    return ".".join([first, "0", *rest[1:]]) if first == "scans" else name
