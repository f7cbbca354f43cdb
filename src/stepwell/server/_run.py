"""Running the application with uvicorn, from the first signal of life to the last answer.

What must stay true: SIGTERM and SIGINT end it as it should be: no request is taken any more, those under way are
answered, what was acknowledged is committed. A second SIGINT ends it at once.
"""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from stepwell._checks import is_loopback
from stepwell._collector import collect_seldom, keep_what_is
from stepwell.errors import UsageError

__all__ = ["is_private", "listen", "run", "url_of"]

GRACE_S: Final = 30
SWITCH_S: Final = 0.0005  # Python's 5 ms are what a read would wait for each turn of the thread that decodes records
_BACKLOG: Final = 1024


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises `UsageError` for a host or port that can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host,
            port,
            type=socket.SOCK_STREAM,
            proto=socket.IPPROTO_TCP,
            flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG,
        )[0]
        # With the protocol: asyncio sets TCP_NODELAY only where a socket says that it is TCP, and without it an answer,
        # whose head and body are two writes, waits 40 ms for the client's delayed acknowledgement.
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host {host!r} is no address of this machine: {error}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"can't listen on {host} port {port}: {reason}") from error
    return listening


def is_private(listening: socket.socket) -> bool:
    """Say whether only this machine reaches it."""
    return is_loopback(listening.getsockname()[0].partition("%")[0])


def url_of(listening: socket.socket) -> str:
    """Return where a browser finds it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(app: ASGIApp, listening: socket.socket, ready: Callable[[], None], ending: Callable[[], None]) -> None:
    """Serve until a signal says to end; `ready` is called once requests are answered, `ending` with it."""
    config = uvicorn.Config(
        app,
        access_log=False,  # ours names route templates, and no path with its ids
        log_config=None,
        lifespan="on",
        ws="none",
        proxy_headers=False,  # the client's address decides whether a key is needed
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    sys.setswitchinterval(SWITCH_S)
    _Server(config, ready, ending).run(sockets=[listening])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready
        self._ending = ending

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            collect_seldom()
            keep_what_is()
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's form)
        # uvicorn's own would raise the signal again after a graceful stop, so that the status tells of a failure.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self._ending()
