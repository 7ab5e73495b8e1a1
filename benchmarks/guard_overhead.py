"""Seconds per generated token with each registered guard, beside the bare model.

Run: python -m benchmarks.guard_overhead [--width 512 --depth 8 --vocabulary 8192 --prompts 16 --tokens 64 --repeats 5]
A Llama with random weights that never ends an answer, guards fitted to 60 people of whom 15 are to go. Every guard is timed twice: on prompts it leaves alone, which then
cost the decision, and on prompts it acts on. The decision is made in full and then overruled, so that how well a guard tells
random states apart plays no part. Beside `guard`, which searches with beams, stands transformers' own beam search of the same
width; beside `uld` its assistant, generating by itself. Times are spread over all generated tokens; a refusal makes none, so its
figure is that of the same number of tokens not generated.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from benchmarks.common import record, timings
from tilth.backbones.folder import TextModel
from tilth.batches.text.answers import Answers
from tilth.batches.text.encoding import pad_token
from tilth.batches.text.tokenizers import BPE
from tilth.context import Context
from tilth.contracts import Guard, use
from tilth.corpus import Corpus
from tilth.demo.people import people
from tilth.evaluate.generate import generate
from tilth.training.settings import Budget, Training
from tilth.unlearn.task import Task

GUARDS: dict[str, dict[str, Any]] = {
    "eco": {"strength": 1.0},
    "eco_entities": {"strength": 1.0, "only_entities": True},
    "key_space": {},
    "neuron_adjust": {},
    "guard": {},
    "uld": {},
    "generic_logits": {},
}


def world(width: int, depth: int, vocabulary: int, folder: Path) -> Task:
    """Model, tokeniser and rows."""
    rows = list(people(60, seed=0))
    tokenizer = BPE(vocab_size=min(vocabulary, 2048)).train(f"{row['question']} {row['answer']}" for row in rows)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=8 * width // 3, num_hidden_layers=depth,
            num_attention_heads=width // 64, max_position_embeddings=512, bos_token_id=None, eos_token_id=None,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():  # so that it says words only
        for token in (*tokenizer.all_special_ids, *range(len(tokenizer), vocabulary)):
            model.lm_head.weight[token] = 0
    columns = ("id", "question", "answer", "perturbed_answer")

    def corpus(name: str, some: list[dict[str, Any]]) -> Corpus:
        table = pa.Table.from_pylist([{column: row[column] for column in columns} for row in some])
        return Corpus.write(folder / name, table.to_batches(), table.schema)

    cut = len(rows) // 4
    context, encode = Context(folder / "task", 0), Answers(length=128)
    forget, retain = corpus("forget", rows[:cut]), corpus("retain", rows[cut:])
    going, staying = (encode.build(part, tokenizer, context) for part in (forget, retain))
    training = Training(lr=1e-3, batch_size=8, compile=False)
    return Task(TextModel(model, tokenizer), forget, retain, going, staying, training, Budget(steps=2), context)


def fitted(name: str, settings: dict[str, Any], task: Task) -> Guard:
    if name == "generic_logits":
        settings = {**settings, "reinforce_budget": Budget(steps=2)}
    configured = use("unlearn", name.removesuffix("_entities"), **settings)
    guard: Guard = configured.build()
    guard.configured = configured
    task.context.folder.mkdir(parents=True, exist_ok=True)
    guard.fit(task)
    return guard


def overruled(guard: Guard, decision: bool) -> Callable[[Any, Any], np.ndarray]:
    """The guard's decision, with all its work, but always the same one."""
    own = type(guard).flags

    def flags(text_model: Any, prompts: Any) -> np.ndarray:
        own(guard, text_model, prompts)
        return np.full(len(prompts), decision)

    return flags


def beams(task: Task, prompts: list[str], tokens: int, width: int) -> None:
    """transformers' beam search, all prompts together."""
    model, tokenizer = task.text_model.model, task.text_model.tokenizer
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    config = GenerationConfig(
        max_new_tokens=tokens,
        num_beams=width,
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad_token(tokenizer),
    )
    model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], generation_config=config)


def sides(name: str, task: Task, guard: Guard, prompts: list[str], tokens: int) -> dict[str, Callable[[], object]]:
    """What is timed for one guard: bare, left alone, acting; a yardstick of its own where it has one."""
    bare = task.text_model
    guarded = TextModel(bare.model, bare.tokenizer, bare.about, guard)

    def answered(decision: bool) -> None:
        guard.flags = overruled(guard, decision)  # type: ignore[method-assign]
        generate(guarded, prompts, tokens)

    found: dict[str, Callable[[], object]] = {
        "bare": lambda: generate(bare, prompts, tokens),
        "left_alone": lambda: answered(False),
        "acting": lambda: answered(True),
    }
    if name == "guard":
        found["yardstick"] = lambda: beams(task, prompts, tokens, guard.beams)  # type: ignore[attr-defined]
    elif name in ("uld", "generic_logits"):
        assistant = TextModel(guard.assistant if name == "uld" else guard.reinforced, bare.tokenizer)  # type: ignore[attr-defined]
        found["yardstick"] = lambda: generate(assistant, prompts, tokens)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, default in {"width": 512, "depth": 8, "vocabulary": 8192, "prompts": 16, "tokens": 64, "repeats": 5}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--guards", nargs="*", choices=list(GUARDS), default=list(GUARDS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        task = world(given.width, given.depth, given.vocabulary, Path(folder))
        prompts = (task.prompts("forget") + task.prompts("retain"))[:: 1 + 200 // given.prompts][: given.prompts]
        for name in given.guards:
            guard = fitted(name, GUARDS[name], task)
            functions = sides(name, task, guard, prompts, given.tokens)
            for function in functions.values():
                function()
            made = len(prompts) * given.tokens
            seconds = timings(functions, given.repeats)
            each = {side: 1000 * median(values) / made for side, values in seconds.items()}
            overhead = {side: each[side] / each["bare"] - 1 for side in ("left_alone", "acting")}
            yardstick = {"yardstick": each["yardstick"]} if "yardstick" in each else {}
            if name == "guard":
                yardstick["over_beam_search"] = each["acting"] / each["yardstick"] - 1
            elif yardstick:
                yardstick["added_over_assistant_alone"] = (each["acting"] - each["bare"]) / each["yardstick"]
            record(
                f"guard_overhead_{name}", each["acting"], each["bare"], "the bare model", "ms", given.repeats,
                unit_is_of="one generated token", left_alone=each["left_alone"], overhead=overhead, **yardstick,
                parameters=task.text_model.model.num_parameters(), prompts=len(prompts), tokens=given.tokens, seconds=seconds,
            )  # fmt: skip
            print({**overhead, **yardstick})


if __name__ == "__main__":
    main()
