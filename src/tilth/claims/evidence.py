"""What a claim leaves behind: evidence/NN-key.json, written here and nowhere else.

Notable: the file is strict JSON (a number that is not one becomes null, an infinite one the string 'Infinity'); what was
tried before is carried over from the file it replaces, so that a claim cannot be tried until it holds and look fresh.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilth.claim_spec import ClaimSpec
from tilth.claims.judge import Judgement, Metrics
from tilth.environment import commit, hardware, versions
from tilth.store import digest, write_json


def write_evidence(
    path: Path,
    *,
    system: int | None,
    recipe: str,
    tree: Mapping[str, Any],
    claim: ClaimSpec,
    metrics: Metrics,
    judgement: Judgement,
    seconds: float,
    data: Sequence[Mapping[str, Any]],
    scale: str,
) -> Path:
    """Write the evidence of one claim to `path`, whole or not at all, and return `path`.

    tree: the recipe as written. seconds: what the claim's distinct stages took. data: name, source, rows, fingerprint.
    """
    identity = digest(strict(tree))
    content = {
        "system": system,
        "recipe": recipe,
        "statement": claim.statement,
        "verdict": judgement.verdict,
        "expect": [judged.plain() for judged in judgement.judged],
        "seeds": sorted({seed for by_seed in metrics.values() for seed in by_seed}),
        "arms": {arm: {str(seed): dict(found) for seed, found in by_seed.items()} for arm, by_seed in metrics.items()},
        "overrides": claim.arms,
        "tried": _tried(path, claim.tried, identity),
        "seconds": round(seconds, 1),
        "scale": scale,
        "data": [dict(entry) for entry in data],
        "hardware": hardware(),
        "versions": versions(),
        "commit": commit(),
        "recipe_digest": identity,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, strict(content))
    return path


def strict(value: Any) -> Any:
    """The same value in JSON that every reader accepts."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(inner) for inner in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _tried(path: Path, notes: Sequence[str], identity: str) -> list[str]:
    """Notes of the file that is replaced, the recipe's own, and one about that file if it said other than 'holds'."""
    if not path.is_file():
        return list(notes)
    before = json.loads(path.read_text(encoding="utf-8"))
    kept = list(before.get("tried", []))
    if before.get("recipe_digest") != identity and before.get("verdict") != "holds":
        unmet = "; ".join(f"{one['sentence']}: {one['reason']}" for one in before["expect"] if one["met"] is not True)
        kept.append(
            f"Recipe {before['recipe_digest'][:8]} at commit {before['commit'] or 'unknown'}: {before['verdict']} ({unmet})"
        )
    return list(dict.fromkeys([*kept, *notes]))
