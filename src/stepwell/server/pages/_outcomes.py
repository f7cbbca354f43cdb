"""Failures that called themselves success, and what was done next; and calls made again that were made before.

What must stay true: a verdict is told with the words that led to it, and never changes the status that was recorded.
Pure functions over decoded acts, in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from msgspec import json

from stepwell.server.pages._content import json_in, mapping

__all__ = ["Act", "Finding", "Repeat", "findings", "repeats", "soft_failure"]

Reaction = Literal["same call again", "same tool, other arguments", "another tool", "answered in text", "nothing more"]

_HTTP_ERROR: Final = 400
_STATUS_KEYS: Final = ("status_code", "statusCode", "http_status", "status")
_EXIT_KEYS: Final = ("exit_code", "exitCode", "returncode", "exit_status")
_ERROR_KEYS: Final = ("error", "errors", "Error")
_EMPTY: Final = frozenset(("", "[]", "{}", "null", "None"))


@dataclass(frozen=True, slots=True)
class Act:
    """What an agent did: called a `tool` with arguments and got a result, or `said` something (the name is empty).

    `failed` says that the step itself was recorded as no success.
    """

    id: str
    kind: Literal["tool", "said"]
    name: str = ""
    arguments: Any = None
    result: Any = None
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """A result that says otherwise than its status, in which words, and what came next, by its id."""

    act: Act
    kind: Literal["error", "empty"]
    words: str
    reaction: Reaction
    next_id: str | None


@dataclass(frozen=True, slots=True)
class Repeat:
    """A call of a tool with arguments that it had been called with before, and whether its result was the same."""

    act: Act
    first: Act
    same_result: bool


def soft_failure(result: Any) -> tuple[Literal["error", "empty"], str] | None:
    """Say whether a result tells of an error, or of nothing at all; and in which words."""
    if isinstance(result, str):
        text = result.strip()
        if text in _EMPTY:
            return "empty", text or "(empty text)"
        return ("error", text[:200]) if text[:5].lower() == "error" else _told(json_in(text))
    if result is None or result in ([], {}):
        return "empty", json.encode(result).decode()
    return _told(result)


def _told(value: Any) -> tuple[Literal["error"], str] | None:
    """Return the member of a result that tells of an error."""
    fields = mapping(value)
    for name in _ERROR_KEYS:
        if fields.get(name):
            return "error", f"{name}: {_short(fields[name])}"
    for names, least in ((_STATUS_KEYS, _HTTP_ERROR), (_EXIT_KEYS, 1)):
        for name in names:
            code = fields.get(name)
            if isinstance(code, int) and not isinstance(code, bool) and abs(code) >= least:
                return "error", f"{name}: {code}"
    return None


def _short(value: Any) -> str:
    return (value if isinstance(value, str) else json.encode(value).decode())[:200]


def findings(acts: Sequence[Act]) -> Iterator[Finding]:
    """Yield the failures that called themselves success, each with what the agent did next."""
    for at, act in enumerate(acts):
        if act.kind != "tool" or act.failed:
            continue
        found = soft_failure(act.result)
        if found is not None:
            after = acts[at + 1] if at + 1 < len(acts) else None
            yield Finding(act, *found, _reaction(act, after), None if after is None else after.id)


def _reaction(act: Act, after: Act | None) -> Reaction:
    if after is None:
        return "nothing more"
    if after.kind == "said":
        return "answered in text"
    if after.name != act.name:
        return "another tool"
    return "same call again" if _key(after) == _key(act) else "same tool, other arguments"


def repeats(acts: Sequence[Act]) -> Iterator[Repeat]:
    """Yield the calls that had been made before with the same arguments, as they are written."""
    made: dict[bytes, Act] = {}
    for act in acts:
        if act.kind == "tool":
            first = made.setdefault(_key(act), act)
            if first is not act:
                yield Repeat(act, first, first.result == act.result)


def _key(act: Act) -> bytes:
    return json.encode([act.name, act.arguments])
