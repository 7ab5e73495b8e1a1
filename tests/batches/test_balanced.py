"""As many positive as negative examples: how often each, in any order, after a restart, on two processes, through `tilth run`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from tests.batches.texts import context_in, corpus_of, sentences, tokenizer_of
from tests.floods import BATCHES
from tilth.backbones.folder import load
from tilth.batches.balanced import positives
from tilth.batches.order import Order
from tilth.cli import app
from tilth.context import Context
from tilth.contracts import Noise, use
from tilth.corpus import Corpus
from tilth.corpus.arrays import packed
from tilth.errors import TilthError
from tilth.stages.floods import Floods
from tilth.training.feed import Feed
from tilth.training.lineage import Lineage, seen
from tilth.training.loop import fit
from tilth.training.parallel import World
from tilth.training.settings import Budget, Training
from tilth.training.without import Without

SEGMENTATION = use("batches", "segmentation")


def rows(folder, kinds, of=SEGMENTATION, **settings):
    """Balanced examples of rows whose mask has one pixel of the class given for each; values are the rows' numbers."""
    masks = [None if kind is None else packed(np.array([[0, 0], [kind, 0]], np.uint8)) for kind in kinds]
    table = pa.table(
        {
            "id": [str(number) for number in range(len(kinds))],
            "array": [packed(np.full((1, 2, 2), number, np.float32)) for number in range(len(kinds))],
            "mask": pa.array(masks, pa.large_binary()),
            "label": [str(kind or 0) for kind in kinds],
        }
    )
    folder.mkdir(exist_ok=True, parents=True)
    corpus = Corpus.write(folder / "corpus.lance", table.to_batches(), table.schema)
    return use("batches", "balanced", of=of, **settings).build().build(corpus, None, Context(folder))


def drawn(examples, start, stop, seed=0):
    """Numbers of the rows at positions of a run, as their values say."""
    indices = Order(len(examples), seed).indices(start, stop)
    return examples.batch(indices, Noise(seed, np.arange(start, stop))).pixel_values[:, 0, 0, 0].long().numpy()


def test_of_ten_thousand_draws_half_are_positive_and_every_one_comes_about_equally_often(tmp_path):
    kinds = np.where(np.arange(300) % 12 == 5, 2, 0)  # 25 of 300
    examples = rows(tmp_path, kinds.tolist())
    found = drawn(examples, 0, 10_000)
    positive = kinds[found] > 0
    assert abs(positive.sum() - 5000) < 3 * 50  # three deviations of 10,000 throws of a coin
    counts = np.bincount(found, minlength=300)
    often = counts[kinds > 0]
    assert abs(often - 200).max() < 3 * np.sqrt(200) and abs(counts[kinds == 0] - 5000 / 275).max() < 5 * np.sqrt(5000 / 275)
    # An epoch is exactly that: 11 negatives to a positive, so each positive 11 times and each negative once.
    assert len(examples) == 550
    epoch = np.bincount(drawn(examples, 550, 1100), minlength=300)
    assert np.array_equal(epoch, np.where(kinds > 0, 11, 1))


@pytest.mark.parametrize(("count", "many"), [(7, 3), (8, 4), (9, 8), (40, 1), (41, 29)])
def test_the_rarer_kind_comes_equally_often_and_none_of_the_other_is_left_out(tmp_path, count, many):
    for name, kinds in (("few", [1] * many + [0] * (count - many)), ("most", [0] * many + [1] * (count - many))):
        examples = rows(tmp_path / name, kinds)
        epoch = np.bincount(drawn(examples, 0, len(examples)), minlength=count)
        positive = np.array(kinds) > 0
        assert epoch[positive].sum() == epoch[~positive].sum() == len(examples) / 2
        rarer = positive if positive.sum() <= count / 2 else ~positive
        assert np.ptp(epoch[rarer]) == 0 and set(epoch[~rarer]) <= {1, 2}
        assert (epoch[~rarer] == 2).sum() < rarer.sum()


