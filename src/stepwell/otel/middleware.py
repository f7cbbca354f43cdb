"""What continues, in a web application, the trace and thread of the service that sent the request.

What must stay true:

1. Nothing is recorded, changed or kept here: a request, its body and its errors pass as they are, and lifespan events
   are none of ours.
2. Headers are believed only where the application says so. They decide in whose thread steps are recorded, as which
   user, and whether at all; a stranger could write into anybody's thread.
3. All of the application's own code runs in the context of the request, a streamed body's included, and leaves none
   behind on the server's thread.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, Final

from stepwell._frames import hide_own_frame
from stepwell._generating import Inside
from stepwell._propagation import Block, continued
from stepwell._recorder import RECORDER

__all__ = ["AsgiMiddleware", "WsgiMiddleware"]

MAX_HEADERS: Final = 64  # of those names that are ours; a request with more is no service's
_NAMES: Final = ("traceparent", "tracestate", "baggage")

Trust = bool | Callable[[Mapping[str, Any]], bool]
AsgiApp = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[MutableMapping[str, Any]]],
        Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ],
    Awaitable[None],
]
WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class AsgiMiddleware:
    """Wraps an ASGI application: what it records for a request continues what `stepwell.inject` wrote there.

    `trust` says whose headers count: False, the default, nobody's; True, everybody's, for a service that only others
    of one's own can reach; or a function of the scope, called for each request and websocket.
    """

    def __init__(self, app: AsgiApp, *, trust: Trust = False) -> None:
        self.app = app
        self._trust = trust

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        """Handle a request, a websocket or an event of the server's."""
        headers = _asgi_headers(scope) if scope.get("type") in ("http", "websocket") else {}
        if not headers or not _is_trusted(self._trust, scope):
            await self.app(scope, receive, send)
            return
        block = Block(continued(headers))
        try:
            await self.app(scope, receive, send)
        except BaseException as error:
            hide_own_frame(error)
            raise
        finally:
            block.leave()


class WsgiMiddleware:
    """Wraps a WSGI application as `AsgiMiddleware` does an ASGI one; `trust` may be a function of the environ."""

    def __init__(self, app: WsgiApp, *, trust: Trust = False) -> None:
        self.app = app
        self._trust = trust

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Handle a request."""
        headers = {name: environ[key] for name in _NAMES if type(environ.get(key := f"HTTP_{name.upper()}")) is str}
        if not headers or not _is_trusted(self._trust, environ):
            return self.app(environ, start_response)
        inside = Inside(continued(headers))
        try:
            body: Any = inside.run(self.app, environ, start_response)
        except BaseException as error:
            hide_own_frame(error)
            raise
        # No code runs where a list is sent; servers look at its length, and know a file by its class.
        if type(body) in (list, tuple) or isinstance(body, _file_wrapper(environ)):
            found: Iterable[bytes] = body
            return found
        return _SizedBody(inside, body) if hasattr(body, "__len__") else _Body(inside, body)


class _Body:
    """What a WSGI application streams, each part made in the context of the request."""

    def __init__(self, inside: Inside, body: Any) -> None:
        self._inside = inside
        self._body = body
        self._parts: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._parts is None:
            self._parts = self._inside.run(iter, self._body)
        part: bytes = self._inside.run(next, self._parts)
        return part

    def close(self) -> None:
        close = getattr(self._body, "close", None)
        if close is not None:
            self._inside.run(close)


class _SizedBody(_Body):
    """One with a length, by which a server tells that there is one part alone."""

    def __len__(self) -> int:
        return len(self._body)


def _file_wrapper(environ: Mapping[str, Any]) -> tuple[type, ...]:
    wrapper = environ.get("wsgi.file_wrapper")
    return (wrapper,) if isinstance(wrapper, type) else ()


def _asgi_headers(scope: Mapping[str, Any]) -> dict[str, str]:
    """Return those headers of a request that are ours, what is sent more than once joined as HTTP has it."""
    found: dict[str, str] = {}
    count = 0
    for raw, value in scope.get("headers") or ():
        name = raw.decode("latin-1").lower()
        if name in _NAMES:
            count += 1
            text = value.decode("latin-1")
            found[name] = f"{found[name]},{text}" if name in found else text
    return found if count <= MAX_HEADERS else {}


def _is_trusted(trust: Trust, request: Mapping[str, Any]) -> bool:
    if isinstance(trust, bool):
        return trust
    try:
        return trust(request) is True
    except Exception as error:  # noqa: BLE001 - the containment door; who can't be told is a stranger
        RECORDER.fault("ask whom to trust", error)
        return False
