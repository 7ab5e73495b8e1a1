"""SQL predicates over a table: joined, checked before they are used, and explained when they are wrong."""

from __future__ import annotations

import re

import lance

from tilth.errors import TilthError, nearest

_UNKNOWN = re.compile(r"No field named \"?([^\s\".]+(?:\.[^\s\".]+)*)\"?\.")


def both(first: str | None, second: str | None) -> str | None:
    """The predicate that holds where both hold; None holds everywhere."""
    if first and second:
        return f"({first}) AND ({second})"
    return first or second


def check(dataset: lance.LanceDataset, where: str | None, *, place: str) -> None:
    """TilthError unless `where` is a predicate over the table's columns. Nothing is read."""
    if where is None:
        return
    try:
        dataset.scanner(filter=where, columns=["id"] if "id" in dataset.schema.names else None).explain_plan()
    except (ValueError, OSError) as error:
        message = str(error)
        unknown = _UNKNOWN.search(message)
        if unknown:
            what = f"the predicate `{where}` names '{unknown[1]}', which is not a column"
            raise TilthError(what, where=place, hint=nearest(unknown[1], dataset.schema.names)) from None
        reason = re.sub(r",? (/[\w.-]+)+\.rs:\d+(:\d+)?", "", message.removeprefix("Invalid user input: ")).strip()
        hint = "Write an SQL predicate, e.g. \"split = 'train' AND year > 1900\"."
        raise TilthError(f"`{where}` is not a predicate over this table: {reason}", where=place, hint=hint) from None


def columns(known: list[str], wanted: list[str] | None, *, place: str) -> list[str]:
    """The wanted columns (all when None); TilthError names the nearest column for one that is not there."""
    if wanted is None:
        return list(known)
    for name in wanted:
        if name not in known:
            raise TilthError(f"there is no column '{name}'", where=place, hint=nearest(name, known))
    return list(wanted)
