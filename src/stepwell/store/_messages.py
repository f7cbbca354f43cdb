"""Messages that are kept once: how arrays of them are taken out of payloads, numbered, and put back.

Agents send their whole history with every call, so the same messages come again and again. An array of messages or
tools in a payload is emptied, its elements are kept in the table `messages` under their hash, and `payload.refs` says
which of them stood where.

What must stay true:

1. What is put back equals what was taken out, byte for byte: an array that is written in any other way than with the
   same joint between all elements stays where it is.
2. An element is known by the 16 bytes of BLAKE2b of its text, its number never changes, and what a committed row
   refers to is committed.
3. A payload without its arrays is JSON still.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Final, NamedTuple

from msgspec import UNSET, DecodeError, Raw, Struct, UnsetType, json

from stepwell.errors import CorruptStoreError
from stepwell.model import Generation, StepRecord
from stepwell.store._packs import PackReader
from stepwell.store._schema import LAST_MESSAGE

__all__ = [
    "LAST_MESSAGE",
    "MIN_BYTES",
    "Bodies",
    "Cut",
    "Cutter",
    "Numbers",
    "is_large",
    "number_messages",
    "write_refs",
]

MIN_BYTES: Final = 256  # of an array: a shorter one is no larger than what would stand for it
_MIN_ELEMENT_BYTES: Final = 32  # on average: more numbers than text is a vector, not messages
_MAX_REMEMBERED: Final = 65_536
_CHUNK: Final = 500
_JOINTS: Final = (b",", b", ")
_elements = json.Decoder(list[Raw]).decode
_refs = json.Decoder(list[tuple[str, int, int, int]]).decode


class _Holder(Struct):
    """A request to a model or the arguments of a function that makes one: where arrays of messages stand."""

    messages: Raw | UnsetType = UNSET
    tools: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    contents: Raw | UnsetType = UNSET


_holder = json.Decoder(_Holder).decode
_MEMBERS: Final = _Holder.__struct_fields__


class Cut(NamedTuple):
    """An array that was emptied: in which column and after how many characters of it, how it is joined, and of what."""

    column: str
    place: int
    joint: bytes
    digests: list[bytes]


class _Array(NamedTuple):
    text: bytes  # without its closing bracket
    joint: bytes
    digests: list[bytes]


class Cutter:
    """Takes arrays out of the payloads of a batch. `bodies` are the elements, by digest.

    The history of a call is mostly that of the call before with something added, so only what was added is split.
    """

    def __init__(self) -> None:
        self.bodies: dict[bytes, Raw] = {}
        self.emptied = 0  # bytes of arrays
        self._last: dict[tuple[str | None, str], _Array] = {}

    def cut(self, step: StepRecord, generation: Generation | None) -> list[Cut]:
        """Empty the arrays of a step, in place, and say what stood in them. `generation` is the step's, decoded."""
        key = step.thread_id or step.trace_id
        cuts: list[Cut] = []
        if generation is not None and isinstance(step.generation, Raw) and is_large(step.generation):
            arrays = {"messages": generation.messages, "tools": generation.tools}
            if is_large(generation.provider_request):
                arrays |= {f"request.{name}": array for name, array in _held(generation.provider_request).items()}
            step.generation = self._empty("generation", step.generation, arrays, key, cuts)
        if isinstance(step.input, Raw) and is_large(step.input):
            step.input = self._empty("input", step.input, _held(step.input), key, cuts)
        if isinstance(step.output, Raw) and is_large(step.output):
            step.output = self._empty("output", step.output, _held(step.output), key, cuts)
        return cuts

    def _empty(
        self, column: str, payload: Raw, arrays: Mapping[str, Raw | UnsetType], key: str | None, cuts: list[Cut]
    ) -> Raw:
        arrays = {name: array for name, array in arrays.items() if is_large(array)}
        if not arrays:
            return payload
        text = bytes(payload)
        found: list[tuple[int, int, _Array]] = []
        for name, value in arrays.items():
            if isinstance(value, Raw) and (array := self._split((key, f"{column}.{name}"), bytes(value))):
                start = _find(text, f'"{name.rpartition(".")[2]}"'.encode(), bytes(value), found)
                if start is not None:
                    found.append((start, start + len(bytes(value)), array))
        found.sort(key=lambda part: part[0])
        if not found or any(one[1] > other[0] for one, other in pairwise(found)):
            return payload
        pieces, place, end = list[bytes](), 0, 0
        for start, stop, array in found:
            pieces.append(text[end : start + 1])
            place += len(str(pieces[-1], "utf-8"))
            cuts.append(Cut(column, place, array.joint, array.digests))
            self.emptied += stop - start
            end = stop - 1
        return Raw(b"".join([*pieces, text[end:]]))

    def _split(self, key: tuple[str | None, str], text: bytes) -> _Array | None:
        if not text.startswith(b"[{"):
            return None
        last = self._last.get(key)
        if last is not None and text.startswith(last.text):
            rest = text[len(last.text) :]
            if rest == b"]":
                return last
            if rest.startswith(last.joint):
                added = self._digests(b"[" + rest.removeprefix(last.joint), last.joint)
                if added is not None:
                    return self._remember(key, _Array(text[:-1], last.joint, last.digests + added))
        for joint in _JOINTS:
            digests = self._digests(text, joint)
            if digests is not None and len(digests) * _MIN_ELEMENT_BYTES <= len(text):
                return self._remember(key, _Array(text[:-1], joint, digests))
        return None

    def _remember(self, key: tuple[str | None, str], array: _Array) -> _Array:
        self._last[key] = array
        return array

    def _digests(self, text: bytes, joint: bytes) -> list[bytes] | None:
        elements = _elements(text)
        if b"[" + joint.join(elements) + b"]" != text:
            return None
        digests: list[bytes] = []
        for element in elements:
            digest = blake2b(element, digest_size=16).digest()
            self.bodies.setdefault(digest, element)
            digests.append(digest)
        return digests


