import torch

from tests.images import digits
from tilth.backbones.folder import save
from tilth.backbones.patches import Patches
from tilth.context import Context
from tilth.contracts import Sample, use
from tilth.corpus import Corpus
from tilth.evaluate.image_probe import ImageProbe
from tilth.evaluate.rotation_probe import RotationProbe
from tilth.stages.pasted import Pasted


def test_the_same_probe_on_both_sets_and_what_is_lost(tmp_path):
    corpora = {"digits": digits(tmp_path / "digits")}
    for name, degrees in (("train", 0), ("upright", 0), ("rotated", 180)):
        folder = tmp_path / name
        folder.mkdir()
        Pasted(data="digits", count=400, size=16, scale=(0.9, 0.9), degrees=degrees).run(Context(folder, corpora=corpora))
        corpora[name] = Corpus.open(folder / "corpus.lance")
    torch.manual_seed(0)
    model = Patches(width=24, depth=1, heads=2, patch=4).build(Sample(1, (16, 16), (0.5,), (0.2,)))
    save(model, None, tmp_path / "model")
    context = Context(tmp_path / "probe", corpora=corpora)
    settings = {"per_class": 10, "neighbours": 5, "batches": use("batches", "pictures", channels=1)}
    metrics = RotationProbe(train="train", upright="upright", rotated="rotated", **settings)(tmp_path / "model", context).metrics
    for name in ("upright", "rotated"):
        alone = ImageProbe(train="train", test=name, **settings)(tmp_path / "model", context).metrics
        assert {f"{name}_{metric}": value for metric, value in alone.items()}.items() <= metrics.items()
    for kind in ("knn", "linear"):
        assert metrics[f"{kind}_drop"] == metrics[f"upright_{kind}_accuracy"] - metrics[f"rotated_{kind}_accuracy"]
    assert metrics["linear_drop"] > 0.05  # the labelled pictures are among the upright ones
    same = RotationProbe(train="train", upright="rotated", rotated="rotated", **settings)(tmp_path / "model", context).metrics
    assert same["knn_drop"] == same["linear_drop"] == 0
