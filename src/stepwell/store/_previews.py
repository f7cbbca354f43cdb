"""What lists show of a step's payloads: the beginning of what was asked and of what was answered, on one line.

What must stay true: it costs the beginning of a payload, however long that is; and nothing where a list would not show
it: only the steps that `Store.runs` lists have previews.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, cast

from msgspec import UNSET, DecodeError, Raw, UnsetType, json

from stepwell.model import Generation, StepRecord

__all__ = ["PREVIEW_CHARACTERS", "Previews", "previews_of"]

Previews = tuple[str | None, str | None]  # of what was asked, and of what was answered

PREVIEW_CHARACTERS: Final = 80
_DECODED_BYTES: Final = 16_384  # of a payload; of a longer one only the first string of some length is looked at
_GLANCED_BYTES: Final = 2_048
_SCANNED: Final = 4 * PREVIEW_CHARACTERS
_DEPTH: Final = 4
_NOTHING: Final[Previews] = (None, None)
_TELLING: Final = (
    *("content", "text", "question", "query", "prompt", "message", "messages", "parts"),
    *("answer", "input", "output", "task"),
)
_STRING: Final = re.compile(rb'"((?:[^"\\]|\\.)*)("?)(?=(\s*:)?)')


def previews_of(step: StepRecord, generation: Generation | None) -> Previews:
    """Return the previews of a step, None where there is nothing to show; before arrays are cut out of its payloads."""
    if step.parent_id is not None and step.root_run_id != step.id:
        return _NOTHING
    asked, said = _preview(step.input, "user"), _preview(step.output, "assistant")
    if generation is not None:
        asked = asked or _preview(generation.messages, "user") or _preview(generation.prompt, "user")
        said = said or _preview(generation.message_completion, "assistant") or _preview(generation.completion, "")
    return asked, said


def _preview(payload: Raw | UnsetType, role: str) -> str | None:
    if payload is UNSET:
        return None
    data = bytes(payload)
    if len(data) > _DECODED_BYTES:
        return _line(_glance(data))
    try:
        return _line(_text(json.decode(data), role, 0))
    except (DecodeError, UnicodeDecodeError, UnicodeEncodeError, RecursionError):
        return None


def _glance(data: bytes) -> str:
    """Return the first string in a long payload that is more than a word, else how it begins."""
    head = data[:_GLANCED_BYTES]
    for match in _STRING.finditer(head):
        text, closed, key = match.groups()
        if key is None and (len(text) >= PREVIEW_CHARACTERS // 4 or not closed):
            try:
                return str(json.decode(b'"' + _whole_characters(text) + b'"'))
            except (DecodeError, UnicodeDecodeError):
                break
    return head.decode("utf-8", "ignore")


def _whole_characters(text: bytes) -> bytes:
    """Return what was cut out of a JSON string without the part of a character that it may end with."""
    text = text.decode("utf-8", "ignore").encode()
    return re.sub(rb"(?<!\\)((?:\\\\)*)(\\(u[0-9a-fA-F]{0,3})?|(\\ud[89abAB][0-9a-fA-F]{2}))$", rb"\1", text)


def _text(value: Any, role: str, depth: int) -> str:
    """Return what a value says: its text where it is one, holds one, or is a conversation; else its JSON."""
    if isinstance(value, str):
        return value
    if depth < _DEPTH:
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            told = next((fields[name] for name in _TELLING if fields.get(name)), None)
            if told is None and len(fields) == 1:
                (told,) = fields.values()
            if told is not None:
                return _text(told, role, depth + 1)
        elif isinstance(value, list) and value:
            items = cast("Sequence[Any]", value)
            told = next((item for item in reversed(items) if _role(item) == role), None)
            if told is not None:
                return _text(told, role, depth + 1)
            if len(items) == 1:
                return _text(items[0], role, depth + 1)
    return "" if value is None else json.encode(value).decode()


def _role(item: Any) -> Any:
    return cast("dict[str, Any]", item).get("role") if isinstance(item, dict) else None


def _line(text: str) -> str | None:
    """Return the beginning on one line, with a mark where more follows; None for no text."""
    line = " ".join(text[:_SCANNED].split())
    if len(line) > PREVIEW_CHARACTERS or len(text) > _SCANNED:
        line = line[: PREVIEW_CHARACTERS - 1] + "…"
    return line or None
