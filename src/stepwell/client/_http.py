"""Questions over HTTP, synchronous and not: the same headers, limits, retries and errors.

What must stay true:

1. The key is in the `Authorization` header and nowhere else: no error, repr or log line holds it.
2. Only what changes nothing is asked again, a few times, and only where there was no answer, or 503.
3. Nothing is followed and nothing is kept from one answer to the next request: no redirects, no cookies.
4. An answer in one piece takes bounded memory and time, all tries together: a server that goes on sending a little is
   given up too. On a thread that is seen with each piece of the answer's body, so its head may take longer, of which
   httpx takes 100 kB.
"""

from __future__ import annotations

import math
import os
import ssl
import time
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager
from http import HTTPStatus
from threading import Event, Lock
from typing import Any, Final, TypeVar

import anyio
import httpx
from msgspec import DecodeError, Struct, json

from stepwell._checks import shown
from stepwell._vocabulary import SDK
from stepwell.client._requests import Download, Request
from stepwell.errors import ClientError, NotFoundError, StepwellError, UsageError
from stepwell.exporters._http_client import authorities
from stepwell.exporters.http import parse_target

__all__ = ["AsyncHttp", "Http"]

T = TypeVar("T")

ANSWER_BYTES: Final = 512 * 1024 * 1024
DELAYS_S: Final = (0.1, 0.5, 1.5)  # before each time a question is asked again
LONGEST_WISH_S: Final = 5.0  # what `Retry-After` may ask for
KEEP_ALIVE_S: Final = 4.0  # less than the servers' own (uvicorn's is 5 s), so that they don't hang up on a request
_QUOTED_CHARACTERS: Final = 500  # of a server's own words
_UNANSWERED: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError, httpx.ReadError)


class _Detail(Struct):
    type: str
    message: str
    fields: list[dict[str, str]] = []


class _ErrorBody(Struct):
    error: _Detail


_error: Final = json.Decoder(_ErrorBody)


class _Again(Exception):  # noqa: N818 (it is no error, but passed between `_Server` and its users)
    """Says that a question is to be asked again after a while."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s


class _Tries:
    """What is left of a call: the delays before it is asked again, and its time."""

    def __init__(self, delays_s: tuple[float, ...], deadline_s: float = math.inf) -> None:
        self.delays_s = list(delays_s)
        self._until = time.monotonic() + deadline_s

    def left_s(self) -> float:
        return self._until - time.monotonic()


class _Server:
    """What both kinds of transport know of a server."""

    def __init__(self, url: str, key: str | None, timeout: float, deadline: float) -> None:
        target = parse_target(url, "the URL ")
        key = target.api_key or key or os.environ.get("STEPWELL_API_KEY", "").strip()
        self.name = target.origin + target.path
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UsageError(f"the key for {self.name} has a space or a character that no header can carry")
        for name, seconds in (("timeout", timeout), ("deadline", deadline)):
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= 3600:
                raise UsageError(f"{name} must be a number of seconds up to 3600, got {shown(seconds)}")
        self.deadline = float(deadline)
        self._headers = {"User-Agent": SDK, **({"Authorization": f"Bearer {key}"} if key else {})}
        self._loopback = target.loopback
        self._timeout = float(timeout)

    def options(self) -> dict[str, Any]:
        """Return the arguments of an httpx client. Proxies are the environment's, but for this machine itself."""
        verify: ssl.SSLContext | bool = authorities() if self.name.startswith("https:") else False
        return {
            "headers": self._headers,
            "timeout": httpx.Timeout(self._timeout),
            "trust_env": not self._loopback,
            "verify": verify,
            "limits": httpx.Limits(keepalive_expiry=KEEP_ALIVE_S),
        }

    def request(
        self, client: httpx.Client | httpx.AsyncClient, asked: Request[Any] | Download, tries: _Tries
    ) -> httpx.Request:
        client.cookies.clear()
        body = asked.body if isinstance(asked, Request) else None
        return client.build_request(
            asked.method if isinstance(asked, Request) else "GET",
            self.name + asked.path,
            params=list(asked.query) or None,
            content=body,
            headers={"Content-Type": asked.type} if isinstance(asked, Request) and body is not None else None,
            timeout=min(self._timeout, max(tries.left_s(), 0.001)),
        )

    @contextmanager
    def mapping(self, asked: Request[Any] | Download, tries: _Tries) -> Generator[None]:
        """Turn what httpx raises into our errors, or into `_Again` where there is a try left, and time for it."""
        left = tries.delays_s
        may_repeat = isinstance(asked, Download) or asked.method == "GET"
        try:
            yield
        except httpx.TimeoutException as error:
            if isinstance(error, httpx.ConnectTimeout) and may_repeat and left:
                raise _Again(left.pop(0)) from None
            if tries.left_s() <= 0:
                raise self.too_late() from error
            raise ClientError(f"{self.name} did not answer within {self._timeout:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, UnicodeError) as error:
            if isinstance(error, _UNANSWERED) and may_repeat and left:
                raise _Again(left.pop(0)) from None
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ClientError(f"{self.name} gave no answer: {why}") from error
        except ClientError as error:
            if error.status == HTTPStatus.SERVICE_UNAVAILABLE and may_repeat and left:
                raise _Again(max(left.pop(0), min(error.retry_after_s or 0.0, LONGEST_WISH_S))) from None
            raise

    def too_late(self) -> ClientError:
        """Return the error of a call that took too long altogether."""
        return ClientError(f"{self.name} did not answer in full within {self.deadline:g} s")

    def refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> StepwellError:
        """Return the error that an answer other than success is."""
        try:
            detail = _error.decode(body).error
        except (DecodeError, UnicodeDecodeError, RecursionError):
            detail = None
        if detail is None:
            said = _phrase(status)
        else:
            said = ": ".join(
                [detail.message, *(f"{each.get('where')}: {each.get('message')}" for each in detail.fields)]
            )
            said = "".join(each if each.isprintable() else " " for each in said)[:_QUOTED_CHARACTERS]
            if status == HTTPStatus.NOT_FOUND:
                return NotFoundError(said)
            if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY):
                return UsageError(said)
        wish = headers.get("retry-after", "")
        return ClientError(
            f"{self.name} answered {status}: {said}",
            status=status,
            request_id=headers.get("x-request-id"),
            retry_after_s=float(wish) if wish.isdecimal() and len(wish) < 9 else None,
        )


