"""Servers that behave as badly as they are told to: over real sockets, request by request, and on cue.

    with UnrulyServer() as server:
        server.behaviour = status(503)          # every request from now on
        server.script = [never, accept]         # the next two, then `behaviour` again
        ...                                     # a client works against server.url
        server.wait_for(lambda: len(server.requests) == 2)

A behaviour is any function of an `Exchange`. `accept`, which is what a server starts with, speaks stepwell's protocol
and keeps what it takes, each id once. Whatever a behaviour waits for, `close` ends.

`UnrulyProxy` is a proxy that tunnels (CONNECT) and forwards (absolute URIs) to one server, whatever it is asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import ssl
import struct
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

DEADLINE_S = 30.0

Behaviour = Callable[["Exchange"], None]


@dataclass
class Request:
    """What arrived: header names in lower case; `at` is when its head had arrived, in monotonic seconds."""

    method: str
    path: str
    headers: dict[str, str]
    connection: int
    at: float
    body: bytes = b""

    @property
    def content(self) -> bytes:
        """The body as it was before it was compressed."""
        encoding = self.headers.get("content-encoding", "")
        if encoding == "zstd":
            import zstandard

            return zstandard.ZstdDecompressor().decompress(self.body)
        return gzip.decompress(self.body) if encoding == "gzip" else self.body

    @property
    def lines(self) -> list[bytes]:
        lines = self.content.split(b"\n")
        assert lines.pop() == b"", "the last line has its end"
        return lines


class HungUpError(Exception):
    """The other side closed the connection, or a behaviour has."""


@dataclass
class Exchange:
    """One request and the means to answer it."""

    server: UnrulyServer
    socket: socket.socket
    request: Request
    read_body: Callable[[], bytes] = field(repr=False)

    def take(self) -> Request:
        """Read the body too."""
        self.request.body = self.read_body()
        return self.request

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Answer; `Retry_After="2"` is the header Retry-After."""
        named = {"Content-Length": str(len(body)), **{name.replace("_", "-"): value for name, value in headers.items()}}
        head = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        self.socket.sendall(f"HTTP/1.1 {status} Told\r\n{head}\r\n".encode() + body)

    def hang_up(self) -> None:
        raise HungUpError

    def reset(self) -> None:
        """Close so that the other side gets a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise HungUpError

    def wait(self, event: threading.Event) -> None:
        """Wait for an event, or for the server to close."""
        while not event.wait(0.05):
            if self.server.closing.is_set():
                raise HungUpError


# -- behaviours


def accept(exchange: Exchange) -> None:
    """Speak the protocol, and keep what is sent."""
    request, server = exchange.take(), exchange.server
    if not request.path.startswith(server.base + "/v1/"):
        exchange.send(404)
    elif request.path == server.base + "/v1/ingest":
        exchange.send(200, json.dumps(server.store(request.lines)).encode())
    elif request.path == server.base + "/v1/blobs/missing":
        asked = json.loads(request.content)["sha256"]
        exchange.send(200, json.dumps({"missing": [name for name in asked if name not in server.blobs]}).encode())
    else:
        name = request.path.rpartition("/")[2]
        whole = hashlib.sha256(request.body).hexdigest() == name
        if whole:
            server.blobs[name] = request.body
        exchange.send(201 if whole else 400)


def never(exchange: Exchange) -> None:
    """Take the request and never answer."""
    exchange.take()
    exchange.wait(threading.Event())


def deaf(exchange: Exchange) -> None:
    """Not even read the body."""
    exchange.wait(threading.Event())


def drip(exchange: Exchange) -> None:
    """Answer a byte of a header at a time, for ever."""
    _drip(exchange, b"HTTP/1.1 200 OK\r\nX-Drip: ", b"x")


def drip_body(exchange: Exchange) -> None:
    """Answer well, but a byte of the body at a time, for ever."""
    _drip(exchange, b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" ")


def _drip(exchange: Exchange, head: bytes, drop: bytes) -> None:
    exchange.take()
    exchange.socket.sendall(head)
    while not exchange.server.closing.wait(0.02):
        exchange.socket.sendall(drop)
    exchange.hang_up()


def endless(exchange: Exchange) -> None:
    """Answer with a body that has no end."""
    exchange.take()
    exchange.socket.sendall(b"HTTP/1.1 200 OK\r\n\r\n{")
    while not exchange.server.closing.is_set():
        exchange.socket.sendall(b" " * 65536)


def hang_up(exchange: Exchange) -> None:
    """Take the request and close without an answer."""
    exchange.take()
    exchange.hang_up()


def hang_up_in_the_middle(exchange: Exchange) -> None:
    """Begin the answer and close."""
    exchange.take()
    exchange.socket.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"accep')
    exchange.hang_up()


def reset_in_the_middle(exchange: Exchange) -> None:
    """Begin the answer and reset the connection."""
    exchange.take()
    exchange.socket.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"accep')
    exchange.reset()


def take_and_hang_up(exchange: Exchange) -> None:
    """Keep the records, and close before it says so: the worst moment for a client."""
    exchange.server.store(exchange.take().lines)
    exchange.hang_up()


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    """Answer so, whatever comes."""

    def behave(exchange: Exchange) -> None:
        exchange.take()
        exchange.send(code, body, **headers)

    return behave


def answer(body: bytes) -> Behaviour:
    """Answer 200 with a body."""
    return status(200, body)


def captive_portal(exchange: Exchange) -> None:
    """Answer 200 with a page to log in, as a hotel's network does."""
    exchange.take()
    exchange.send(200, b"<!doctype html><title>Welcome to the hotel</title>", Content_Type="text/html")


