"""Real transformers models small enough for a test, with behaviour one can calculate."""

from pathlib import Path

import pyarrow as pa
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tilth.batches.text.answers import encode_answers
from tilth.batches.text.tokenizers import Word
from tilth.corpus import Corpus

WORDS = "Question Answer : ? a an and animal at bakes big blue book cat dog finds green in is lives Mara Odo of plays red the town tree what where who"


def tokenizer(texts: list[str] | None = None) -> PreTrainedTokenizerFast:
    return Word().train(iter([*(texts or []), WORDS]))


def llama(vocabulary: int, *, width: int = 32, context: int = 128, seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2(vocabulary: int, *, context: int = 128, seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=context, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def uniform(vocabulary: int) -> LlamaForCausalLM:
    """Every token has probability 1 / vocabulary, whatever came before."""
    model = llama(vocabulary)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    return model


def clock(vocabulary: int) -> LlamaForCausalLM:
    """After token t comes t + 1, with near certainty: no attention, one-hot embeddings, a shifted output layer."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=vocabulary, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(vocabulary))
        model.lm_head.weight.copy_(20 * torch.eye(vocabulary).roll(1, 0))
    return model


models = pytest.mark.parametrize("model", [llama(50), gpt2(50)], ids=["llama", "gpt2"])


def learnt(tokens: PreTrainedTokenizerFast, rows: list[dict], steps: int = 80, seed: int = 0) -> LlamaForCausalLM:
    """A model that has learnt the rows' answers by heart."""
    model = llama(len(tokens), width=48, seed=seed)
    encoded = encode_answers([row["question"] for row in rows], [row["answer"] for row in rows], tokens)
    batch = {"input_ids": torch.tensor(encoded.input_ids).long(), "labels": torch.tensor(encoded.labels)}
    optimiser = torch.optim.AdamW(model.parameters(), lr=6e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        model(**batch).loss.backward()
        optimiser.step()
    return model.eval()


def people(*names: str) -> list[dict]:
    """Rows of the TOFU form: four questions about each name."""
    places, colours, animals = ["town", "tree", "dog", "cat"], ["red", "green", "blue", "big"], ["dog", "cat", "animal", "book"]
    rows = []
    for name in names:
        for kind, values, question, answer, paraphrase in (
            ("place", places, f"where lives {name}", f"{name} lives at the {{}}", f"the {{}} is where {name} lives"),
            ("colour", colours, f"what is {name}", f"{name} is {{}}", f"{{}} is what {name} is"),
            ("animal", animals, f"what finds {name}", f"{name} finds a {{}}", f"a {{}} is what {name} finds"),
            ("plays", animals, f"who plays at {name}", f"a {{}} plays at {name}", f"{name} is where a {{}} plays"),
        ):
            right = values[len(name) % 4]
            rows.append(
                {
                    "id": f"{name}-{kind}",
                    "question": question,
                    "answer": answer.format(right),
                    "paraphrased_answer": paraphrase.format(right),
                    "perturbed_answer": [paraphrase.format(value) for value in values if value != right],
                }
            )
    return rows


def corpus(folder: Path, rows: list[dict]) -> Corpus:
    table = pa.Table.from_pylist(rows)
    return Corpus.write(folder, table.to_batches(), table.schema)
