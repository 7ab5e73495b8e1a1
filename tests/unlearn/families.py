"""Tiny networks of three families: gated (Llama), transposed linear layers (GPT-2), parallel residual (GPT-NeoX)."""

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

FAMILIES = ["llama", "gpt2", "neox"]


def family(name: str, vocabulary: int, *, width: int = 32, depth: int = 3, tie: bool = True, seed: int = 0):
    """In eval mode, initialised so that tokens differ."""
    torch.manual_seed(seed)
    rest = {"vocab_size": vocabulary, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.2}
    if name == "llama":
        config = LlamaConfig(
            hidden_size=width, intermediate_size=2 * width, num_hidden_layers=depth, num_attention_heads=4,
            max_position_embeddings=64, tie_word_embeddings=tie, **rest,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()
    if name == "gpt2":
        config = GPT2Config(n_embd=width, n_layer=depth, n_head=4, n_positions=64, tie_word_embeddings=tie, **rest)
        return GPT2LMHeadModel(config).eval()
    config = GPTNeoXConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=depth, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=tie, **rest,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config).eval()
