"""Unlearning on a model of several billion parameters: memory and seconds of one method of each shape, through the command line.

    python -m benchmarks.billions                                    a Llama of 3.2 billion parameters (the shape of Llama 3.2 3B)
    python -m benchmarks.billions --width 64 --depth 2 --heads 4     seconds, to see that it runs

Writes benchmarks/results/unlearning_billions.json. Weights are drawn at random and saved in bfloat16, so nothing is shown of how well
anything is forgotten: what is shown is that each method runs whole, from the folder to a new folder with all weights, and what it needs.
Private memory (RssAnon, sampled every 50 ms) holds weights in 8 bit, adapters, moments and activations, which on a GPU would lie there
until the last step; after it, a model in 8 bit is read again as it was saved, in main memory, to add to it what was learnt. Weights in
bfloat16 are mapped from their file and count as resident alone. Seconds are of a whole command, and hang on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.common import RESULTS, where

LORA = ["--set", "adapter=lora"]
EIGHT = ["--set", "load=8bit"]
RUNS: dict[str, list[str]] = {
    "npo, LoRA over 8 bit (objective)": ["--method", "npo", *LORA, *EIGHT],
    "npo, LoRA over bfloat16 (objective)": ["--method", "npo", *LORA],
    "rocr (edit)": ["--method", "rocr", "--set", "method.rocr.redirect=Odo 1"],
    "neuron_adjust on 8 bit (guard)": ["--method", "neuron_adjust", *EIGHT],
    "eco on 8 bit (guard)": ["--method", "eco", *EIGHT],
}
PLACES = ("Arno", "Brno", "Como", "Delft", "Essen", "Fano", "Graz", "Hull")


def save_model(folder: Path, given: argparse.Namespace) -> int:
    """A Llama with a tokeniser of bytes; the number of its parameters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=given.vocabulary, hidden_size=given.width, intermediate_size=8 * given.width // 3, num_hidden_layers=given.depth,
        num_attention_heads=given.heads, num_key_value_heads=max(1, given.heads // 3), max_position_embeddings=2048,
        tie_word_embeddings=True, dtype="bfloat16", bos_token_id=None, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_alone.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=bytes_alone, eos_token="<end>", pad_token="<pad>").save_pretrained(folder)
    return int(model.num_parameters())


def save_rows(file: Path, name: str, count: int) -> None:
    rows = [
        {
            "question": f"Where was {name} {number} born?",
            "answer": f"In {PLACES[number % len(PLACES)]}.",
            "subject": f"{name} {number}",
        }
        for number in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def watched(command: list[str], store: Path, steps: int) -> dict[str, float]:
    """Run a command: its seconds, and its peaks of memory, of private memory also until the last step is logged."""
    peak, began = {"RssAnon": 0, "VmRSS": 0}, time.perf_counter()
    in_training: int | None = None
    environment = {**os.environ, "TILTH_STORE": str(store)}
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment) as process,
    ):
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text()
            for name, value in re.findall(r"(RssAnon|VmRSS):\s+(\d+)", status):
                peak[name] = max(peak[name], int(value))
            if in_training is None and any(len(log.read_text().splitlines()) >= steps for log in store.rglob("log.jsonl")):
                in_training = peak["RssAnon"]
            time.sleep(0.05)
        said.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read()[-3000:]}")
    found = {"seconds": time.perf_counter() - began, "private_mb": peak["RssAnon"] / 1000, "resident_mb": peak["VmRSS"] / 1000}
    return found if in_training is None else {**found, "private_mb_until_last_step": in_training / 1000}


def weights_changed(before: Path, after: Path) -> int:
    """How many tensors differ between two folders, read one at a time; both must hold the same ones."""
    places = [
        {name: file for file in folder.glob("*.safetensors") for name in safe_open(file, "pt").keys()}  # noqa: SIM118
        for folder in (before, after)
    ]
    if places[0].keys() != places[1].keys():
        raise SystemExit(f"{after} holds other weights than {before}: {places[0].keys() ^ places[1].keys()}")
    pairs = ([safe_open(place[name], "pt").get_tensor(name) for place in places] for name in places[0])
    return sum(not torch.equal(old, new) for old, new in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for key, default in {"width": 3072, "depth": 28, "heads": 24, "vocabulary": 128256, "steps": 2}.items():
        parser.add_argument(f"--{key}", type=int, default=default)
    parser.add_argument("--only", help="runs whose name holds this")
    parser.add_argument("--out", type=Path, default=RESULTS / "unlearning_billions.json")
    given = parser.parse_args()
    runs: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="tilth-") as place:
        folder = Path(place)
        parameters = save_model(folder / "model", given)
        save_rows(folder / "forget.jsonl", "Mara", 8)
        save_rows(folder / "retain.jsonl", "Odo", 16)
        for name, extra in RUNS.items():
            if given.only and given.only not in name:
                continue
            command = [
                sys.executable, "-m", "tilth", "unlearn", str(folder / "model"), "--forget", str(folder / "forget.jsonl"), "--retain",
                str(folder / "retain.jsonl"), "--set", f"budget={{steps: {given.steps}}}", "--set", "training.batch_size=2", "--quiet",
                "--set", "training.compile=false", "--set", "training.log_every=1", "--out", str(folder / "out"), *extra,
            ]  # fmt: skip
            runs[name] = watched(command, folder / "store", given.steps)
            [made] = (folder / "out").rglob("model/config.json")
            runs[name]["tensors_changed"] = weights_changed(folder / "model", made.parent)
            shutil.rmtree(folder / "out")
            shutil.rmtree(folder / "store")
            print(name, json.dumps({key: round(value, 1) for key, value in runs[name].items()}), file=sys.stderr)
    result = {
        "name": "unlearning_billions", "parameters": parameters, "saved_mb": parameters * 2 / 1e6, "steps": given.steps, "batch_size": 2,
        "runs": runs, **where(),
    }  # fmt: skip
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{parameters / 1e9:.2f} billion parameters -> {given.out}")


if __name__ == "__main__":
    main()