def at_most(limit: int) -> Behaviour:
    """Refuse bodies over `limit` bytes with 413 and accept the rest, as nginx does with `client_max_body_size`."""

    def behave(exchange: Exchange) -> None:
        if int(exchange.request.headers["content-length"]) > limit:
            exchange.take()
            exchange.send(413, b"<html>too large</html>")
        else:
            accept(exchange)

    return behave


def at_most_and_unread(limit: int) -> Behaviour:
    """As `at_most`, but answer without having read the body, and close."""

    def behave(exchange: Exchange) -> None:
        if int(exchange.request.headers["content-length"]) > limit:
            exchange.send(413, Connection="close")
            exchange.socket.shutdown(socket.SHUT_WR)
            exchange.take()  # else the client may get a reset before it has read the answer
            exchange.hang_up()
        accept(exchange)

    return behave


def whole_batch_refused_for(text: bytes) -> Behaviour:
    """Refuse a batch with 400 where a record holds `text`, without a word on which."""

    def behave(exchange: Exchange) -> None:
        if text in exchange.take().content:
            exchange.send(400, b"bad request")
        else:
            exchange.read_body = lambda: exchange.request.body
            accept(exchange)

    return behave


def not_encoded(*encodings: str) -> Behaviour:
    """Answer 415 to these encodings and accept the others."""

    def behave(exchange: Exchange) -> None:
        if exchange.request.headers.get("content-encoding") in encodings:
            exchange.take()
            exchange.send(415)
        else:
            accept(exchange)

    return behave


# -- the server