def test_what_stands_at_a_position_hangs_on_seed_and_position_alone(tmp_path):
    examples = rows(tmp_path, [0, 1, 0, 0, 2, 0, None, 0])
    whole = drawn(examples, 0, 500)
    parts = [drawn(examples, start, start + 7) for start in range(0, 497, 7)]
    assert np.array_equal(whole[:497], np.concatenate(parts)) and np.array_equal(drawn(examples, 321, 340), whole[321:340])
    assert not np.array_equal(drawn(examples, 0, 500, seed=1), whole)
    again = rows(tmp_path / "again", [0, 1, 0, 0, 2, 0, None, 0])
    assert np.array_equal(drawn(again, 0, 500), whole)


def test_two_processes_draw_what_one_does(tmp_path):
    examples = rows(tmp_path, [0, 1, 0, 0, 2, 0, None, 0])

    def steps(rank, size, batch, start=0):
        lineage = Lineage(len(examples), 5, batch, 2, size, steps=12)
        with Feed(examples, lineage, World(rank, size, torch.device("cpu")), start, 12) as feed:
            return [torch.cat([micro.pixel_values[:, 0, 0, 0] for micro in step]).tolist() for step in feed]

    one = steps(0, 1, 6)
    two = [steps(rank, 2, 3) for rank in (0, 1)]
    assert one == [first + second for first, second in zip(*two, strict=True)]
    assert steps(0, 1, 6, start=7) == one[7:]  # gone on from step 7


def test_traces_and_exact_forgetting_know_what_was_drawn(tmp_path):
    kinds = [1 if number % 9 == 0 else 0 for number in range(40)]
    examples = rows(tmp_path, kinds)
    lineage = Lineage(len(examples), 3, 4, 1, 1, steps=30)
    shown = drawn(examples, 0, 120, seed=3).reshape(30, 4)
    for one in seen(lineage, examples, [0, 9, 17]):
        assert np.array_equal(one.steps, np.flatnonzero((shown == one.row).any(1)) + 1)
    repeats = np.flatnonzero(examples.chosen(np.arange(len(examples))) == 9)
    assert len(repeats) == 7  # 35 negatives to 5
    without = Without(examples, repeats)
    assert 9 not in np.concatenate(without.rows(without.ever_drawn(lineage)))
    assert (drawn(without, 0, 3 * len(examples), seed=3) != 9).all()


def test_which_classes_are_positive_can_be_said_and_ignored_ones_are_not(tmp_path):
    kinds = [0, 1, 2, 3, None, 2]
    masked = rows(tmp_path / "a", kinds)
    assert masked.positive.tolist() == [1, 2, 5] and masked.negative.tolist() == [0, 3, 4]
    assert rows(tmp_path / "b", kinds, positive=[2]).positive.tolist() == [2, 5]
    # Numbers are the network's: the mask's 7 is its third class.
    other = rows(tmp_path / "c", [7, 1, 0], use("batches", "segmentation", classes=(0, 1, 7)), positive=[2])
    assert other.positive.tolist() == [0]
    assert positives(masked.examples, None).tolist() == [False, True, True, False, False, True]


def test_texts_with_a_class_are_balanced_too(tmp_path):
    texts = sentences(30)
    corpus = corpus_of(tmp_path, texts, label=["rare" if number % 6 == 0 else "common" for number in range(30)])
    labelled = use("batches", "labelled", length=16)
    examples = use("batches", "balanced", of=labelled).build().build(corpus, tokenizer_of(texts), context_in(tmp_path))
    batch = examples.batch(np.arange(len(examples)), Noise(0, np.arange(len(examples))))
    assert len(examples) == 50 and batch.labels.sum() == 25 and not hasattr(examples, "sample")


def test_one_kind_alone_and_no_classes_are_refused(tmp_path):
    for name, kinds, message in (
        ("none", [0, None, 3], "all 3 examples are negative"),
        ("all", [1, 2], "all 2 examples are posi"),
    ):
        with pytest.raises(TilthError, match=message):
            rows(tmp_path / name, kinds)
    with pytest.raises(TilthError, match="all 2 examples are negative"):
        rows(tmp_path / "other", [1, 1], positive=[2])
    with pytest.raises(TilthError, match="'tiles' reads no classes"):
        rows(tmp_path / "tiles", [0, 1], use("batches", "tiles"))


