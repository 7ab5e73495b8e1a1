"""Random numbers for whole batches on their device: a function of each example's key and a name, nothing is consumed.

Notable: the same splitmix64 sequence as `tilth.noise`, in signed integers that wrap, so masks and augmentations of an example are the
same on any device, in any batch and after any restart.
"""

from __future__ import annotations

from hashlib import blake2b
from math import prod

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64

_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def uniform(keys: Tensor, name: str, *shape: int) -> Tensor:
    """float32 in [0, 1), (len(keys), *shape). keys: int64 (examples,), `Noise.keys` of a batch; another name is independent.

    A longer trailing shape continues a shorter one.
    """
    numbers = _drawn if torch.compiler.is_compiling() else _numbers  # an operator costs as much as a small batch's numbers
    return numbers(keys, _key(name), prod(shape)).reshape(len(keys), *shape)


def normal(keys: Tensor, name: str, *shape: int) -> Tensor:
    """float32 of mean 0 and variance 1, (len(keys), *shape): the Box-Muller transform of two uniform draws."""
    radius, angle = uniform(keys, f"{name}/radius", *shape), uniform(keys, f"{name}/angle", *shape)
    return (-2 * torch.log1p(-radius)).sqrt() * torch.cos(2 * torch.pi * angle)


def split(keys: Tensor, name: str) -> Tensor:
    """Keys of another sequence for each example: a second view of the same picture, say."""
    return _other(keys, _key(name))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _key(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


# Operators of their own, which compilers take whole: seeing a range times a large number, they wrap it at 32 bits as an index.
@torch.library.custom_op("tilth::drawn", mutates_args=())
def _drawn(keys: Tensor, name: int, count: int) -> Tensor:
    return _numbers(keys, name, count)


def _numbers(keys: Tensor, name: int, count: int) -> Tensor:
    """`count` numbers for each key: float32 (keys, count)."""
    counters = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64)
    bits = _mix(_mix(keys + name)[:, None] + counters.mul_(_GOLDEN))
    return _right(bits, 40).to(torch.float32).mul_(2.0**-24)


@_drawn.register_fake
def _(keys: Tensor, name: int, count: int) -> Tensor:
    return keys.new_empty((len(keys), count), dtype=torch.float32)


@torch.library.custom_op("tilth::other_keys", mutates_args=())
def _other(keys: Tensor, name: int) -> Tensor:
    return _mix(keys ^ name)


@_other.register_fake
def _(keys: Tensor, name: int) -> Tensor:
    return torch.empty_like(keys)


def _right(x: Tensor, bits: int) -> Tensor:
    """A shift that brings in zeros: torch's own brings in the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """`noise.mix` of the same 64 bits."""
    x = (x ^ _right(x, 30)).mul_(_FIRST)
    x = x.bitwise_xor_(_right(x, 27)).mul_(_SECOND)
    return x.bitwise_xor_(_right(x, 31))
