"""Move media out of payloads: large bytes and base64 become blobs, and a reference to the blob stands in their place.

1. Nothing leaves a payload before its blob is stored; where that fails the payload is recorded as if there were no
   folder, and the failure is counted.
2. What a blob holds has passed the redaction rules: text is masked, other bytes that hold a secret are not stored.
3. The work is bounded: `MAX_MEDIA_BYTES` a payload, whatever it holds.

Recognised, over `MIN_MEDIA_BYTES` when decoded, in both alphabets of base64 and without line breaks: bytes;
`data:` URLs, whole strings or inside of a text; and the fields in which providers put bare base64.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from stepwell._redaction import RedactionFailedError, Rules, mask

__all__ = [
    "BASE64_FIELDS",
    "MAX_MEDIA_BYTES",
    "MAX_TEXT_BYTES",
    "MIN_BASE64",
    "MIN_MEDIA_BYTES",
    "OVERLAP",
    "Blobs",
    "Extraction",
    "MediaStore",
    "clean_content",
    "is_clean",
    "may_hold_media",
    "refuse_long_text",
]

MIN_MEDIA_BYTES: Final = 4096  # what is no larger stays where it is
# Decoded, all of a payload together. More than the 25 MB of a whole request that providers take, and at some 5 ms a
# megabyte (decoding, hashing, writing) 0.2 s of the caller's time at worst.
MAX_MEDIA_BYTES: Final = 32 * 1024 * 1024
MAX_TEXT_BYTES: Final = 4 * 1024 * 1024  # text up to here is masked; longer ones are stored only if they need not be
MIN_BASE64: Final = MIN_MEDIA_BYTES // 3 * 4 + 3  # characters; no less decodes to more than MIN_MEDIA_BYTES
_MAX_BASE64: Final = MAX_MEDIA_BYTES // 3 * 4 + 4
_WINDOW: Final = 1024 * 1024
OVERLAP: Final = 8192
_MAX_KNOWN: Final = 4096

Fault = Callable[[str, BaseException], object]
Marker = dict[str, Any]

_MIME: Final = re.compile(r"[a-z0-9!#$&^_.+-]{1,50}/[a-z0-9!#$&^_.+-]{1,80}")
_HEAD: Final = r"data:([A-Za-z0-9!#$&^_.+/-]{0,131})(?:;[A-Za-z0-9!#$&^_.+=/\"-]{1,100}){0,5};base64,"
_URL_HEAD: Final = re.compile(_HEAD).match
_URL: Final = re.compile(_HEAD + rf"([A-Za-z0-9+/_=-]{{{MIN_BASE64},}})")
# Where providers put bare base64, and what else such an object has:
# https://docs.anthropic.com/en/api/messages (source), https://ai.google.dev/api/caching#Blob (inline_data),
# https://platform.openai.com/docs/api-reference (input_audio, audio, images, image_generation_call)
BASE64_FIELDS: Final = frozenset({"data", "b64_json", "result"})
_MIME_FIELDS: Final = ("media_type", "mime_type", "mimeType")
_AUDIO: Final = frozenset({"wav", "mp3", "flac", "opus", "ogg", "aac", "m4a", "webm", "pcm16"})

# A run of base64 long enough for media spans so many neighbours of a sample; prose has spaces between them.
_EVERY: Final = 171
_SAMPLED: Final = re.compile(rb"[A-Za-z0-9+/_=-]{%d,}" % (MIN_BASE64 // _EVERY))
_RUN: Final = re.compile(rb"[A-Za-z0-9+/_=-]*").match


def may_hold_media(data: bytes) -> bool:
    """Say whether JSON bytes hold base64 long enough for media; this reads every 171st byte of what holds none."""
    sample = data[::_EVERY]
    return _SAMPLED.search(sample) is not None and any(_holds_run(data, at) for at in _SAMPLED.finditer(sample))


def _holds_run(data: bytes, sampled: re.Match[bytes]) -> bool:
    at, end = sampled.start() * _EVERY, sampled.end() * _EVERY
    while at < end:
        run = _RUN(data, at)
        stop = at if run is None else run.end()
        if stop - at > MIN_BASE64 - _EVERY - 1:
            return True
        at = (stop // _EVERY + 1) * _EVERY
    return False


class Blobs(Protocol):
    """What keeps the bytes: `stepwell.blobs.BlobStore`."""

    def put(self, data: bytes) -> str: ...
    def has(self, sha256: str) -> bool: ...


class MediaStore:
    """Where media go, and what is known of those that come again: a chat sends its images with every turn."""

    __slots__ = ("_blobs", "_fault", "_known", "rules")

    def __init__(self, blobs: Blobs, rules: Rules, fault: Fault) -> None:
        self.rules = rules
        self._blobs = blobs
        self._fault = fault
        self._known: dict[tuple[bytes, bool], tuple[str, int]] = {}  # by the SHA-256 of what was given, and its form

    def keep(
        self, given: bytes, mime: str | None, *, is_base64: bool, pending: dict[str, bytes] | None
    ) -> Marker | None:
        """Store bytes, or what they are the base64 of; return the reference, None where they can't be stored.

        With `pending` they are put there, by their hash, for `store`. Raises `ValueError` for what is no base64, and
        `RedactionFailedError`.
        """
        from hashlib import sha256  # it loads OpenSSL: only programs with media need it

        mime = _checked(mime, self.rules)
        key = sha256(given).digest(), is_base64
        known = self._known.get(key)
        try:
            if known is not None and self._blobs.has(known[0]):
                return _reference(*known, mime)
        except OSError as error:
            self._fault("keep media", error)
            return None
        data = _decoded(given) if is_base64 else given
        clean = clean_content(data, self.rules)
        if clean is None:
            return _masked(len(data))
        if pending is not None:
            digest = sha256(clean).hexdigest()
            pending[digest] = clean
            return _reference(digest, len(clean), mime)
        stored = self.store(clean)
        if stored is None:
            return None if clean is data else _masked(len(data))
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        self._known[key] = (stored, len(clean))
        return _reference(stored, len(clean), mime)

    def store(self, clean: bytes) -> str | None:
        """Store bytes that may be stored; return their SHA-256, None where that fails."""
        try:
            return self._blobs.put(clean)
        except Exception as error:  # noqa: BLE001 - whatever a disk may do; the payload is recorded without a blob
            self._fault("keep media", error)
            return None


class Extraction:
    """Takes the media out of one payload, up to `MAX_MEDIA_BYTES`.

    Where callables are to see the payload first, and may take a reference out, nothing is stored before `finish`.
    """

    __slots__ = ("_pending", "_room", "_store")

    def __init__(self, store: MediaStore) -> None:
        self._store = store
        self._pending: dict[str, bytes] | None = {} if store.rules.judges_payloads else None
        self._room = MAX_MEDIA_BYTES

    def finish(self, data: bytes) -> bool:
        """Store what waits and is referred to in the finished payload; say whether all of that worked."""
        waiting = [clean for digest, clean in (self._pending or {}).items() if digest.encode() in data]
        return all(self._store.store(clean) is not None for clean in waiting)

    def of_bytes(self, data: memoryview, mime: str | None = None) -> Marker | None:
        """Store bytes; None for few, too many, and where they can't be stored."""
        if not MIN_MEDIA_BYTES < data.nbytes <= self._room:
            return None
        self._room -= data.nbytes
        return self._store.keep(data.tobytes(), mime, is_base64=False, pending=self._pending)

    def of_text(self, text: str) -> Marker | None:
        """Store the `data:` URLs of a text; return what stands in its place, None where there is nothing to store.

        Of a text with more in it than one URL that is a marker with the rest of the text, not yet masked.
        """
        if len(text) > 2 * _MAX_BASE64 or ";base64," not in text:
            return None
        head = _URL_HEAD(text)
        if head is not None:
            with suppress(ValueError):  # something follows the base64
                return self._of_base64(text[head.end() :], head[1])
        blobs: list[Marker] = []

        def move(match: re.Match[str]) -> str:
            try:
                blob = self._of_base64(match[2], match[1])
            except ValueError:
                blob = None
            if blob is None:
                return match[0]
            blobs.append(blob)
            kind = f"{blob['mime']}, " if "mime" in blob else ""
            return f"[blob {len(blobs)}: {kind}{blob['size']} bytes]"

        rest = _URL.sub(move, text)
        return {"$stepwell": "text", "text": rest, "blobs": blobs} if blobs else None

    def of_field(self, name: str, value: object, pairs: Sequence[tuple[Any, Any]]) -> Marker | None:
        """Store the base64, or bytes, of a field of `BASE64_FIELDS`; None for what is none."""
        around = {key: item for key, item in pairs if type(key) is str and type(item) is str}
        mime = _kind_of_field(name, around)
        if mime is None:
            return None
        if type(value) is bytes:
            return self.of_bytes(memoryview(value), mime)
        try:
            return self._of_base64(value, mime) if type(value) is str else None
        except ValueError:
            return None

    def _of_base64(self, body: str, mime: str | None) -> Marker | None:
        """Store what a text is the base64 of; raise `ValueError` for what is none."""
        size = len(body) // 4 * 3
        if len(body) < MIN_BASE64 or size - 2 > self._room:
            return None
        found = self._store.keep(body.encode("ascii"), mime, is_base64=True, pending=self._pending)
        self._room -= size
        return found


