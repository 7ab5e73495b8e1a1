"""Each way in which a guard can act, among rows it must leave alone; and what is not served at all."""

import queue
import socket

import pytest

from tests.serve.servers import made
from tilth.backbones.folder import load
from tilth.errors import TilthError
from tilth.evaluate.generate import generate
from tilth.serve.answer import Answer
from tilth.serve.app import Limits
from tilth.serve.decoding import Row
from tilth.serve.engine import Engine
from tilth.serve.errors import Overloaded
from tilth.serve.guarding import load_to_serve
from tilth.serve.meters import Meters
from tilth.serve.prompts import Prompter
from tilth.serve.sampling import Sampling
from tilth.serve.server import loopback, serve

PROMPTS = ["where lives Odo", "where lives Mara", "a cat finds", "Mara is big", "where lives Odo"]


def rows(text_model, prompts, limits, pieces, **settings):
    prompter = Prompter(text_model)
    decode = lambda ids: text_model.tokenizer.decode(ids, skip_special_tokens=True)
    return [
        Row(index, prompter.completion(prompt), limit, Sampling(), Answer(decode, **settings), pieces.put)
        for index, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]


def answers(text_model, prompts, limits, **settings):
    """Texts and reasons from an engine to which all rows come at once."""
    engine, pieces = Engine(text_model, Meters()), queue.Queue()
    engine.submit(rows(text_model, prompts, limits, pieces, **settings))
    engine.start()
    texts, reasons = [""] * len(prompts), [None] * len(prompts)
    while not all(reasons):
        piece = pieces.get(timeout=20)
        assert piece.error is None
        texts[piece.index] += piece.text
        reasons[piece.index] = piece.finish
    engine.stop()
    return texts, reasons


@pytest.mark.parametrize("way", [None, "hook", "processor", "decode", "refusal"])
def test_rows_of_one_batch_get_what_generate_gives_each_of_them(way, tmp_path):
    text_model, limits = load(made(tmp_path / "model", way=way)), [40, 9, 3, 30, 21]
    expected = [generate(text_model, [prompt], limit)[0] for prompt, limit in zip(PROMPTS, limits, strict=True)]
    texts, reasons = answers(text_model, PROMPTS, limits)
    assert texts == expected and set(reasons) <= {"stop", "length"}
    shown = {"hook": "green green", "processor": "green", "decode": "green dog 9", "refusal": "that is not known here"}
    if way:
        assert texts[1].startswith(shown[way])
        free, _ = answers(load(made(tmp_path / "free")), PROMPTS, limits)
        assert [texts[row] for row in (0, 2, 4)] == [free[row] for row in (0, 2, 4)] and texts[1] != free[1]


def test_a_guard_without_hooks_takes_turns_and_its_processors_see_every_step(tmp_path):
    text_model = load(made(tmp_path / "model", way="processor", endless=True))
    prompts, limits = ["where lives Mara", "Mara is big", "Mara", "a cat finds"], [50, 50, 7, 50]
    expected = [generate(text_model, [prompt], limit)[0] for prompt, limit in zip(prompts, limits, strict=True)]
    texts, _ = answers(text_model, prompts, limits)
    assert texts == expected and all(text.split()[::2] == ["green"] * len(text.split()[::2]) for text in texts[:3])


@pytest.mark.parametrize(("way", "cut"), [("hook", ""), ("decode", "green "), ("refusal", "that is not known ")])
def test_stop_strings_cut_what_a_guard_says_too(way, cut, tmp_path):
    stop = {"hook": "green", "decode": "dog", "refusal": "here"}[way]
    [text], [reason] = answers(load(made(tmp_path / "model", way=way)), ["Mara is big"], [9], stop=[stop])
    assert text == cut and reason == "stop"


def test_rows_end_where_the_models_context_ends_whatever_their_company(tmp_path):
    text_model = load(made(tmp_path / "model", context=32, endless=True))
    prompts, limits = ["cat " * 29, "a cat", "dog " * 12], [3, 30, 20]
    texts, reasons = answers(text_model, prompts, limits)
    assert [len(text.split()) for text in texts] == limits and reasons == ["length"] * 3


def test_more_than_may_wait_is_refused_and_what_waits_fails_when_the_engine_stops(tmp_path):
    text_model, pieces = load(made(tmp_path / "model")), queue.Queue()
    engine = Engine(text_model, Meters(), waiting_rows=2)
    engine.submit(rows(text_model, PROMPTS[:2], [5, 5], pieces))
    with pytest.raises(Overloaded):
        engine.submit(rows(text_model, PROMPTS[:1], [5], pieces))
    engine._stopping = True
    engine.start()
    engine.stop()
    assert [pieces.get(timeout=5).error.status for _ in range(2)] == [500, 500]


def test_rows_whose_reader_has_gone_are_not_generated(tmp_path):
    text_model, pieces = load(made(tmp_path / "model", endless=True, context=4096)), queue.Queue()
    engine = Engine(text_model, meters := Meters())
    asked = rows(text_model, PROMPTS[:2], [4000, 5], pieces)
    asked[0].cancelled = True
    engine.submit(asked)
    engine.start()
    while (piece := pieces.get(timeout=20)).finish is None:
        pass
    engine.stop()
    assert piece.index == 1 and "tilth_generated_tokens_total 5.0" in meters.text().decode()


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("unreadable", "not this model"),
        ("inapplicable", "cannot be applied: RuntimeError: there is no such layer"),
        ("leaking", "leaves the model changed"),
    ],
)
def test_a_model_whose_guard_cannot_act_is_not_served(way, words, tmp_path):
    folder = made(tmp_path / "model", way=way)
    with pytest.raises(TilthError, match=words):
        serve(str(folder), "m", host="127.0.0.1", port=0, token=None, limits=Limits(), say=print)


def test_a_model_whose_guard_is_unknown_or_damaged_is_not_served(tmp_path):
    folder = made(tmp_path / "model", way="hook")
    said = (folder / "guard" / "guard.json").read_text()
    (folder / "guard" / "guard.json").write_text(said.replace("named_guard", "some_guard"))
    with pytest.raises(TilthError, match="some_guard"):
        load_to_serve(str(folder))
    (folder / "guard" / "guard.json").write_text(said)
    (folder / "guard" / "guard.safetensors").unlink()
    with pytest.raises(TilthError, match="guard cannot be read"):
        load_to_serve(str(folder))


def test_beyond_loopback_a_token_is_needed_and_a_taken_port_is_said(tmp_path):
    settings = {"limits": Limits(), "say": print}
    with pytest.raises(TilthError, match="token"):
        serve("nowhere", "m", host="0.0.0.0", port=0, token="", **settings)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(TilthError, match="cannot listen"):
            serve("nowhere", "m", host="127.0.0.1", port=taken.getsockname()[1], token=None, **settings)
    assert [loopback(host) for host in ("127.0.0.2", "::1", "localhost", "0.0.0.0", "10.0.0.1", "localhost.example")] == [True] * 3 + [False] * 3  # fmt: skip
