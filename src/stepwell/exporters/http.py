"""http(s)://HOST: send batches to a stepwell server.

What must stay true:

1. Frames travel as they were recorded: one POST of lines, neither decoded nor encoded again. Only a record that is
   larger than the server takes is decoded, to make a stub of it.
2. Nothing is delivered unless the server said so, line by line, in the form below.
3. The key is in the `Authorization` header and nowhere else: no name, message or log line holds it.
4. A blob arrives before the record that names it; one that can't arrive holds up no record.

The protocol: `POST /v1/ingest` takes records as lines and answers 200 with
`{"accepted": 1, "duplicates": 0, "rejected": [{"line": 1, "id": "...", "error": "..."}]}`: the three together are all
lines, and `line` counts them from 0. `POST /v1/blobs/missing` takes `{"sha256": [...]}`, at most 1,000 of them, and
answers `{"missing": [...]}`; `PUT /v1/blobs/SHA256` takes the bytes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from msgspec import DecodeError, Struct, json

from stepwell._checks import is_loopback, without_credentials
from stepwell._vocabulary import SDK
from stepwell.blobs import BlobStore
from stepwell.errors import ExportError, RejectedError, UsageError
from stepwell.exporters import Batch
from stepwell.exporters._http_blobs import BlobSender

if TYPE_CHECKING:  # loaded with the first batch, on the shipper's thread
    from stepwell.exporters._http_client import Answer, Client

__all__ = ["HttpExporter", "Target", "parse_target"]

Compression = Literal["auto", "zstd", "gzip", "none"]

COMPRESS_BYTES: Final = 1024  # below, the saving is less than a packet
LONGEST_WISH_S: Final = 300.0  # what `Retry-After` may ask for, as with the shipper
LEARN_BYTES: Final = 64 * 1024  # a smaller body that is refused for its size teaches nothing about larger ones
QUOTED_CHARACTERS: Final = 160  # of a server's own words


class Refusal(Struct):
    """One line that the server does not take."""

    line: int
    error: str


class Ingested(Struct):
    """What the server says has become of the lines."""

    accepted: int
    duplicates: int
    rejected: list[Refusal]


_UNPRINTABLE: Final = re.compile(r"[^!-~\u00a1-\uffff]+")  # spaces too: a run of them becomes one
_ingested = json.Decoder(Ingested)


class HttpExporter:
    """Posts batches as lines to `{url}/v1/ingest`, over one connection that is kept alive.

    The key is the one in the URL (`https://KEY@HOST`), else `api_key`, else `STEPWELL_API_KEY`; `key`, the
    destination's name, is the URL without it. `blobs` is where attachments are, None to send none. `compression` is by
    default zstd, where the package zstandard is there, else gzip, and none to this machine itself. Raises `UsageError`.

    It may be used again after `close`, and in a forked child: the next batch makes a new connection.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        blobs: BlobStore | None = None,
        compression: Compression = "auto",
    ) -> None:
        target = parse_target(url)
        self.key = target.origin + target.path
        api_key = target.api_key or api_key or os.environ.get("STEPWELL_API_KEY", "").strip()
        if not api_key.isascii() or not api_key.isprintable() or " " in api_key:
            raise UsageError(f"the API key for {self.key} has a space or a character that no header can carry")
        self._target = target
        self._api_key = api_key
        self._headers = {"User-Agent": SDK, "Accept-Encoding": "identity"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._blobs = None if blobs is None else BlobSender(blobs, self._send, self._refuse)
        self._encodings = _encodings(compression, loopback=target.loopback)
        self._too_large = 0  # the smallest body that was refused for its size, 0 where none was
        self._client: Client | None = None
        self._process = 0

    @classmethod
    def from_url(cls, url: str, home: Path | None) -> HttpExporter:
        """Open `http(s)://[KEY@]HOST[:PORT][/BASE]`; the attachments are those in the recorder's folder."""
        return cls(url, blobs=None if home is None else BlobStore(home.absolute() / "blobs"))

    def __repr__(self) -> str:
        return f"HttpExporter({self.key!r})"

    def load(self) -> None:
        """Import what sending needs."""
        import encodings.idna  # noqa: F401 # pyright: ignore[reportUnusedImport] - looking up a host does

        import stepwell.exporters._http_client  # noqa: F401 # pyright: ignore[reportUnusedImport] - with httpcore

    def export(self, batch: Batch) -> None:
        """Send a batch.

        Raises `RejectedError` for records the server refuses, or for a batch it refuses whole; `ExportError` to be
        called again.
        """
        if not batch.frames:
            return
        if self._blobs is not None:
            self._blobs.send_those_of(batch.frames)
        answer = self._post(batch.frames)
        if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            if len(batch) > 1:
                raise RejectedError(f"{self.key} refused {len(batch)} records as too large")
            raise self._replaced(batch.frames[0], answer)
        refused = self._settled(answer, len(batch))
        if refused:
            raise RejectedError(f"{self.key} refused {len(refused)} of {len(batch)} records", rejected=refused)

    def close(self) -> None:
        """Close the connection."""
        if self._client is not None and self._process == os.getpid():
            self._client.close()
        self._client = None

    # -- requests

    def _post(self, frames: Sequence[bytes]) -> Answer:
        """Post lines, in the best encoding the server takes."""
        lines = [*frames, b""]
        body = b"\n".join(lines)
        if body.count(b"\n") != len(lines) - 1:  # a redaction function laid its JSON out; within a string it can't be
            body = b"\n".join([line.replace(b"\n", b" ") for line in lines])
        while True:
            encoding = self._encodings[0] if len(body) >= COMPRESS_BYTES else ""
            sent = _ENCODERS[encoding](body) if encoding else body
            if len(lines) > 2 and 0 < self._too_large <= len(sent):
                raise RejectedError(f"{self.key} takes less than {self._too_large} bytes at once")
            headers = {"Content-Type": "application/x-ndjson"}
            answer = self._send(
                "POST",
                "/v1/ingest",
                {**headers, "Content-Encoding": encoding} if encoding else headers,
                sent,
                len(sent),
            )
            if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and len(sent) >= LEARN_BYTES:
                self._too_large = min(self._too_large or len(sent), len(sent))
            if answer.status != HTTPStatus.UNSUPPORTED_MEDIA_TYPE or not encoding:
                return answer
            del self._encodings[0]

    def _send(
        self, method: str, path: str, headers: dict[str, str], body: bytes | Iterator[bytes], size: int
    ) -> Answer:
        """Send a request. Raises `ExportError` where no answer comes that can be believed."""
        try:
            from stepwell.exporters._http_client import Client, RequestError  # with httpcore: only who sends needs it
        except ImportError as error:
            raise ExportError(f"{self.key}: {error}") from error
        if self._client is None or self._process != os.getpid():
            self._client = Client(self._target.origin, loopback=self._target.loopback)
            self._process = os.getpid()  # a child's writes on its parent's connection would mix with the parent's
        try:
            return self._client.request(method, self._target.path + path, {**self._headers, **headers}, body, size=size)
        except RequestError as error:
            raise ExportError(f"{self.key} can't be reached: {self._quote(error.why)}{error.hint}") from error

    # -- answers

    def _settled(self, answer: Answer, count: int) -> dict[int, str]:
        """Return the refused lines and why, the others having arrived. Raises `ExportError`, `RejectedError`."""
        try:
            told = _ingested.decode(answer.body)
        except (DecodeError, UnicodeDecodeError, RecursionError):
            told = None
        if told is not None and answer.status in (200, 400, 422):
            refused = {each.line: self._quote(each.error) for each in told.rejected}
            if told.accepted + told.duplicates + len(refused) == count and all(0 <= line < count for line in refused):
                return refused
        if answer.status in (400, 422):
            reason = f"{_status(answer)}: {self._quote(answer.body.decode('utf-8', 'replace'))}"
            raise RejectedError(f"{self.key}: {reason}", rejected={0: reason} if count == 1 else None)
        self._refuse(answer)
        raise ExportError(f"{self.key} answered {_status(answer)}, but not as a stepwell server does")

    def _refuse(self, answer: Answer) -> None:
        """Raise `ExportError` for any status but 2xx."""
        status, said = answer.status, f"{self.key} answered {_status(answer)}"
        if status in (401, 403):
            said = f"{self.key} refused the key ({_status(answer)}): set STEPWELL_API_KEY, or put it in the URL"
            if not self._api_key:
                said = f"{self.key} wants a key ({_status(answer)}): set STEPWELL_API_KEY, or put it in the URL"
        elif status in (404, 405):
            said += ": no stepwell server there?"
        elif 300 <= status < 400:
            said += f" and points to {self._quote(answer.headers.get('location', 'nowhere'))}: it is not followed"
        elif 200 <= status < 300:
            return
        raise ExportError(said, retry_after_s=_retry_after(answer.headers.get("retry-after", "")))

    def _replaced(self, frame: bytes, answer: Answer) -> RejectedError:
        """Send a stub of a record that is too large; return what says so."""
        from stepwell.exporters._http_stub import stub_of  # it decodes the record: rarely needed

        reason = _status(answer)
        stub = stub_of(frame)
        if stub is not None and self._takes(stub):
            reason += "; a stub of it was delivered"
        return RejectedError(f"{self.key} refused a record of {len(frame)} bytes: {reason}", rejected={0: reason})

    def _takes(self, stub: bytes) -> bool:
        answer = self._post([stub])
        try:
            return answer.status != HTTPStatus.REQUEST_ENTITY_TOO_LARGE and not self._settled(answer, 1)
        except RejectedError:
            return False

    def _quote(self, text: str) -> str:
        """Return a server's words, or those about it, cut, on one line, and without the key."""
        text = without_credentials(text.replace(self._api_key, "[key]") if self._api_key else text)
        return _UNPRINTABLE.sub(" ", text).strip()[:QUOTED_CHARACTERS]


def _status(answer: Answer) -> str:
    try:
        return f"{answer.status} {HTTPStatus(answer.status).phrase}"
    except ValueError:
        return str(answer.status)


def _retry_after(text: str) -> float | None:
    """Read `Retry-After`: seconds, or a date; None where it is neither, or asks for nothing."""
    try:
        seconds = float(text)
    except ValueError:
        from email.utils import parsedate_to_datetime  # few servers send a date

        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, OverflowError, TypeError, IndexError):
            return None
    return min(seconds, LONGEST_WISH_S) if seconds > 0 else None


