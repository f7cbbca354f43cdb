"""Where the arguments of tool calls came from: the first place in the conversation that holds each value.

What must stay true: the search is for the value as it stands, whatever its case; a value that is not there is "not
found verbatim", which a date or an amount written in another way also is. Pure functions over decoded messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final, cast

from msgspec import json

__all__ = ["Origin", "Text", "origins", "scalars"]

MIN_CHARACTERS: Final = 2
MAX_VALUES: Final = 200  # of one call
_FREE_TEXT: Final = frozenset(("summary", "expression", "thought", "reasoning", "query", "code", "content"))
_AROUND: Final = 40
_MONTHS: Final = (
    *("january", "february", "march", "april", "may", "june", "july"),
    *("august", "september", "october", "november", "december"),
)


@dataclass(frozen=True, slots=True)
class Text:
    """What stood in the conversation before a call, in lower case; `place` is its number there."""

    place: int
    role: str
    lowered: str


@dataclass(frozen=True, slots=True)
class Origin:
    """A value of an argument, by its path, and the first text that holds it, None where none does.

    `around` is what stands about it there. `rewritten` says that only another way to write it was found.
    """

    path: str
    value: str
    source: Text | None
    around: str = ""
    rewritten: bool = False


def scalars(value: Any, path: str = "", free_text: frozenset[str] = _FREE_TEXT) -> Iterator[tuple[str, str]]:
    """Yield the words and numbers of arguments with their paths, but for texts that a model composes."""
    waiting = [(path, value)]
    while waiting:
        at, item = waiting.pop()
        if isinstance(item, dict):
            fields = cast("Mapping[str, Any]", item)
            inner = [(f"{at}.{name}" if at else name, each) for name, each in fields.items() if name not in free_text]
            waiting.extend(reversed(inner))
        elif isinstance(item, list):
            elements = cast("Sequence[Any]", item)
            waiting.extend(reversed([(f"{at}[{number}]", each) for number, each in enumerate(elements)]))
        elif item is not None and not isinstance(item, bool):
            text = item if isinstance(item, str) else json.encode(item).decode()
            if len(text) >= MIN_CHARACTERS:
                yield at, text


def origins(arguments: Any, before: Sequence[Text]) -> list[Origin]:
    """Return for each value of a call's arguments the earliest text before it that holds it."""
    found: list[Origin] = []
    for path, value in scalars(arguments):
        if len(found) >= MAX_VALUES:
            break
        origin = _origin(path, value, (value.lower(),), before)
        if origin.source is None and (others := tuple(_other_ways(value))):
            origin = _origin(path, value, others, before)
        found.append(origin)
    return found


def _origin(path: str, value: str, ways: Sequence[str], before: Sequence[Text]) -> Origin:
    for text in before:
        for way in ways:
            at = text.lowered.find(way)
            if at >= 0:
                around = text.lowered[max(at - _AROUND, 0) : at + len(way) + _AROUND]
                return Origin(path, value, text, " ".join(around.split()), way != value.lower())
    return Origin(path, value, None)


def _other_ways(value: str) -> Iterator[str]:
    """Yield how a date is written in words: `2024-05-16` as "may 16"."""
    try:
        day = date.fromisoformat(value)
    except ValueError:
        return
    month = _MONTHS[day.month - 1]
    for name in (month, month[:3]):
        yield f"{name} {day.day}"
        yield f"{day.day} {name}"
        yield f"{name} {day.day:02d}"
