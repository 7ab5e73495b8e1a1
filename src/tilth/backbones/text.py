"""Text networks at any size: transformers' own classes with fresh weights.

Notable: settings say what the network is (width, depth, heads); everything else follows from them, initialisation
included, so that a model of width 64 and one of width 4096 both start in the range where they learn.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from tilth.contracts import Backbone
from tilth.errors import TilthError
from tilth.registry import Fraction, Positive, PositiveInt, method

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@method("backbone", "causal_lm")
class CausalLM(Backbone):
    """A Llama: pre-norm, rotary positions, SwiGLU, no biases, no dropout (arXiv 2302.13971).

    kv_heads: key and value heads, fewer than `heads` for grouped queries; None: as many. mlp: inner width, None: 8/3 of
    the width to the nearest 32. context: the longest sequence it is meant for. tie: one matrix for input and output
    embeddings. Weights start from a normal with variance 2 / (5 width) (arXiv 1910.05895), those that write into the
    residual stream divided by sqrt(2 depth) (GPT-2), drawn from torch's global generator.
    """

    def __init__(
        self,
        *,
        width: PositiveInt = 256,
        depth: PositiveInt = 4,
        heads: PositiveInt = 4,
        kv_heads: PositiveInt | None = None,
        mlp: PositiveInt | None = None,
        context: PositiveInt = 1024,
        tie: bool = True,
        rope_theta: Positive = 10_000.0,
    ) -> None:
        _divides(heads, width, "causal_lm")
        if kv_heads is not None and heads % kv_heads:
            raise TilthError(f"{heads} heads cannot share {kv_heads} key and value heads", where="backbone.causal_lm.kv_heads")
        if (width // heads) % 2:
            raise TilthError(
                f"rotary positions turn pairs, and heads of {width // heads} are odd", where="backbone.causal_lm.heads"
            )
        self.width, self.depth, self.heads, self.kv_heads = width, depth, heads, kv_heads or heads
        self.mlp, self.context, self.tie, self.rope_theta = mlp or inner_width(width), context, tie, rope_theta

    def build(self, inputs: PreTrainedTokenizerBase) -> PreTrainedModel:
        """LlamaForCausalLM for a tokeniser's vocabulary; float32."""
        config = LlamaConfig(
            vocab_size=len(inputs),
            hidden_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.mlp,
            max_position_embeddings=self.context,
            tie_word_embeddings=self.tie,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            initializer_range=math.sqrt(2 / (5 * self.width)),
            bos_token_id=inputs.bos_token_id,
            eos_token_id=inputs.eos_token_id,
            pad_token_id=inputs.pad_token_id,
        )
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            for layer in model.model.layers:
                for written in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                    written.div_(math.sqrt(2 * self.depth))
        return _generates(model, inputs)


@method("backbone", "masked_lm")
class MaskedLM(Backbone):
    """A BERT without next-sentence head (arXiv 1810.04805): post-norm, learnt positions, GELU.

    mlp: inner width, None: 4 times the width. context: the longest sequence it can read. Initialisation as in BERT, a
    normal, with variance 2 / (5 width) instead of a fixed 0.02, which it equals at width 1000.
    """

    def __init__(
        self,
        *,
        width: PositiveInt = 256,
        depth: PositiveInt = 4,
        heads: PositiveInt = 4,
        mlp: PositiveInt | None = None,
        context: PositiveInt = 512,
        dropout: Fraction = 0.0,
    ) -> None:
        _divides(heads, width, "masked_lm")
        self.width, self.depth, self.heads, self.mlp = width, depth, heads, mlp or 4 * width
        self.context, self.dropout = context, dropout

    def build(self, inputs: PreTrainedTokenizerBase) -> PreTrainedModel:
        """BertForMaskedLM for a tokeniser's vocabulary; float32."""
        config = BertConfig(
            vocab_size=len(inputs),
            hidden_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            intermediate_size=self.mlp,
            max_position_embeddings=self.context,
            hidden_dropout_prob=self.dropout,
            attention_probs_dropout_prob=self.dropout,
            initializer_range=math.sqrt(2 / (5 * self.width)),
            pad_token_id=inputs.pad_token_id,
        )
        return BertForMaskedLM(config)


@method("backbone", "encoder_decoder")
class EncoderDecoder(Backbone):
    """A T5 1.1: pre-norm, relative position bias, gated GELU (arXiv 1910.10683, 2002.05202).

    depth: layers of the encoder; decoder_depth: of the decoder, None: as many. mlp: inner width, None: 8/3 of the width
    to the nearest 32. tie: one matrix for input and output embeddings. Initialisation is T5's own, scaled by width.
    """

    def __init__(
        self,
        *,
        width: PositiveInt = 256,
        depth: PositiveInt = 4,
        decoder_depth: PositiveInt | None = None,
        heads: PositiveInt = 4,
        mlp: PositiveInt | None = None,
        dropout: Fraction = 0.0,
        tie: bool = True,
    ) -> None:
        _divides(heads, width, "encoder_decoder")
        self.width, self.depth, self.decoder_depth, self.heads = width, depth, decoder_depth or depth, heads
        self.mlp, self.dropout, self.tie = mlp or inner_width(width), dropout, tie

    def build(self, inputs: PreTrainedTokenizerBase) -> PreTrainedModel:
        """T5ForConditionalGeneration for a tokeniser's vocabulary; float32."""
        if inputs.pad_token_id is None:
            raise TilthError("an encoder-decoder starts decoding from the padding token and the tokeniser has none")
        config = T5Config(  # type: ignore[call-arg]
            vocab_size=len(inputs),
            d_model=self.width,
            d_kv=self.width // self.heads,
            num_heads=self.heads,
            num_layers=self.depth,
            num_decoder_layers=self.decoder_depth,
            d_ff=self.mlp,
            dropout_rate=self.dropout,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=self.tie,
            pad_token_id=inputs.pad_token_id,
            eos_token_id=inputs.eos_token_id,
            decoder_start_token_id=inputs.pad_token_id,
        )
        return _generates(T5ForConditionalGeneration(config), inputs)


def inner_width(width: int) -> int:
    """8/3 of the width, to the nearest multiple of 32: a gated MLP of as many weights as a plain one of 4 times it."""
    return max(32, round(width * 8 / 3 / 32) * 32)


def _divides(heads: int, width: int, name: str) -> None:
    if width % heads:
        raise TilthError(
            f"a width of {width} does not divide into {heads} heads",
            where=f"backbone.{name}.heads",
            hint=f"Make width a multiple of heads, such as {max(1, width // heads) * heads}.",
        )


def _generates(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The same model, knowing where its texts end."""
    settings = model.generation_config
    assert settings is not None and isinstance(model, nn.Module)
    settings.bos_token_id, settings.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    settings.pad_token_id = tokenizer.pad_token_id
    return model
