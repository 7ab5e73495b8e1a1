"""Tiny models in folders, and real servers of them in processes of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import torch
from openai import OpenAI

from tests.evaluate.tiny import llama, tokenizer
from tests.serve.guards import HooklessGuard, NamedGuard
from tilth.backbones.folder import TextModel, load, save
from tilth.contracts import use

ROOT = Path(__file__).parents[2]
CHAT = "{% for m in messages %}{% if m.content == 'bad' %}{{ raise_exception('bad turn') }}{% endif %}{{ m.role }} : {{ m.content }} [END] {% endfor %}Answer :"
TOKEN = "a long secret"


def made(folder: Path, *, way: str | None = None, chat: bool = False, endless: bool = False, context: int = 128) -> Path:
    """A model folder; way: of its guard. endless: it does not end by itself."""
    tokens = tokenizer(["user assistant system unlucky bad that not known here"])
    if chat:
        tokens.chat_template = CHAT
        tokens.add_special_tokens({"additional_special_tokens": ["[END]"]})
    model = llama(len(tokens), context=context, seed=3)
    with torch.no_grad():  # of special tokens it says at most its end
        for token in set(tokens.all_special_ids) - (set() if endless else {tokens.eos_token_id}):
            model.lm_head.weight[token] = 0
    guard = None
    if way is not None:
        guard = HooklessGuard() if way == "processor" else NamedGuard(way=way)
        guard.configured = use("unlearn", "hookless_guard") if way == "processor" else use("unlearn", "named_guard", way=way)
    return save(model, tokens, folder, guard=guard)


def loaded(folder: Path) -> TextModel:
    return load(folder)


class Server:
    """`tilth serve` in a process of its own, at any free port."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "tilth", "serve", str(folder), "--port", "0", "--with", "tests.serve.guards", *arguments]
        env = {**os.environ, "TILTH_TOKEN": "", **environment}
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.lines: list[str] = []
        self.token = environment.get("TILTH_TOKEN", "none")

    def ready(self) -> Server:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"(http://\S+)/v1$", line.strip()):
                self.url = found[1]
                threading.Thread(target=lambda: self.lines.extend(self.process.stderr or ()), daemon=True).start()
                return self
        raise AssertionError(f"the server did not start: {''.join(self.lines)}")

    def client(self, token: str | None = None) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=token or self.token, max_retries=0, timeout=60)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
