"""Failures that called themselves success, and what was done next; and calls made again that were made before.

What must stay true: a verdict is told with the words that led to it, and never changes the status that was recorded;
whatever was recorded has one, nothing here raises. What a call is followed by began after its end: calls that were made
at once are no reaction to each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from msgspec import UNSET, Raw, UnsetType, json

from stepwell.errors import UsageError
from stepwell.model import decode_generation
from stepwell.store._filters import Reaction, SoftError
from stepwell.store._replies import calls_in, json_in, mapping
from stepwell.store._texts import decoded

__all__ = [
    "Act",
    "Deed",
    "Finding",
    "Repeat",
    "answers",
    "can_be_soft",
    "findings",
    "key_of",
    "reaction_to",
    "repeats",
    "soft_failure",
]

MAX_AHEAD: Final = 200  # acts that began before a call ended, of which more than these are not looked past
_HTTP_ERROR: Final = 400
_STATUS_KEYS: Final = ("status_code", "statusCode", "http_status", "status")
_EXIT_KEYS: Final = ("exit_code", "exitCode", "returncode", "exit_status")
_ERROR_KEYS: Final = ("error", "errors", "Error")
_EMPTY: Final = frozenset(("", "[]", "{}", "null", "None"))


class Deed(Protocol):
    """What an agent did: called a tool, or, where `tool` is None, called a model; times are None where not known."""

    @property
    def tool(self) -> str | None: ...
    @property
    def start_ns(self) -> int | None: ...
    @property
    def end_ns(self) -> int | None: ...
    def counts(self) -> bool:
        """Tell whether it is an act: a tool's call, or a model's answer that asks for none."""
        ...

    def key(self) -> bytes:
        """Return what equal calls of a tool have in common: name and arguments."""
        ...


D = TypeVar("D", bound=Deed)


@dataclass(frozen=True, slots=True)
class Act:
    """An act that was read: called a `tool` with arguments and got a result, or said something (`tool` is None).

    `failed` says that the step itself was recorded as no success; a result that is UNSET was not recorded.
    """

    id: str
    tool: str | None = None
    arguments: Any = None
    result: Any = UNSET
    failed: bool = False
    start_ns: int | None = None
    end_ns: int | None = None

    def counts(self) -> bool:
        """Answers that ask for a call are not made into acts."""
        return True

    def key(self) -> bytes:
        """Return name and arguments."""
        return key_of(self.tool, self.arguments)


@dataclass(frozen=True, slots=True)
class Finding:
    """A result that says otherwise than its status, in which words, and what came next, by its id."""

    act: Act
    kind: SoftError
    words: str
    reaction: Reaction
    next_id: str | None


@dataclass(frozen=True, slots=True)
class Repeat:
    """A call of a tool with arguments that it had been called with before, and whether its result was the same."""

    act: Act
    first: Act
    same_result: bool


def can_be_soft(type: str | None, status: str | None) -> bool:
    """Tell whether a step may be a failure that called itself success: only tools that ended well."""
    return type == "tool" and status in {"success", None}


def soft_failure(result: Any) -> tuple[SoftError, str] | None:
    """Say whether a decoded result tells of an error, or of nothing at all; and in which words."""
    if result is UNSET:
        return None
    if isinstance(result, str):
        text = result.strip()
        if text in _EMPTY:
            return "empty", text or "(empty text)"
        return ("error", text[:200]) if text[:5].lower() == "error" else _told(json_in(text))
    if result is None or result in ([], {}):
        return "empty", json.encode(result).decode()
    return _told(result)


def _told(value: Any) -> tuple[SoftError, str] | None:
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
    return (value if isinstance(value, str) else _encoded(value).decode("utf-8", "replace"))[:200]


def _encoded(value: Any) -> bytes:
    try:
        return json.encode(value)
    except (TypeError, RecursionError, UnicodeEncodeError, OverflowError):
        return repr(value)[:1000].encode("utf-8", "replace")


def key_of(tool: str | None, arguments: Any) -> bytes:
    """Return what equal calls of a tool have in common."""
    return _encoded([tool, arguments])


def answers(generation: Raw | UnsetType) -> bool:
    """Tell whether a model's reply is an answer, and not a call of a tool; of no reply that it is none."""
    try:
        reply = decode_generation(generation).message_completion
    except UsageError:
        return False
    return reply is not UNSET and next(calls_in(mapping(decoded(reply))), None) is None


def findings(acts: Sequence[Act]) -> Iterator[Finding]:
    """Yield the failures that called themselves success, each with what the agent did next."""
    for at, act in enumerate(acts):
        if act.tool is not None and not act.failed and (found := soft_failure(act.result)) is not None:
            reaction, after = reaction_to(acts, at)
            yield Finding(act, *found, reaction, None if after is None else after.id)


def reaction_to(acts: Sequence[D], at: int) -> tuple[Reaction, D | None]:
    """Return what was done after the act at this place, and the act that it was."""
    act = acts[at]
    after = _next(acts, at)
    if after is None:
        return "none", None
    if after.tool is None:
        return "answered", after
    if after.tool != act.tool:
        return "other_tool", after
    return ("same_call" if after.key() == act.key() else "other_arguments"), after


def _next(acts: Sequence[D], at: int) -> D | None:
    ended = acts[at].end_ns
    for after in acts[at + 1 : at + 1 + MAX_AHEAD]:
        if (ended is None or after.start_ns is None or after.start_ns >= ended) and after.counts():
            return after
    return None


def repeats(acts: Sequence[Act]) -> Iterator[Repeat]:
    """Yield the calls that had been made before with the same arguments, as they are written."""
    made: dict[bytes, Act] = {}
    for act in acts:
        if act.tool is not None:
            first = made.setdefault(act.key(), act)
            if first is not act:
                yield Repeat(act, first, first.result == act.result)
