"""A folder of pictures through the command line: pre-trained, embedded, adapted; odd pictures on the way."""

import io
import json
from pathlib import Path

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.test_cli import tilth
from tilth.backbones.folder import load
from tilth.cli import app
from tilth.cli.output import shown
from tilth.errors import TilthError


def picture(number: int, size: int = 24) -> Image.Image:
    """Stripes across or along, in a colour and with noise of its own."""
    generator = np.random.default_rng(number)
    stripes = np.sin(np.arange(size) * generator.uniform(0.8, 1.2))[:, None].repeat(size, 1)
    stripes = stripes if number % 2 else stripes.T
    noise = generator.normal(0, 0.1, (size, size, 3))
    return Image.fromarray(
        (127 + 100 * np.clip(stripes[:, :, None] * generator.uniform(0.5, 1, 3) + noise, -1, 1)).astype(np.uint8)
    )


def encoded(image: Image.Image, kind: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Sixty pictures of two classes, a few of them odd, and two that are none."""
    monkeypatch.chdir(tmp_path)
    for number in range(60):
        place = Path("pics", "along" if number % 2 else "across", f"{number}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(picture(number), "PNG"))
    whole = picture(1)
    odd = {
        "cmyk.jpg": encoded(whole.convert("CMYK"), "JPEG"),
        "alpha.png": encoded(whole.convert("RGBA"), "PNG"),
        "deep.png": encoded(Image.fromarray(np.asarray(whole.convert("L")).astype(np.uint16) * 200), "PNG"),
        "moving.gif": encoded(whole, "GIF", save_all=True, append_images=[picture(2)]),
        "dot.png": encoded(whole.crop((0, 0, 1, 1)), "PNG"),
        "cut.png": encoded(whole, "PNG")[:300],
        "empty.png": b"",
    }
    for name, data in odd.items():
        Path("pics", "along", name).write_bytes(data)
    return tmp_path


def test_pictures_become_an_encoder_that_embeds_and_adapts(folder):
    arguments = ["pretrain", "pics", "--set", "model.pretrain.budget={steps: 12}", "--out", "run", "--quiet"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "24 x 24" in done.stderr and "patches of 3 x 3" in done.stderr and "tilth embed" in done.stderr
    record = json.loads((folder / "run/run.json").read_text())
    assert record["data"][0]["rows"] == 65
    report = (folder / "run/report.html").read_text()
    assert "What is rebuilt" in report and "Nearest neighbours" in report and report.count("data:image/png;base64") == 4
    tilth("embed", "run/model", "pics", "features.parquet", "--quiet")
    features = pq.read_table("features.parquet")
    assert features.num_rows == 65 and np.isfinite(np.stack(features["embedding"].to_numpy())).all()
    tilth("adapt", "run/model", "pics", "--out", "adapted", "--quiet")
    metrics = json.loads((folder / "adapted/run.json").read_text())["stages"][-1]["metrics"]
    assert metrics["accuracy"] > 0.9


def test_large_grey_pictures_of_many_sizes_are_read_by_everything_as_the_encoder_was_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(40):
        place = Path("scans", "along" if number % 2 else "across", f"{number}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(picture(number, 110 + 7 * (number % 3)).convert("L"), "PNG"))
    small = ["--set", "model.pretrain.budget={steps: 2}", "--set", "model.pretrain.training.batch_size=8"]
    tilth("pretrain", "scans", *small, "--out", "run", "--quiet")
    given = json.loads((tmp_path / "run/model/config.json").read_text())["inputs"][0]
    assert given["channels"] == 1 and given["size"] == [96, 96] and given["patch"] == [12, 12]
    tilth("embed", "run/model", "scans", "features.parquet", "--quiet")
    tilth("adapt", "run/model", "scans", "--out", "adapted", "--quiet")
    probe = ["--benchmark", "image_probe", "--data", "train=scans", "--data", "test=scans", "--set", "neighbours=1"]
    tilth("evaluate", "run/model", *probe, "--out", "probed", "--quiet")
    metrics = json.loads((tmp_path / "probed/run.json").read_text())["stages"][-1]["metrics"]
    assert metrics["knn_accuracy"] == 1.0


def test_a_patch_that_does_not_divide_and_a_folder_with_one_picture_are_explained(folder):
    with pytest.raises(TilthError, match="patches of 5x5 do not divide an input of 24x24"):
        tilth("pretrain", "pics", "--set", "model.pretrain.backbone.patches.patch=5", "--out", "bad", "--quiet")
    Path("one").mkdir()
    Path("one/a.png").write_bytes(encoded(picture(0), "PNG"))
    with pytest.raises(TilthError, match="of the 1 rows"):
        tilth("pretrain", "one", "--out", "alone", "--quiet")


@pytest.mark.parametrize(
    ("purpose", "settings", "objective", "said"),
    [
        ("frozen", [], "simclr", "simclr"),
        ("frozen", ["--set", "model.pretrain.training.batch_size=16"], "moco_v2", "queue"),
        ("dense", [], "mae", "what lies where"),
        (
            None,
            ["--set", "model.pretrain.objective={hi_end_mae: {taps: [2, 4], decoder_width: 48, decoder_heads: 4, views: mae}}"],
            "hi_end_mae",
            "24 x 24",
        ),
    ],
)
def test_what_an_encoder_is_for_chooses_its_objective(folder, purpose, settings, objective, said):
    given = [
        "pretrain",
        "pics",
        *(["--for", purpose] if purpose else []),
        *settings,
        "--set",
        "model.pretrain.budget={steps: 2}",
        "--out",
        "run",
        "--quiet",
    ]
    assert said in CliRunner().invoke(app, given, catch_exceptions=False).stderr
    stages = {stage["name"]: stage for stage in json.loads(Path("run/run.json").read_text())["stages"]}
    assert list(stages["model"]["settings"]["objective"]) == [objective] and stages["model"]["metrics"]["steps"] == 2


def test_a_use_that_is_none_and_a_recipe_without_choice_are_explained(folder):
    chosen = ["--for", "frozen", "--set", "model.pretrain.objective=sat_mae_pp"]
    wrong = (
        (["--for", "frozn"], "frozen"),
        (["--for", "frozen", "--recipe", "text"], "recipe 'text'"),
        (chosen, "no objective to be chosen"),
    )
    for given, said in wrong:
        result = CliRunner().invoke(app, ["pretrain", "pics", *given])
        assert isinstance(result.exception, TilthError) and said in str(result.exception)


def scenes(place: Path) -> None:
    """Three scenes of five bands, of 40 x 48."""
    place.mkdir()
    for number in range(3):
        np.save(place / f"{number}.npy", np.random.default_rng(number).random((5, 40, 48), np.float32))


def volumes(place: Path) -> None:
    """Six volumes of 20 x 24 x 28."""
    place.mkdir()
    for number in range(6):
        values = np.random.default_rng(number).random((20, 24, 28), np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), place / f"{number}.nii")


def drawn(place: Path) -> None:
    """Four pictures with masks, of 40 x 48."""
    for name in ("images", "masks"):
        (place / name).mkdir(parents=True)
    for number in range(4):
        values = np.random.default_rng(number).integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(values).save(place / f"images/{number}.png")
        Image.fromarray(values[..., 0] // 128).save(place / f"masks/{number}.png")


@pytest.mark.parametrize(
    ("made", "said", "channels", "size"),
    [(scenes, "40x40, in 64 patches of 5", 5, [40, 40]), (volumes, "20x20x20, in 64 patches of 5", 1, [20, 20, 20]),
     (drawn, "40x40, in 64 patches of 5", 3, [40, 40])],
)  # fmt: skip
def test_scenes_volumes_and_pictures_with_masks_become_an_encoder_too(tmp_path, monkeypatch, made, said, channels, size):
    monkeypatch.chdir(tmp_path)
    made(tmp_path / "data")
    arguments = ["pretrain", "data", "--set", "model.pretrain.budget={steps: 2}", "--out", "run", "--quiet"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert said in done.stderr and f"{channels} channels" in done.stderr
    [given] = load("run/model").model.config.inputs
    assert given["channels"] == channels and list(given["size"]) == size
    report = Path("run/report.html").read_text()
    assert "Nearest neighbours" in report and "not a number" not in report  # of the single row that is held out
    tilth("embed", "run/model", "data", "features.parquet", "--quiet")
    assert pq.read_table("features.parquet").num_rows == len(list((tmp_path / "data").rglob("*.*"))) // (
        2 if made is drawn else 1
    )


def test_arrays_too_small_for_patches_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    np.save("tiny/one.npy", np.ones((3, 6, 40), np.float32))
    with pytest.raises(TilthError, match="6 along one axis are too small for 8 patches"):
        CliRunner().invoke(app, ["pretrain", "tiny", "--quiet"], catch_exceptions=False)


def test_a_figure_that_is_no_number_is_shown_as_that():
    assert [shown(value) for value in (float("nan"), float("inf"), 3.0, 0.12345)] == ["nan", "inf", "3", "0.1235"]
