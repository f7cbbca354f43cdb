"""One kept-alive HTTP connection to one server: a request is answered, or raises, by a deadline.

What must stay true:

1. A request ends: each wait has a limit and all of them together have one, whatever the server drips or leaves out.
2. An answer takes bounded memory, and is read to its end or not believed.
3. Nothing is followed and nothing is kept from one answer to the next request: no redirects, no cookies.

It stands on httpcore, the connection layer of httpx, since only there can a stream be given a deadline of its own:
httpx limits each read, so that a header sent a byte at a time holds a request for a day. httpx would also log a line at
INFO for each batch into the program's log.
"""

from __future__ import annotations

import os
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

import httpcore

__all__ = ["Answer", "BodyError", "Client", "RequestError", "authorities"]

CONNECT_S: Final = 5.0  # a SYN that is lost is sent again after 1 and after 3 seconds
WAIT_S: Final = 10.0  # for the server to take or send a next byte: it stores a megabyte in a tenth of a second
REQUEST_S: Final = 30.0  # for all of it, and more for a large body:
SLOWEST_BYTES_PER_S: Final = 64 * 1024  # a line slower than this does not keep up with a busy program anyway
ANSWER_BYTES: Final = 4 * 1024 * 1024  # a reason of 2,000 characters for each record of the largest batch
KEEP_ALIVE_S: Final = 4.0  # less than the servers' own (uvicorn's is 5 s), so that they don't hang up on a request
_CERTIFICATE_HINT: Final = " (an authority of your own: SSL_CERT_FILE)"
_SLICE: Final = 64 * 1024  # what is written between two looks at the clock


class Answer(NamedTuple):
    """What a server said; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class RequestError(Exception):
    """Says that there is no answer, or none to be believed: `why`, and a `hint` at what to do about it."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why + hint)
        self.why = why
        self.hint = hint


class BodyError(Exception):
    """Raised by a body that can't be read; it passes through `Client.request`."""


class _Clock:
    """The time by which the request in hand must be through."""

    def __init__(self) -> None:
        self._until = 0.0

    def start(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def cap(self, wait_s: float | None) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("the request took too long as a whole")
        return left if wait_s is None else min(wait_s, left)


class _Stream(httpcore.NetworkStream):
    """A connection each of whose waits is cut by the clock."""

    def __init__(self, stream: httpcore.NetworkStream, clock: _Clock) -> None:
        self._stream = stream
        self._clock = clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.cap(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for at in range(0, len(buffer), _SLICE):
            self._stream.write(buffer[at : at + _SLICE], self._clock.cap(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._clock.cap(timeout)), self._clock)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _Backend(httpcore.SyncBackend):
    """Opens connections that keep to the clock."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        stream = super().connect_tcp(host, port, self._clock.cap(timeout), local_address, socket_options)
        return _Stream(stream, self._clock)


class Client:
    """Sends requests to one origin, such as `https://host:8443`, one at a time; connects with the first.

    Proxies and authorities are those of the environment: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`,
    `SSL_CERT_FILE`, `SSL_CERT_DIR`; a proxy is never asked for this machine's own addresses.
    """

    def __init__(self, origin: str, *, loopback: bool) -> None:
        self._origin = origin
        self._loopback = loopback
        self._clock = _Clock()
        self._alone = threading.Lock()  # a thread given up on at its deadline may still be in here
        self._pool: httpcore.ConnectionPool | None = None

    def request(
        self, method: str, path: str, headers: dict[str, str], body: bytes | Iterator[bytes], *, size: int
    ) -> Answer:
        """Send a request with a body of `size` bytes and return the answer. Raises `RequestError`."""
        limit = REQUEST_S + size / SLOWEST_BYTES_PER_S
        if not self._alone.acquire(timeout=limit):
            raise RequestError("another request is still under way")
        try:
            self._clock.start(limit)
            return self._request(method, path, {**headers, "Content-Length": str(size)}, body)
        except (RequestError, BodyError):
            raise
        except Exception as error:
            # Also one that nobody thought of: it is the way that failed, and not the records.
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise RequestError(why, _CERTIFICATE_HINT if "CERTIFICATE_VERIFY_FAILED" in why else "") from error
        finally:
            self._alone.release()

    def _request(self, method: str, path: str, headers: dict[str, str], body: bytes | Iterator[bytes]) -> Answer:
        if self._pool is None:
            self._pool = self._connect()
        timeouts = {"connect": CONNECT_S, "read": WAIT_S, "write": WAIT_S, "pool": 0.0}
        with self._pool.stream(
            method,
            self._origin + path,
            headers=list(headers.items()),
            content=body,
            extensions={"timeout": timeouts},
        ) as response:
            answered = b"".join(_at_most(ANSWER_BYTES, response.iter_stream()))
            named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
            return Answer(response.status, named, answered)

    def _connect(self) -> httpcore.ConnectionPool:
        return httpcore.ConnectionPool(
            ssl_context=authorities() if self._origin.startswith("https:") else None,
            proxy=None if self._loopback else _proxy(self._origin),
            max_connections=1,
            keepalive_expiry=KEEP_ALIVE_S,
            network_backend=_Backend(self._clock),
        )

    def close(self) -> None:
        """Close the connection; the next request makes a new one."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()


def _at_most(limit: int, chunks: Iterable[bytes]) -> Iterator[bytes]:
    for chunk in chunks:
        limit -= len(chunk)
        if limit < 0:
            raise RequestError(f"its answer is longer than {ANSWER_BYTES} bytes")
        yield chunk


def authorities() -> ssl.SSLContext:
    """Trust what `SSL_CERT_FILE` and `SSL_CERT_DIR` name; without them this machine's authorities and certifi's."""
    context = ssl.create_default_context()  # OpenSSL reads the variables
    if not os.environ.get("SSL_CERT_FILE") and not os.environ.get("SSL_CERT_DIR"):
        import certifi  # 0.3 MB to parse, where the machine may have no authorities, as small containers do

        context.load_verify_locations(certifi.where())
    return context


def _proxy(origin: str) -> httpcore.Proxy | None:
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass  # they take as long to import as all of httpcore

    target = urlsplit(origin)
    named = getproxies()
    url = named.get(target.scheme) or named.get("all")
    if not url or proxy_bypass(target.netloc):
        return None
    parts = urlsplit(url if "://" in url else f"http://{url}")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    try:
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        raise RequestError("the proxy that the environment names has no valid port") from None
    auth = None if parts.username is None else (unquote(parts.username), unquote(parts.password or ""))
    context = authorities() if parts.scheme == "https" else None
    return httpcore.Proxy(f"{parts.scheme}://{host}{port}", auth=auth, ssl_context=context)
