"""What was recorded, as people read it: payloads and messages of any provider, turned into parts to show.

What must stay true: a message is shown whole or says what is left out; a shape that is not known is shown as JSON. The
parts hold decoded text, never markup.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, Literal, cast

from msgspec import UNSET, DecodeError, Raw, UnsetType, json

from stepwell.server._blobs import type_of
from stepwell.store._replies import asks_for_call, calls_in, content_of, json_in, mapping

__all__ = [
    "Call",
    "Message",
    "Part",
    "Tool",
    "compact",
    "first_line",
    "json_in",
    "mapping",
    "media_in",
    "media_of",
    "message_of",
    "messages_of",
    "part_of",
    "parts_of",
    "read",
    "tools_of",
    "without_base64",
]

SHOWN_CHARACTERS: Final = 6_000  # of one text; more is one click away
_HEAD: Final = 4_000
_TAIL: Final = 1_500
PREVIEW_CHARACTERS: Final = 240
_IMAGES: Final = frozenset(("image/png", "image/jpeg", "image/gif", "image/webp"))
_MIN_MEDIA: Final = 64  # characters of base64; less is no image
_DATA_URL: Final = re.compile(r"data:([a-z0-9.+/-]{0,100})(?:;[a-z0-9.=+-]{1,60}){0,3};base64,", re.IGNORECASE)
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}\s*")
_RUN: Final = re.compile(r"[A-Za-z0-9+/_=-]{160,}")

Kind = Literal["text", "json", "image", "file", "thinking"]


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of content. `text` is what is shown, of `characters` in all; `tail` its end, where `left_out` characters
    between them are not shown.

    Of a file or image, `sha256` names the blob it is, or `digest` the text of the payload that it is the base64 of;
    `value` is the decoded JSON of a tree.
    """

    kind: Kind
    text: str = ""
    tail: str = ""
    characters: int = 0
    left_out: int = 0
    sha256: str | None = None
    digest: str | None = None
    mime: str | None = None
    size: int | None = None
    value: Any = None


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call that a model asked for: arguments decoded where they are JSON, and as one line."""

    id: str | None
    name: str
    arguments: Any
    line: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation; `digest` tells equal ones. `answers` is the id of the call it is the result of."""

    role: str
    parts: list[Part] = field(default_factory=list[Part])
    calls: list[Call] = field(default_factory=list[Call])
    name: str | None = None
    answers: str | None = None
    digest: bytes = b""

    @property
    def preview(self) -> str:
        """The beginning, on one line."""
        words = [first_line(part.text) for part in self.parts if part.kind in {"text", "json"} and part.text]
        return " ".join([*words, *(f"{call.name}({call.line})" for call in self.calls)])[:PREVIEW_CHARACTERS]


def read(payload: Raw | UnsetType) -> Any:
    """Decode a payload; None where it is absent, its text where it is no JSON."""
    if payload is UNSET:
        return None
    try:
        return json.decode(payload)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return str(payload, "utf-8", "replace")


def first_line(text: str, limit: int = PREVIEW_CHARACTERS) -> str:
    """Return the beginning of a text, on one line, with a mark where more follows."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit and len(text) <= 4 * limit else f"{line[: limit - 1]}…"


def compact(value: Any) -> str:
    """Return a value as one line of JSON, or the text itself."""
    if isinstance(value, str):
        return first_line(value)
    try:
        line = json.encode(value).decode()
        return line if len(line) <= PREVIEW_CHARACTERS else f"{line[: PREVIEW_CHARACTERS - 1]}…"
    except (TypeError, RecursionError, UnicodeEncodeError):
        return "(nested too deep)"


def part_of(value: Any) -> Part:
    """Return a value as a part: text as it is, anything else as a tree of JSON."""
    found = media_of(value)
    if found is not None:
        return found
    if isinstance(value, str):
        inner = json_in(value)
        return _text(value) if inner is None else _tree(inner, len(value))
    return _tree(value)


def media_of(value: Any) -> Part | None:
    """Return the image or file that a value is: one moved out when it was captured, or base64 that begins like one."""
    if not isinstance(value, str):
        return _blob(value)
    if len(value) < _MIN_MEDIA:
        return None
    match = _DATA_URL.match(value)
    start = match.end() if match else 0
    if _BASE64.match(value, start, start + _MIN_MEDIA) is None:
        return None
    try:
        head = binascii.a2b_base64(value[start : start + 32].replace("-", "+").replace("_", "/"))
    except (binascii.Error, ValueError):
        return None
    mime = type_of(head)
    if (mime is None and match is None) or _BASE64.fullmatch(value, start) is None:
        return None
    digest = blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    size = (len(value) - start) * 3 // 4
    claimed = match[1].lower() if match else None
    return Part("image" if mime in _IMAGES else "file", mime=mime or claimed or None, size=size, digest=digest)


def media_in(value: Any, digest: str) -> bytes | None:
    """Return the bytes of the base64 with this digest, anywhere in a decoded payload."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            found = media_of(item)
            if found is not None and found.digest == digest:
                text = item.partition(",")[2] if item.startswith("data:") else item
                return binascii.a2b_base64(text.replace("-", "+").replace("_", "/").strip() + "==")
            inner = json_in(item)
            if inner is not None:
                waiting.append(inner)
        elif isinstance(item, dict):
            waiting.extend(cast("Mapping[str, Any]", item).values())
        elif isinstance(item, list):
            waiting.extend(cast("Sequence[Any]", item))
    return None


