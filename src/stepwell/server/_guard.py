"""What every request passes before its route: who it is from, and how much it may send; and what is noted of it.

What must stay true:

1. It fails closed: a request that nothing is known about has no access, and where keys can't be read nobody has any.
2. Without keys the server is this machine's alone. A browser here also carries requests of strange pages: so the
   `Host` must be a name of this machine (else a name that was made to point here could read everything), and whatever
   changes something must not come from another origin.
3. A browser shows its key in a cookie, which counts only where the request is known to come from a page of ours, or
   from who typed its address; so `/v1` takes `Authorization` alone from everything else.
4. Of a request, the log and the counters have method, route template, status, time and sizes. No more.
"""

from __future__ import annotations

import time
from base64 import b64decode
from logging import getLogger
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stepwell._checks import is_loopback
from stepwell.server._access import READING, Access, key_in_cookie, unauthorized
from stepwell.server._body import too_large
from stepwell.server._errors import Problem, explain
from stepwell.server._keys import ALL_SCOPES, Failures, KeyRing
from stepwell.server._limits import Limits
from stepwell.server._metrics import Metrics
from stepwell.server.pages._page import path_within

__all__ = ["Guard"]

_OPEN: Final = Access(None, ALL_SCOPES, None)
_PUBLIC: Final = frozenset(("/healthz", "/readyz", "/v1/health", "/v1/health/", "/login", "/logout", "/favicon.ico"))
_FILES: Final = "/static/"
_STREAMED: Final = (  # routes with limits of their own
    *(("POST", "/v1/ingest"), ("PUT", "/v1/blobs/")),
    *(("POST", "/v1/traces"), ("POST", "/v1/logs"), ("POST", "/api/public/otel/v1/traces")),
)

log: Final = getLogger("stepwell.server.access")


class Guard:
    """The middleware around all routes."""

    def __init__(
        self, app: ASGIApp, *, prefix: str, keys: KeyRing, failures: Failures, limits: Limits, metrics: Metrics
    ) -> None:
        self.app = app
        self._prefix = prefix
        self._keys = keys
        self._failures = failures
        self._limits = limits
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
        elif scope["type"] != "http":
            await self.app(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        if self._prefix:
            scope["root_path"] = self._prefix
        exchange = _Exchange(receive, send, self._limit_of(scope))
        try:
            self._admit(scope, Headers(scope=scope))
            await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass
        except Exception as error:  # noqa: BLE001 (it goes into the one shape; above us it would be logged with its message)
            answer = explain(error, scope)
            if not exchange.status:
                await answer(scope, exchange.receive, exchange.send)
        finally:
            self._note(scope, exchange, time.perf_counter() - started)

    def _limit_of(self, scope: Scope) -> int | None:
        method, path = scope["method"], path_within(scope)
        streamed = any(method == each and path.startswith(prefix) for each, prefix in _STREAMED)
        return None if streamed else self._limits.json_bytes

    def _admit(self, scope: Scope, headers: Headers) -> None:
        """Find out what a request may do. Raises `Problem`, `StoreError`."""
        if scope["method"] not in READING:
            _check_origin(headers)
        keys = self._keys.keys()
        if not keys:
            _check_local(scope, headers)
        state = scope.setdefault("state", {})
        path = path_within(scope)
        public = path in _PUBLIC or path.startswith(_FILES)
        state["access"] = None if public else self._access(scope, headers) if keys else _OPEN

    def _access(self, scope: Scope, headers: Headers) -> Access:
        secret = _secret_of(headers.get("authorization", ""))
        browser = secret == "" and _is_ours(scope, headers)
        if browser:
            secret = key_in_cookie(headers)
        if secret == "":
            raise unauthorized("a key is needed: Authorization: Bearer KEY")
        key = None if secret is None else self._keys.find(secret)
        if key is not None:
            return Access(key.name, frozenset(key.scopes), key.project, browser)
        wait_s = self._failures.add((scope.get("client") or ("",))[0])
        if wait_s:
            raise Problem(429, "too many wrong keys", headers={"Retry-After": str(int(wait_s) + 1)})
        raise unauthorized("this key is not known here")

    def _note(self, scope: Scope, exchange: _Exchange, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None) or "(none)"
        metrics = self._metrics
        metrics.add_request(scope["method"], route, exchange.status, seconds)
        metrics.received_bytes += exchange.received_bytes
        metrics.sent_bytes += exchange.sent_bytes
        line = {
            "method": scope["method"] if scope["method"].isalpha() else "other",
            "route": route,
            "status": exchange.status,
            "ms": round(seconds * 1000, 3),
            "bytes_in": exchange.received_bytes,
            "bytes_out": exchange.sent_bytes,
        }
        log.info("%s", line)  # logging takes a mapping alone as the arguments themselves: fields, for our formatter


class _Exchange:
    """Passes on one request's messages: counts them, and stops a body at `limit` bytes."""

    def __init__(self, receive: Receive, send: Send, limit: int | None) -> None:
        self._receive = receive
        self._send = send
        self._limit = limit
        self.status = 0
        self.received_bytes = 0
        self.sent_bytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self.received_bytes += len(message.get("body", b""))
        if self._limit is not None and self.received_bytes > self._limit:
            raise too_large("the body", self._limit)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.sent_bytes += len(message.get("body", b""))
        await self._send(message)


def _secret_of(authorization: str) -> str | None:
    """Return the key in a header, "" where there is none; None where it is in no form that is taken.

    Basic has it as the password, whatever the user is: so do clients that know of a public and a secret key (Langfuse).
    """
    kind, _, secret = authorization.partition(" ")
    if kind.lower() == "basic" and secret:
        try:
            return b64decode(secret.strip(), validate=True).decode().partition(":")[2] or None
        except ValueError:
            return None
    return secret.strip() if kind.lower() == "bearer" or not secret else None


def _check_origin(headers: Headers) -> None:
    """Refuse what a page of another origin has a browser send."""
    origin = headers.get("origin")
    strange = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
    if strange or headers.get("sec-fetch-site", "") in ("cross-site", "same-site"):
        raise Problem(403, "requests of other origins change nothing here")


def _is_ours(scope: Scope, headers: Headers) -> bool:
    """Tell whether a page of ours, or who sits before the browser, asks for this: only then a cookie counts.

    Browsers say so themselves, but on plain http only to this machine; else by the page that the request is from. What
    says nothing may read a page: that is an address typed, and it was sent only because the cookie is `SameSite`.
    """
    reads = scope["method"] in READING
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin" or (site == "none" and reads)
    page = headers.get("origin") or headers.get("referer")
    if page is not None:
        return urlsplit(page).netloc.lower() == headers.get("host", "").lower()
    return reads and not path_within(scope).startswith("/v1")


def _check_local(scope: Scope, headers: Headers) -> None:
    """Refuse, where no key is needed, whatever does not come from this machine to a name of it."""
    client = scope.get("client")
    if client is not None and not is_loopback(client[0]):
        raise Problem(401, "from another machine a key is needed, and there is none: stepwell keys add NAME")
    host = headers.get("host", "")
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower() != "localhost" and not is_loopback(name):
        raise Problem(403, "without keys this server goes by localhost, 127.0.0.1 and [::1] only")
