import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tilth.corpus import Corpus
from tilth.curate import curate
from tilth.errors import TilthError

STEPS = ["normalise", "exact_dedup", {"quality": {"min_words": 3}}, {"near_dedup": {"threshold": 0.7}}]


def corpus(folder: Path, texts: list[str | None], fragments: int = 1, **columns: list[object]) -> Corpus:
    """A corpus of these texts with ids '0', '1', ..., stored in several fragments."""
    ids = pa.array([str(number) for number in range(len(texts))], pa.string())
    table = pa.table({"id": ids, "text": pa.array(texts, pa.string()), **columns})
    size = -(-len(texts) // fragments) or 1
    made = Corpus.write(folder / "in.lance", table.slice(0, size).to_batches(), table.schema, metadata={"licence": "CC0"})
    for begin in range(size, len(texts), size):
        made.append(table.slice(begin, size).to_batches())
    return made


def essays(count: int) -> list[str]:
    """Different texts, with an exact and a near-duplicate of every tenth."""
    texts = [" ".join(f"word{number}x{place}" for place in range(60)) for number in range(count)]
    return [*texts, *texts[::10], *(f"{text} more" for text in texts[::10]), "too short", "", "  windows\r\n line ends here\r\n"]


def test_every_row_ends_in_one_place_in_order_with_its_reason(tmp_path):
    given_texts = essays(50)
    source = corpus(tmp_path, given_texts, fragments=4, year=list(range(len(given_texts))))
    done = curate(source, STEPS, tmp_path / "out")
    kept, removed = done.corpus.table(), pq.read_table(done.removed)
    kept_ids, removed_ids = (table["id"].to_pylist() for table in (kept, removed))
    assert kept_ids == sorted(kept_ids, key=int) and removed_ids == sorted(removed_ids, key=int)
    assert sorted(kept_ids + removed_ids, key=int) == source.table(["id"])["id"].to_pylist()
    assert kept.schema.equals(source.schema) and kept["year"].to_pylist() == [int(one) for one in kept_ids]
    assert removed.schema.names == ["id", "text", "year", "removed", "step"]
    reasons = dict(zip(removed_ids, zip(removed["step"].to_pylist(), removed["removed"].to_pylist())))
    assert reasons["50"] == ("exact_dedup", "exact_dedup: same text as 0")
    assert reasons["55"][0] == "near_dedup" and reasons["55"][1].startswith("near_dedup: duplicates 0 (similarity 0.9")
    assert reasons["60"] == ("quality", "quality: words 2, below 3")
    assert [(step.name, step.kept, step.removed, step.changed) for step in done.steps] == [
        ("normalise", 63, 0, 1), ("exact_dedup", 58, 5, 0), ("quality", 56, 2, 0), ("near_dedup", 51, 5, 0),
    ]  # fmt: skip
    assert done.corpus.take([50])["text"].to_pylist() == ["  windows\n line ends here"]


def test_what_was_done_is_written_with_the_corpus(tmp_path):
    done = curate(corpus(tmp_path, essays(3)), STEPS, tmp_path / "out")
    about = Corpus.open(tmp_path / "out" / "corpus.lance").metadata
    assert about["kind"] == "text" and about["licence"] == "CC0"
    assert [next(iter(step)) for step in json.loads(about["curated"])] == [step.name for step in done.steps]


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(st.none(), st.sampled_from(["a b c", "a  b c", "x y z", "", "é\u0301"]), st.text(max_size=8)),
        min_size=1,
        max_size=30,
    ),
    st.integers(1, 3),
)
def test_rows_are_conserved_whatever_they_hold(tmp_path_factory, texts, fragments):
    folder = tmp_path_factory.mktemp("any")
    source = corpus(folder, texts, fragments)
    try:
        done = curate(source, ["normalise", "exact_dedup", "near_dedup", {"sample": {"fraction": 0.7}}], folder / "out")
    except TilthError as error:
        assert f"all {len(texts)} rows" in str(error)
        assert pq.read_table(folder / "out" / "removed.parquet").num_rows == len(texts)
        return
    left = len(texts)
    for step in done.steps:
        assert step.kept == left - step.removed and 0 <= step.changed <= step.kept
        left = step.kept
    assert done.corpus.count() == left
    assert left + pq.read_table(done.removed).num_rows == len(texts)


def test_the_same_seed_gives_the_same_corpus_and_steps_draw_apart(tmp_path):
    source = corpus(tmp_path, [f"text number {number}" for number in range(2000)])
    twice = [{"sample": {"fraction": 0.5}}, {"sample": {"fraction": 0.5}}]

    def ids(name, seed):
        return curate(source, twice, tmp_path / name, seed=seed).corpus.table(["id"])["id"].to_pylist()

    first, again, other = ids("a", 0), ids("b", 0), ids("c", 1)
    assert first == again and first != other
    assert len(first) == pytest.approx(500, abs=100)  # a second draw that repeated the first would leave 1000