# -- URLs


class Target(NamedTuple):
    """Where a URL points: `origin` is `https://host:8443`, `path` `/base` or empty."""

    origin: str
    path: str
    loopback: bool
    api_key: str


def parse_target(url: str, what: str = "export=") -> Target:
    """Return where the URL of a server points. Raises `UsageError`, in which `what` stands before the URL."""
    named = without_credentials(url)
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna" if not (parts.hostname or "").isascii() else "ascii").decode()
        port = parts.port
    except ValueError as error:  # also UnicodeError
        raise UsageError(f"{what}{named!r} is not a URL: {without_credentials(str(error))}") from None
    wrong = ""
    if parts.scheme not in ("http", "https") or not host:
        wrong = "expected http://HOST or https://HOST"
    elif "?" in url or "#" in url or "@" in parts.path:
        wrong = "it may have no query, no fragment and no @ behind the host; in a key write them as %3F, %23 and %40"
    elif re.search(r"[\s\x00-\x1f\\]", url) or not parts.path.isascii() or len(max(host.split("."), key=len)) > 63:
        wrong = "it has characters that no URL has, or a host's name that is too long"
    if wrong:
        raise UsageError(f"{what}{named!r}: {wrong}")
    if find_spec("httpcore") is None:
        raise UsageError(f"{what}{named!r} needs the package httpcore: pip install httpcore")
    shown = f"[{host}]" if ":" in host else host
    if port is not None and port != {"http": 80, "https": 443}[parts.scheme]:
        shown += f":{port}"
    api_key = unquote(parts.password or parts.username or "")
    return Target(f"{parts.scheme}://{shown}", parts.path.rstrip("/"), _is_this_machine(host), api_key)


def _is_this_machine(host: str) -> bool:
    return is_loopback(host) or host == "localhost" or host.endswith(".localhost")


# -- compression


def _zstd(body: bytes) -> bytes:
    from zstandard import ZstdCompressor

    # Level 3 looks back over 2 MiB, so over all of a batch: histories of a chat that are sent again with each turn
    # shrink to 2 % in half a millisecond (gzip, which looks back over 32 KiB: to 24 % in eight).
    return ZstdCompressor(level=3).compress(body)


def _gzip(body: bytes) -> bytes:
    import zlib

    compressor = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


_ENCODERS: Final[dict[str, Callable[[bytes], bytes]]] = {"zstd": _zstd, "gzip": _gzip}


def _encodings(compression: Compression, *, loopback: bool) -> list[str]:
    """Return the encodings to try, best first; the last is none at all."""
    if compression == "none" or (compression == "auto" and loopback):
        return [""]
    if compression == "gzip" or find_spec("zstandard") is None:
        return ["gzip", ""]
    return ["zstd", "gzip", ""]