def is_large(payload: Raw | UnsetType) -> bool:
    """Tell whether a payload is long enough to be worth taking apart."""
    return isinstance(payload, Raw) and memoryview(payload).nbytes >= MIN_BYTES


def _held(payload: Raw | UnsetType) -> dict[str, Raw | UnsetType]:
    if payload is UNSET:
        return {}
    try:
        holder = _holder(payload)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return {name: getattr(holder, name) for name in _MEMBERS}


def _find(text: bytes, name: bytes, value: bytes, found: list[tuple[int, int, _Array]]) -> int | None:
    """Return where a member's value stands, but for those found already.

    Any place that holds the same bytes will do, for they are put back.
    """
    at = text.find(name)
    while at >= 0:
        at += len(name)
        for start in (at + 1, at + 2):  # after ":" or ": "
            if text.startswith(value, start) and all(start >= stop or start < begin for begin, stop, _ in found):
                return start
        at = text.find(name, at)
    return None


class Numbers:
    """Remembers the numbers of messages that this process committed or read lately, to spare the query.

    Messages may be deleted, by other processes too, which count each time in `state.sweep`: what was known before is
    forgotten. It is one value, replaced as a whole, so that who comes late with older numbers adds them to nothing.
    """

    def __init__(self) -> None:
        self._known: tuple[int, dict[bytes, int]] = (0, {})

    def of(self, sweep: int) -> Mapping[bytes, int]:
        """Return the known numbers by digest, those not there must be looked up. `sweep` is the count of now."""
        if self._known[0] != sweep:
            self._known = (sweep, {})
        return self._known[1]

    def remember(self, numbers: Mapping[bytes, int], sweep: int) -> None:
        """Keep what was committed when the count was `sweep`; of too many, the older half is forgotten."""
        since, known = self._known
        if since != sweep:
            return
        if len(known) + len(numbers) > _MAX_REMEMBERED:
            known = dict(list(known.items())[-_MAX_REMEMBERED // 2 :])
            self._known = (sweep, known)
        known.update(numbers)


def number_messages(
    db: sqlite3.Connection, bodies: Mapping[bytes, Raw], known: Mapping[bytes, int]
) -> tuple[dict[bytes, int], list[bytes]]:
    """Return the number of each message, and which are new and must be inserted under theirs."""
    numbers = {digest: number for digest in bodies if (number := known.get(digest)) is not None}
    missing = [digest for digest in bodies if digest not in numbers]
    for start in range(0, len(missing), _CHUNK):
        chunk = missing[start : start + _CHUNK]
        places = ", ".join("?" * len(chunk))
        query = f"SELECT hash, number FROM messages WHERE hash IN ({places})"  # noqa: S608 (question marks)
        numbers.update(db.execute(query, chunk).fetchall())
    new = [digest for digest in missing if digest not in numbers]
    if new:
        (last,) = db.execute(LAST_MESSAGE).fetchone()
        numbers.update(zip(new, range(last + 1, last + 1 + len(new)), strict=True))
    return numbers, new


def write_refs(cuts: list[Cut], numbers: Mapping[bytes, int]) -> str:
    """Return the column `refs` of what was cut."""
    return "[" + ",".join(part for cut in cuts for part in _runs(cut, numbers)) + "]"


def _runs(cut: Cut, numbers: Mapping[bytes, int]) -> Iterator[str]:
    letter = cut.column[0] if cut.joint == b"," else cut.column[0].upper()
    first = last = numbers[cut.digests[0]]
    for digest in cut.digests[1:]:
        number = numbers[digest]
        if number != last + 1:
            yield f'["{letter}",{cut.place},{first},{last}]'
            first = number
        last = number
    yield f'["{letter}",{cut.place},{first},{last}]'


class Bodies:
    """Puts messages back, reading each once for as long as it lives."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._texts: dict[int, str] = {}
        self.packs = PackReader(db)

    def put_back(self, fields: dict[str, Any], refs: str) -> None:
        """Fill the arrays of a row's payload columns, in place. Raises `CorruptStoreError` where a message is gone."""
        arrays: dict[tuple[str, int, str], list[str]] = {}
        for letter, place, first, last in _refs(refs):
            key = (_COLUMNS[letter.lower()], place, ", " if letter.isupper() else ",")
            arrays.setdefault(key, []).extend(self.read(first, last))
        for (column, place, joint), texts in reversed(arrays.items()):  # from the end, so that places stay
            text = fields[column]
            fields[column] = f"{text[:place]}{joint.join(texts)}{text[place:]}"

    def are_there(self, refs: str) -> bool:
        """Tell whether all messages are there, without keeping them. Raises `CorruptStoreError` for a broken pack."""
        query = "SELECT number, pack FROM messages WHERE number BETWEEN ? AND ?"
        for _, _, first, last in _refs(refs):
            rows = self._db.execute(query, (first, last)).fetchall()
            if len(rows) != last - first + 1:
                return False
            for number, pack in rows:
                if pack is not None:
                    self.packs.message(pack, number)
        return True

    def read(self, first: int, last: int) -> list[str]:
        """Return the texts of messages. Raises `CorruptStoreError` where one is gone."""
        wanted = range(first, last + 1)
        texts = self._texts
        if any(number not in texts for number in wanted):
            query = "SELECT number, body, pack FROM messages WHERE number BETWEEN ? AND ?"
            for number, body, pack in self._db.execute(query, (first, last)).fetchall():
                texts[number] = body if pack is None else self.packs.message(pack, number)
        try:
            return [texts[number] for number in wanted]
        except KeyError as error:
            raise CorruptStoreError(f"a payload refers to message {error}, which is not there") from error


_COLUMNS: Final = {"i": "input", "o": "output", "g": "generation"}
