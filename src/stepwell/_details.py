"""The parts of a step that are not on every step, as JSON bytes: errors, attachments, scores, generation, usage.

What must stay true: values that come at run time never raise here; what is wrong goes to `Recorder.misuse`, which
raises only when strict, and the rest of the step is recorded all the same. The content of an attachment passes the
redaction rules before it is stored: text is masked, what is no text is not stored if it holds a secret.
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
from typing import Final, cast
from urllib.parse import urlsplit

import orjson

from stepwell._checks import MAX_TAGS, checked_choice, checked_name, checked_tags, shown
from stepwell._media import MAX_TEXT_BYTES, OVERLAP, clean_content, is_clean, refuse_long_text
from stepwell._recorder import Recorder
from stepwell._redaction import RedactionFailedError, Rules
from stepwell.errors import UsageError

__all__ = [
    "GENERATION_KEYS",
    "SCORE_TYPES",
    "Attachment",
    "attach",
    "attachment_json",
    "describe_error",
    "error_json",
    "generation_fields",
    "outcome_of",
    "score_json",
    "usage_fields",
]

MAX_ATTACHMENT_BYTES: Final = 256 * 1024 * 1024
MAX_INLINE_BYTES: Final = 64 * 1024  # an attachment up to this size travels in the record where there is no folder
MAX_TRACEBACK_FRAMES: Final = 100
MAX_ERROR_CHARACTERS: Final = 32 * 1024
_NO_FOLDER: Final = f"no folder to keep it in, and over {MAX_INLINE_BYTES} bytes"
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
        given: object = content
        if not isinstance(given, str | Path | bytes | bytearray | memoryview):
            raise UsageError(f"an attachment must be a path, bytes or a URL, got {shown(content)}")
        for what, text in (("name", name), ("mime", mime)):
            if text is not None:
                checked_name(text, f"{what} of an attachment" if what == "mime" else "attachment")
        self.content = str.__str__(content) if isinstance(content, str) else content
        self.name = name
        self.mime = mime


def attach(content: str | Path | bytes, *, name: str | None = None, mime: str | None = None) -> Attachment:
    """Make an attachment for a message, of a path, bytes, or an `http(s):` or `data:` URL.

    Raises `UsageError` for anything else. The content is read when the message is recorded.
    """
    return Attachment(content, name=name, mime=mime)


def attachment_json(recorder: Recorder, attachment: object) -> bytes:
    """Store an attachment's bytes, where it has any of its own, and return the record of it.

    What `Attachment` takes is taken too.
    """
    content = attachment.content if isinstance(attachment, Attachment) else attachment
    try:
        given = attachment if isinstance(attachment, Attachment) else Attachment(cast("str", attachment))
        found = _stored(recorder, given)
    except RedactionFailedError as failure:
        found = _refused(recorder, attachment, {"$stepwell": "redaction_failed", "rule": failure.rule})
    except _SecretError:
        found = _refused(recorder, attachment, {"$stepwell": "not_stored", "reason": "it holds a secret"})
    except (OSError, ValueError) as error:  # UsageError is one
        recorder.misuse(f"attachment {_named(content)} was not stored: {error}")
        found = _refused(recorder, attachment, {"$stepwell": "not_stored", "reason": str(error)})
    return _object({"id": recorder.id_json(recorder.new_id()), **found})


class _SecretError(Exception):
    """Says that a file that is no text holds a secret."""


def _refused(recorder: Recorder, attachment: object, why: dict[str, str]) -> dict[str, bytes]:
    """Return what can be said of an attachment that is not stored."""
    found = {"metadata": recorder.encode(why)}
    if isinstance(attachment, Attachment):
        names = {"name": attachment.name, "mime": attachment.mime}
        if isinstance(attachment.content, Path) and attachment.name is None:
            names["name"] = attachment.content.name
        found |= {key: recorder.text(value) for key, value in names.items() if value is not None}
    return found


def _named(content: object) -> str:
    return f"of {len(content)} bytes" if isinstance(content, bytes | bytearray) else shown(content)


def _stored(recorder: Recorder, attachment: Attachment) -> dict[str, bytes]:
    """Return the fields that tell where the content is. Raises `OSError` or `ValueError` if that is nowhere."""
    content, name, mime = attachment.content, attachment.name, attachment.mime
    if isinstance(content, str) and _scheme(content) in {"http", "https"}:
        name = name or PurePosixPath(urlsplit(content).path).name or None
        where = {"url": recorder.text(content, prose=True)}  # api_key=... in the query
        mime = mime or _guessed(name)
    elif isinstance(content, str) and _scheme(content) == "data":
        told_mime, data = _from_data_url(content)
        mime = mime or told_mime
        where = _store_bytes(recorder, data, mime)
    elif (
        isinstance(content, str) and "://" in content
    ):  # a path loses a slash, and with it what shows that it is secret
        raise UsageError("of URLs only http:, https: and data: can be attached")
    elif isinstance(content, str | Path):
        name = name or Path(content).name
        mime = mime or _guessed(name)
        where = _store_file(recorder, Path(content), mime)
    else:
        mime = mime or _guessed(name)
        where = _store_bytes(recorder, bytes(content), mime)
    told = {key: recorder.text(value) for key, value in (("name", name), ("mime", mime)) if value is not None}
    return told | where


def _guessed(name: str | None) -> str | None:
    return None if name is None else mimetypes.guess_type(name)[0]


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
    kind = told if _MIME.fullmatch(told) else "application/octet-stream"
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
    checked_choice(type_, "type of a score", SCORE_TYPES)
    words = checked_tags(tags)[:MAX_TAGS]
    text = recorder.text
    number = None if value is None else _finite(value)
    if value is not None and number is None:
        recorder.misuse(f"score {shown(name)}: value must be a finite number, got {shown(value)}")
        comment = comment if comment is not None else f"value was {shown(value)}"
    fields = {"id": recorder.id_json(recorder.new_id()), "name": text(name), "type": text(type_)}
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
    if isinstance(value, str | bytes | bytearray):
        return None
    try:
        number = float(cast("float", value))
    except Exception:  # noqa: BLE001 - the user's __float__ may raise anything
        return None
    return number if math.isfinite(number) else None


def _whole(value: object) -> int | None:
    """Return a whole number of 0 or more that fits 63 bits, of any integer type, None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = operator.index(cast("int", value))
    except Exception:  # noqa: BLE001 - the user's __index__ may raise anything
        return None
    return number if 0 <= number < 1 << 63 else None


