"""Pictures and volumes in one batch: each epoch all pictures, keys of their own, nothing that depends on who else is there."""

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from tilth.context import Context
from tilth.contracts import Noise, use
from tilth.corpus import Corpus
from tilth.corpus.arrays import packed
from tilth.registry import references
from tilth.training.loop import fit
from tilth.training.settings import Budget, Training


def picture(value):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def examples(tmp_path):
    """Eleven pictures of brightness 0 to 10 and five volumes of value 0 to 4, three pictures to a volume."""
    tables = {
        "pictures": pa.table({"id": [str(i) for i in range(11)], "image": pa.array(map(picture, range(11)), pa.large_binary())}),
        "volumes": pa.table(
            {
                "id": [str(i) for i in range(5)],
                "array": pa.array([packed(np.full((1, 8, 8, 8), i, np.uint8)) for i in range(5)], pa.large_binary()),
            }
        ),
    }
    corpora = {name: Corpus.write(tmp_path / f"{name}.lance", table.to_batches(), table.schema) for name, table in tables.items()}
    batches = use("batches", "mixed", volumes="volumes", per_volume=3, pictures=use("batches", "pictures", channels=1))
    assert [name for _, name in references(batches)] == ["volumes"]
    return batches.build().build(corpora["pictures"], None, Context(tmp_path, corpora=corpora))


def test_an_epoch_shows_every_picture_and_says_which(examples):
    assert len(examples) == 4 and [sample.size for sample in examples.sample] == [(8, 8), (8, 8, 8)]
    indices = np.arange(4)
    batch = examples.batch(indices, Noise(0, indices))
    assert batch.pictures.pixel_values.shape == (12, 1, 8, 8) and batch.volumes.pixel_values.shape == (4, 1, 8, 8, 8)
    assert batch.samples == batch.tokens == 16
    shown = batch.pictures.pixel_values[:, 0, 0, 0].tolist()
    assert set(shown) == set(range(11)) and shown[:3] == [0, 4, 8]
    assert [rows.tolist() for rows in examples.rows(indices)] == [sorted(shown[3 * i : 3 * i + 3]) for i in range(4)]


def test_keys_differ_within_a_run_and_what_is_drawn_hangs_on_the_position_alone(examples):
    order = np.arange(400) % 4
    noise = Noise(3, np.arange(400))
    whole = examples.batch(order, noise)
    assert len(whole.pictures["keys"].unique()) == 1200 and len(whole.volumes["keys"].unique()) == 400
    drawn = whole.volumes.pixel_values[:, 0, 0, 0, 0]
    assert np.array_equal(drawn, examples.drawn(noise))
    assert torch.bincount(drawn.long()).min() > 50  # of 80 expected
    part = examples.batch(order[[7, 30]], Noise(3, np.array([7, 30])))
    for kind, where in (("pictures", [21, 22, 23, 90, 91, 92]), ("volumes", [7, 30])):
        assert torch.equal(part[kind]["keys"], whole[kind]["keys"][where])
        assert torch.equal(part[kind].pixel_values, whole[kind].pixel_values[where])


def test_an_encoder_of_both_learns_from_them(examples, tmp_path):
    torch.manual_seed(0)
    model = use("backbone", "patches", width=24, depth=1, heads=2, patch=4, patch_3d=4).build().build(examples.sample)
    objective = use("pretrain", "uni4eye", decoder_width=24, decoder_depth=1, decoder_heads=2).build(model)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    training = Training(lr=1e-3, batch_size=2, compile=False)
    fit(objective, examples, training=training, budget=Budget(steps=2), folder=tmp_path / "fit", seed=0)
    changed = {name for name, value in objective.state_dict().items() if not torch.equal(value, before[name])}
    assert all(any(kind in name for name in changed) for kind in ("embeddings.2d", "embeddings.3d", "heads.2d", "heads.3d"))