def clean_content(data: bytes, rules: Rules) -> bytes | None:
    """Return content as it may be stored: text with its secrets masked, other bytes as they are if they hold none.

    None for what must not be stored. Raises `RedactionFailedError`.
    """
    text, encoding = _as_text(data)
    if text is not None:
        clean = rules.content(text)
        return data if clean == text else clean.encode(encoding, "backslashreplace")
    if len(data) > MAX_TEXT_BYTES:
        refuse_long_text(data[:OVERLAP], rules)
    at = range(0, max(len(data) - OVERLAP, 1), _WINDOW)
    return data if all(is_clean(data[start : start + _WINDOW + OVERLAP], rules) for start in at) else None


def is_clean(window: bytes, rules: Rules) -> bool:
    """Say whether bytes hold nothing that a rule would mask. Raises `RedactionFailedError`."""
    if not rules.may_match(window):
        return True
    text = window.decode("latin-1")
    return rules.text(text) == text


def _as_text(data: bytes) -> tuple[str | None, str]:
    if len(data) <= MAX_TEXT_BYTES:
        for encoding in ("utf-16", "utf-8") if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8",):
            try:
                return data.decode(encoding), encoding
            except UnicodeDecodeError:
                continue
    return None, ""


def refuse_long_text(head: bytes, rules: Rules) -> None:
    """Raise `RedactionFailedError` for what begins like text where a callable would have to see all of it."""
    if rules.judges_payloads and b"\0" not in head and "\ufffd" not in head.decode("utf-8", "replace")[:-3]:
        raise RedactionFailedError("too long a text for a callable")