def test_training_that_was_cut_off_ends_with_the_same_bits(tmp_path):
    Floods(events=3, side=3, size=16, smooth=6.0).run(Context(tmp_path))
    balanced = use("batches", "balanced", of=BATCHES, positive=[2])
    examples = balanced.build().build(Corpus.open(tmp_path / "corpus.lance"), None, Context(tmp_path))
    training = Training(lr=1e-2, batch_size=4, compile=False, checkpoint_every=3)

    def trained(folder, examples):
        torch.manual_seed(0)
        model = use("backbone", "unet", classes=3, widths=(4, 8)).build().build(examples.sample)
        objective = use("pretrain", "segmentation", crop=(0.5, 1.0), flip=0.5).build(model)
        fit(objective, examples, training=training, budget=Budget(steps=9), folder=folder, seed=2)
        return torch.cat([parameter.detach().flatten() for parameter in objective.parameters()])

    with pytest.raises(RuntimeError, match="cut off"):
        trained(tmp_path / "cut", Breaks(examples, position=7 * 4))
    assert [path.name for path in (tmp_path / "cut/checkpoints").iterdir()]
    assert torch.equal(trained(tmp_path / "cut", examples), trained(tmp_path / "whole", examples))


class Breaks:
    """Fails at a position of the run."""

    def __init__(self, examples, position):
        self.examples, self.position, self.sample = examples, position, examples.sample

    def __len__(self):
        return len(self.examples)

    def batch(self, indices, noise):
        if self.position in noise.positions:
            raise RuntimeError("cut off")
        return self.examples.batch(indices, noise)

    def rows(self, indices):
        return self.examples.rows(indices)


RECIPE = """
stages:
  floods: {floods: {events: 3, side: 3, size: 16, smooth: 6.0}}
  tile: {floods: {events: 1, side: 1, size: 16, smooth: 6.0}}
  model:
    pretrain:
      data: floods
      held_out: tile
      backbone: {unet: {classes: 3, widths: [4, 8]}}
      batches:
        balanced:
          positive: [2]
          of: {segmentation: {dates: 3, clamp: 0.15, channels: [vv, ratio], scaling: {min_max: {range: [-1, 1]}}, terrain: slope}}
      objective: {segmentation: {crop: [0.5, 1.0], flip: 0.5}}
      training: {lr: 2.0e-3, batch_size: BATCH, compile: false}
      budget: {epochs: 2}
"""


def test_a_recipe_trains_on_balanced_tiles(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TILTH_STORE", str(tmp_path / "store"))
    Path("recipe.yaml").write_text(RECIPE.replace("BATCH", "4"))
    done = CliRunner().invoke(app, ["run", "recipe.yaml", "--out", "run", "-q", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)["stages"][-1]["metrics"]
    flooded = positives(BATCHES.build().build(Corpus.open("run/floods/corpus.lance"), None, Context(tmp_path)), [2])
    more, fewer = max(flooded.sum(), 27 - flooded.sum()), min(flooded.sum(), 27 - flooded.sum())
    assert fewer > 0 and np.isfinite(metrics["loss"])
    assert metrics["steps"] == -(-2 * 2 * -(-more // fewer) * fewer // 4)
    lines = [json.loads(line) for line in Path("run/model/log.jsonl").read_text().splitlines()]
    assert any("held_out_loss" in line for line in lines)  # one tile, which could not be balanced
    scale = load("run/model/model").model.standardise
    assert scale.mean[:6].tolist() == [0.0] * 6 and scale.std[:6].tolist() == [1.0] * 6 and scale.mean[6] > 0


def test_scores_are_of_rows_as_they_are():
    with pytest.raises(TilthError, match="scores are of rows as they are"):
        use("benchmark", "segmentation", test="test", batches=use("batches", "balanced", of=BATCHES, positive=[2])).build()


@pytest.mark.slow
def test_two_processes_train_on_balanced_tiles_as_one_does(tmp_path):
    found = []
    for processes, batch in ((1, 8), (2, 4)):
        path = tmp_path / f"{processes}.yaml"
        path.write_text(RECIPE.replace("BATCH", str(batch)).replace("      held_out: tile\n", ""))
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        arguments = ["-m", "tilth", "run", str(path), "--out", str(tmp_path / f"run{processes}"), "-q", "--json"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TILTH_STORE": str(tmp_path / f"store{processes}")}
        done = subprocess.run([*start, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=240)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout)["stages"][-1]["metrics"])
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-4) and found[0]["steps"] == found[1]["steps"]
