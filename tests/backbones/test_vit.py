"""Vision transformers made by transformers, and weights in timm's layout, through the patch encoder."""

import pytest
import torch
from transformers import AutoModel, ViTConfig, ViTModel

from tilth.backbones.folder import load, save
from tilth.backbones.patches import Patches
from tilth.backbones.vit import from_timm, from_vit, to_vit
from tilth.contracts import Sample
from tilth.errors import TilthError


def vit(**settings):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=80, image_size=16, patch_size=4, **settings
    )
    model = ViTModel(config).eval()
    with torch.no_grad():  # as trained weights are: nothing zero
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


def test_outputs_are_those_of_transformers():
    theirs = vit()
    ours, values = from_vit(theirs), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected, found = theirs(values, output_hidden_states=True), ours(values, layers=(1, 3))
    assert torch.allclose(found.tokens, expected.last_hidden_state[:, 1:], atol=1e-5)
    assert torch.allclose(found.pooled, expected.last_hidden_state[:, 0], atol=1e-5)
    assert torch.allclose(found.layers[0], expected.hidden_states[1], atol=1e-5)


def test_there_and_back_a_folder_that_transformers_reads(tmp_path):
    theirs, values = vit(), torch.rand(2, 3, 16, 16)
    ours = from_vit(theirs, [0.5] * 3, [0.25] * 3)
    to_vit(ours).save_pretrained(tmp_path / "vit")
    again = AutoModel.from_pretrained(tmp_path / "vit", add_pooling_layer=False)
    with torch.no_grad():
        expected = again((values - 0.5) / 0.25).last_hidden_state[:, 1:]
        assert torch.allclose(ours(values).tokens, expected, atol=1e-5)
    save(ours, None, tmp_path / "ours", {})
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "ours").model(values).pooled, ours(values).pooled)


def test_a_vit_folder_is_loaded_as_an_encoder(tmp_path):
    theirs, values = vit(), torch.rand(2, 3, 16, 16)
    theirs.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}')
    ours = load(tmp_path).model
    with torch.no_grad():
        assert torch.allclose(ours(values).tokens, theirs((values - 0.5) / 0.25).last_hidden_state[:, 1:], atol=1e-5)


def timm_layout(model):
    """What timm calls the weights of the same network."""
    state, made = model.state_dict(), {}
    for number in range(3):
        for part in ("weight", "bias"):
            hugging, timm = f"layers.{number}.", f"blocks.{number}."
            made[f"{timm}attn.qkv.{part}"] = torch.cat([state[f"{hugging}attention.{n}_proj.{part}"] for n in "qkv"])
            for a, b in (
                ("norm1", "layernorm_before"),
                ("norm2", "layernorm_after"),
                ("attn.proj", "attention.o_proj"),
                ("mlp.fc1", "mlp.fc1"),
                ("mlp.fc2", "mlp.fc2"),
            ):
                made[f"{timm}{a}.{part}"] = state[f"{hugging}{b}.{part}"]
    for a, b in (("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("norm", "layernorm")):
        made |= {f"{a}.{part}": state[f"{b}.{part}"] for part in ("weight", "bias")}
    return made | {"cls_token": state["embeddings.cls_token"], "pos_embed": state["embeddings.position_embeddings"]}


def test_timm_weights_and_what_finds_no_place():
    theirs, values = vit(), torch.randn(2, 3, 16, 16)
    state = timm_layout(theirs)
    with torch.no_grad():
        ours = from_timm({**state, "head.weight": torch.zeros(10, 32)}, heads=4, eps=1e-12)(values)
        assert torch.allclose(ours.tokens, theirs(values).last_hidden_state[:, 1:], atol=1e-5)
    with pytest.raises(TilthError, match="has no place"):
        from_timm({**state, "blocks.0.ls1.gamma": torch.ones(32)}, heads=4)
    with pytest.raises(TilthError, match="lack 'cls_token'"):
        from_timm({name: value for name, value in state.items() if name != "cls_token"}, heads=4)


def test_what_is_no_vit_is_refused():
    with pytest.raises(TilthError, match="not a plain vision transformer"):
        to_vit(Patches(width=24, depth=1, heads=2, patch=4).build(Sample(3, (16, 16))))