class _Body:
    """Gathers an answer, as long as it neither is nor takes too long."""

    def __init__(self, server: _Server, tries: _Tries) -> None:
        self._server = server
        self._tries = tries
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > ANSWER_BYTES:
            raise ClientError(f"the answer of {self._server.name} is longer than {ANSWER_BYTES} bytes")
        if self._tries.left_s() <= 0:
            raise self._server.too_late()

    def whole(self) -> bytes:
        return b"".join(self._pieces)


class Http:
    """Asks a server, on the caller's thread."""

    def __init__(self, url: str, key: str | None, timeout: float, deadline: float) -> None:
        self._server = _Server(url, key, timeout, deadline)
        self._lock = Lock()
        self._client: httpx.Client | None = None

    def __str__(self) -> str:
        return repr(self._server.name)

    def run(self, request: Request[T]) -> T:
        """Return what the server answers."""
        tries = _Tries(DELAYS_S, self._server.deadline)
        while True:
            try:
                response = self._send(request, tries)
                with closing(response):
                    return request.of_answer(self._read(request, response, tries))
            except _Again as again:
                Event().wait(min(again.delay_s, max(tries.left_s(), 0.0)))

    def pieces(self, download: Download) -> Iterator[bytes]:
        """Yield what the server sends."""
        tries = _Tries(DELAYS_S)
        while True:
            try:
                response = self._send(download, tries)
                break
            except _Again as again:
                Event().wait(again.delay_s)
        with closing(response), self._server.mapping(download, _Tries(())):
            yield from response.iter_bytes()

    def _send(self, asked: Request[Any] | Download, tries: _Tries) -> httpx.Response:
        client = self._opened()
        with self._server.mapping(asked, tries):
            response = client.send(self._server.request(client, asked, tries), stream=True, follow_redirects=False)
            if response.is_success:
                return response
            with closing(response):
                body = self._read(asked, response, tries)
            raise self._server.refusal(response.status_code, response.headers, body)

    def _read(self, asked: Request[Any] | Download, response: httpx.Response, tries: _Tries) -> bytes:
        body = _Body(self._server, tries)
        with self._server.mapping(asked, tries):
            for piece in response.iter_bytes():
                body.add(piece)
        return body.whole()

    def _opened(self) -> httpx.Client:
        with self._lock:
            if self._client is None:
                self._client = httpx.Client(**self._server.options())
            return self._client

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()


class AsyncHttp:
    """Asks a server, on the caller's event loop."""

    def __init__(self, url: str, key: str | None, timeout: float, deadline: float) -> None:
        self._server = _Server(url, key, timeout, deadline)
        self._client: httpx.AsyncClient | None = None

    def __str__(self) -> str:
        return repr(self._server.name)

    async def run(self, request: Request[T]) -> T:
        """Return what the server answers."""
        tries = _Tries(DELAYS_S, self._server.deadline)
        try:
            with anyio.fail_after(self._server.deadline):
                return await self._run(request, tries)
        except TimeoutError as error:
            raise self._server.too_late() from error

    async def _run(self, request: Request[T], tries: _Tries) -> T:
        while True:
            try:
                response = await self._send(request, tries)
                async with aclosing(response):
                    return request.of_answer(await self._read(request, response, tries))
            except _Again as again:
                await anyio.sleep(again.delay_s)

    async def pieces(self, download: Download) -> AsyncGenerator[bytes]:
        """Yield what the server sends."""
        tries = _Tries(DELAYS_S)
        while True:
            try:
                response = await self._send(download, tries)
                break
            except _Again as again:
                await anyio.sleep(again.delay_s)
        async with aclosing(response):
            with self._server.mapping(download, _Tries(())):
                async for piece in response.aiter_bytes():
                    yield piece

    async def _send(self, asked: Request[Any] | Download, tries: _Tries) -> httpx.Response:
        if self._client is None:
            self._client = httpx.AsyncClient(**self._server.options())
        client = self._client
        with self._server.mapping(asked, tries):
            response = await client.send(
                self._server.request(client, asked, tries), stream=True, follow_redirects=False
            )
            if response.is_success:
                return response
            async with aclosing(response):
                body = await self._read(asked, response, tries)
            raise self._server.refusal(response.status_code, response.headers, body)

    async def _read(self, asked: Request[Any] | Download, response: httpx.Response, tries: _Tries) -> bytes:
        body = _Body(self._server, tries)
        with self._server.mapping(asked, tries):
            async for piece in response.aiter_bytes():
                body.add(piece)
        return body.whole()

    async def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()


def _phrase(status: int) -> str:
    if 300 <= status < 400:
        return "redirects are not followed"
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "what no stepwell server does"
