"""The routes: OpenAI's completions, chat completions, embeddings and models; /health and /metrics."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from tilth.backbones.features import embed
from tilth.evaluate.guarded import bare, flagged
from tilth.serve.door import Door
from tilth.serve.engine import Engine
from tilth.serve.errors import BadRequest, Failed, RequestError
from tilth.serve.guarding import generates
from tilth.serve.meters import Meters
from tilth.serve.prompts import Prompt, Prompter
from tilth.serve.protocol import ChatRequest, CompletionRequest, EmbeddingRequest, Generating
from tilth.serve.replies import Form, begun, whole, written

if TYPE_CHECKING:
    from tilth.backbones.folder import TextModel

_PATHS = {"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/models", "/health", "/metrics"}
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True)
class Limits:
    """body_bytes: of a request. tokens: generated for one continuation. rows: continuations, or texts to embed, of a request.
    batch_rows: continuations generated at once. waiting_rows: those that may wait besides."""

    body_bytes: int = 2**20
    tokens: int = 1024
    rows: int = 128
    batch_rows: int = 32
    waiting_rows: int = 1024


def create_app(text_model: TextModel, name: str, *, token: str | None = None, limits: Limits = Limits()) -> FastAPI:
    """The server for one model, known to clients as `name`."""
    meters, prompter = Meters(), Prompter(text_model)
    engine = Engine(text_model, meters, batch_rows=limits.batch_rows, waiting_rows=limits.waiting_rows)
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.stop()

    app = FastAPI(title=f"tilth serve {name}", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Door, token=token, body_bytes=limits.body_bytes, meters=meters, paths=_PATHS)
    _report_errors(app)

    def check_model(given: str | None) -> None:
        if given is not None and given != name:
            raise RequestError(
                404, f"there is no model {given!r} here, only {name!r}", "invalid_request_error", "model", "model_not_found"
            )

    def check_generating(request: Generating, prompts: int, asked: int | None) -> None:
        check_model(request.model)
        if not generates(text_model):
            raise BadRequest(f"{name!r} is not a causal language model: it embeds, and does not generate", "model")
        if prompts * request.n > limits.rows:
            raise BadRequest(f"{prompts * request.n} continuations are more than the {limits.rows} of one request", "n")
        if asked is not None and asked > limits.tokens:
            raise BadRequest(f"max_tokens is {asked}; this server generates at most {limits.tokens}", "max_tokens")

    async def answer(request: Generating, prompts: list[Prompt], longest: int, form: Form, http: Request) -> Response:
        reply = begun(request, prompts, longest, prompter, form, name)
        engine.submit(reply.rows)
        if request.stream:
            stream = written(reply, include_usage=request.stream_options.include_usage)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})
        return JSONResponse(await whole(reply, http))

    @app.post("/v1/completions")
    async def completions(request: CompletionRequest, http: Request) -> Response:
        check_generating(request, len(request.prompts), request.max_tokens)
        prompts = await run_in_threadpool(lambda: [prompter.completion(text) for text in request.prompts])
        return await answer(request, prompts, request.max_tokens or min(16, limits.tokens), "completion", http)

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest, http: Request) -> Response:
        asked = request.max_completion_tokens or request.max_tokens
        check_generating(request, 1, asked)
        prompt = await run_in_threadpool(prompter.chat, [message.turn for message in request.messages])
        return await answer(request, [prompt], asked or limits.tokens, "chat", http)

    @app.post("/v1/embeddings")
    async def embeddings(request: EmbeddingRequest) -> Response:
        check_model(request.model)
        if len(request.texts) > limits.rows:
            raise BadRequest(f"{len(request.texts)} texts are more than the {limits.rows} of one request", "input")
        counts = await run_in_threadpool(lambda: [len(prompter.completion(text).ids) for text in request.texts])

        def vectors() -> np.ndarray | None:
            if flagged(text_model, request.texts).any():
                return None
            return embed(bare(text_model), request.texts, batch_size=limits.batch_rows)

        found = await run_in_threadpool(engine.call(vectors).result)
        if found is None:
            raise BadRequest(
                "an input concerns what this model does not answer about; it is not embedded", "input", "content_filter"
            )
        meters.prompt_tokens.inc(sum(counts))
        shown = [_encoded(row) if request.encoding_format == "base64" else row.tolist() for row in found]
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(shown)]
        usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
        return JSONResponse({"object": "list", "data": data, "model": name, "usage": usage})

    model = {"id": name, "object": "model", "created": started, "owned_by": "tilth"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{given:path}")
    async def one_model(given: str) -> dict[str, Any]:
        check_model(given)
        return model

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(meters.text(), media_type=_PROMETHEUS)

    return app


def _encoded(row: np.ndarray) -> str:
    """float32, little end first, in base64: what OpenAI's clients ask for by default."""
    return base64.b64encode(row.astype("<f4").tobytes()).decode()


def _report_errors(app: FastAPI) -> None:
    """Whatever goes wrong is said in OpenAI's format."""

    def shown(error: RequestError) -> JSONResponse:
        return JSONResponse(error.body, status_code=error.status)

    @app.exception_handler(RequestError)
    async def ours(_: Request, error: RequestError) -> JSONResponse:
        return shown(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] == "json_invalid":
            return shown(BadRequest("the body is not valid JSON"))
        message = f"there is no argument '{path}' here" if first["type"] == "extra_forbidden" else first["msg"]
        return shown(BadRequest(f"{path}: {message}" if path else message, path.split(".")[0] or None))

    @app.exception_handler(HTTPException)
    async def of_http(_: Request, error: HTTPException) -> JSONResponse:
        return shown(RequestError(error.status_code, str(error.detail), "invalid_request_error"))

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        return shown(Failed())