def without_base64(text: str) -> str:
    """Return a text with long runs of base64 named instead of shown; other long words stay."""
    return _RUN.sub(_named, text) if len(text) >= 160 else text


def _named(run: re.Match[str]) -> str:
    text = run[0]
    mixed = any(map(str.islower, text)) and any(map(str.isupper, text)) and any(map(str.isdigit, text))
    return f"⟨{len(text):,} characters of base64⟩" if mixed else text


def _text(text: str, kind: Kind = "text") -> Part:
    found = media_of(text)
    if found is not None:
        return found
    if len(text) <= SHOWN_CHARACTERS:
        return Part(kind, without_base64(text), characters=len(text))
    head, tail = text[:_HEAD], text[-_TAIL:]
    return Part(kind, without_base64(head), without_base64(tail), len(text), len(text) - len(head) - len(tail))


def _tree(value: Any, characters: int | None = None) -> Part:
    return Part("json", compact(value), characters=_length(value) if characters is None else characters, value=value)


def _length(value: Any) -> int:
    try:
        return len(json.encode(value))
    except (TypeError, RecursionError, UnicodeEncodeError):
        return 0


def _blob(value: Any) -> Part | None:
    """Return a file that was moved out of the payload when it was captured."""
    fields = mapping(value)
    if fields.get("$stepwell") != "blob":
        return None
    mime, size, sha256 = fields.get("mime"), fields.get("size"), fields.get("sha256")
    mime = mime if isinstance(mime, str) else None
    return Part(
        "image" if mime in _IMAGES else "file",
        mime=mime,
        size=size if isinstance(size, int) else None,
        sha256=sha256 if isinstance(sha256, str) and len(sha256) == 64 and sha256.isalnum() else None,
    )


def parts_of(content: Any) -> list[Part]:
    """Return the parts of a message's content, in the shape of any provider."""
    if content is None:
        return []
    if not isinstance(content, list):
        return [_part(content)]
    return [_part(item) for item in cast("Sequence[object]", content)]


def _part(item: Any) -> Part:
    fields = mapping(item)
    if not fields:
        return part_of(item)
    text = fields.get("text")
    if fields.get("type") in {"text", "input_text", "output_text", None} and isinstance(text, str):
        return _text(text)
    for name in ("thinking", "reasoning"):
        if isinstance(fields.get(name), str):
            return _text(cast("str", fields[name]), "thinking")
    return _image(fields) or part_of(item)


def _image(fields: Mapping[str, Any]) -> Part | None:
    source = mapping(fields.get("source"))
    held: list[Any] = [
        fields.get("image_url"),
        fields.get("image"),
        fields.get("inline_data"),
        source.get("data"),
        source,
    ]
    for value in held:
        inner = mapping(value)
        for candidate in (value, inner.get("url"), inner.get("data")):
            found = media_of(candidate)
            if found is not None:
                return found
    return None


def messages_of(payload: Raw | UnsetType) -> list[Message]:
    """Return the messages of a generation, each by itself: one that is none of a known shape is a part of JSON."""
    if payload is UNSET:
        return []
    try:
        each = json.decode(payload, type=list[Raw])
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return [_message(read(payload), b"")]
    return [_message(read(raw), blake2b(raw, digest_size=16).digest()) for raw in each]


def message_of(payload: Raw | UnsetType) -> Message | None:
    """Return the one message that a payload is."""
    return None if payload is UNSET else _message(read(payload), b"")


def _message(value: Any, digest: bytes) -> Message:
    fields = mapping(value)
    role = fields.get("role") or fields.get("type")
    if not isinstance(role, str):
        return Message("message", [part_of(value)], digest=digest)
    content = content_of(fields)
    calls = [Call(*asked, compact(asked.arguments)) for asked in calls_in(fields)]
    shown: Any = content
    if isinstance(content, list):
        shown = [item for item in cast("Sequence[Any]", content) if not asks_for_call(item)]
    name, answers = fields.get("name"), fields.get("tool_call_id") or fields.get("call_id")
    if answers is None and isinstance(content, list):
        answers = next(
            (part["tool_use_id"] for part in map(mapping, cast("Sequence[Any]", content)) if "tool_use_id" in part),
            None,
        )
    return Message(
        role,
        parts_of(shown),
        calls,
        name if isinstance(name, str) else None,
        answers if isinstance(answers, str) else None,
        digest,
    )


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model was offered."""

    name: str
    description: str
    schema: Any


def tools_of(payload: Raw | UnsetType) -> list[Tool]:
    """Return the tools that a model was offered."""
    tools: list[Tool] = []
    offered = read(payload)
    for item in cast("Sequence[object]", offered if isinstance(offered, list) else ()):
        fields = mapping(item)
        inner = mapping(fields.get("function")) or fields
        name, description = inner.get("name"), inner.get("description")
        schema = next((inner[key] for key in ("parameters", "input_schema", "inputSchema") if key in inner), item)
        tools.append(
            Tool(
                name if isinstance(name, str) else "(unnamed)",
                description if isinstance(description, str) else "",
                schema,
            )
        )
    return tools
