"""Models at rest: whole, readable without Tilth, and nothing in them runs."""

import json
import os
import pickle
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    ResNetConfig,
    ResNetModel,
)

from tests.batches.texts import sentences, tokenizer_of
from tilth.backbones.folder import load, save
from tilth.backbones.text import CausalLM, EncoderDecoder, MaskedLM
from tilth.errors import TilthError

TOKENIZER = tokenizer_of(sentences(100))
IDS = torch.arange(4, 24).reshape(2, 10)
SMALL = {"width": 32, "depth": 2, "heads": 2}


def small():
    return CausalLM(**SMALL).build(TOKENIZER)


@pytest.mark.parametrize(
    ("backbone", "auto"),
    [
        (CausalLM(**SMALL), AutoModelForCausalLM),
        (CausalLM(**SMALL, tie=False), AutoModelForCausalLM),
        (MaskedLM(**SMALL), AutoModelForMaskedLM),
        (EncoderDecoder(**SMALL), AutoModelForSeq2SeqLM),
    ],
)
def test_what_is_saved_loads_with_and_without_tilth_to_the_same_logits(tmp_path, backbone, auto):
    model = backbone.build(TOKENIZER).eval()
    save(model, TOKENIZER, tmp_path / "model", {"history": ["größe"]})
    assert not [path for path in (tmp_path / "model").iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]
    loaded = load(tmp_path / "model")
    theirs = auto.from_pretrained(tmp_path / "model").eval()
    inputs = {"input_ids": IDS} | ({"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {})
    with torch.no_grad():
        expected = model(**inputs).logits
        assert torch.equal(loaded.model(**inputs).logits, expected) and torch.equal(theirs(**inputs).logits, expected)
    assert loaded.about == {"history": ["größe"]} and not loaded.model.training
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("barley")["input_ids"] == loaded.tokenizer("barley")["input_ids"] == TOKENIZER("barley")["input_ids"]
    assert loaded.model.dtype == torch.float32


def test_half_precision_stays_half(tmp_path):
    save(small().bfloat16(), TOKENIZER, tmp_path / "model")
    assert load(tmp_path / "model").model.dtype == torch.bfloat16


def test_models_of_others_load(tmp_path):
    theirs = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=400, n_embd=32, n_layer=1, n_head=2)).eval()
    theirs.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert loaded.about == {} and torch.equal(loaded.model(IDS).logits, theirs(IDS).logits)


def test_a_classifier_loads_as_one(tmp_path):
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    save(BertForSequenceClassification(config), TOKENIZER, tmp_path / "model")
    loaded = load(tmp_path / "model").model
    assert isinstance(loaded, type(AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")))
    assert loaded(IDS).logits.shape == (2, 3)


class Trap:
    """What runs when a pickle is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "optimizer.pt", "deep/extra.pkl", "weights.CKPT", "model.pth"])
@pytest.mark.parametrize("beside", [True, False])
def test_a_folder_with_a_pickle_is_refused_and_the_pickle_is_never_read(tmp_path, name, beside):
    folder = save(small(), TOKENIZER, tmp_path / "model")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    if not beside:
        (folder / "model.safetensors").unlink()
    with pytest.raises(TilthError, match="a pickle"):
        load(folder)
    assert not (tmp_path / "sprung").exists()


def test_code_of_the_model_s_own_is_never_run(tmp_path):
    folder = save(small(), TOKENIZER, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "modeling_own.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n")
    for changed in ({}, {"model_type": "own", "architectures": ["OwnForCausalLM"]}):
        own = {"auto_map": {"AutoConfig": "modeling_own.Config", "AutoModelForCausalLM": "modeling_own.Own"}}
        (folder / "config.json").write_text(json.dumps(config | own | changed))
        with pytest.raises(TilthError):
            load(folder)
    assert not (tmp_path / "sprung").exists()


def test_each_defect_of_a_folder_is_said(tmp_path):
    whole = save(small(), TOKENIZER, tmp_path / "whole")

    def broken(change):
        folder = tmp_path / "broken"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        change(folder)
        with pytest.raises(TilthError) as caught:
            load(folder)
        assert caught.value.where == str(folder)
        return caught.value.what

    assert "no config.json" in broken(lambda folder: (folder / "config.json").unlink())
    assert "no weights" in broken(lambda folder: (folder / "model.safetensors").unlink())
    assert "SafetensorError" in broken(lambda folder: (folder / "model.safetensors").write_bytes(b"\x00" * 100))
    assert "config.json" in broken(lambda folder: (folder / "config.json").write_text("{"))
    assert "okenizer" in broken(lambda folder: [path.unlink() for path in folder.glob("tokenizer*")])


def test_a_tokeniser_that_knows_more_than_the_model_is_refused(tmp_path):
    folder = save(small(), TOKENIZER, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["furrowed"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(TilthError, match="the tokeniser knows 401 tokens and the model 400"):
        load(folder)


def test_a_folder_that_lacks_weights_is_refused_not_filled_at_random(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save(small(), TOKENIZER, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(TilthError, match=r"lacks 1 of the model's weights, such as 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load(folder)


def test_what_is_not_a_text_model_is_refused(tmp_path):
    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    with pytest.raises(TilthError, match="not a text model with a head"):
        load(tmp_path)


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/model", "a/b/c", "../model"])
def test_a_missing_folder_is_not_taken_for_a_hub_id(source):
    with pytest.raises(TilthError, match="no model folder here"):
        load(source)


@pytest.mark.parametrize("source", ["nobody/no-such-model", "no-such-model"])
def test_a_hub_id_that_cannot_be_fetched_is_said(source):
    with pytest.raises(TilthError, match="neither a folder nor a model that can be fetched"):
        load(source)


def test_saving_replaces_whole_folders_and_a_failure_leaves_the_old_one(tmp_path):
    model = small()
    folder = save(model, TOKENIZER, tmp_path / "model", {"number": 1})
    (folder / "stale.txt").write_text("of the first")
    save(model, TOKENIZER, folder, {"number": 2})
    assert load(folder).about == {"number": 2} and not (folder / "stale.txt").exists()
    with pytest.raises(TypeError):
        save(model, TOKENIZER, folder, {"number": object()})
    assert load(folder).about == {"number": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
