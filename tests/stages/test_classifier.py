import torch

from tilth.backbones.folder import load, save
from tilth.backbones.patches import Patches
from tilth.context import Context
from tilth.contracts import Sample
from tilth.stages.classifier import ClassifierOf


def test_an_encoder_goes_in_as_it_is_and_the_head_is_the_seeds(tmp_path):
    encoder = Patches(width=24, depth=1, heads=2, patch=4, class_token=True, pooling="class").build(Sample(3, (8, 8)))
    inputs = {"encoder": save(encoder, None, tmp_path / "encoder", {"history": [1]})}

    def made(seed: int, name: str):
        context = Context(tmp_path / name, seed, inputs)
        assert ClassifierOf(model="encoder", classes=7).run(context)["parameters"] == encoder.num_parameters() + 24 * 7 + 7
        return load(tmp_path / name / "model")

    first, again, other = made(0, "a"), made(0, "b"), made(1, "c")
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in first.model.encoder.state_dict().items())
    assert torch.equal(first.model.head.weight, again.model.head.weight)
    assert not torch.equal(first.model.head.weight, other.model.head.weight)
    values = torch.rand(2, 3, 8, 8)
    expected = first.model.head(first.model.encoder(values).pooled)
    assert torch.equal(first.model(values).logits, expected) and expected.shape == (2, 7) and first.about == {"history": [1]}
