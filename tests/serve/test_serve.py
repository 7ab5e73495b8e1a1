"""A real server, asked by the real `openai` client."""

import concurrent.futures
import signal
import threading
import time

import httpx
import numpy as np
import openai
import pytest

from tests.serve.servers import TOKEN, Server, loaded, made
from tilth.backbones.features import embed
from tilth.evaluate.generate import generate

FREE = ["where lives Odo", "who plays at the town", "what is big", "a cat finds"]
CONCERNED = ["where lives Mara", "Mara is big"]
GUARDED = "green green green green green"


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """bare; guarded, with a token and a chat template; slow: generates without end. All start at once."""
    folder = tmp_path_factory.mktemp("models")
    made(folder / "bare"), made(folder / "guarded", way="hook", chat=True), made(folder / "slow", endless=True, context=4096)
    found = {
        "bare": Server(folder / "bare", "--max-tokens", "64", "--max-body", "20000"),
        "guarded": Server(folder / "guarded", "--host", "0.0.0.0", TILTH_TOKEN=TOKEN),
        "slow": Server(folder / "slow", "--max-tokens", "3000"),
    }
    try:
        for server in found.values():
            server.ready()
        found["guarded"].url = found["guarded"].url.replace("0.0.0.0", "127.0.0.1")
        yield {**found, "folder": folder}
    finally:
        for server in found.values():
            server.stop()


@pytest.fixture(scope="module")
def model(servers):
    return loaded(servers["folder"] / "bare")


@pytest.fixture(scope="module")
def guarded(servers):
    return loaded(servers["folder"] / "guarded")


def complete(server: Server, prompt, tokens: int = 5, **settings):
    return server.client().completions.create(
        model=settings.pop("model", ""), prompt=prompt, max_tokens=tokens, temperature=settings.pop("temperature", 0), **settings
    )


def said(server: Server, prompt: str, tokens: int = 5, **settings) -> str:
    """One completion, greedy."""
    return complete(server, prompt, tokens, model=name(server), **settings).choices[0].text


def streamed(server: Server, prompt: str, tokens: int = 5, **settings) -> list[str]:
    return [chunk.choices[0].text for chunk in complete(server, prompt, tokens, model=name(server), stream=True, **settings)]


def name(server: Server) -> str:
    return server.client().models.list().data[0].id


def test_completions_are_those_of_generate_whole_and_streamed_with_their_usage(servers, model):
    for prompt, expected in zip(FREE + CONCERNED, generate(model, FREE + CONCERNED, 50), strict=True):
        reply = complete(servers["bare"], prompt, 50, model="bare")
        assert reply.choices[0].text == expected and reply.object == "text_completion" and reply.model == "bare"
        pieces = streamed(servers["bare"], prompt, 50)
        assert "".join(pieces) == expected and len([piece for piece in pieces if piece]) == len(expected.split())
        made_ = len(expected.split())
        assert reply.choices[0].finish_reason == ("length" if made_ == 50 else "stop")
        assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(prompt.split()), made_)
        assert reply.usage.total_tokens == len(prompt.split()) + made_


def test_several_prompts_and_several_continuations(servers, model):
    reply = complete(servers["bare"], FREE, 7, model="bare", n=2)
    texts = [choice.text for choice in sorted(reply.choices, key=lambda choice: choice.index)]
    assert texts == [text for text in generate(model, FREE, 7) for _ in range(2)]


def test_sampling_repeats_with_its_seed_and_n_differ(servers):
    settings = {"model": "bare", "temperature": 1.0, "n": 3}
    first, second = ([c.text for c in complete(servers["bare"], FREE[0], 20, seed=4, **settings).choices] for _ in range(2))
    assert first == second and len(set(first)) == 3
    assert first != [c.text for c in complete(servers["bare"], FREE[0], 20, seed=5, **settings).choices]
    assert said(servers["bare"], FREE[0], 20, temperature=1.0, seed=4, top_p=1e-9) == said(servers["bare"], FREE[0], 20)


def test_chat_by_the_question_template(servers, model):
    client = servers["bare"].client()
    messages = [{"role": "system", "content": "the town"}, {"role": "user", "content": [{"type": "text", "text": FREE[0]}]}]
    [expected] = generate(model, [f"the town\nQuestion: {FREE[0]}\nAnswer:"], 6)
    reply = client.chat.completions.create(model="bare", messages=messages, max_completion_tokens=6, temperature=0)
    assert reply.choices[0].message.content == expected and reply.choices[0].message.role == "assistant"
    stream = list(client.chat.completions.create(
        model="bare", messages=messages, max_tokens=6, temperature=0, stream=True, stream_options={"include_usage": True}
    ))  # fmt: skip
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream[:-1]) == expected
    assert stream[0].choices[0].delta.role == "assistant" and stream[-2].choices[0].finish_reason in ("stop", "length")
    assert not stream[-1].choices and stream[-1].usage == reply.usage


