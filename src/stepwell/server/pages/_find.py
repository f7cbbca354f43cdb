"""Find a text in a run: in names, inputs, outputs, messages, errors and metadata, whether they are on the page or not.

What must stay true: what is searched is what people read, so escapes are decoded; case does not matter; a message that
is sent again with every call is found once, in the call that sent it first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, cast

from msgspec import UNSET, DecodeError, Raw, UnsetType, json

from stepwell.model import StepRecord
from stepwell.server.pages._content import mapping
from stepwell.server.pages._entry import generation_of
from stepwell.server.pages._rows import Family, Row
from stepwell.store import Store

__all__ = ["found_in"]

MAX_CHARACTERS: Final = 200
_BATCH: Final = 500
_ESCAPED: Final = re.compile(r'[\\"\x00-\x1f]')
_FIELDS: Final = ("prompt", "completion", "message_completion", "settings", "tools", "variables")


class _Needle:
    """A text to look for in JSON bytes."""

    def __init__(self, text: str) -> None:
        self._text = text.casefold()
        # What JSON never escapes stands in the bytes as it is, unless they hold escapes all the same.
        self._is_plain = not _ESCAPED.search(text)
        self._bytes = self._text.encode() if text.isascii() and self._is_plain else None

    def is_in_text(self, text: str | None) -> bool:
        return text is not None and self._text in text.casefold()

    def is_in(self, payload: Raw | UnsetType) -> bool:
        if payload is UNSET:
            return False
        data = bytes(payload)
        if self._bytes is not None:
            if self._bytes in data.lower():
                return True
            if b"\\" not in data:
                return False
        elif self._is_plain and b"\\" not in data:
            return self._text in data.decode("utf-8", "replace").casefold()
        try:
            return any(self._text in text.casefold() for text in _texts(json.decode(data)))
        except (DecodeError, UnicodeDecodeError, RecursionError):
            return self.is_in_text(data.decode("utf-8", "replace"))


def _texts(value: object) -> Iterator[str]:
    waiting: list[object] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            fields = mapping(item)
            yield from fields
            waiting.extend(fields.values())
        elif isinstance(item, list):
            waiting.extend(cast("Sequence[object]", item))
        elif item is not None:
            yield str(item)


def found_in(store: Store, family: Family, text: str) -> list[Row]:
    """Return the steps of a run that hold a text, in order."""
    needle, found = _Needle(text[:MAX_CHARACTERS]), list[Row]()
    seen: set[bytes] = set()
    for at in range(0, len(family.rows), _BATCH):
        rows = family.rows[at : at + _BATCH]
        records = {record.id: record for record in store.steps_in_full([row.step.id for row in rows])}
        for row in rows:
            record = records.get(row.step.id)
            if record is not None and _holds(record, needle, seen):
                found.append(row)
    return found


def _holds(record: StepRecord, needle: _Needle, seen: set[bytes]) -> bool:
    error = record.error
    texts = [record.name, record.id, *(record.tags or ())]
    if error is not None:
        texts += [error.type, error.message, error.traceback]
    held = any(map(needle.is_in_text, texts))
    held = held or any(map(needle.is_in, (record.input, record.output, record.metadata)))
    if record.generation is UNSET:
        return held
    generation = generation_of(record)
    return (
        _sent_first(generation.messages, needle, seen)
        or held
        or any(needle.is_in(getattr(generation, name)) for name in _FIELDS)
    )


def _sent_first(payload: Raw | UnsetType, needle: _Needle, seen: set[bytes]) -> bool:
    """Say whether a message that no earlier call had sent holds the text."""
    if payload is UNSET:
        return False
    try:
        messages = json.decode(payload, type=list[Raw])
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return needle.is_in(payload)
    held = False
    for message in messages:
        data = bytes(message)
        if data not in seen:
            seen.add(data)
            held = needle.is_in(message) or held
    return held