def test_one_row_and_no_steps(tmp_path):
    assert curate(corpus(tmp_path / "one", ["alone with enough words here"]), STEPS, tmp_path / "a").corpus.count() == 1
    plain = curate(corpus(tmp_path / "two", ["x", "y"]), [], tmp_path / "b")
    assert plain.corpus.count() == 2 and plain.steps == [] and pq.read_table(plain.removed).num_rows == 0


def test_an_empty_corpus_is_told(tmp_path):
    with pytest.raises(TilthError, match="no rows"):
        curate(corpus(tmp_path, []), STEPS, tmp_path / "out")


def test_a_filtered_view_is_curated_alone(tmp_path):
    source = corpus(tmp_path, ["same text here"] * 3 + ["other text here"], year=[1, 2, 2, 3])
    done = curate(source.filter("year > 1"), ["exact_dedup"], tmp_path / "out")
    assert done.corpus.table(["id"])["id"].to_pylist() == ["1", "3"]
    assert pq.read_table(done.removed)["removed"].to_pylist() == ["exact_dedup: same text as 1"]


def test_when_nothing_is_left_the_step_and_its_reasons_are_named(tmp_path):
    source = corpus(tmp_path, ["one", "two", "one", "three four"])
    with pytest.raises(TilthError) as caught:
        curate(source, ["exact_dedup", {"quality": {"min_words": 9}}], tmp_path / "out")
    message = str(caught.value)
    assert "all 4 rows" in message and "(3) in step 'quality'" in message and "2 x 'quality: words 1, below 9'" in message
    assert pq.read_table(tmp_path / "out" / "removed.parquet").num_rows == 4
    assert not (tmp_path / "out" / "corpus.lance").exists()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["near_dup"], "near_dedup"),
        ([{"quality": {"min_word": 1}}], "min_words"),
        ([{"normalise": {"column": "body"}}], "no column"),
    ],
)
def test_wrong_steps_are_told_before_anything_is_written(tmp_path, steps, message):
    with pytest.raises(TilthError, match=message):
        curate(corpus(tmp_path, ["a"]), steps, tmp_path / "out")
    assert not (tmp_path / "out" / "corpus.lance").exists()


def test_a_column_called_removed_is_refused(tmp_path):
    with pytest.raises(TilthError, match="column 'removed'"):
        curate(corpus(tmp_path, ["a"], removed=["x"]), [], tmp_path / "out")


@pytest.mark.parametrize("engine", ["spark", "ray://", "ray:/10001"])
def test_an_unknown_engine_is_told(tmp_path, engine):
    with pytest.raises(TilthError, match="no engine"):
        curate(corpus(tmp_path, ["a"]), [], tmp_path / "out", engine=engine)


def test_a_process_keeps_its_engine(tmp_path):
    source = corpus(tmp_path, ["a b", "c d"])
    curate(source, [], tmp_path / "out")
    with pytest.raises(TilthError, match="already computes with 'native'"):
        curate(source, [], tmp_path / "out2", engine="ray")


_ON_RAY = """
import sys, ray
from pathlib import Path
from tilth.corpus import Corpus
from tilth.curate import curate
import tests.curate.test_plan as here
ray.init(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
done = curate(Corpus.open(sys.argv[1]), here.EVERYTHING, Path(sys.argv[2]), engine="ray", seed=3)
print([(s.name, s.kept, s.removed, s.changed) for s in done.steps])
"""
EVERYTHING = [
    *STEPS,
    "repetition",
    {"near_dedup": {"unit": "character", "size": 20, "bands": 4, "rows": 4}},
    {"mix": {"column": "source", "weights": {"a": 2, "b": 1}}},
    {"sample": {"fraction": 0.8}},
]


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_ray_cluster_gives_the_same(tmp_path):
    texts = essays(300)
    source = corpus(tmp_path, texts, fragments=5, source=["ab"[number % 2] for number in range(len(texts))])
    here = curate(source, EVERYTHING, tmp_path / "native", seed=3)
    command = [sys.executable, "-c", _ON_RAY, source.uri, str(tmp_path / "ray")]
    root = Path(__file__).parents[2]
    there = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=200)
    assert there.returncode == 0, there.stderr[-3000:]
    assert there.stdout.strip().splitlines()[-1] == str([(s.name, s.kept, s.removed, s.changed) for s in here.steps])
    ray_corpus = Corpus.open(tmp_path / "ray" / "corpus.lance")
    assert ray_corpus.table().equals(here.corpus.table()) and ray_corpus.fingerprint == here.corpus.fingerprint
    assert pq.read_table(tmp_path / "ray" / "removed.parquet").equals(pq.read_table(here.removed))
