"""Which objective for pictures, by what the encoder is for: rules of thumb with their reasons.

Notable: rules follow what was measured here at equal compute (docs/pictures.md) and what the survey reports (arXiv 2408.17059);
a rule that holds on your data is one that `image_probe` shows there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from tilth.errors import TilthError, nearest

Use = Literal["frozen", "tuned", "dense"]
_VIEWS = {"simclr": {"scale": [0.2, 1.0], "strength": 0.5}}
_HEADS = {"head_width": 512, "head_out": 128}
_NEGATIVES = 64  # pictures of a batch from which on its own views are negatives enough


@dataclass(frozen=True)
class Suggestion:
    """A method of kind 'pretrain' with the settings that differ from its defaults, and why; None: that of the recipe."""

    objective: dict[str, Any] | None
    why: str


def objective_for(purpose: str | None, *, natural: bool, batch_size: int) -> Suggestion:
    """purpose: 'frozen' (features as they are: probes, search), 'tuned' (all weights, on labels) or 'dense' (an answer at every
    place); None: not said. natural: photographs and the like, of which a crop in other colours shows the same; batch_size: pictures
    of a step. Raises TilthError for another purpose.
    """
    if purpose is not None and purpose not in get_args(Use):
        raise TilthError(
            f"an encoder is not made for '{purpose}'",
            where="--for",
            hint=nearest(purpose, get_args(Use)),
        )
    if purpose is None:
        return Suggestion(
            None, "Masked autoencoding: asks nothing of views, serves probes, tuning and dense tasks; say --for to choose by use."
        )
    if purpose in ("tuned", "dense"):
        gains = "keeps what lies where" if purpose == "dense" else "is reported to gain most from tuning"
        return Suggestion(None, f"For {purpose} use: masked autoencoding, which {gains}.")
    if not natural:
        why = (
            "For frozen use methods of two views lead on photographs; of scenes and volumes other colours may not show the same: "
        )
        return Suggestion(None, why + "masked autoencoding.")
    if batch_size < _NEGATIVES:
        queue = {"moco_v2": {"queue": 2048, "momentum": 0.99, "views": _VIEWS, **_HEADS}}
        return Suggestion(
            queue,
            f"For frozen use: two views of a picture; batches of {batch_size} are few negatives, so a queue of 2048 (best an eighth of the pictures at most): moco_v2.",
        )
    views = {"simclr": {"temperature": 0.2, "views": _VIEWS, **_HEADS}}
    return Suggestion(views, f"For frozen use: two views of a picture against the others of a batch of {batch_size}: simclr.")
