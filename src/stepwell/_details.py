"""The parts of a step that are not on every step, as JSON bytes: errors, attachments, scores, generation, usage.

What must stay true: values that come at run time never raise here, whatever their methods do; what is wrong goes to
`Recorder.misuse`, which raises only when strict, and the rest of the step is recorded all the same. The content of an
attachment passes the redaction rules before it is stored: text is masked, what is no text is not stored if it holds a
secret.
"""

from __future__ import annotations

import math
import mimetypes
import operator
import re
import stat
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, TypeGuard, cast
from urllib.parse import urlsplit

import orjson

from stepwell._checks import checked_choice, checked_name, checked_tags, shown
from stepwell._media import MAX_TEXT_BYTES, OVERLAP, clean_content, is_clean, refuse_long_text
from stepwell._recorder import Recorder
from stepwell._redaction import RedactionFailedError, Rules
from stepwell._values import (
    cause_of,
    class_name,
    context_of,
    first_pairs,
    is_kind,
    is_mock,
    is_text,
    members_of,
    mro_of,
    traceback_of,
    type_name,
)
from stepwell.errors import UsageError

__all__ = [
    "GENERATION_KEYS",
    "SCORE_TYPES",
    "Attachment",
    "attach",
    "attachment_json",
    "describe_error",
    "generation_fields",
    "outcome_of",
    "score_json",
    "usage_fields",
]

MAX_ATTACHMENT_BYTES: Final = 256 * 1024 * 1024
MAX_PATH_CHARACTERS: Final = 4096
MAX_MIME_CHARACTERS: Final = 255  # RFC 6838, 4.2: two names of 127
MAX_INLINE_BYTES: Final = 64 * 1024  # an attachment up to this size travels in the record where there is no folder
MAX_TRACEBACK_FRAMES: Final = 100
MAX_TRACEBACK_ERRORS: Final = 50  # causes, contexts and members of groups told with an error
MAX_REASON_CHARACTERS: Final = 300
MAX_ERROR_CHARACTERS: Final = 32 * 1024
_NO_FOLDER: Final = f"no folder to keep it in, and over {MAX_INLINE_BYTES} bytes"
MAX_TOKENS: Final = 1 << 53  # of one kind and call: readers add them up, and none has more bits than 63 for that
SCORE_TYPES: Final = ("HUMAN", "CODE", "AI")

_MIME: Final = re.compile(r"[\w.+-]+/[\w.+-]+(?:;[\w.+=-]+)*", re.ASCII)

_TEXTS: Final = frozenset(
    {"provider", "model", "response_model", "prompt_id", "stop_reason", "response_id", "request_id", "model_endpoint"}
)
_PAYLOADS: Final = frozenset(
    {"messages", "message_completion", "prompt", "completion", "settings", "tools", "variables", "cost"}
    | {"provider_request", "provider_response"}
)
_NUMBERS: Final = frozenset({"ttft_ns", "duration_ns", "context_window_limit", "tokens_per_second"})
GENERATION_KEYS: Final = {name: b'"%b":' % name.encode() for name in (*_TEXTS, *_PAYLOADS, *_NUMBERS, "type")}
_TOKENS: Final = frozenset(
    {"input_tokens", "output_tokens", "total_tokens"}
    | {"cached_input_tokens", "cache_write_tokens", "reasoning_tokens"}
)
_CANCELLED: Final = frozenset({"CancelledError", "Cancelled", "KeyboardInterrupt", "GeneratorExit"})


class Attachment:
    """A file to attach: a path, bytes, or an `http(s):` or `data:` URL. Nothing is read before it is attached."""

    def __init__(
        self, content: str | Path | bytes | bytearray | memoryview, *, name: str | None = None, mime: str | None = None
    ) -> None:
        if not issubclass(type(content), str | Path | bytes | bytearray | memoryview):
            raise UsageError(f"an attachment must be a path, bytes or a URL, got {shown(content)}")
        self.content = str.__str__(content) if is_text(content) else content
        self.name = None if name is None else checked_name(name, "attachment")
        self.mime = None if mime is None else checked_name(mime, "mime of an attachment")


def attach(content: str | Path | bytes, *, name: str | None = None, mime: str | None = None) -> Attachment:
    """Make an attachment for a message, of a path, bytes, or an `http(s):` or `data:` URL.

    Raises `UsageError` for anything else. The content is read when the message is recorded.
    """
    return Attachment(content, name=name, mime=mime)