class UnrulyServer:
    """Listens on 127.0.0.1, a thread a connection. `requests` are what arrived, `records` what was kept, by id.

    `refuse` is text that records must not hold: a record that does is refused by name. `base` is the path below which
    it speaks the protocol, `key` the bearer token it wants.
    """

    def __init__(self, *, tls: ssl.SSLContext | None = None, base: str = "", key: str = "") -> None:
        self.behaviour: Behaviour = accept
        self.script: list[Behaviour] = []
        self.base = base
        self.key = key
        self.refuse = b"\x00"
        self.requests: list[Request] = []
        self.records: dict[str, list[bytes]] = {}
        self.arrived: list[bytes] = []
        self.blobs: dict[str, bytes] = {}
        self.closing = threading.Event()
        self._changed = threading.Condition()
        self._tls = tls
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._connections = 0
        self._listener: socket.socket | None = None
        self.port = 0
        self.open()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}{self.base}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None
    ) -> None:
        self.close()

    def open(self) -> None:
        """Listen, on the same port as before if it did before."""
        self.closing.clear()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accept, listener)

    def close(self) -> None:
        """End every behaviour and connection; connecting is refused from now on."""
        self.closing.set()
        with self._changed:
            for open_socket in [*self._sockets, *([self._listener] if self._listener else [])]:
                try:
                    socket.socket.shutdown(open_socket, socket.SHUT_RDWR)
                except OSError:
                    continue
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), "a behaviour goes on and on"
        self._threads.clear()

    def wait_for(self, condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> None:
        """Wait until a condition on what arrived holds."""
        with self._changed:
            assert self._changed.wait_for(condition, deadline_s), [(r.method, r.path) for r in self.requests]

    def store(self, lines: list[bytes]) -> dict[str, Any]:
        """Keep lines as a store would, and say what became of them."""
        accepted, duplicates = 0, 0
        rejected: list[dict[str, Any]] = []
        with self._changed:
            for number, line in enumerate(lines):
                try:
                    name = json.loads(line)["id"]
                except (ValueError, KeyError, TypeError) as error:
                    rejected.append({"line": number, "id": "", "error": f"not a record: {error}"})
                    continue
                if self.refuse in line:
                    rejected.append({"line": number, "id": name, "error": "refused by name"})
                elif line in self.records.setdefault(name, []):
                    duplicates += 1
                else:
                    self.records[name].append(line)
                    self.arrived.append(line)
                    accepted += 1
            self._changed.notify_all()
        return {"accepted": accepted, "duplicates": duplicates, "rejected": rejected}

    @property
    def names(self) -> list[str]:
        """The names of the steps that ended, in order of arrival."""
        with self._changed:
            found = [json.loads(line) for line in self.arrived]
        return [record["name"] for record in found if record.get("status") not in {"pending", "interrupted"}]

    def posts(self) -> list[Request]:
        """The requests that brought records."""
        return [request for request in list(self.requests) if request.path.endswith("/v1/ingest")]

    def _start(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, name="unruly", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while not self.closing.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:  # `close` has shut it down
                    return
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections += 1
                self._start(self._serve, connection, self._connections)

    def _serve(self, connection: socket.socket, number: int) -> None:
        connection.settimeout(DEADLINE_S)
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with self._changed:
                self._sockets.add(connection)
            self.converse(connection, number)
        except (HungUpError, OSError):  # OSError: the other side went, as it may
            pass
        finally:
            with self._changed:
                self._sockets.discard(connection)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                connection.close()

    def converse(self, connection: socket.socket, number: int) -> None:
        """Answer requests until somebody hangs up."""
        stream = connection.makefile("rb")
        with stream:
            while not self.closing.is_set():
                request = _read_head(stream, number)
                exchange = Exchange(self, connection, request, lambda request=request: _read_body(stream, request))
                with self._changed:
                    self.requests.append(request)
                    behaviour = self.script.pop(0) if self.script else self.behaviour
                    self._changed.notify_all()
                if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                    behaviour = status(401)
                behaviour(exchange)


def _read_head(stream: Any, connection: int) -> Request:
    first = stream.readline()
    if not first:
        raise HungUpError
    method, path, _ = first.decode().split(" ")
    headers: dict[str, str] = {}
    while line := stream.readline().decode().rstrip("\r\n"):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Request(method, path, headers, connection, time.monotonic())


def _read_body(stream: Any, request: Request) -> bytes:
    size = int(request.headers.get("content-length", 0))
    body: bytes = stream.read(size)
    if len(body) < size:
        raise HungUpError
    return body


class UnrulyProxy(UnrulyServer):
    """Takes every request to `upstream`; `requests` are those it was asked, with what they name as `path`."""

    def __init__(self, upstream: UnrulyServer) -> None:
        self.upstream = upstream
        super().__init__()

    def converse(self, connection: socket.socket, number: int) -> None:
        stream = connection.makefile("rb", buffering=0)
        with stream, socket.create_connection(("127.0.0.1", self.upstream.port)) as onward:
            while True:
                request = _read_head(stream, number)
                with self._changed:
                    self.requests.append(request)
                    self._changed.notify_all()
                if request.method == "CONNECT":
                    connection.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                    self._tunnel(connection, onward)
                    return
                path = urlsplit(request.path).path
                head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
                onward.sendall(f"{request.method} {path} HTTP/1.1\r\n{head}\r\n".encode())
                size = int(request.headers.get("content-length", 0))
                while size:
                    chunk = stream.read(min(size, 65536))
                    size -= len(chunk)
                    onward.sendall(chunk)
                connection.sendall(_whole_answer(onward))

    def _tunnel(self, here: socket.socket, there: socket.socket) -> None:
        def carry(source: socket.socket, target: socket.socket) -> None:
            try:
                while data := source.recv(65536):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)
            except OSError:
                return

        there.settimeout(DEADLINE_S)
        back = threading.Thread(target=carry, args=(there, here), daemon=True)
        back.start()
        carry(here, there)
        back.join(DEADLINE_S)


def _whole_answer(source: socket.socket) -> bytes:
    stream = source.makefile("rb", buffering=0)
    with stream:
        lines = [stream.readline()]
        while lines[-1] not in (b"\r\n", b""):
            lines.append(stream.readline())
        size = next((int(line[15:]) for line in lines if line.lower().startswith(b"content-length:")), 0)
        body = b""
        while len(body) < size:
            body += stream.read(size - len(body))
        return b"".join(lines) + body
