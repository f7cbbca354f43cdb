r"""Turn any value into JSON bytes, on the caller's thread: never raises, bounded, redacted, a snapshot.

1. Only plain values (exact str, int, float, bool, None, dict, list, tuple) reach orjson. It keeps borrowed references
   while it walks a container, so Python code that runs meanwhile (a hook, `Enum.value`, a tzinfo) and removes items
   crashes the interpreter; NaN would silently become null. Everything else takes the slow path, written in Python.
2. The work is bounded by `max_field_bytes`, not by the value; so is the result.
3. Secrets are masked before anything is cut, so no half of a secret escapes its rule; media move out before, so that
   a photo survives a limit smaller than itself.
4. Exceptions never leave; KeyboardInterrupt, SystemExit and other BaseExceptions do, because a Ctrl-C that arrives
   while a user's `__repr__` runs can't be told from one raised by it.

What JSON can't say becomes a marker, `{"$stepwell": KIND, ...}`:

    cycle                             the container is inside itself
    depth             limit           nested deeper than the slow path follows
    float             value           "NaN", "Infinity" or "-Infinity"
    int               value, bits     beyond 64 bits: decimal, 0x... beyond 4096 bits, its head and `bits` beyond 65536
    bytes             size, base64    base64 of the head when large; masked when the bytes hold a secret
    blob              sha256, size, mime   media moved to the blobs folder, where there is one: bytes and base64 of
                                      more than 4096 bytes (see `stepwell._media`); `mime` is absent where unknown
    text              text, blobs     a text that held `data:` URLs: "[blob 1: image/png, 5000 bytes]" stands for the
                                      first of `blobs`
    surrogate         text            a string with lone surrogates, written with backslashes
    object            type, repr      any other object
    object            type, error     the object's code raised; `error` is the exception's type
    array             dtype, shape, head   a numpy array of more than 1000 items
    changing          type            another thread changed the container at every attempt to copy it
    truncated         characters, head     a string too long
    truncated         items           how many items of a list or dict were left out, in their place at the end
    truncated         bytes, head     the head of the JSON of what could not be cut otherwise
    redaction_failed  rule            a redaction rule failed; the whole payload was dropped
    failed                            the value could not be recorded (out of memory or stack)

In a dict the marker of what was left out stands under the key "$stepwell:truncated". Keys that are not strings become
strings; a key already taken gets a number, "1 (2)".
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (values of any type are told apart at run time; their parameters stay unknown)

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import orjson

from stepwell._media import MIN_BASE64, Blobs, Extraction, MediaStore, may_hold_media
from stepwell._redaction import RedactionFailedError, Redactor, Rules, suspicious
from stepwell._snapshot import MAX_NODES, OVERLAP, Snapshot, marker, printable, repr_of
from stepwell.errors import UsageError

__all__ = ["DEFAULT_MAX_FIELD_BYTES", "FAILED_TEXT", "Capture", "Redactor"]

DEFAULT_MAX_FIELD_BYTES: Final = 4 * 1024 * 1024
MIN_MAX_FIELD_BYTES: Final = 256
_LARGE: Final = 32  # items, from where functions over whole levels are faster
_MANY: Final = 256  # containers, the same; and what a cycle costs before they notice it
_MAX_LEVELS: Final = 250  # orjson refuses 254
_LONG: Final = 2048  # bytes, from where it pays to ask whether the texts are known from before
_VOUCHED: Final = 1 << 62  # on top of the room: all texts of the value are known to hold neither secrets nor media
_NO_TEXTS: Final[list[str]] = []
_LEFT_OUT: Final = "$stepwell:truncated"
_MARKED: Final = {"items": int, "head": str}
_MARKER_BYTES: Final = 72  # a marker of what was left out takes no more
_FIT_DEPTH: Final = 8  # each level encodes again what is below it

_SCALARS: Final = frozenset({int, bool, type(None)})
_PLAIN: Final = _SCALARS | {str, float, dict, list, tuple}
# Unused for plain values; it refuses what another thread may have put there after they were looked at.
_OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
_FAILED: Final = b'{"$stepwell":"failed"}'
FAILED_TEXT: Final = b'"[failed]"'


class Capture:
    """Encodes values and texts with one set of limits and redaction rules; `blobs` is where media go, `fault` is told
    of those that can't be stored.

    >>> Capture(redact=["pin"]).encode({"pin": "1234", "amount": 5})
    b'{"pin":"[redacted:pin:4]","amount":5}'
    """

    __slots__ = ("encode", "pieces", "rules", "text")

    encode: Callable[[object], bytes]
    text: Callable[..., bytes]
    pieces: Callable[[Sequence[str] | Sequence[bytes]], list[bytes]]

    def __init__(
        self,
        *,
        max_field_bytes: int = DEFAULT_MAX_FIELD_BYTES,
        redact: Sequence[Redactor] | None = None,
        default_redaction: bool = True,
        blobs: Blobs | None = None,
        fault: Callable[[str, BaseException], object] = lambda _, __: None,
    ) -> None:
        if type(max_field_bytes) is not int or max_field_bytes < MIN_MAX_FIELD_BYTES:
            raise UsageError(f"max_field_bytes must be an int >= {MIN_MAX_FIELD_BYTES}, got {max_field_bytes!r}")
        self.rules = rules = Rules(redact, default_redaction)
        media = None if blobs is None else MediaStore(blobs, rules, fault)
        self.encode = _encoder(rules, min(max_field_bytes, _VOUCHED >> 1), media)
        self.text = _text_encoder(rules, max_field_bytes)
        self.pieces = _piece_encoder(rules, self.encode)


# One function without helpers for flat dicts and scalars: a call costs as much as encoding a small payload.
def _encoder(rules: Rules, limit: int, media: MediaStore | None) -> Callable[[object], bytes]:  # noqa: C901 - see above
    dumps, room_after, scalars, options = orjson.dumps, _room_after, _SCALARS, _OPTIONS
    known, judge = rules.known, rules.harmless if rules.judges_names else None
    unchecked, cheap = not rules.shapes, not (rules.judges_text or rules.judges_payloads)
    short, has_media, clean = min(_LONG, limit + 1), media is not None, rules.clean_texts
    trusting = unchecked and not has_media

    def encode(value: Any) -> bytes:  # noqa: C901, PLR0912 - see above
        """Return the value as JSON bytes; see the module for what becomes a marker."""
        try:
            room, texts = limit if cheap else -1, _NO_TEXTS
            kind = type(value)
            if kind is dict:
                if judge is not None and not known.issuperset(value) and not judge(value):
                    room = -1
                for item in value.values():
                    kind = type(item)
                    if kind is str:
                        room -= len(item)
                    elif kind is int or kind is bool or item is None or (kind is float and item - item == 0.0):
                        room -= 1
                    else:
                        room = room_after(item, rules, room)
                        if room >= _VOUCHED:  # for this item alone
                            room -= _VOUCHED
                    if room < 0:
                        break
            elif kind is str:
                room -= len(value)
                if len(value) > _LONG and value in clean:
                    room += _VOUCHED
            elif kind is list:
                texts = []
                room = _room_after_rows(value, rules, room, texts)
            elif kind not in scalars:
                room = room_after(value, rules, room)
            if room >= 0:
                data = dumps(value, None, options)
                size = len(data)
                if size < short:  # the bytes `suspicious` looks for, without the price of calling it
                    if not (
                        45 in data or 95 in data or 64 in data or 74 in data or 75 in data or 66 in data or 122 in data
                    ):
                        return data
                    if unchecked or not suspicious(data):
                        return data
                elif size <= limit and (
                    room >= _VOUCHED or trusting or _is_clean(texts or _texts_of(value), data, rules, has_media)
                ):
                    return data
        except Exception:  # noqa: BLE001, S110 - the slow path finds out what it was and says so in a marker
            pass
        return _encode_slowly(value, rules, limit, media)

    return encode


def _is_clean(texts: list[str], data: bytes, rules: Rules, has_media: bool) -> bool:
    """Say whether a plain value of these texts, its names harmless, holds neither secrets nor media; remember that.

    Of a chat that has grown by a message only that message is looked through.
    """
    new = list(itertools.filterfalse(rules.clean_texts.__contains__, texts))
    if 4 * len(new) <= len(texts):
        data = orjson.dumps(new)
    if (has_media and len(data) >= MIN_BASE64 and may_hold_media(data)) or (rules.shapes and suspicious(data)):
        return False
    rules.vouch_for(new)
    return True


def _room_after_rows(rows: list[Any], rules: Rules, room: int, texts: list[str]) -> int:
    """Return what `_room_after` does, in half the time for a few flat dicts: messages, documents.

    Of many their strings are put into `texts`, all of them if the result is 0 or more.
    """
    most, known = room, rules.known
    if len(rows) > _LARGE:
        most -= 2 * len(rows)
        return most if most < 0 else _room_after_level(rows, rules, most, texts)
    if not rules.judges_names:
        return _room_after(rows, rules, most)
    for row in rows:
        if type(row) is not dict or len(row) > _LARGE or not known.issuperset(row):
            return _room_after(rows, rules, most)
        for item in row.values():
            kind = type(item)
            if kind is str:
                room -= len(item)
            elif kind not in _SCALARS and (kind is not float or item - item != 0.0):
                return _room_after(rows, rules, most)
    return room


def _room_after(value: Any, rules: Rules, room: int) -> int:  # noqa: C901 - one loop without calls, on the hot path
    """Return what a value leaves of `room` bytes, roughly; less than 0 if it is too large or not plain.

    Plain is what orjson may have: exact types of JSON, finite floats, harmless names.
    """
    judges_names, known, most = rules.judges_names, rules.known, room
    containers: list[Any] = [value]
    for container in containers:
        kind = type(container)
        if kind is dict:
            if judges_names and not known.issuperset(container) and not rules.harmless(container):
                return -1
            items = container.values()
        elif kind is list or kind is tuple:
            items = container
        else:
            return room if kind is float and math.isfinite(container) else -1
        if len(items) > _LARGE or len(containers) > _MANY:
            return _room_after_level([value], rules, most, [])
        for item in items:
            kind = type(item)
            if kind is str:
                room -= len(item)
            elif kind is dict or kind is list or kind is tuple:
                containers.append(item)
            elif not (kind is int or kind is bool or item is None or (kind is float and item - item == 0.0)):
                return -1
        if room < 0:
            break
    return room


def _room_after_level(level: list[Any], rules: Rules, room: int, texts: list[str]) -> int:
    """Return the same for many values, a level of the tree at a time by functions written in C: five times as fast.

    `_VOUCHED` is added where all texts are known: a chat is recorded with every turn, and most of it is as it was.
    """
    for _ in range(_MAX_LEVELS):
        kinds = set(map(type, level))
        if not kinds <= _PLAIN or (float in kinds and not _all_finite(_only(float, level, kinds))):
            return -1
        strings: list[str] = _only(str, level, kinds)
        room -= sum(map(len, strings))
        texts += strings
        dicts: list[dict[str, Any]] = _only(dict, level, kinds)
        lists: list[Any] = _only(list, level, kinds) + _only(tuple, level, kinds)
        if not dicts and not lists:
            return room + _VOUCHED if room >= 0 and rules.clean_texts.issuperset(texts) else room
        if room < 0 or sum(map(len, lists)) > room or (rules.judges_names and not _all_harmless(dicts, rules)):
            return -1
        level = list(itertools.chain.from_iterable(map(dict.values, dicts)))
        level.extend(itertools.chain.from_iterable(lists))
        room -= 2 * len(level)
    return -1


def _texts_of(value: Any) -> list[str]:
    """Return the strings of a plain value, keys not among them."""
    texts: list[str] = []
    waiting = [value]
    for item in waiting:
        kind = type(item)
        if kind is str:
            texts.append(item)
        elif kind is dict:
            waiting.extend(item.values())
        elif kind is list or kind is tuple:
            if len(item) > _LARGE:
                texts += _texts_of_level(item)
            else:
                waiting.extend(item)
    return texts


def _texts_of_level(level: Sequence[Any]) -> list[str]:
    texts: list[str] = []
    level = list(level)
    while level:
        kinds = set(map(type, level))
        texts += _only(str, level, kinds)
        dicts: list[dict[str, Any]] = _only(dict, level, kinds)
        lists: list[Any] = _only(list, level, kinds) + _only(tuple, level, kinds)
        level = list(itertools.chain.from_iterable(map(dict.values, dicts)))
        level.extend(itertools.chain.from_iterable(lists))
    return texts


def _all_harmless(dicts: list[dict[str, Any]], rules: Rules) -> bool:
    names: set[str] = set().union(*dicts)  # three times as fast as looking up each name of each dict
    return names <= rules.known or rules.harmless(names)


def _only(kind: type, level: list[Any], kinds: set[type]) -> list[Any]:
    if kind not in kinds:
        return []
    return level if len(kinds) == 1 else [value for value in level if type(value) is kind]


def _all_finite(numbers: Iterable[float]) -> bool:
    total: float = sum(numbers)  # NaN and infinity stay in a sum; a sum that overflows only costs the slow path
    return total - total == 0.0


def _encode_slowly(value: object, rules: Rules, limit: int, media: MediaStore | None) -> bytes:
    extraction = None if media is None else Extraction(media)
    try:
        data = _fit(Snapshot(rules, limit, extraction).copy(value), limit)
        if rules.judges_payloads:
            data = rules.payload(data).replace(b"\n", b" ")  # a payload must stay on its line
        if extraction is not None and not extraction.finish(data):
            return _encode_slowly(value, rules, limit, None)
        return data if len(data) <= limit else _clipped(data.decode(), len(data), "bytes", limit)
    except RedactionFailedError as failure:
        return orjson.dumps(marker("redaction_failed", rule=printable(failure.rule)[:30]))
    except Exception:  # noqa: BLE001 - nothing may reach user code; the marker says that the value is missing
        return _FAILED


def _fit(node: Any, room: int, depth: int = _FIT_DEPTH) -> bytes:  # noqa: PLR0911 - one return a kind of node
    """Encode a tree in at most `room` bytes: strings keep their head, containers their first items.

    Nothing is returned if not even a marker would fit.
    """
    data = orjson.dumps(node)
    if len(data) <= room:
        return data
    if room < _MARKER_BYTES - 8 or _is_blob(node):
        return b""
    if type(node) is str:
        return _clipped(node, len(node), "characters", room)
    if _is_marker(node, "head"):
        return _clipped(node["head"], node.get("characters"), "characters", room)
    if depth and room >= 2 * _MARKER_BYTES:
        if type(node) is list:
            return b"[" + b",".join(_fit_items(node, len(data), room - 2, depth - 1)) + b"]"
        return b"{" + b",".join(_fit_pairs(node, room - 2, depth - 1)) + b"}"
    return _clipped(data.decode(), len(data), "bytes", room)


def _fit_items(items: list[Any], size: int, room: int, depth: int) -> list[bytes]:
    room -= _MARKER_BYTES
    total = len(items)
    if items and _is_marker(items[-1], "items"):  # cut before: what was left out then is counted again
        total += items[-1]["items"] - 1
        items = items[:-1]
    if len(items) > MAX_NODES:  # only numbers can be so many
        head = items[: (room - 2) * len(items) // size]
        while len(data := orjson.dumps(head)) - 1 > room:
            head = head[: len(head) * 9 // 10]
        return [data[1:-1], orjson.dumps(marker("truncated", items=total - len(head)))]
    parts: list[bytes] = []
    for index, item in enumerate(items):
        share = _share(item, room, len(items) - index)
        part = _fit(item, share - 1, depth)
        if not part:
            break
        parts.append(part)
        room -= len(part) + 1
    return [*parts, orjson.dumps(marker("truncated", items=total - len(parts)))] if len(parts) < total else parts


def _fit_pairs(pairs: dict[str, Any], room: int, depth: int) -> list[bytes]:
    room -= _MARKER_BYTES
    total = len(pairs)
    if _is_marker(pairs.get(_LEFT_OUT), "items"):
        total += pairs[_LEFT_OUT]["items"] - 1
        pairs = {key: item for key, item in pairs.items() if key != _LEFT_OUT}
    parts: list[bytes] = []
    for index, (key, item) in enumerate(pairs.items()):
        share = _share(item, room, len(pairs) - index)
        name = orjson.dumps(key) + b":"
        part = _fit(item, share - len(name) - 1, depth)
        if part:
            parts.append(name + part)
            room -= len(name) + len(part) + 1
    if len(parts) < total:
        left_out = orjson.dumps({_LEFT_OUT: marker("truncated", items=total - len(parts))})
        parts.append(left_out[1:-1])
    return parts


def _share(item: Any, room: int, items_left: int) -> int:
    return room if _is_blob(item) else max(room // items_left, min(room, _MARKER_BYTES))


def _is_blob(node: Any) -> bool:
    """Say whether it is a reference, which is worth nothing when it is cut."""
    return type(node) is dict and node.get("$stepwell") == "blob"


def _is_marker(node: Any, fact: str) -> bool:
    return type(node) is dict and node.get("$stepwell") == "truncated" and type(node.get(fact)) is _MARKED[fact]


def _clipped(text: str, size: object, unit: str, room: int) -> bytes:
    empty = marker("truncated", **{unit: size, "head": ""})
    return orjson.dumps({**empty, "head": _head(text, room - len(orjson.dumps(empty)))})


def _head(text: str, room: int) -> str:
    """Return the head of a text that takes at most `room` bytes as JSON, quotes not counted."""
    head = text[: max(room, 0)]
    for _ in range(2):
        size = len(orjson.dumps(head)) - 2
        if size <= room:
            return head
        head = head[: len(head) * room // size]
    excess = len(orjson.dumps(head)) - 2 - room
    return head[: max(len(head) - max(excess, 0), 0)]  # a character takes one byte at least


def _piece_encoder(rules: Rules, encode: Callable[[object], bytes]) -> Callable[[Sequence[Any]], list[bytes]]:
    def pieces(pieces: Sequence[str] | Sequence[bytes]) -> list[bytes]:
        """Return what a stream gave in pieces as JSON values: the pieces, or one value where a secret spans some."""
        if not pieces:
            return []
        whole: Any = type(pieces[0])().join(pieces)  # type: ignore[arg-type]
        text = whole if type(whole) is str else whole.decode("latin-1")
        try:
            split = rules.rewritten(rules.text(text)) != text
        except Exception:  # noqa: BLE001 - `encode` finds out too, and says so
            split = True
        return [encode(whole)] if split else [encode(piece) for piece in pieces]

    return pieces


def _text_encoder(rules: Rules, limit: int) -> Callable[..., bytes]:
    cheap = not (rules.judges_text or rules.judges_payloads)
    shapes = rules.shapes

    def text(text: str, max_characters: int = limit, *, prose: bool = False, tail: bool = False) -> bytes:
        """Return a text as a JSON string, cut after `max_characters`; "[redaction_failed:RULE]" if a rule fails.

        In `prose` values are masked too by the names before them; with `tail` its end is kept, not its beginning.
        """
        try:
            if cheap and not prose and type(text) is str and len(text) <= max_characters:
                data = orjson.dumps(text)
                if len(data) <= limit and not (shapes and suspicious(data)):
                    return data
        except Exception:  # noqa: BLE001, S110 - lone surrogates: written with backslashes below
            pass
        try:
            clean = str.__str__(text) if isinstance(text, str) else repr_of(text, rules)
            return _text_slowly(clean, rules, min(max_characters, limit), limit, prose=prose, tail=tail)
        except RedactionFailedError as failure:
            return orjson.dumps(f"[redaction_failed:{printable(failure.rule)[:30]}]")
        except Exception:  # noqa: BLE001 - nothing may reach user code
            return FAILED_TEXT

    return text


def _text_slowly(text: str, rules: Rules, most: int, limit: int, *, prose: bool, tail: bool) -> bytes:
    # Beyond the beginning a private key may have lost the line it is known by: more of it is read than of the end.
    read = text[-most - 4 * OVERLAP :] if tail else text[: most + OVERLAP]
    clean = printable(rules.rewritten((rules.prose if prose else rules.text)(read)))
    room = limit - 64  # the note takes fewer
    if tail:
        kept = _head(clean[-most:][::-1], room)[::-1]
        return orjson.dumps(kept if len(kept) == len(clean) == len(text) else f"[{len(text)} characters] ...{kept}")
    kept = _head(clean[:most], room)
    if len(text) > most or len(kept) < len(clean):
        kept += f"... [{len(text)} characters]"
    return orjson.dumps(kept)
