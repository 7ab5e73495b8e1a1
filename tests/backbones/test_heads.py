import pytest
import torch
from torch import nn

from tests.images import cnn, resnet, vit
from tilth.backbones.folder import load, save
from tilth.backbones.heads import embed, extractor_parameters, freeze_batch_norm, head_of
from tilth.errors import TilthError

networks = pytest.mark.parametrize("model", [cnn(), vit(), resnet()], ids=["cnn", "vit", "resnet"])


@networks
def test_the_head_makes_the_logits_of_the_embedding(model):
    pixels = torch.randn(3, 1, 8, 8)
    embedding, logits = embed(model, pixels)
    assert embedding.shape == (3, 32 if model is not None and hasattr(model, "convolutions") else 16)
    torch.testing.assert_close(logits, model(pixel_values=pixels).logits)
    torch.testing.assert_close(head_of(model)(embedding.reshape(3, -1, 1, 1) if hasattr(model, "resnet") else embedding), logits)


@networks
def test_extractor_and_head_share_no_weight_and_leave_none_out(model):
    head, rest = list(head_of(model).parameters()), extractor_parameters(model)
    assert len(head) + len(rest) == len(list(model.parameters()))
    assert not {id(p) for p in head} & {id(p) for p in rest}


@networks
def test_a_classifier_of_images_comes_back_whole_without_a_tokeniser(model, tmp_path):
    loaded = load(save(model, None, tmp_path / "model", {"told": 1}))
    pixels = torch.randn(2, 1, 8, 8)
    assert loaded.tokenizer is None and loaded.about == {"told": 1}
    assert torch.equal(loaded.model(pixel_values=pixels).logits, model(pixel_values=pixels).logits)


def test_a_network_without_a_head_of_its_own_is_refused():
    with pytest.raises(TilthError, match="no head"):
        head_of(nn.Sequential(nn.Linear(3, 3), nn.Conv2d(1, 1, 1)))


def test_frozen_batch_norms_keep_their_statistics():
    model = resnet()
    model.train()
    freeze_batch_norm(model)
    before = {name: value.clone() for name, value in model.named_buffers()}
    embed(model, torch.randn(8, 1, 8, 8) + 5)
    assert before and all(torch.equal(value, before[name]) for name, value in model.named_buffers())
