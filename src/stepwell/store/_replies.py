"""What a model's reply asks for: calls of tools, in the shape of any provider, their arguments decoded.

What must stay true: whatever was recorded is a reply, if one without calls; nothing here raises.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

from msgspec import DecodeError, json

__all__ = ["Asked", "asks_for_call", "calls_in", "content_of", "json_in", "mapping"]


class Asked(NamedTuple):
    """A call that a reply asks for; the arguments are decoded where they are JSON."""

    id: str | None
    name: str
    arguments: Any


def mapping(value: Any) -> dict[str, Any]:
    """Return an object as it is, and an empty one for what is none."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def json_in(text: str) -> Any:
    """Return the object or array that a text is, for arguments and results often are JSON in a string."""
    stripped = text.strip()
    if stripped[:1] + stripped[-1:] not in {"{}", "[]"} or len(stripped) < 3:
        return None
    try:
        return json.decode(stripped)
    except (DecodeError, RecursionError, UnicodeEncodeError):
        return None


def content_of(fields: dict[str, Any]) -> Any:
    """Return what a message says, under the name that its provider has for it."""
    return next((fields[name] for name in ("content", "parts", "output", "summary") if fields.get(name)), None)


def calls_in(fields: dict[str, Any]) -> Iterator[Asked]:
    """Yield the calls that a message asks for."""
    if fields.get("type") == "function_call":
        yield from _calls([fields])
    else:
        yield from _calls(fields.get("tool_calls"))
        yield from _calls([fields.get("function_call")])
        yield from _calls(content_of(fields))


def asks_for_call(item: Any) -> bool:
    """Tell whether a part of a message's content is a call."""
    fields = mapping(item)
    return fields.get("type") in {"tool_use", "function_call"} or "functionCall" in fields or "function_call" in fields


def _calls(value: Any) -> Iterator[Asked]:
    for item in cast("Sequence[object]", value if isinstance(value, list) else ()):
        fields = mapping(item)
        inner = next(
            (mapping(fields[key]) for key in ("function", "functionCall", "function_call") if key in fields), fields
        )
        name = inner.get("name")
        if not isinstance(name, str) or not (inner is not fields or asks_for_call(item) or "arguments" in fields):
            continue
        arguments = next((inner[key] for key in ("arguments", "input", "args") if key in inner), None)
        if isinstance(arguments, str):
            decoded: Any = {} if arguments.strip() == "{}" else json_in(arguments)
            arguments = arguments if decoded is None else decoded
        id = fields.get("call_id") or fields.get("id")
        yield Asked(id if isinstance(id, str) else None, name, arguments)