def usage_fields(recorder: Recorder, tokens: Mapping[str, object]) -> dict[str, int]:
    """Return the token counts that are whole numbers of 0 or more; absent ones (None) are left out."""
    found: dict[str, int] = {}
    for name, value in tokens.items():
        if name not in _TOKENS:
            recorder.misuse(f"usage has no {shown(name)}, only {', '.join(sorted(_TOKENS))}")
        elif (number := _whole(value)) is not None:
            found[name] = number
        elif value is not None:
            recorder.misuse(f"usage: {name} must be a whole number of 0 or more, got {shown(value)}")
    return found


def generation_fields(recorder: Recorder, fields: object) -> dict[str, bytes]:
    """Encode fields of a generation; None means absent."""
    found: dict[str, bytes] = {}
    if not isinstance(fields, Mapping):
        recorder.misuse(f"a generation must be a dict of its fields, got {shown(fields)}")
        return found
    try:
        pairs = list(cast("Mapping[object, object]", fields).items())
    except Exception as error:  # noqa: BLE001 - a mapping of the user's own that raises
        recorder.fault("read a generation", error)
        return found
    for name, value in pairs:
        encoded = None if value is None else _field(recorder, name, value)
        if encoded is not None:
            found[cast("str", name)] = encoded
        elif value is not None:
            recorder.misuse(f"generation: {shown(name)}: {shown(value)} is no field, or no value, of a generation")
    return found


def _field(recorder: Recorder, name: object, value: object) -> bytes | None:
    if not isinstance(name, str):
        return None
    if name in _PAYLOADS:
        return recorder.encode(value)
    if name in _TEXTS:
        return recorder.word(value) if isinstance(value, str) else recorder.text(cast("str", value))
    if name == "tokens_per_second":
        number = _finite(value)
        return orjson.dumps(number) if number is not None and number >= 0 else None
    if name in _NUMBERS:
        whole = _whole(int(value) if isinstance(value, float) and math.isfinite(value) else value)
        return None if whole is None else b"%d" % whole
    is_kind = name == "type" and isinstance(value, str) and value in ("chat", "completion")
    return orjson.dumps(value) if is_kind else None


def outcome_of(error: BaseException) -> str:
    """Return the status of a step that was left by this exception."""
    if isinstance(error, SystemExit):
        code: object = error.code
        return "success" if code is None or (isinstance(code, int) and code == 0) else "failed"
    names = {base.__name__ for base in type(error).__mro__}
    return "cancelled" if names & _CANCELLED else "failed"


def describe_error(recorder: Recorder, error: BaseException) -> bytes:
    """Return the record of an exception: type, text, and the frames it passed through, newest kept, all bounded."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(error)
    except Exception as fault:  # noqa: BLE001 - the user's __str__ may raise anything
        message = f"<str() raised {type(fault).__name__}>"
    try:
        frames: str | None = "".join(traceback.format_exception(error, limit=-MAX_TRACEBACK_FRAMES))
    except Exception:  # noqa: BLE001 - it calls the user's __str__ and __repr__
        frames = None
    return error_json(recorder, name, message, frames)


def error_json(recorder: Recorder, type_: str | None, message: object, frames: str | None) -> bytes:
    """Return `{"type", "message", "traceback"}` with the absent ones left out; `message` may be anything."""
    most, text = MAX_ERROR_CHARACTERS, recorder.text
    told = {} if type_ is None else {"type": text(type_, most)}
    if message is not None:
        told["message"] = text(cast("str", message), most, prose=True)
    if frames is not None:
        told["traceback"] = text(frames, most, prose=True, tail=True)
    return _object(told)
