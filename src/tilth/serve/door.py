"""What stands before every request: who asks, how much he sends, and what is counted.

Notable: plain ASGI, so that streams pass untouched and a body that is too long is never held in memory.
"""

from __future__ import annotations

import hmac
import json
import time
from typing import TYPE_CHECKING, Any

from tilth.serve.errors import BadRequest, RequestError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tilth.serve.meters import Meters

_LOCAL = {"localhost", "127.0.0.1", "[::1]"}


class Door:
    """token: every path but /health needs it; without one, only requests that name this machine pass, so that a web page
    which has its own name point here (DNS rebinding) cannot ask. body_bytes: the longest body."""

    def __init__(self, app: ASGIApp, *, token: str | None, body_bytes: int, meters: Meters, paths: set[str]) -> None:
        self.app, self.token, self.body_bytes, self.meters, self.paths = app, token, body_bytes, meters, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._admit(scope["path"], headers)
            await self.app(scope, await self._bounded(headers, receive), sending)
        except RequestError as error:
            await _refuse(error, sending)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.meters.requests.labels(path, str(status)).inc()
            self.meters.seconds.labels(path).observe(time.perf_counter() - started)

    def _admit(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self.token is None:
            if _without_port(headers.get(b"host", b"").decode("latin-1")) not in _LOCAL:
                raise RequestError(
                    403, "this server answers only to requests for this machine's own name", "invalid_request_error"
                )
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), self.token.encode())
        if path != "/health" and not (right and scheme.lower() == b"bearer"):
            raise RequestError(
                401, "a right token is needed: 'Authorization: Bearer TOKEN'", "invalid_request_error", code="invalid_api_key"
            )

    async def _bounded(self, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """The request's body read whole, at most `body_bytes` of it; what comes after it (a client that leaves) is passed on."""
        told = headers.get(b"content-length", b"0")
        if not told.isdigit():
            raise BadRequest("Content-Length is not a number")
        parts: list[bytes] = []
        more = int(told) <= self.body_bytes
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return _replaying([message], receive)
            parts.append(message.get("body", b""))
            more = message.get("more_body", False) and sum(map(len, parts)) <= self.body_bytes
        if max(int(told), sum(map(len, parts))) > self.body_bytes:
            why = f"the request is longer than {self.body_bytes} bytes"
            raise RequestError(413, why, "invalid_request_error", code="request_too_large")
        return _replaying([{"type": "http.request", "body": b"".join(parts), "more_body": False}], receive)


def _replaying(messages: list[Any], receive: Receive) -> Receive:
    async def replay() -> Message:
        return messages.pop(0) if messages else await receive()

    return replay


def _without_port(host: str) -> str:
    return host.rsplit(":", 1)[0] if not host.endswith("]") and ":" in host else host


async def _refuse(error: RequestError, send: Any) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error.body).encode()})
