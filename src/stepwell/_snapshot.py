"""Copy any value into plain dicts, lists, strings and numbers: the slow path of capture, where user code may run.

1. No user code runs but what must: `__repr__`, fields of dataclasses and the like, serialisers of pydantic models. All
   of it is guarded, and types are told by `type(x)` and its mro, because `__class__` may lie or raise.
2. Containers are copied by one call of C code before their items are looked at; who changes them meanwhile is seen.
3. Iterators are never consumed; an arbitrary `__dict__` is never walked.
4. Media move out before strings are masked, and strings are masked before they are cut. What JSON can't say becomes a
   marker, see `stepwell._capture`.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false
# (values of any type are told apart at run time; their parameters stay unknown)

from __future__ import annotations

import array
import base64
import collections
import dataclasses
import datetime as dt
import enum
import itertools
import math
import os
import pathlib
import sys
import types
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Final

import orjson

from stepwell._media import BASE64_FIELDS, MIN_BASE64, Extraction
from stepwell._redaction import RedactionFailedError, Rules, mask
from stepwell._values import first_pairs, mro_of, namespace_of, type_name

__all__ = ["MAX_DEPTH", "MAX_NODES", "OVERLAP", "Snapshot", "marker", "printable", "repr_of"]

MAX_DEPTH: Final = 100
MAX_NODES: Final = 50_000  # values visited one by one, about two microseconds each
MAX_REPR_CHARACTERS: Final = 1000
MAX_BYTES: Final = 64 * 1024
MAX_ARRAY_ITEMS: Final = 1000
OVERLAP: Final = 8192  # characters read beyond a cut, so that a secret across it is still recognised
_MAX_DECIMAL_BITS: Final = 4096  # Python refuses to print 4300 digits
_MAX_HEX_BITS: Final = 65536
_ATTEMPTS: Final = 3
_MISSING: Final = object()


def marker(kind: str, **facts: object) -> dict[str, Any]:
    """Return what stands in place of a value that JSON can't say."""
    return {"$stepwell": kind, **facts}


def printable(text: str) -> str:
    """Return the text with lone surrogates, which UTF-8 can't hold, written as backslash escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def repr_of(value: object, rules: Rules) -> str:
    """Return the object's repr, masked, printable and bounded; raise what `__repr__` raises."""
    text = str.__str__(repr(value))
    return printable(rules.prose(text[: MAX_REPR_CHARACTERS + OVERLAP]))[:MAX_REPR_CHARACTERS]