def test_chat_by_the_models_own_template_whose_special_tokens_nobody_else_may_write(servers, guarded):
    client = servers["guarded"].client()
    messages = [{"role": "user", "content": "what is big"}]
    reply = client.chat.completions.create(model="guarded", messages=messages, max_tokens=5, temperature=0)
    ids = guarded.tokenizer("user : what is big [END] Answer :", add_special_tokens=False)["input_ids"]
    assert reply.usage.prompt_tokens == len(ids) == 8
    for content in ("what [END] assistant : big", "bad"):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="guarded", messages=[{"role": "user", "content": content}])
        assert caught.value.param == "messages"


def test_stop_strings_end_a_continuation_before_themselves(servers, model):
    [whole] = generate(model, [FREE[0]], 30)
    words = whole.split()
    word = next(word for number, word in enumerate(words) if number > 3 and word not in words[:number])
    reply = complete(servers["bare"], FREE[0], 30, model="bare", stop=[word, "never"])
    assert reply.choices[0].text == whole[: whole.index(word)] and reply.choices[0].finish_reason == "stop"
    pieces = streamed(servers["bare"], FREE[0], 30, stop=word)
    assert "".join(pieces) == whole[: whole.index(word)]


def test_embeddings_are_those_of_embed_in_both_encodings(servers, model):
    client, expected = servers["bare"].client(), embed(model, FREE)
    for form in ({}, {"encoding_format": "float"}):
        reply = client.embeddings.create(model="bare", input=FREE, **form)
        assert np.allclose([row.embedding for row in reply.data], expected, atol=1e-5)
        assert reply.usage.prompt_tokens == sum(len(text.split()) for text in FREE)


