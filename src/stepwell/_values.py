"""What a value is and what it holds, whatever its own code says.

What must stay true:

1. What a class is, and what an error holds, is read as the interpreter reads it: `__class__`, `__mro__`, `__name__` and
   `__context__` may be properties that lie, raise or load something.
2. What is taken of a container of the program's own is bounded; it may have no end.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# (values of any type are told apart at run time; their parameters stay unknown)

from __future__ import annotations

import itertools
import sys
from collections import ChainMap, deque
from collections.abc import Callable, Iterable, Mapping
from types import GetSetDescriptorType, MappingProxyType, TracebackType
from typing import Any, Final, TypeGuard, cast

__all__ = [
    "cause_of",
    "class_name",
    "context_of",
    "first_items",
    "first_pairs",
    "is_kind",
    "is_mock",
    "is_short",
    "is_text",
    "members_of",
    "mro_of",
    "namespace_of",
    "own_fields",
    "traceback_of",
    "type_name",
]

_CONTAINERS: Final[tuple[Any, ...]] = (
    *(str, bytes, bytearray, deque, MappingProxyType),  # whose length alone is looked at
    *(dict, list, tuple, set, frozenset),
)
_NESTING: Final = frozenset(_CONTAINERS[-4:])
MAX_PAIRS: Final = 20_000  # taken from one mapping: about as many as capture looks at


def _read(owner: type, name: str) -> Any:
    return owner.__dict__[name].__get__


mro_of: Final = cast("Callable[[type], tuple[type, ...]]", _read(type, "__mro__"))
namespace_of: Final = cast("Callable[[type], dict[str, Any]]", _read(type, "__dict__"))
class_name: Final = cast("Callable[[type], str]", _read(type, "__name__"))
_qualified_name: Final = cast("Callable[[type], str]", _read(type, "__qualname__"))

traceback_of: Final = cast("Callable[[BaseException], TracebackType | None]", _read(BaseException, "__traceback__"))
cause_of: Final = cast("Callable[[BaseException], BaseException | None]", _read(BaseException, "__cause__"))
context_of: Final = cast("Callable[[BaseException], BaseException | None]", _read(BaseException, "__context__"))
members_of: Final = cast(
    "Callable[[BaseException], tuple[BaseException, ...]]", _read(BaseExceptionGroup, "exceptions")
)


def type_name(kind: type) -> str:
    """Return module and qualified name, the name alone where it is built in; printable and bounded."""
    module, name = namespace_of(kind).get("__module__", "builtins"), _qualified_name(kind)
    text = f"{module}.{name}" if type(module) is str and module != "builtins" else name
    return text.encode("utf-8", "backslashreplace").decode()[:200]


def is_text(value: object) -> TypeGuard[str]:
    """Say whether the value is a string."""
    return issubclass(type(value), str)


def is_kind(value: object, kind: type) -> bool:
    """Say whether the value's class is of an abstract kind, False where its metaclass raises.

    Not by `isinstance`, which believes `__class__`: a mock of a dict is none.
    """
    try:
        return issubclass(type(value), kind)
    except Exception:  # noqa: BLE001 - a metaclass of the program's
        return False


def is_mock(value: object) -> bool:
    """Say whether it is one of `unittest.mock`: those answer any question, with 1 what number they are, and note it."""
    module = sys.modules.get("unittest.mock")
    return module is not None and issubclass(type(value), module.NonCallableMock)


def own_fields(value: object) -> dict[str, Any] | None:
    """Return the object's own `__dict__`, None where it has none or its class gives something else for it."""
    for base in mro_of(type(value)):
        found: Any = namespace_of(base).get("__dict__")
        if found is not None:
            fields: Any = found.__get__(value) if type(found) is GetSetDescriptorType else None
            return cast("dict[str, Any]", fields) if type(fields) is dict else None
    return None


def is_short(value: object, most: int) -> bool:
    """Say whether the value, with all that is in it, holds at most so many items, and no longer strings than that."""
    found: list[Any] = [value]
    for item in found:
        kind = next((kind for kind in _CONTAINERS if issubclass(type(item), kind)), None)
        if kind is not None and kind.__len__(item) > most:
            return False
        if kind is dict:
            found += [*dict.keys(item), *dict.values(item)]
        elif kind is not None and kind in _NESTING:
            found.extend(kind.__iter__(item))
        if len(found) > most:
            return False
    return True


def first_items(value: Any, most: int) -> list[Any]:
    """Return the first items of an iterable that is no mapping; raises what that raises."""
    if is_kind(value, Mapping):
        raise TypeError("a mapping is no list of items")
    return list(itertools.islice(value, most))


def first_pairs(value: Any, most: int = MAX_PAIRS) -> dict[Any, Any]:
    """Return a mapping, or an iterable of pairs, as a dict of its own; raises what that raises.

    Where a dict is cut, it says so as a dict does in the record.
    """
    pairs: Iterable[Any] = value
    if issubclass(type(value), ChainMap):  # it would ask for all names of all its mappings first
        merged: dict[Any, Any] = {}
        for mapping in reversed(value.maps):
            merged |= first_pairs(mapping, most)
        return merged
    if issubclass(type(value), dict):
        if dict.__len__(value) <= most:
            copied: dict[Any, Any] = dict.copy(value)
            return copied
        first = dict(itertools.islice(dict.items(value), most))
        return {**first, "$stepwell:truncated": {"$stepwell": "truncated", "items": dict.__len__(value) - most}}
    if is_kind(value, Mapping) or any("keys" in namespace_of(base) for base in mro_of(type(value))):
        pairs = ((key, value[key]) for key in value.keys())  # noqa: SIM118 - as dict() asks
    return dict(itertools.islice(pairs, most))
