"""How tables reach the user: drawn for a person, JSON for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def shown(value: Any) -> str:
    """A cell as text: four significant digits, lists with commas, nothing for None."""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(shown, value))
    return "" if value is None else str(value)


def table(rows: Sequence[dict[str, Any]], *, as_json: bool, columns: Sequence[str] = (), title: str = "") -> None:
    """Print rows (all their fields as JSON; `columns` of them as a table)."""
    if as_json:
        print(json.dumps(list(rows), indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    drawn = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    names = list(columns) or list(rows[0] if rows else [])
    for name in names:
        numeric = any(isinstance(row.get(name), (int, float)) for row in rows)
        drawn.add_column(name.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(shown(row.get(name)) for name in names))
    # A pipe has no width: rows must not be folded for whoever reads them there.
    Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False).print(drawn)


def say(line: str) -> None:
    """A line for the user, on standard error, so that standard output stays what was asked for."""
    print(line, file=sys.stderr)