def attachment_json(recorder: Recorder, attachment: object) -> bytes:
    """Store an attachment's bytes, where it has any of its own, and return the record of it.

    What `Attachment` takes is taken too.
    """
    given = cast("Attachment", attachment) if issubclass(type(attachment), Attachment) else None
    try:
        given = given or Attachment(cast("str", attachment))
        found = _stored(recorder, given)
    except RedactionFailedError as failure:
        found = _refused(recorder, given, {"$stepwell": "redaction_failed", "rule": failure.rule})
    except _SecretError:
        found = _refused(recorder, given, {"$stepwell": "not_stored", "reason": "it holds a secret"})
    except Exception as error:  # noqa: BLE001 - no such file, or a path of a class of the user's own
        reason = _reason(error)
        recorder.misuse(f"attachment {_named(attachment if given is None else given.content)} was not stored: {reason}")
        found = _refused(recorder, given, {"$stepwell": "not_stored", "reason": reason})
    return _object({"id": recorder.id_json(recorder.new_id()), **found})


class _SecretError(Exception):
    """Says that a file that is no text holds a secret."""


def _refused(recorder: Recorder, given: Attachment | None, why: dict[str, str]) -> dict[str, bytes]:
    """Return what can be said of an attachment that is not stored."""
    found = {"metadata": recorder.encode(why)}
    if given is not None:
        told = {"name": given.name or _file_name(given.content), "mime": given.mime}
        found |= {key: recorder.text(value) for key, value in told.items() if value is not None}
    return found


def _named(content: object) -> str:
    return f"of {len(content)} bytes" if type(content) is bytes or type(content) is bytearray else shown(content)


def _file_name(content: object) -> str | None:
    try:
        return Path(cast("Path", content)).name if issubclass(type(content), Path) else None
    except Exception:  # noqa: BLE001 - a path of a class of the user's own
        return None


def _reason(error: Exception) -> str:
    # That a name is too long names it: megabytes, where somebody attached base64 as if it were a path.
    text = f"{error.strerror}" if isinstance(error, OSError) and error.strerror else _text_of(error)
    return text if len(text) <= MAX_REASON_CHARACTERS else f"{text[:MAX_REASON_CHARACTERS]}..."


def _text_of(error: BaseException) -> str:
    try:
        return str.__str__(str(error))
    except Exception as fault:  # noqa: BLE001 - the user's __str__ may raise anything
        return f"<str() raised {class_name(type(fault))}>"


def _stored(recorder: Recorder, attachment: Attachment) -> dict[str, bytes]:
    """Return the fields that tell where the content is. Raises `OSError` or `ValueError` if that is nowhere."""
    content, name, mime = attachment.content, attachment.name, attachment.mime
    if is_text(content) and _scheme(content) in {"http", "https"}:
        name = name or PurePosixPath(urlsplit(content).path).name or None
        where = {"url": recorder.text(content, prose=True)}  # api_key=... in the query
        mime = mime or _guessed(name)
    elif is_text(content) and _scheme(content) == "data":
        told_mime, data = _from_data_url(content)
        mime = mime or told_mime
        where = _store_bytes(recorder, data, mime)
    elif is_text(content) and "://" in content:  # a path loses a slash, and with it what shows that it is secret
        raise UsageError("of URLs only http:, https: and data: can be attached")
    elif is_text(content) and len(content) > MAX_PATH_CHARACTERS:
        raise UsageError("no path is as long as that; base64 is attached decoded, or as a data: URL")
    elif issubclass(type(content), str | Path):
        content = cast("str | Path", content)
        name = name or Path(content).name
        mime = mime or _guessed(name)
        where = _store_file(recorder, Path(content), mime)
    else:
        mime = mime or _guessed(name)
        data = cast("bytes", content)
        where = _store_bytes(recorder, data if type(data) is bytes else memoryview(data).tobytes(), mime)
    told = {key: recorder.text(value) for key, value in (("name", name), ("mime", mime)) if value is not None}
    return told | where


def _guessed(name: str | None) -> str | None:
    return None if name is None else mimetypes.guess_type(name[-MAX_PATH_CHARACTERS:])[0]


def _scheme(content: str) -> str:
    scheme, colon, _ = content[:10].partition(":")
    return scheme.lower() if colon else ""


def _from_data_url(url: str) -> tuple[str, bytes]:
    """Return type and bytes (RFC 2397). Raises `ValueError` where it is none."""
    import base64  # rare, as what follows
    from urllib.parse import unquote_to_bytes

    head, comma, body = url[len("data:") :].partition(",")
    if not comma:
        raise ValueError("a data: URL has a comma before its data")
    kind, *rest = head.split(";")
    data = unquote_to_bytes(body)
    return kind or "text/plain", base64.b64decode(data, validate=True) if "base64" in rest else data