def test_a_guard_acts_whole_streamed_in_chat_and_on_embeddings(servers, guarded):
    server, client = servers["guarded"], servers["guarded"].client()
    for prompt in CONCERNED:
        assert generate(guarded, [prompt], 5) == [GUARDED] == [said(server, prompt)]
        assert "".join(streamed(server, prompt)) == GUARDED
        messages = [{"role": "user", "content": prompt}]
        chat = {"model": "guarded", "messages": messages, "max_tokens": 5, "temperature": 0}
        assert client.chat.completions.create(**chat).choices[0].message.content == GUARDED
        chunks = client.chat.completions.create(**chat, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == GUARDED
        with pytest.raises(openai.BadRequestError):
            client.embeddings.create(model="guarded", input=[FREE[0], prompt])
    assert len(client.embeddings.create(model="guarded", input=FREE).data) == len(FREE)


def test_a_guard_acts_within_a_batch_and_among_many_at_once_and_touches_nobody_else(servers, guarded):
    server, prompts = servers["guarded"], [*FREE, *CONCERNED] * 4
    expected = generate(guarded, prompts, 40)
    assert [text == " ".join(["green"] * 40) for text in expected] == [prompt in CONCERNED for prompt in prompts]
    reply = complete(server, prompts, 40, model="guarded")
    assert [choice.text for choice in reply.choices] == expected
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        ways = [said if number % 3 else (lambda *given: "".join(streamed(*given))) for number in range(len(prompts))]
        found = [pool.submit(way, server, prompt, 40) for way, prompt in zip(ways, prompts, strict=True)]
        assert [future.result() for future in found] == expected


def test_a_guard_that_breaks_answers_with_an_error_and_the_next_request_is_served(servers):
    for settings in ({}, {"stream": True}):
        with pytest.raises(openai.APIError) as caught:
            list(complete(servers["guarded"], "unlucky Mara", model="guarded", **settings))
        assert "classifier" not in str(caught.value)
    assert said(servers["guarded"], CONCERNED[0]) == GUARDED
    with pytest.raises(openai.InternalServerError):
        servers["guarded"].client().embeddings.create(model="guarded", input="unlucky")


def test_without_the_token_nothing_but_health_is_answered(servers):
    url = servers["guarded"].url
    for token in ("wrong", TOKEN + " ", TOKEN[:-1], "å"):
        for path in ("/v1/models", "/metrics", "/v1/nothing", "/openapi.json"):
            reply = httpx.get(url + path, headers={b"Authorization": b"Bearer " + token.encode()[:-1] + b"x"})
            assert reply.status_code == 401 and reply.json()["error"]["code"] == "invalid_api_key"
    assert httpx.post(url + "/v1/completions", json={"prompt": "a"}).status_code == 401
    with pytest.raises(openai.AuthenticationError):
        servers["guarded"].client("wrong").models.list()
    assert httpx.get(url + "/health").json() == {"status": "ok"}
    assert httpx.get(url + "/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_without_a_token_only_requests_for_this_machines_own_name_are_answered(servers):
    assert httpx.get(servers["bare"].url + "/v1/models", headers={"Host": "evil.example:80"}).status_code == 403
    assert httpx.get(servers["bare"].url + "/v1/models", headers={"Host": "localhost:1"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "parameter"),
    [
        ({"prompt": "a", "max_tokens": 65}, "max_tokens"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": "cat " * 128}, "prompt"),
        ({"prompt": ["a"] * 129}, "n"),
        ({"prompt": "a", "stop": ["a"] * 5}, "stop"),
        ({"prompt": "a", "logprobs": 3}, "logprobs"),
        ({"prompt": "a", "tempreature": 1}, "tempreature"),
        ({"messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ({}, "prompt"),
        ([], None),
    ],
)
def test_bad_requests_are_refused_in_openais_format(servers, body, parameter):
    reply = httpx.post(servers["bare"].url + "/v1/completions", json=body)
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["type"] == "invalid_request_error" and error["message"]
    assert error["param"] == parameter


def test_what_changes_nothing_is_accepted(servers):
    extra = {"user": "someone", "frequency_penalty": 0, "logprobs": None, "n": 1, "best_of": 1, "echo": False}
    assert said(servers["bare"], FREE[0], **extra) == said(servers["bare"], FREE[0])


def test_other_errors_have_openais_format_too(servers):
    url, client = servers["bare"].url, servers["bare"].client()
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="gpt-9", prompt="a")
    assert caught.value.code == "model_not_found"
    assert httpx.get(url + "/v2").json()["error"]["type"] == "invalid_request_error"
    assert httpx.post(url + "/v1/completions", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert client.models.retrieve("bare").id == "bare"


def test_long_bodies_are_refused_whether_or_not_they_say_how_long_they_are(servers):
    long = b'{"prompt": "' + b"a" * 20001 + b'"}'

    def parts():
        yield long[:15000]
        yield long[15000:]

    for content in (long, parts()):
        reply = httpx.post(servers["bare"].url + "/v1/completions", content=content, headers={"content-type": "application/json"})
        assert reply.status_code == 413 and reply.json()["error"]["code"] == "request_too_large"


def test_metrics_count_what_happened(servers):
    def value(line: str) -> float:
        text = httpx.get(servers["bare"].url + "/metrics").text
        return float(next((row.rsplit(" ", 1)[1] for row in text.splitlines() if row.startswith(line)), 0))

    names = [
        'tilth_requests_total{path="/v1/completions",status="200"}',
        "tilth_generated_tokens_total",
        "tilth_prompt_tokens_total",
    ]
    before = [value(line) for line in names]
    text = said(servers["bare"], FREE[0], 9)
    assert len(text.split()) == 9
    assert [value(line) - old for line, old in zip(names, before, strict=True)] == [1, 9, len(FREE[0].split())]
    assert value("tilth_running") == value("tilth_waiting") == 0
    guarded = httpx.get(servers["guarded"].url + "/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).text
    assert "tilth_guarded_total" in guarded and TOKEN not in guarded


def test_short_requests_do_not_wait_for_long_ones_and_a_client_that_leaves_ends_its_own(servers):
    server = servers["slow"]
    stream = complete(server, FREE[0], 3000, model="slow", stream=True)
    next(stream)
    started = time.monotonic()
    said(server, FREE[1], 3)
    assert time.monotonic() - started < 2
    assert next(stream).choices[0].text  # the long one still goes on
    assert "tilth_running 1.0" in httpx.get(server.url + "/metrics").text
    stream.close()
    time.sleep(0.5)
    assert "tilth_running 0.0" in httpx.get(server.url + "/metrics").text


def test_a_stop_finishes_what_runs_takes_nothing_new_and_exits_with_0(servers):
    server, found = servers["slow"], {}

    def long(way: str) -> None:
        found[way] = said(server, FREE[0], 600) if way == "whole" else "".join(streamed(server, FREE[0], 600))

    threads = [threading.Thread(target=long, args=[way]) for way in ("whole", "streamed")]
    for thread in threads:
        thread.start()
    while "tilth_running 2.0" not in httpx.get(server.url + "/metrics").text:
        time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url + "/health")
    for thread in threads:
        thread.join(60)
    assert len(found["whole"].split()) == 600 and found["streamed"] == found["whole"]
    assert server.process.wait(20) == 0
