"""Digits as a corpus, and small networks that classify them."""

from pathlib import Path

import torch
from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification

from tilth.backbones.images import ImageCNN
from tilth.context import Context
from tilth.contracts import use
from tilth.corpus import Corpus
from tilth.stages.digits import Digits

BATCHES = use("batches", "images", channels=1)


def digits(folder: Path) -> Corpus:
    """The first 300 digits; made once per folder."""
    if not (folder / "corpus.lance").exists():
        folder.mkdir(parents=True, exist_ok=True)
        Digits().run(Context(folder))
    return Corpus.open(folder / "corpus.lance").filter("id < 'digit-0300'")


def cnn(seed: int = 0):
    torch.manual_seed(seed)
    return ImageCNN(classes=10, size=8, width=32, filters=4).build(None).eval()


def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        num_channels=1, num_labels=10,
    )  # fmt: skip
    return ViTForImageClassification(config).eval()


def resnet():
    torch.manual_seed(0)
    config = ResNetConfig(
        num_channels=1, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=10
    )
    return ResNetForImageClassification(config).eval()
