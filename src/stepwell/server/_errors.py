"""What the server says when it can't do as asked: one shape, `{"error": {"type": ..., "message": ...}}`, everywhere.

What must stay true: nothing that a client sent in a body or a header comes back, or is logged; what went wrong inside
is logged by its type and place, without its message, which may hold the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from logging import getLogger
from pathlib import Path
from traceback import extract_tb
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import Scope

from stepwell.errors import ClosedError, NotFoundError, StoreError, UsageError
from stepwell.server._routing import Model
from stepwell.server.pages._page import Links, page, path_within

__all__ = ["ANY_ERROR", "ErrorBody", "Problem", "RpcStatus", "explain", "handle_errors"]

_TYPES: Final = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
    422: "invalid",
    429: "rate_limited",
    503: "unavailable",
}

_OTLP: Final = ("/v1/traces", "/v1/logs")  # paths of which the clients read errors in a shape of their own
# google.rpc.Code, https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
_CODES: Final = {401: 16, 403: 7, 404: 5, 405: 12, 408: 4, 413: 8, 429: 8, 503: 14}

_FOR_PROGRAMS: Final = ("/v1", "/healthz", "/readyz", "/metrics", "/openapi.json", "/static/")
_ADVICE: Final = {
    403: "Ask whoever runs this server for a key that may do this.",
    404: "It may have been deleted, or it has not arrived yet: what is recorded is here within a second or two.",
    422: "Go back and change what was asked for.",
    429: "Wait a minute, then try again.",
    500: "The server's log names the place. The data are as they were.",
    503: "Reload the page in a few seconds. What is recorded meanwhile waits in its journal and is not lost.",
}

log: Final = getLogger("stepwell.server")


class FieldError(Model):
    """One part of a request that is wrong: where, such as `query.limit`, and why."""

    where: str
    message: str


class ErrorDetail(Model):
    """What went wrong: `type` for programs, `message` for people."""

    type: str = Field(examples=["not_found"])
    message: str
    line: int | None = Field(default=None, description="The line of the body that is to blame, from 0.")
    fields: list[FieldError] | None = Field(default=None, description="The parts of the request that are wrong.")


class ErrorBody(Model):
    """The body of every answer that is no success."""

    error: ErrorDetail


class RpcStatus(Model):
    """The body of every answer of OTLP that is no success: `google.rpc.Status`."""

    code: int
    message: str


# "default" in OpenAPI: every status that a route does not name; FastAPI then adds no 422 of its own shape.
ANY_ERROR: Final[dict[int | str, dict[str, Any]]] = {"default": {"model": ErrorBody, "description": "An error"}}


class Problem(HTTPException):
    """Raised by routes and what they depend on: the answer is `status` with this message.

    It is an `HTTPException`, because FastAPI turns any other that is raised while a body is read into a 400.
    """

    def __init__(
        self, status: int, message: str, *, headers: Mapping[str, str] | None = None, line: int | None = None
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.line = line


def explain(error: Exception, scope: Scope) -> Response:
    """Return the answer for an error; what nobody can do anything about is logged, and 500 or 503."""
    told = _explain(error)
    if scope["path"].endswith(_OTLP):
        type = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        return told.as_status(protobuf=type == "application/x-protobuf")
    return _page_of(told, scope) if wants_page(scope) else told.response()


def _page_of(told: _Told, scope: Scope) -> Response:
    """Return the answer as a page that says what to do; who has shown no key is asked for one."""
    request = Request(scope)
    links, headers = Links(request), told.headers or {}
    if told.status == HTTPStatus.UNAUTHORIZED and "WWW-Authenticate" in headers:
        return RedirectResponse(links.to("login", next=links.here()), 303)
    advice = _ADVICE.get(told.status, "Go back, or start again from the list of runs.")
    return page(request, "error.html", {"told": told, "advice": advice}, told.status, headers)


def wants_page(scope: Scope) -> bool:
    """Tell whether it is a browser that asks, for a page."""
    path = path_within(scope)
    return not path.startswith(_FOR_PROGRAMS) and "text/html" in Headers(scope=scope).get("accept", "")


def _explain(error: Exception) -> _Told:
    if isinstance(error, HTTPException):
        return _Told(error.status_code, str(error.detail), error.headers, line=getattr(error, "line", None))
    if isinstance(error, RequestValidationError):
        fields = [
            FieldError(where=".".join(str(part) for part in each["loc"]), message=each["msg"])
            for each in error.errors()
        ]
        return _Told(422, "the request is not as it should be: see fields", fields=fields)
    if isinstance(error, NotFoundError):
        return _Told(404, str(error))
    if isinstance(error, UsageError):
        return _Told(422, str(error))
    log.error("%s at %s", type(error).__name__, _place_of(error))
    if isinstance(error, (StoreError, ClosedError)):
        return _Told(503, "the store can't be used now", {"Retry-After": "1"})
    return _Told(500, "the server failed at this")


def handle_errors(app: FastAPI) -> None:
    """Have the app answer every error in the one shape."""
    for kind in (HTTPException, RequestValidationError, NotFoundError, UsageError, StoreError, ClosedError):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    return explain(error, request.scope)


@dataclass(frozen=True, slots=True)
class _Told:
    """An answer that is no success, before it has a shape."""

    status: int
    message: str
    headers: Mapping[str, str] | None = None
    line: int | None = None
    fields: list[FieldError] | None = None

    def response(self) -> Response:
        detail = ErrorDetail(type=_type_of(self.status), message=self.message, line=self.line, fields=self.fields)
        content = ErrorBody(error=detail).model_dump(exclude_none=True)
        return JSONResponse(content, self.status, self.headers)

    def as_status(self, *, protobuf: bool) -> Response:
        """Return it as `google.rpc.Status`, a code (field 1) and a message (field 2): what clients of OTLP read."""
        code, message = _CODES.get(self.status, 13 if self.status >= 500 else 3), self.message
        if not protobuf:
            return JSONResponse({"code": code, "message": message}, self.status, self.headers)
        text = message.encode()
        length = bytearray()
        size = len(text)
        while size > 127:  # a varint
            length.append(size & 127 | 128)
            size >>= 7
        body = bytes((8, code, 18, *length, size)) + text
        return Response(body, self.status, self.headers, "application/x-protobuf")


def _type_of(status: int) -> str:
    return _TYPES.get(status) or ("internal" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "bad_request")


def _place_of(error: Exception) -> str:
    frames = extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-6:]))
