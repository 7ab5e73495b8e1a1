import numpy as np
import pytest

from tests.training.doubles import Sequences
from tests.training.test_loop import train
from tilth.errors import TilthError
from tilth.training.lineage import Lineage, last_clean_checkpoint, seen
from tilth.training.loop import Budget


class Recording(Sequences):
    """Remembers what was drawn; example i is made from rows i // 2 and, for every third, 500 too."""

    def rows(self, indices):
        return [np.array([index // 2] + ([500] if index % 3 == 0 else [])) for index in indices]


@pytest.fixture
def trained(tmp_path):
    examples = Recording(30)
    train(tmp_path, examples=examples, budget=Budget(steps=20), accumulate=2, checkpoint_every=1, keep_checkpoints=None)
    drawn = np.array(examples.drawn).reshape(20, 8)
    return tmp_path, examples, drawn


def test_what_was_drawn_is_computed(trained):
    folder, _, drawn = trained
    lineage = Lineage.read(folder)
    assert lineage == Lineage(count=30, seed=3, batch_size=4, accumulate=2, world=1, steps=20)
    assert np.array_equal(np.stack([lineage.examples(step) for step in range(1, 21)]), drawn)


def test_when_a_row_was_seen_is_computed(trained):
    folder, examples, drawn = trained
    for row, one in zip([4, 500, 7, 999], seen(Lineage.read(folder), examples, [4, 500, 7, 999]), strict=True):
        made_from = drawn % 3 == 0 if row == 500 else drawn // 2 == row
        steps = np.flatnonzero(made_from.any(axis=1)) + 1
        assert one.row == row and np.array_equal(one.steps, steps)
        assert one.first == (steps[0] if len(steps) else None)
    [early] = seen(Lineage.read(folder), examples, [500], until=2)
    assert early.steps.tolist() == [step for step in (1, 2) if (drawn[step - 1] % 3 == 0).any()]


def test_the_last_clean_checkpoint_has_not_seen_the_rows(trained):
    folder, examples, _ = trained
    first = {one.row: one.first for one in seen(Lineage.read(folder), examples, range(15))}
    latest = max(first, key=lambda row: first[row])
    assert first[latest] > 2
    assert last_clean_checkpoint(folder, examples, [latest]).name == f"step-{first[latest] - 1:08d}"
    both = [latest, min(first, key=lambda row: first[row])]
    assert min(first.values()) == 1 and last_clean_checkpoint(folder, examples, both) is None
    assert last_clean_checkpoint(folder, examples, [999]).name == "step-00000020"


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(TilthError, match="no model was trained"):
        Lineage.read(tmp_path)
