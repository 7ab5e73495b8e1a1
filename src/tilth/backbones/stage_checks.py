"""What networks of several stages refuse: lists of settings that do not fit each other, and pictures too small for them."""

from __future__ import annotations

from collections.abc import Sequence

from tilth.errors import TilthError


def checked_stages(where: str, **lists: Sequence[int]) -> None:
    """TilthError where settings that have one number for each stage differ in length."""
    if len({len(values) for values in lists.values()}) != 1 or not all(lists.values()):
        lengths = ", ".join(f"'{name}' {len(values)}" for name, values in lists.items())
        raise TilthError(f"each stage needs a number in every list: {lengths}", where=where)


def checked_size(size: Sequence[int], smallest: int, where: str, hint: str) -> None:
    """TilthError for what is no picture, or smaller than `smallest` along either axis; hint: what to do then."""
    if len(size) != 2:
        raise TilthError(f"this network reads pictures, not inputs of {len(size)} axes", where=where)
    if min(size) < smallest:
        raise TilthError(f"pictures of {size[0]}x{size[1]} are too small, of {smallest} needed", where=where, hint=hint)