def _decoded(body: bytes) -> bytes:
    if b"-" in body or b"_" in body:  # the alphabet for URLs, in which pydantic writes bytes
        body = body.replace(b"-", b"+").replace(b"_", b"/")
    padding = b"" if body.endswith(b"=") else b"=" * (-len(body) % 4)
    data = binascii.a2b_base64(body + padding, strict_mode=True)
    if len(data) <= MIN_MEDIA_BYTES:
        raise ValueError
    return data


def _kind_of_field(name: str, around: dict[str, str]) -> str | None:
    """Return the media type of a provider's field, "" for an unknown one; None where it is no such field."""
    told, form = next((around[key] for key in _MIME_FIELDS if key in around), None), around.get("output_format")
    if name == "data":
        audio = around.get("format")
        return f"audio/{audio}" if audio in _AUDIO else "" if told is None and "transcript" in around else told
    if name == "result" and around.get("type") != "image_generation_call":
        return None
    return "" if form is None else f"image/{form}"


def _checked(mime: str | None, rules: Rules) -> str | None:
    """Return what is a media type and nothing else: it goes into the record as it is."""
    lowered = "" if mime is None else mime.lower()
    return lowered if _MIME.fullmatch(lowered) and rules.text(lowered) == lowered else None


def _reference(sha256: str, size: int, mime: str | None) -> Marker:
    blob = {"$stepwell": "blob", "sha256": sha256, "size": size}
    return blob if mime is None else {**blob, "mime": mime}


def _masked(size: int) -> Marker:
    return {"$stepwell": "bytes", "size": size, "base64": mask("bytes", size)}
