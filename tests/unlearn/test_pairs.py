import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.unlearn.doubles import ListExamples, random_rows
from tilth.contracts import Noise
from tilth.unlearn.pairs import PairedExamples, Ragged, WithArrays

FORGET, RETAIN = random_rows(5, seed=1), random_rows(40, seed=2)


def pairs():
    return PairedExamples(ListExamples(FORGET), ListExamples(RETAIN))


def test_each_forget_example_comes_with_one_retain_example():
    batch = pairs().batch(np.array([3, 0, 4]), Noise(1, np.array([7, 8, 9])))
    assert batch.samples == 3 and len(batch.forget.labels) == len(batch.retain.labels) == 3
    assert batch.tokens == batch.forget.tokens + batch.retain.tokens
    assert batch.forget.input_ids[0, : len(FORGET[3][0])].tolist() == FORGET[3][0]


def test_the_partner_hangs_on_the_position_and_the_seed_alone():
    positions = np.arange(64)
    together = pairs().retained(Noise(1, positions))
    apart = np.concatenate([pairs().retained(Noise(1, part)) for part in np.split(positions, 8)])
    assert (together == apart).all()
    assert (together != pairs().retained(Noise(2, positions))).any()
    assert len(set(together.tolist())) > 20  # 64 draws from 40


def test_every_retain_example_is_drawn_about_equally_often():
    drawn = np.bincount(pairs().retained(Noise(0, np.arange(40_000))), minlength=40)
    assert drawn.min() > 850 and drawn.max() < 1150


def test_the_batch_holds_the_examples_retained_says():
    noise = Noise(5, np.array([100, 3]))
    batch = pairs().batch(np.array([0, 1]), noise)
    for row, number in enumerate(pairs().retained(noise)):
        prompt, answer = RETAIN[number]
        assert batch.retain.input_ids[row, : len(prompt) + len(answer)].tolist() == prompt + answer


def test_lineage_is_the_forget_sets():
    assert [rows.tolist() for rows in pairs().rows(np.array([4, 1]))] == [[4], [1]]
    assert len(pairs()) == 5


def test_without_a_retain_set_the_batch_has_none():
    batch = PairedExamples(ListExamples(FORGET), None).batch(np.array([1]), Noise(0, np.array([0])))
    assert batch.retain is None and batch.tokens == batch.forget.tokens


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.lists(st.integers(0, 6), min_size=5, max_size=5))
def test_ragged_rows_come_back_whole_and_in_order(indices, lengths):
    starts = np.concatenate([[0], np.cumsum(lengths)])
    values = np.arange(starts[-1] * 2).reshape(-1, 2)
    expected = [values[starts[i] : starts[i + 1]] for i in indices]
    assert (Ragged(values, starts)[np.array(indices)] == np.concatenate(expected)).all()


def test_arrays_are_served_with_their_examples():
    examples = WithArrays(ListExamples(FORGET), {"reference": np.arange(5, dtype=np.float32)})
    batch = examples.batch(np.array([4, 2, 4]), Noise(0, np.arange(3)))
    assert batch.reference.tolist() == [4.0, 2.0, 4.0]
    assert batch.samples == 3 and batch.input_ids.shape == batch.labels.shape
    assert len(examples) == 5 and examples.rows(np.array([3]))[0].tolist() == [3]