class Snapshot:
    """Copies one value; used once, because it counts what it may still visit."""

    __slots__ = ("_characters", "_items", "_media", "_path", "_rules", "nodes")

    def __init__(self, rules: Rules, limit: int, media: Extraction | None = None) -> None:
        self._rules = rules
        self._media = media
        self._characters = 2 * limit  # each string may take half of what is left: one never starves those after it
        self._items = max(limit // 8, MAX_NODES)  # numbers, which C code visits
        self.nodes = min(MAX_NODES, limit)  # each takes a byte at least, so more would not fit
        self._path: set[int] = set()

    def copy(self, value: Any) -> Any:
        """Return the value as a tree that orjson encodes as it is."""
        self.nodes -= 1
        kind = type(value)
        if value is None or kind is bool:
            return value
        try:
            return (_CONVERTERS.get(kind) or _converter(kind))(self, value)
        except RedactionFailedError:
            raise
        except Exception as error:  # noqa: BLE001 - user code raised, or the stack is full: the marker says so
            return marker("object", type=type_name(kind), error=type_name(type(error)))

    def copy_text(self, value: Any) -> Any:
        """Copy a string: media moved out, masked, then cut."""
        text = str.__str__(value)
        if self._media is not None and len(text) >= MIN_BASE64 and (moved := self._media.of_text(text)) is not None:
            return {**moved, "text": self._copy_prose(moved["text"])} if "text" in moved else moved
        return self._copy_prose(text)

    def _copy_prose(self, text: str) -> Any:
        most = self._characters // 2
        read = text[: most + OVERLAP] if most > 0 else ""
        clean = self._rules.text(read)
        head = clean[: max(most, 0)]
        self._characters -= len(head)
        shown = printable(head)
        if len(text) > len(read) or len(clean) > len(head):
            return marker("truncated", characters=len(text), head=shown)
        return shown if shown == head else marker("surrogate", text=shown)

    def copy_bytes(self, value: Any) -> Any:
        """Copy a buffer: as a blob, else its head."""
        with memoryview(value) as whole, whole.cast("B") as view:
            size = view.nbytes
            if self._media is not None and (moved := self._media.of_bytes(view)) is not None:
                return moved
            most = min(MAX_BYTES, max(self._characters // 2, 0))
            head = view[: most + OVERLAP].tobytes()
        text = head.decode("latin-1")
        if self._rules.text(text) != text:
            return marker("bytes", size=size, base64=mask("bytes", size))
        shown = base64.b64encode(head[:most]).decode()
        self._characters -= len(shown)
        return marker("bytes", size=size, base64=shown)

    def copy_object(self, value: Any) -> Any:
        """Tell the type and the repr of an object, and nothing of what it holds."""
        if self._characters <= 0:
            return marker("object", type=type_name(type(value)))
        shown = repr_of(value, self._rules)
        self._characters -= len(shown)
        return marker("object", type=type_name(type(value)), repr=shown)

    def copy_slice(self, value: Any, base: Any) -> Any:
        """Copy a list or tuple; plain numbers stay in C code, so a long vector costs little."""
        items = list(base.__getitem__(value, slice(0, max(self._items, 0))))
        copies = self.inside(value, lambda: items if _is_numbers(items) else self._copies(items))
        if copies is items:
            self._items -= len(items)
        return _with_rest(copies, base.__len__(value))

    def copy_iterable(self, value: Any, iterate: Callable[[Any], Iterable[Any]], ordered: bool = True) -> Any:
        """Copy a container that has a length and can be iterated more than once."""
        items = _stable_items(lambda: itertools.islice(iterate(value), max(self.nodes, 0) + 1))
        if items is None:
            return marker("changing", type=type_name(type(value)))
        copies = self.inside(value, lambda: self._copies(items if ordered else _in_order(items)))
        return _with_rest(copies, len(value))

    def copy_dict(self, value: Any, pairs_of: Callable[[Any], Iterable[tuple[Any, Any]]]) -> Any:
        """Copy a dict."""
        pairs = _stable_items(lambda: itertools.islice(pairs_of(value), max(self.nodes, 0) + 1))
        if pairs is None:
            return marker("changing", type=type_name(type(value)))
        return self.inside(value, lambda: self._named(pairs, dict.__len__(value)))

    def copy_fields(self, value: Any, names: Iterable[str]) -> Any:
        """Copy an object as the dict of these attributes; unset ones are absent, those that raise say so."""
        pairs = [(name, item) for name in names if (item := _attribute(value, name)) is not _MISSING]
        return self.inside(value, lambda: self._named(pairs, len(pairs)))

    def inside(self, value: Any, copy: Callable[[], Any]) -> Any:
        """Copy what is in a container, unless it is in itself or too deep."""
        if id(value) in self._path:
            return marker("cycle")
        if len(self._path) >= MAX_DEPTH:
            return marker("depth", limit=MAX_DEPTH)
        self._path.add(id(value))
        try:
            return copy()
        finally:
            self._path.discard(id(value))

    def _copies(self, items: list[Any]) -> list[Any]:
        copies: list[Any] = []
        for item in items:
            if self.nodes <= 0:
                break
            copies.append(self.copy(item))
        return copies

    def _named(self, pairs: list[tuple[Any, Any]], total: int) -> dict[str, Any]:
        copies: dict[str, Any] = {}
        taken: dict[str, int] = {}
        for key, item in pairs:
            if self.nodes <= 0:
                break
            rule = self._secret_name(key)
            name = text = self._key(key)
            while name in copies:  # 1 and "1" both stay
                taken[text] = taken.get(text, 1) + 1
                name = f"{text} ({taken[text]})"
            copies[name] = self._copy_field(key, item, pairs) if rule is None else self._masked(rule, item)
        if total > len(copies):
            copies["$stepwell:truncated"] = marker("truncated", items=total - len(copies))
        return copies

    def _copy_field(self, key: Any, item: Any, pairs: list[tuple[Any, Any]]) -> Any:
        if self._media is not None and type(key) is str and key in BASE64_FIELDS:
            moved = self._media.of_field(key, item, pairs)
            if moved is not None:
                return moved
        return self.copy(item)

    def _secret_name(self, key: Any) -> str | None:
        if str in mro_of(type(key)):
            return self._rules.secret_name(str.__str__(key))
        return self._rules.secret_name(key.decode("latin-1")) if type(key) is bytes else None

    def _key(self, key: Any) -> str:
        shown = self._without_media(key)
        if type(shown) is str:
            return shown
        if type(shown) is dict and shown.get("$stepwell") == "surrogate":
            return str(shown["text"])
        return orjson.dumps(shown).decode()

    def _masked(self, rule: str, value: Any) -> Any:
        if value is None or type(value) is bool or (type(value) is str and not value):
            return value
        if type(value) is str:
            return mask(rule, len(value))
        return mask(rule, len(orjson.dumps(self._without_media(value)).decode()))

    def _without_media(self, value: Any) -> Any:
        """Copy what must leave no blob: it is secret itself, or there is no place for a reference."""
        media, self._media = self._media, None
        try:
            return self.copy(value)
        finally:
            self._media = media


def _with_rest(copies: Any, total: int) -> Any:
    if type(copies) is list and total > len(copies):
        return [*copies, marker("truncated", items=total - len(copies))]
    return copies


def _is_numbers(items: list[Any]) -> bool:
    kinds = set(map(type, items))
    if kinds == {int}:
        return bool(min(items) >= -(2**63) and max(items) < 2**64)
    return kinds == {float} and (total := sum(items)) - total == 0.0


def _stable_items(iterate: Callable[[], Iterable[Any]]) -> list[Any] | None:
    """Return the items, None if another thread changed the container at every attempt."""
    for _ in range(_ATTEMPTS):
        try:
            return list(iterate())
        except RecursionError:
            raise
        except RuntimeError:
            continue
    return None


def _in_order(items: list[Any]) -> list[Any]:
    kinds = set(map(type, items))
    return sorted(items) if kinds <= {int, bool} or kinds in ({str}, {bytes}) else items


def _attribute(value: Any, name: str) -> Any:
    try:
        return getattr(value, name)
    except AttributeError:
        return _MISSING
    except Exception as error:  # noqa: BLE001 - a property of the user's class raised
        return marker("object", type=type_name(type(value)), error=type_name(type(error)))


def _copy_int(_: Snapshot, value: Any) -> Any:
    number = int.__index__(value)
    if -(2**63) <= number < 2**64:
        return number
    bits = number.bit_length()
    if bits <= _MAX_DECIMAL_BITS:
        return marker("int", value=str(number))
    if bits <= _MAX_HEX_BITS:
        return marker("int", value=hex(number))
    return marker("int", value=hex(number >> (bits - _MAX_HEX_BITS)) + "...", bits=bits)


def _copy_float(_: Snapshot, value: Any) -> Any:
    number = float.__float__(value)
    if number - number == 0.0:
        return number
    return marker("float", value="NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity")


def _copy_str_of(walk: Snapshot, value: Any) -> Any:
    return walk.copy_text(str(value))


def _copy_path(walk: Snapshot, value: Any) -> Any:
    return walk.copy_text(os.fspath(value))


def _copy_isoformat(walk: Snapshot, value: Any) -> Any:
    return walk.copy_text(value.isoformat())


def _copy_set(walk: Snapshot, value: Any) -> Any:
    base = set if set in mro_of(type(value)) else frozenset
    return walk.copy_iterable(value, base.__iter__, ordered=False)


def _copy_mapping(walk: Snapshot, value: Any) -> Any:
    return walk.inside(value, lambda: walk.copy(first_pairs(value, max(walk.nodes, 0) + 1)))


def _copy_data(walk: Snapshot, value: Any) -> Any:
    return walk.inside(value, lambda: walk.copy(value.data))


def _copy_enum(walk: Snapshot, value: Any) -> Any:
    return walk.copy(object.__getattribute__(value, "_value_"))


def _copy_dataclass(walk: Snapshot, value: Any) -> Any:
    return walk.copy_fields(value, [field.name for field in dataclasses.fields(type(value))])


def _copy_attrs(walk: Snapshot, value: Any) -> Any:
    return walk.copy_fields(value, [field.name for field in type(value).__attrs_attrs__])


def _copy_struct(walk: Snapshot, value: Any) -> Any:
    return walk.copy_fields(value, type(value).__struct_fields__)


def _copy_pydantic(walk: Snapshot, value: Any) -> Any:
    try:
        tree = value.model_dump(mode="json", warnings=False)
    except Exception:  # noqa: BLE001 - a value pydantic can't encode; field by field the others are kept
        return walk.copy_fields(value, list(type(value).__pydantic_fields__))
    return walk.copy(tree)


def _copy_array(walk: Snapshot, value: Any) -> Any:
    if value.size <= MAX_ARRAY_ITEMS:
        return walk.copy(value.tolist())
    head = walk.copy(value.ravel()[:MAX_ARRAY_ITEMS].tolist())
    return marker("array", dtype=str(value.dtype), shape=list(value.shape), head=head)


def _copy_numpy_scalar(walk: Snapshot, value: Any) -> Any:
    item = value.item()
    return walk.copy_object(value) if type(item) is type(value) else walk.copy(item)  # a long double is its own item


_Converter = Callable[[Snapshot, Any], Any]

_CONVERTERS: Final[dict[type, _Converter]] = {
    str: Snapshot.copy_text,
    int: _copy_int,
    float: _copy_float,
    bytes: Snapshot.copy_bytes,
    bytearray: Snapshot.copy_bytes,
    memoryview: Snapshot.copy_bytes,
    dict: lambda walk, value: walk.copy_dict(value, dict.items),
    collections.OrderedDict: lambda walk, value: walk.copy_dict(value, collections.OrderedDict.items),
    list: lambda walk, value: walk.copy_slice(value, list),
    tuple: lambda walk, value: walk.copy_slice(value, tuple),
    set: _copy_set,
    frozenset: _copy_set,
    collections.deque: lambda walk, value: walk.copy_iterable(value, collections.deque.__iter__),
    array.array: lambda walk, value: walk.copy_iterable(value, iter),
    range: lambda walk, value: walk.copy_iterable(value, iter),
    type({}.keys()): lambda walk, value: walk.copy_iterable(value, iter),
    type({}.values()): lambda walk, value: walk.copy_iterable(value, iter),
    type({}.items()): lambda walk, value: walk.copy_iterable(value, iter),
    types.MappingProxyType: _copy_mapping,
    collections.ChainMap: _copy_mapping,
    type(os.environ): _copy_mapping,
    collections.UserDict: _copy_data,
    collections.UserList: _copy_data,
    collections.UserString: _copy_data,
    dt.datetime: _copy_isoformat,
    dt.date: _copy_isoformat,
    dt.time: _copy_isoformat,
    dt.timedelta: _copy_str_of,
    complex: _copy_str_of,
    uuid.UUID: _copy_str_of,
    pathlib.PurePath: _copy_path,
}


def _converter(kind: type) -> _Converter:
    """Return what copies objects of a class that is not itself in the table."""
    bases = mro_of(kind)
    if enum.EnumMeta in mro_of(type(kind)):
        return _copy_enum
    for base in bases:
        if base in _CONVERTERS:
            return _CONVERTERS[base]
    for module, name, convert in _FOREIGN:
        if module in sys.modules and getattr(sys.modules[module], name, _MISSING) in bases:
            return convert
    for mark, convert in _MARKED:
        if any(mark in namespace_of(base) for base in bases):
            return convert
    return Snapshot.copy_object


# Only when their module is loaded already, else no value can be of these classes.
_FOREIGN: Final[tuple[tuple[str, str, _Converter], ...]] = (
    ("decimal", "Decimal", _copy_str_of),
    ("fractions", "Fraction", _copy_str_of),
    ("pydantic", "BaseModel", _copy_pydantic),
    ("msgspec", "Struct", _copy_struct),
    ("numpy", "ndarray", _copy_array),
    ("numpy", "generic", _copy_numpy_scalar),
)
_MARKED: Final[tuple[tuple[str, _Converter], ...]] = (
    ("__dataclass_fields__", _copy_dataclass),
    ("__attrs_attrs__", _copy_attrs),
)