def _store_file(recorder: Recorder, path: Path, mime: str | None) -> dict[str, bytes]:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a terminal would wait for ever
        raise UsageError("it is not a file")
    if status.st_size <= MAX_TEXT_BYTES:
        return _store_bytes(recorder, path.read_bytes(), mime)
    if recorder.blobs is None:
        raise UsageError(_NO_FOLDER)
    sha256, size = recorder.blobs.put_file(path, max_bytes=MAX_ATTACHMENT_BYTES, check=_Check(recorder.capture.rules))
    return {"sha256": orjson.dumps(sha256), "size": b"%d" % size}


class _Check:
    """Looks at a file too large to be masked, piece by piece."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._before = b""

    def __call__(self, piece: bytes) -> None:
        if not self._before:
            refuse_long_text(piece, self._rules)
        if not is_clean(self._before + piece, self._rules):
            raise _SecretError
        self._before = piece[-OVERLAP:]


def _store_bytes(recorder: Recorder, given: bytes, mime: str | None) -> dict[str, bytes]:
    if len(given) > MAX_ATTACHMENT_BYTES:
        raise UsageError(f"larger than {MAX_ATTACHMENT_BYTES} bytes")
    if recorder.blobs is None and len(given) > MAX_INLINE_BYTES:
        raise UsageError(_NO_FOLDER)
    data = clean_content(given, recorder.capture.rules)
    if data is None:
        raise _SecretError
    fields = {"size": b"%d" % len(data)}
    if recorder.blobs is not None:
        return {**fields, "sha256": orjson.dumps(recorder.blobs.put(data))}
    import base64  # rare: only where nothing is kept on disk

    # Not `text`: its rules would look for secrets in base64 and break it.
    told = orjson.loads(recorder.text(mime)) if mime else ""
    kind = told if len(told) <= MAX_MIME_CHARACTERS and _MIME.fullmatch(told) else "application/octet-stream"
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {**fields, "url": orjson.dumps(url)}


def _object(fields: Mapping[str, bytes]) -> bytes:
    return b"{" + b",".join(b'"%b":%b' % (key.encode(), value) for key, value in fields.items()) + b"}"


def score_json(
    recorder: Recorder,
    name: str,
    value: float | None,
    *,
    label: str | None,
    comment: str | None,
    type_: str,
    tags: Sequence[str] | None,
) -> bytes:
    """Return the record of a score, without `kind` and `step_id`. Raises `UsageError` for a wrong type or tag."""
    kind = checked_choice(type_, "type of a score", SCORE_TYPES)
    words = checked_tags(tags)
    text = recorder.text
    number = None if value is None else _finite(value)
    if value is not None and number is None:
        recorder.misuse(f"score {shown(name)}: value must be a finite number, got {shown(value)}")
        comment = comment if comment is not None else f"value was {shown(value)}"
    fields = {"id": recorder.id_json(recorder.new_id()), "name": text(name), "type": text(kind)}
    if number is not None:
        fields["value"] = orjson.dumps(number)
    if label is not None:
        fields["label"] = text(label)
    if comment is not None:
        fields["comment"] = text(comment)
    if words:
        fields["tags"] = b"[%b]" % b",".join(map(text, words))
    return _object({**fields, "created_ns": b"%d" % recorder.wall_ns()})


def _finite(value: object) -> float | None:
    """Return any kind of number as a float, None for what is no number, infinite or too large."""
    if issubclass(type(value), str | bytes | bytearray) or is_mock(value):
        return None
    try:
        number = float.__float__(float(cast("float", value)))
    except Exception:  # noqa: BLE001 - the user's __float__ may raise anything
        return None
    return number if math.isfinite(number) else None


def _whole(value: object) -> int | None:
    """Return a whole number of 0 or more that fits 63 bits, of any integer type, None for anything else."""
    if type(value) is bool or is_mock(value):
        return None
    try:
        number = int.__index__(operator.index(cast("int", value)))
    except Exception:  # noqa: BLE001 - the user's __index__ may raise anything
        return None
    return number if 0 <= number < 1 << 63 else None


def usage_fields(recorder: Recorder, tokens: Mapping[str, object]) -> dict[str, int]:
    """Return the token counts that are whole numbers of 0 or more; absent ones (None) are left out."""
    found: dict[str, int] = {}
    for name, value in tokens.items():
        if name not in _TOKENS:
            recorder.misuse(f"usage has no {shown(name)}, only {', '.join(sorted(_TOKENS))}")
        elif (number := _whole(value)) is not None and number <= MAX_TOKENS:
            found[name] = number
        elif value is not None:
            recorder.misuse(f"usage: {name} must be a whole number of 0 or more, got {shown(value)}")
    return found


def generation_fields(recorder: Recorder, fields: object) -> dict[str, bytes]:
    """Encode fields of a generation; None means absent."""
    found: dict[str, bytes] = {}
    if not is_kind(fields, Mapping):
        recorder.misuse(f"a generation must be a dict of its fields, got {shown(fields)}")
        return found
    try:
        pairs = first_pairs(fields)
    except Exception as error:  # noqa: BLE001 - a mapping of the user's own that raises
        recorder.fault("read a generation", error)
        return found
    for key, value in pairs.items():
        name = str.__str__(key) if is_text(key) else ""
        encoded = None if value is None else _field(recorder, name, value)
        if encoded is not None:
            found[name] = encoded
        elif value is not None:
            recorder.misuse(f"generation: {shown(key)}: {shown(value)} is no field, or no value, of a generation")
    return found


def _field(recorder: Recorder, name: str, value: object) -> bytes | None:
    if name in _PAYLOADS:
        return recorder.encode(value)
    if name in _TEXTS:
        return recorder.word(value)
    if name == "tokens_per_second":
        number = _finite(value)
        return orjson.dumps(number) if number is not None and number >= 0 else None
    if name in _NUMBERS:
        number = _finite(value) if issubclass(type(value), float) else None
        whole = _whole(value if number is None else int(number))
        return None if whole is None else b"%d" % whole
    kind = str.__str__(value) if name == "type" and is_text(value) else None
    return orjson.dumps(kind) if kind in ("chat", "completion") else None


def outcome_of(error: BaseException) -> str:
    """Return the status of a step that was left by this exception."""
    kind = type(error)
    if issubclass(kind, SystemExit):
        code: object = cast("SystemExit", error).code
        return (
            "success"
            if code is None or (issubclass(type(code), int) and int.__eq__(cast("int", code), 0))
            else "failed"
        )
    return "cancelled" if not _CANCELLED.isdisjoint(map(class_name, mro_of(kind))) else "failed"


def describe_error(recorder: Recorder, error: object) -> bytes:
    """Return the record of an exception: type, text, and the frames it passed through, newest kept, all bounded.

    Of anything else, its text alone.
    """
    if not _is_error(error):
        return _error_json(recorder, None, error, None)
    name = type_name(type(error))
    message = _text_of(error)
    return _error_json(recorder, name, message, _frames(error, name, message))


def _is_error(value: object) -> TypeGuard[BaseException]:
    return issubclass(type(value), BaseException)


def _frames(error: BaseException, name: str, message: str) -> str | None:
    """Return the traceback as Python prints it; of what is too large or can't be printed, the error's own frames."""
    if len(message) <= MAX_ERROR_CHARACTERS and _is_small_family(error):
        try:
            return "".join(traceback.format_exception(error, limit=-MAX_TRACEBACK_FRAMES))
        except Exception:  # noqa: BLE001, S110 - it calls the user's __str__ and __repr__
            pass
    try:
        own = traceback.format_tb(traceback_of(error), limit=-MAX_TRACEBACK_FRAMES)
    except Exception:  # noqa: BLE001 - the stack is full, most likely
        return None
    head = message[:MAX_REASON_CHARACTERS] + ("..." if len(message) > MAX_REASON_CHARACTERS else "")
    return "".join(["Traceback (most recent call last):\n", *own, f"{name}: {head}\n"])


def _is_small_family(error: BaseException) -> bool:
    """Say whether few errors hang together: causes, contexts, members of groups."""
    family: list[BaseException] = [error]
    seen: set[int] = set()
    for member in family:
        if id(member) not in seen:
            seen.add(id(member))
            family += [other for read in (cause_of, context_of) if (other := read(member)) is not None]
            if issubclass(type(member), BaseExceptionGroup):
                family += members_of(member)
        if len(family) > MAX_TRACEBACK_ERRORS:
            return False
    return True


def _error_json(recorder: Recorder, type_: str | None, message: object, frames: str | None) -> bytes:
    """Return `{"type", "message", "traceback"}` with the absent ones left out; `message` may be anything."""
    most, text = MAX_ERROR_CHARACTERS, recorder.text
    told = {} if type_ is None else {"type": text(type_, most)}
    if message is not None:
        told["message"] = text(cast("str", message), most, prose=True)
    if frames is not None:
        told["traceback"] = text(frames, most, prose=True, tail=True)
    return _object(told)
