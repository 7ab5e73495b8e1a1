"""Numbers, durations and runs in words.

Notable: one way to write a number for the whole report: three significant digits, thousands separated, powers of ten for
what is very small or very large.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape

from tilth.report.reading import Stage, is_number

_DONE = {
    "split": "split a corpus",
    "curate": "curated a corpus",
    "tokenizer": "trained a tokeniser",
    "pretrain": "pre-trained a model",
    "adapt": "adapted a model",
    "distil": "distilled a model",
    "unlearn": "took something out of a model",
    "evaluate": "measured a model",
}


# Characters that HTML forbids or that reorder the text around them; a surrogate cannot be written as UTF-8.
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def safe(value: Any) -> str:
    """Text with each character that could disturb the page replaced by U+FFFD."""
    return _UNSAFE.sub("\ufffd", "" if value is None else str(value))


def number(value: Any) -> Markup:
    """A number as HTML: 12,345 · 0.0123 · 4.1 × 10⁻²⁵; other values as they are."""
    if not is_number(value):
        return escape("–" if value is None else value)
    if math.isnan(value):
        return Markup("not a number")
    if math.isinf(value):
        return Markup("∞" if value > 0 else "−∞")
    size, sign = abs(value), "−" if value < 0 else ""
    if size and (size >= 1e7 or size < 1e-3) and not (isinstance(value, int) and size < 1e12):
        mantissa, exponent = f"{size:.1e}".split("e")
        return Markup("{}{} × 10<sup>{}</sup>").format(sign, mantissa, f"{int(exponent)}".replace("-", "−"))
    if float(value).is_integer() or size >= 1000:
        return Markup(f"{sign}{size:,.0f}")
    return Markup(f"{sign}{size:.{_decimals(size)}f}")


def short_number(value: float, *, tiny: bool = False) -> str:
    """A number in few characters, for headlines and axes: 3.2M, 12.5k, 0.61, 4e-25; tiny: 0.002 as 2e-3, too."""
    size, sign = abs(value), "−" if value < 0 else ""
    for unit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if 0.9995 * unit <= size < 1e15:
            return f"{sign}{size / unit:.3g}{suffix}"
    if size and not (1e-2 if tiny else 1e-3) <= size < 1e15:
        return f"{sign}{size:.1e}".replace(".0e", "e").replace("e-0", "e-").replace("e-", "e−").replace("e+", "e")
    return f"{sign}{size:.3g}" if math.isfinite(size) else str(number(value))


def _decimals(size: float) -> int:
    """Decimals of a number below 1000, such that numbers of like size stand under each other."""
    return next(
        decimals for bound, decimals in ((0.00995, 4), (0.9995, 3), (9.995, 2), (99.95, 1), (math.inf, 0)) if size < bound
    )


def duration(value: float) -> str:
    """Seconds in words: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if value < 10:
        return f"{value:.1f} s" if value >= 0.05 else "under 0.1 s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def plural(count: int, one: str, many: str | None = None) -> str:
    """'1 row', '12,345 rows'."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def listed(parts: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1] if parts else ""


def done(stages: Sequence[Stage], rows: int) -> str:
    """One sentence on what the stages did, in the order they did it: equal kinds are counted together."""
    kinds = list(dict.fromkeys(stage.kind for stage in stages))
    parts = [f"read {plural(rows, 'row')} of data"] if rows else []
    for kind in kinds:
        count = sum(stage.kind == kind for stage in stages)
        phrase = _DONE.get(kind, f"ran a stage of kind ‘{kind}’")
        times = {1: "", 2: " twice"}.get(count, f" {count} times")
        parts.append(phrase + times)
    return listed(parts)


def words(name: Any) -> str:
    """A metric's or step's name for people: 'tokens_per_second' -> 'tokens per second'."""
    return short(str(name).replace("_", " "))


def short(value: Any, most: int = 120) -> str:
    """A name or title on one line, cut where it is no longer one."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else text[: most - 1] + "…"
