"""The attributes of a span of anybody's, sorted by what they say.

What must stay true: an attribute is either taken by what reads it, or left over for the metadata; none disappears
because another one said the same field first, unless it said the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from msgspec import DecodeError, Raw, UnsetType, json

from stepwell.otel._parts import listing, loads, mapping
from stepwell.otel._tables import FAMILIES, SLOTS

__all__ = ["Attributes", "Said", "json_payload", "nested", "payload_of", "read_json", "text_payload"]

MAX_PARTS: Final = 12  # of a flat attribute's name
_FAMILY: Final = re.compile(rf"({'|'.join(re.escape(name) for name in FAMILIES)})\.(\d{{1,9}})(?:\.(.+))?", re.DOTALL)
_payload: Final = json.Decoder(Raw)
_encode: Final = json.Encoder().encode


class Said(NamedTuple):
    """Input and output as the span has them."""

    input: Raw | UnsetType
    output: Raw | UnsetType


class Attributes:
    """What is said by field, by family of numbered attributes (`llm.input_messages.0...`), and what is left over."""

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self.rest: dict[str, Any] = {}
        self._found: dict[str, tuple[int, str, Any]] = {}
        self._families: dict[str, dict[int, dict[str, Any]]] = {}
        others: list[tuple[str, str, Any]] = []
        found, rest = self._found, self.rest
        for name, value in attributes.items():
            slot = SLOTS.get(name)
            if slot is None:
                if not self._is_of_family(name, value):
                    rest[name] = value
                continue
            field, rank = slot
            known = found.get(field)
            if known is None:
                found[field] = (rank, name, value)
            elif rank < known[0]:
                found[field] = (rank, name, value)
                others.append((field, known[1], known[2]))
            else:
                others.append((field, name, value))
        for field, name, value in others:
            if value != found[field][2]:
                rest[name] = value

    def _is_of_family(self, name: str, value: Any) -> bool:
        match = _FAMILY.match(name)
        if match is None:
            return False
        family, number, key = match.groups("")
        members = self._families.setdefault(family, {})
        members.setdefault(int(number), {})[key] = value
        return True

    def __contains__(self, field: str) -> bool:
        return field in self._found

    def source(self, field: str) -> str:
        """Return the name of the attribute that says a field, "" where none does."""
        return self._found[field][1] if field in self._found else ""

    def peek(self, field: str) -> Any:
        """Return what is said of a field, None where nothing is; it is left over if nobody takes it."""
        found = self._found.get(field)
        return None if found is None else found[2]

    def has_family(self, name: str) -> bool:
        """Say whether there is any member of a family."""
        return name in self._families

    def take(self, field: str) -> Any:
        """Return what is said of a field, None where nothing is; it is not left over then."""
        found = self._found.pop(field, None)
        return None if found is None else found[2]

    def take_text(self, field: str) -> str | None:
        """Return a field that is text; any other value is left over."""
        found = self._found.pop(field, None)
        if found is None:
            return None
        if isinstance(found[2], str):
            return found[2] or None
        self.rest[found[1]] = found[2]
        return None

    def take_number(self, field: str) -> float | None:
        """Return a field that is a number; any other value is left over."""
        found = self._found.pop(field, None)
        if found is None:
            return None
        if isinstance(found[2], int | float) and not isinstance(found[2], bool):
            return found[2]
        self.rest[found[1]] = found[2]
        return None

    def take_count(self, field: str) -> int | None:
        """Return a field that is a whole number, also where it is written as a float."""
        number = self.take_number(field)
        try:
            return None if number is None else int(number)
        except (ValueError, OverflowError):  # not a number, or infinite
            return None

    def take_mapping(self, field: str) -> Mapping[str, Any]:
        """Return a field that is an object, or JSON of one; any other value is left over."""
        found = self._found.pop(field, None)
        if found is None:
            return {}
        value = read_json(found[2])
        fields = mapping(value)
        if fields is None:
            self.rest[found[1]] = found[2]
            return {}
        return fields

    def take_list(self, field: str) -> list[Any]:
        """Return a field that is a list, or JSON of one; anything else is its one element."""
        value = self.take(field)
        if value is None or value == "":
            return []
        items = listing(read_json(value))
        return [value] if items is None else [*items]

    def take_family(self, name: str) -> list[dict[str, Any]]:
        """Return the members of a family in order, each as its attributes by the rest of their names."""
        members = self._families.pop(name, {})
        return [members[number] for number in sorted(members)]

    def left_over(self) -> dict[str, Any]:
        """Return what nobody took, by the attributes' names."""
        self.rest.update((name, value) for _, name, value in self._found.values())
        for family, members in self._families.items():
            for number, fields in members.items():
                for key, value in fields.items():
                    self.rest[f"{family}.{number}.{key}".rstrip(".")] = value
        return self.rest


def read_json(value: Any) -> Any:
    """Return what JSON text of an object or a list says; all else as it is."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return loads(value)
        except ValueError:
            return value
    return value


def json_payload(value: Any) -> Raw:
    """Return a value as a payload; text that is JSON is taken as it is."""
    if isinstance(value, str):
        try:
            return _payload.decode(value)
        except (DecodeError, RecursionError):
            pass
    return Raw(_encode(value))


def payload_of(value: Any) -> Raw:
    """Return a value as a payload; text that is JSON of an object or a list is taken as it is, other text as text."""
    return json_payload(value) if not isinstance(value, str) or value[:1] in ("{", "[") else text_payload(value)


def text_payload(value: Any) -> Raw:
    """Return a value as a payload; text stays text."""
    return Raw(_encode(value))


def nested(flat: Mapping[str, Any], drop: str = "") -> dict[str, Any]:
    """Return flat attributes as objects in objects; those numbered from 0 become lists; `drop` is what all begin with.

    Of two that can't both be (`a` and `a.b`) the later wins.
    """
    found: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.removeprefix(drop).split(".", MAX_PARTS)
        inner = found
        for part in path:
            below = inner.get(part)
            if type(below) is not _Inner:
                below = inner[part] = _Inner()
            inner = below
        inner[last] = value
    return {name: _listed(value) for name, value in found.items()}


class _Inner(dict[str, Any]):
    """An object in the making: no value of an attribute is one."""


def _listed(value: Any) -> Any:
    if not isinstance(value, _Inner):
        return value
    fields = {name: _listed(each) for name, each in value.items()}
    if fields and all(name.isdecimal() and len(name) < 10 for name in fields):
        return [fields[name] for name in sorted(fields, key=int)]
    return fields
