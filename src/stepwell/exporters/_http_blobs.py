"""Sends the files that records name by SHA-256, each once, before the records.

What must stay true: a file is read in pieces, never as a whole; one that is not here, or that the server does not take,
holds up no record.

A hash that names no file here is passed over in silence: a tool's arguments may hold hashes of their own, and the two
can't be told apart without decoding the record. What the server refuses is logged, at most once a minute a reason.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import DecodeError, Struct, json

from stepwell.blobs import BlobStore
from stepwell.errors import ExportError, NotFoundError

if TYPE_CHECKING:  # loaded with the first request
    from stepwell.exporters._http_client import Answer

__all__ = ["BlobSender"]

MAX_ASKED: Final = 1000  # hashes in one question
MAX_REMEMBERED: Final = 10_000  # hashes that are settled: 2 MB
SETTLED_S: Final = 300.0  # then it is asked again: a server may remove what nobody names or asks for in 10 minutes
LOG_EVERY_S: Final = 60.0
_CHUNK: Final = 256 * 1024
_MARK: Final = b'"sha256":"'  # as it is written on records; within a string of the user's the quotes are escaped
_HASH: Final = re.compile(_MARK + b'([0-9a-f]{64})"')
_WAIT: Final = frozenset({401, 403, 408, 425, 429})  # the 4xx that say nothing about the file

log: Final = getLogger("stepwell")


class Missing(Struct):
    """What the server wants of what it was asked."""

    missing: list[str]


_missing = json.Decoder(Missing)

Send = Callable[[str, str, dict[str, str], "bytes | Iterator[bytes]", int], "Answer"]


class BlobSender:
    """Sends files through `send`, an exporter's way to its server; `refuse` raises for an answer that is none."""

    def __init__(self, blobs: BlobStore, send: Send, refuse: Callable[[Answer], None]) -> None:
        self._blobs = blobs
        self._send = send
        self._refuse = refuse
        self._settled: OrderedDict[str, float] = OrderedDict()  # known to be there, or refused for good, and since when
        self._logged: dict[str, float] = {}

    def send_those_of(self, frames: Sequence[bytes]) -> None:
        """Send the files that frames name and the server lacks. Raises `ExportError` where that may succeed later."""
        here: dict[str, Path] = {}
        for frame in frames:
            if _MARK in frame:
                for found in _HASH.finditer(frame):
                    self._find(found[1].decode(), here)
        hashes = list(here)
        for at in range(0, len(hashes), MAX_ASKED):
            asked = hashes[at : at + MAX_ASKED]
            wanted = self._ask(asked)
            for sha256 in asked:
                if sha256 not in wanted or self._put(sha256, here[sha256]):
                    self._settle(sha256)

    def _find(self, sha256: str, here: dict[str, Path]) -> None:
        if time.monotonic() - self._settled.get(sha256, -SETTLED_S) < SETTLED_S:
            self._settled.move_to_end(sha256)
        elif sha256 not in here:
            try:
                here[sha256] = self._blobs.path(sha256)
            except (NotFoundError, OSError):
                return

    def _settle(self, sha256: str) -> None:
        self._settled[sha256] = time.monotonic()
        self._settled.move_to_end(sha256)
        if len(self._settled) > MAX_REMEMBERED:
            self._settled.popitem(last=False)

    def _ask(self, asked: list[str]) -> frozenset[str]:
        body = json.encode({"sha256": asked})
        answer = self._send("POST", "/v1/blobs/missing", {"Content-Type": "application/json"}, body, len(body))
        if _is_for_good(answer.status):
            self._warn(f"takes no attachments: it answered {answer.status}")
            return frozenset()
        self._refuse(answer)
        try:
            return frozenset(_missing.decode(answer.body).missing)
        except (DecodeError, UnicodeDecodeError) as error:
            raise ExportError("the server does not say which attachments it lacks") from error

    def _put(self, sha256: str, path: Path) -> bool:
        """Send a file; say whether that settles it."""
        from stepwell.exporters._http_client import BodyError  # loaded by the question before

        try:
            size = path.stat().st_size
            headers = {"Content-Type": "application/octet-stream"}
            answer = self._send("PUT", f"/v1/blobs/{sha256}", headers, _pieces(path, size), size)
        except (OSError, BodyError) as error:
            self._warn(f"does not get an attachment, which can't be read: {error}")
            return False
        if _is_for_good(answer.status):
            self._warn(f"refused an attachment of {size} bytes with {answer.status}", key=str(answer.status))
        else:
            self._refuse(answer)
        return True

    def _warn(self, text: str, key: str = "") -> None:
        now = time.monotonic()
        if now - self._logged.get(key or text, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._logged = {key or text: now} if len(self._logged) > 100 else {**self._logged, key or text: now}
            log.warning("stepwell's server %s; the record is sent without it", text)


def _is_for_good(status: int) -> bool:
    return (400 <= status < 500 and status not in _WAIT) or status == 501


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    """Yield exactly `size` bytes of a file. Raises `BodyError`."""
    from stepwell.exporters._http_client import BodyError

    try:
        with path.open("rb") as file:
            while size:
                piece = file.read(min(size, _CHUNK))
                if not piece:
                    raise BodyError(f"{path} was cut short")
                size -= len(piece)
                yield piece
    except OSError as error:
        raise BodyError(str(error)) from error
