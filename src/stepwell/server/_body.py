"""The body of a request: read within its limits, decompressed, cut into lines.

What must stay true: what a limit refuses is never in memory as a whole; a compressed body is stopped at the limit of
what it expands to while it expands.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from typing import Final

from starlette.requests import ClientDisconnect, Request

from stepwell.server._errors import Problem
from stepwell.server._limits import Limits

__all__ = ["ENCODINGS", "decompressed", "is_deeper_than", "lines_of", "pieces_of", "too_large"]

DRAIN_BYTES: Final = 64 * 1024 * 1024
DRAIN_S: Final = 5.0
_PIECE: Final = 1024 * 1024
_ZSTD_SLICE: Final = 256  # three bytes may expand to 128 KiB, so this to some 10 MiB
_ZSTD_WINDOW: Final = 8 * 1024 * 1024  # what RFC 8878 asks every reader to take
_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_ALL_BUT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_TO_SQUARE: Final = bytes.maketrans(b"{}", b"[]")

ENCODINGS: Final = ("zstd", "gzip", "deflate") if find_spec("zstandard") else ("gzip", "deflate")
_WINDOW_BITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


async def pieces_of(
    request: Request, limit: int, seconds: float, room: Callable[[int], bool] = lambda _: True
) -> AsyncGenerator[bytes]:
    """Yield a body as it arrives.

    Raises `Problem` where it is longer than `limit` bytes, takes too long, or there is no `room` for more bytes.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        await _drain(request)
        raise too_large("the body", limit)
    until = asyncio.get_running_loop().time() + seconds
    size, more = 0, True
    while more:
        try:
            async with asyncio.timeout_at(until):
                message = await request.receive()
        except TimeoutError:
            raise Problem(
                408, f"the body did not arrive within {seconds:g} s", headers={"Connection": "close"}
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece, more = message.get("body", b""), message.get("more_body", False)
        size += len(piece)
        problem = too_large("the body", limit) if size > limit else None if room(len(piece)) else _no_room()
        if problem is not None:
            if more:
                await _drain(request)
            raise problem
        if piece:
            yield piece


def too_large(what: str, limit: int, *, line: int | None = None) -> Problem:
    """Return the 413 for something that is over a limit of bytes."""
    return Problem(413, f"{what} is longer than {limit} bytes", line=line)


def _no_room() -> Problem:
    return Problem(503, "too much is arriving at once", headers={"Retry-After": "1"})


async def _drain(request: Request) -> None:
    """Read what a client goes on sending, within reason: one that is hung up on may never see the answer."""
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while size < DRAIN_BYTES:
                message = await request.receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return


def lines_of(body: bytes, limits: Limits) -> list[bytes]:
    """Cut a body into lines; the end of the last may be missing. Raises `Problem`."""
    lines = body.split(b"\n", limits.lines + 1)
    if not lines[-1]:
        del lines[-1]
    if len(lines) > limits.lines:
        raise Problem(413, f"there are more than {limits.lines} lines")
    if len(body) > limits.line_bytes:
        for number, line in enumerate(lines):
            if len(line) > limits.line_bytes:
                raise too_large("a line", limits.line_bytes, line=number)
    return lines


def is_deeper_than(depth: int, line: bytes) -> bool:
    """Say whether JSON is nested deeper; of what is no JSON it says anything."""
    if line.count(b"[") + line.count(b"{") <= depth:
        return False
    brackets = _STRING.sub(b"", line).translate(_TO_SQUARE, _ALL_BUT_BRACKETS)
    for _ in range(depth):  # each round takes the innermost pairs away
        smaller = brackets.replace(b"[]", b"")
        if len(smaller) == len(brackets):
            return False  # they don't match: it is no JSON
        brackets = smaller
    return bool(brackets)


def decompressed(body: bytes, encoding: str, limit: int) -> bytes:
    """Undo a content encoding. Raises `Problem` for one that is not known, and for what is no such or too long."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ENCODINGS:
        taken = ", ".join(ENCODINGS)
        raise Problem(415, f"bodies are taken encoded as {taken}, or as they are", headers={"Accept-Encoding": taken})
    pieces: list[bytes] = []
    size = 0
    try:
        for piece in _unzstd(body, limit) if encoding == "zstd" else _inflate(body, _WINDOW_BITS[encoding]):
            size += len(piece)
            if size > limit:
                raise too_large("the body, decompressed,", limit)
            pieces.append(piece)
    except (zlib.error, _BrokenError):
        raise Problem(400, f"the body is not whole or not {encoding}") from None
    return b"".join(pieces)


class _BrokenError(Exception):
    """Says that a compressed body is cut short or damaged."""


def _inflate(body: bytes, window_bits: int) -> Iterator[bytes]:
    while body:  # a file of gzip may have several members
        member = zlib.decompressobj(window_bits)
        while not member.eof:
            piece = member.decompress(body, _PIECE)
            body = member.unconsumed_tail
            if not piece and not body and not member.eof:
                raise _BrokenError
            yield piece
        body = member.unused_data


def _unzstd(body: bytes, limit: int) -> Iterator[bytes]:
    import zstandard  # optional

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    try:
        announced = zstandard.frame_content_size(body)
        if announced > limit:
            raise too_large("the body, decompressed,", limit)
        if announced > 0:
            with suppress(zstandard.ZstdError):  # as for several frames, which are read below
                yield decompressor.decompress(body, allow_extra_data=False)
                return
        while body:
            frame, at = decompressor.decompressobj(), 0
            while not frame.eof:
                if at >= len(body):
                    raise _BrokenError
                yield frame.decompress(body[at : at + _ZSTD_SLICE])
                at += _ZSTD_SLICE
            body = frame.unused_data + body[at:]
    except zstandard.ZstdError:
        raise _BrokenError from None
