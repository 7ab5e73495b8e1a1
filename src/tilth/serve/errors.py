"""What can be wrong with a request, in OpenAI's error format."""

from __future__ import annotations

from typing import Any


class RequestError(Exception):
    """A request that is not answered. status: of HTTP; kind, parameter, code: as OpenAI names them."""

    def __init__(self, status: int, message: str, kind: str, parameter: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.parameter, self.code = status, message, kind, parameter, code

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.parameter, "code": self.code}}


class BadRequest(RequestError):
    """The request itself is wrong; asking again does not help."""

    def __init__(self, message: str, parameter: str | None = None, code: str | None = None) -> None:
        super().__init__(400, message, "invalid_request_error", parameter, code)


class Overloaded(RequestError):
    """Too many requests wait already."""

    def __init__(self) -> None:
        super().__init__(503, "too many requests are waiting; try again later", "server_error", code="overloaded")


class Failed(RequestError):
    """Something broke while answering; what, stands in the server's log and not in the answer."""

    def __init__(self) -> None:
        super().__init__(500, "the server failed to answer; its log says why", "server_error", code="internal_error")
