"""Signs of collapse in the log of the held-out loss: batches of one row have none and do not hide those of others."""

import json

import pytest

from tests.images import digits
from tilth.context import Context
from tilth.contracts import use
from tilth.stages.pretrain import Pretrain
from tilth.training.settings import Budget, Training


def last_line(folder, rows):
    corpus = digits(folder / "digits")
    context = Context(folder / "stage", corpora={"all": corpus, "held_out": corpus.filter(f"id < 'digit-{rows:04d}'")})
    context.folder.mkdir()
    Pretrain(
        data="all", held_out="held_out", budget=Budget(steps=1), training=Training(batch_size=8, compile=False),
        objective=use("pretrain", "mae"), backbone=use("backbone", "patches", width=24, depth=1, heads=2, patch=2),
        batches=use("batches", "pictures", channels=1),
    ).run(context)  # fmt: skip
    return json.loads((context.folder / "log.jsonl").read_text().splitlines()[-1])


def test_a_batch_of_one_row_is_in_the_loss_and_not_in_the_signs(tmp_path):
    whole, more, one = (last_line(tmp_path / str(rows), rows) for rows in (8, 9, 1))
    assert more["held_out_loss"] != whole["held_out_loss"]
    assert more["held_out_parts"] == pytest.approx(whole["held_out_parts"], rel=1e-6) and len(whole["held_out_parts"]) == 2
    assert one["held_out_loss"] > 0 and one["held_out_parts"] == {}
