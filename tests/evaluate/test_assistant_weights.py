import pytest
import torch

from tests.evaluate.tiny import corpus, llama, people, tokenizer
from tilth.backbones import folder
from tilth.context import Context
from tilth.contracts import use
from tilth.errors import TilthError
from tilth.evaluate.assistant_weights import AssistantWeights
from tilth.unlearn.assistant import additions
from tilth.unlearn.uld import ULD


def test_every_weight_is_scored_and_the_curve_starts_at_the_bare_model(tmp_path):
    rows, tokens = people("Mara", "Odo"), tokenizer()
    model = llama(len(tokens))
    guard = ULD(layers=1, rank=2)
    guard.configured, guard.assistant = use("unlearn", "uld", layers=1, rank=2), guard.cut(model)
    with torch.no_grad():
        for tensor in additions(guard.assistant).values():
            tensor.add_(0.3)
    sets = {"forget": corpus(tmp_path / "f", rows[:4]), "retain": corpus(tmp_path / "r", rows[4:])}
    context = Context(tmp_path, corpora=sets)
    found = AssistantWeights(forget="forget", retain="retain", weights=(0.0, -1.0))(
        folder.save(model, tokens, tmp_path / "guarded", guard=guard), context
    )
    flat = guard
    flat.weight = 0.0
    flat.configured = use("unlearn", "uld", layers=1, rank=2, weight=0.0)
    bare = AssistantWeights(forget="forget", retain="retain", weights=(0.0, 0.0))(
        folder.save(model, tokens, tmp_path / "flat", guard=flat), context
    )
    metrics = found.metrics
    assert metrics["forget_probability_0"] == pytest.approx(bare.metrics["forget_probability_1"], rel=1e-6)
    assert metrics["largest_rise"] == metrics["forget_probability_1"] - metrics["forget_probability_0"] != 0
    assert bare.metrics["largest_rise"] == 0 and set(metrics) > {"retain_probability_0", "retain_probability_1"}
    with pytest.raises(TilthError, match="no assistant"):
        AssistantWeights(forget="forget", retain="retain")(folder.save(model, tokens, tmp_path / "bare"), context)
    with pytest.raises(TilthError, match="none above 0"):
        AssistantWeights(forget="forget", retain="retain", weights=(0.0, 0.5))
