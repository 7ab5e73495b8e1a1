"""A small convolutional classifier as a transformers class, so that it is saved and loaded like any other.

Notable: once `register` was called (`backbones.folder` does), transformers' Auto classes know it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

from tilth.contracts import Backbone
from tilth.registry import PositiveInt, method


class ImageCNNConfig(PretrainedConfig):
    """image_size: height and width, divisible by 4. hidden_size: width of the embedding; the head has half of it inside."""

    model_type = "tilth_image_cnn"

    def __init__(
        self, image_size: int = 28, num_channels: int = 1, hidden_size: int = 256, filters: int = 16, **others: Any
    ) -> None:
        super().__init__(**others)
        self.image_size, self.num_channels, self.hidden_size, self.filters = image_size, num_channels, hidden_size, filters


class ImageCNNForImageClassification(PreTrainedModel):
    """Two convolutions, a linear embedding, a head: see `image_cnn`."""

    config_class = ImageCNNConfig
    main_input_name = "pixel_values"

    def __init__(self, config: ImageCNNConfig) -> None:
        super().__init__(config)
        small, large, side = config.filters, 2 * config.filters, config.image_size // 4
        self.convolutions = nn.Sequential(
            nn.Conv2d(config.num_channels, small, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(small, large, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.embedding = nn.Linear(large * side * side, config.hidden_size)
        inner = config.hidden_size // 2
        self.head = nn.Sequential(nn.Linear(config.hidden_size, inner), nn.Linear(inner, int(config.num_labels or 2)))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation stands."""

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutputWithNoAttention:
        """pixel_values (batch, channels, size, size) -> logits (batch, classes)."""
        return ImageClassifierOutputWithNoAttention(logits=self.head(self.embedding(self.convolutions(pixel_values))))


@method("backbone", "image_cnn", systems=[19, 35])
class ImageCNN(Backbone):
    """The CNN of LAF (arXiv 2404.00506): 5x5 convolutions 1-16-32 with ReLU and 2x2 pooling, a linear embedding, a linear head.

    classes: outputs. size: height and width of the images. width: of the embedding (256 there); the head is width - width/2
    - classes without non-linearity. filters: of the first convolution; the second has twice as many.
    """

    tokenised = False

    def __init__(
        self,
        *,
        classes: PositiveInt,
        size: PositiveInt = 28,
        channels: PositiveInt = 1,
        width: PositiveInt = 256,
        filters: PositiveInt = 16,
    ) -> None:
        self.classes, self.size, self.channels, self.width, self.filters = classes, size, channels, width, filters

    def build(self, inputs: Any) -> PreTrainedModel:
        """A classifier with fresh weights; inputs are not needed."""
        config = ImageCNNConfig(self.size, self.channels, self.width, self.filters, num_labels=self.classes)
        return ImageCNNForImageClassification(config)


def register() -> None:
    """Make transformers' Auto classes know the network."""
    AutoConfig.register(ImageCNNConfig.model_type, ImageCNNConfig, exist_ok=True)
    AutoModelForImageClassification.register(ImageCNNConfig, ImageCNNForImageClassification, exist_ok=True)
