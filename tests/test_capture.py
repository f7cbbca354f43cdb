"""Any value becomes valid, bounded JSON that says what JSON can't hold."""

from __future__ import annotations

import array
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import io
import itertools
import json
import math
import pathlib
import re
import socket
import sys
import threading
import time
import types
import uuid
from typing import Any, ClassVar, NamedTuple

import msgspec
import orjson
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepwell._capture import DEFAULT_MAX_FIELD_BYTES, Capture
from stepwell.errors import UsageError

CAPTURE = Capture()
SMALL = Capture(max_field_bytes=256)


def encoded(value: object, capture: Capture = CAPTURE) -> Any:
    data = capture.encode(value)
    assert type(data) is bytes
    orjson.loads(data)
    return json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: int
    y: Any


@dataclasses.dataclass(slots=True)
class Slotted:
    x: int
    missing: int = dataclasses.field(init=False)


class Struct(msgspec.Struct):
    name: str
    tags: Any


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    name: str
    when: Any = None


class Pair(NamedTuple):
    left: int
    right: bytes


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise ValueError("no")

    def __len__(self) -> int:
        raise ValueError("no")


class Number(int):
    def __index__(self) -> int:
        raise ValueError("no")


class Ratio(float):
    def __float__(self) -> float:
        raise ValueError("no")


class Lying:
    @property
    def __class__(self) -> type:
        raise ValueError("no")

    def __repr__(self) -> str:
        return "Lying()"


class Broken:
    def __repr__(self) -> str:
        raise ZeroDivisionError("no")

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        raise ZeroDivisionError("no")

    def __hash__(self) -> int:
        return 7

    def __len__(self) -> int:
        raise ZeroDivisionError("no")

    def __iter__(self) -> Any:
        raise ZeroDivisionError("no")

    def __getattr__(self, name: str) -> Any:
        raise ZeroDivisionError("no")


class WrongRepr:
    def __repr__(self) -> str:
        return 5  # type: ignore[return-value]


class NoMemory:
    def __repr__(self) -> str:
        raise MemoryError


class Deep:
    def __repr__(self) -> str:
        return repr(self)


class BrokenDict(dict[Any, Any]):
    def items(self) -> Any:
        raise ValueError("no")

    def __iter__(self) -> Any:
        raise ValueError("no")

    def __len__(self) -> int:
        raise ValueError("no")


class BrokenList(list[Any]):
    def __iter__(self) -> Any:
        raise ValueError("no")

    def __len__(self) -> int:
        raise ValueError("no")


class Quiet(type):
    def __getattribute__(cls, name: str) -> Any:
        raise ValueError("no")


class Hidden(metaclass=Quiet):
    pass


@dataclasses.dataclass
class BrokenField:
    good: int

    def __getattribute__(self, name: str) -> Any:
        if name == "good":
            raise KeyError(name)
        return object.__getattribute__(self, name)


def object_marker(kind: str, **facts: str) -> dict[str, str]:
    return {"$stepwell": "object", "type": kind, **facts}


# ---- plain values


def test_a_plain_value_is_what_orjson_writes() -> None:
    assert CAPTURE.encode(
        {"question": "why?", "k": 5, "t": 0.5, "on": True, "none": None, "many": [1, (2, "x"), {}]}
    ) == (b'{"question":"why?","k":5,"t":0.5,"on":true,"none":null,"many":[1,[2,"x"],{}]}')


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ("é", '"é"'),
        (5, "5"),
        (None, "null"),
        (True, "true"),
        (0.5, "0.5"),
        ([], "[]"),
        ((), "[]"),
        (2**64 - 1, str(2**64 - 1)),
    ],
)
def test_scalars_and_empty_containers_stand_for_themselves(value: object, data: str) -> None:
    assert CAPTURE.encode(value) == data.encode()


def test_the_result_is_a_snapshot() -> None:
    messages = [{"role": "user"}]
    data = CAPTURE.encode(messages)
    messages.append({"role": "assistant"})
    assert data == b'[{"role":"user"}]'


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=40) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=50,
)


@given(json_values)
def test_plain_json_comes_back_equal(value: Any) -> None:
    assert orjson.loads(Capture(default_redaction=False).encode(value)) == value


@given(json_values)
def test_the_slow_path_writes_the_same_as_the_fast_path(value: Any) -> None:
    slow = Capture(redact=[re.compile("(?!)")], default_redaction=False)
    assert slow.encode(value) == Capture(default_redaction=False).encode(value)


# ---- values that JSON can't say


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, {"$stepwell": "float", "value": "NaN"}),
        (math.inf, {"$stepwell": "float", "value": "Infinity"}),
        (-math.inf, {"$stepwell": "float", "value": "-Infinity"}),
        (2**64, {"$stepwell": "int", "value": "18446744073709551616"}),
        (-(2**63) - 1, {"$stepwell": "int", "value": "-9223372036854775809"}),
        (16**4299, {"$stepwell": "int", "value": "0x1" + "0" * 4299}),
        (2**100_000, {"$stepwell": "int", "value": "0x8" + "0" * 16383 + "...", "bits": 100_001}),
        (b"\x01\x02\x03", {"$stepwell": "bytes", "size": 3, "base64": "AQID"}),
        (bytearray(b"\x01"), {"$stepwell": "bytes", "size": 1, "base64": "AQ=="}),
        (memoryview(b"\x01"), {"$stepwell": "bytes", "size": 1, "base64": "AQ=="}),
        ("a\ud800", {"$stepwell": "surrogate", "text": "a\\ud800"}),
        (range(3), [0, 1, 2]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        (collections.deque([1, "x"]), [1, "x"]),
        (array.array("d", [0.5]), [0.5]),
        ({"a": 1}.keys(), ["a"]),
        ({"a": 1}.values(), [1]),
        ({"a": 1}.items(), [["a", 1]]),
        (Pair(1, b""), [1, {"$stepwell": "bytes", "size": 0, "base64": ""}]),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (collections.ChainMap({"a": 1}, {"b": 2}), {"a": 1, "b": 2}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.UserDict({"a": 1}), {"a": 1}),
        (collections.UserList([1]), [1]),
        (collections.UserString("x"), "x"),
        (collections.Counter("aa"), {"a": 2}),
        (decimal.Decimal("1.10"), "1.10"),
        (fractions.Fraction(1, 3), "1/3"),
        (1 + 2j, "(1+2j)"),
        (dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC), "2026-01-02T03:00:00+00:00"),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (dt.time(3, 4), "03:04:00"),
        (dt.timedelta(seconds=90), "0:01:30"),
        (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (pathlib.PurePosixPath("/a/b"), "/a/b"),
        (Color.RED, "red"),
        (Level.HIGH, 3),
        (Point(1, Point(2, None)), {"x": 1, "y": {"x": 2, "y": None}}),
        (Slotted(1), {"x": 1}),
        (Struct("a", {1}), {"name": "a", "tags": [1]}),
        (Model(name="a"), {"name": "a", "when": None}),
        (Model(name="a", when=b"\xff"), {"name": "a", "when": {"$stepwell": "bytes", "size": 1, "base64": "/w=="}}),
        (Text("hi"), "hi"),
        (Number(5), 5),
        (Ratio(0.5), 0.5),
        (BrokenDict(a=1), {"a": 1}),
        (BrokenList([1, 2]), [1, 2]),
        (re.compile("a+"), object_marker("re.Pattern", repr="re.compile('a+')")),
        (ValueError("x"), object_marker("ValueError", repr="ValueError('x')")),
        (int, object_marker("type", repr="<class 'int'>")),
        (len, object_marker("builtin_function_or_method", repr="<built-in function len>")),
        (Ellipsis, object_marker("ellipsis", repr="Ellipsis")),
        (Lying(), object_marker(f"{__name__}.Lying", repr="Lying()")),
        (Broken(), object_marker(f"{__name__}.Broken", error="ZeroDivisionError")),
        (WrongRepr(), object_marker(f"{__name__}.WrongRepr", error="TypeError")),
        (NoMemory(), object_marker(f"{__name__}.NoMemory", error="MemoryError")),
        (Deep(), object_marker(f"{__name__}.Deep", error="RecursionError")),
        (BrokenField(1), {"good": object_marker(f"{__name__}.BrokenField", error="KeyError")}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_say_is_written_out_or_marked(value: object, expected: object) -> None:
    assert encoded(value) == expected
    assert encoded({"at": value}) == {"at": expected}
    assert encoded([[value]]) == [[expected]]


@pytest.mark.parametrize("value", [threading.Lock(), io.StringIO(), json, Hidden(), Lying, lambda: 1, object()])
def test_objects_without_fields_are_told_by_type_and_repr(value: object) -> None:
    assert encoded(value).keys() == {"$stepwell", "type", "repr"} or encoded(value).keys() == {
        "$stepwell",
        "type",
        "error",
    }


def test_a_class_whose_metaclass_is_broken_is_told_by_its_type() -> None:
    assert encoded([Hidden])[0]["type"] == f"{__name__}.Quiet"


def test_a_socket_is_told_by_its_repr() -> None:
    with socket.socket() as value:
        assert encoded(value)["type"] == "socket.socket"


def test_a_generator_is_not_consumed() -> None:
    items = (number for number in range(3))
    assert encoded(items)["type"] == "generator"
    assert encoded(iter([1]))["type"] == "list_iterator"
    assert list(items) == [0, 1, 2]


def test_large_bytes_keep_their_head() -> None:
    assert encoded(b"\0" * 1_000_000) == {"$stepwell": "bytes", "size": 1_000_000, "base64": "AAAA" * 21845 + "AA=="}


def test_a_long_repr_keeps_its_head() -> None:
    class Long:
        def __repr__(self) -> str:
            return "x" * 100_000

    assert encoded(Long())["repr"] == "x" * 1000


def test_an_object_whose_module_is_not_a_name_is_told_without_it() -> None:
    Odd = type("Odd", (), {"__module__": 5, "__repr__": lambda self: "odd"})  # noqa: N806 - a class
    assert encoded(Odd()) == {"$stepwell": "object", "type": "Odd", "repr": "odd"}


def test_attrs_classes_are_dicts_of_their_fields() -> None:
    class Attrs:
        __attrs_attrs__ = (types.SimpleNamespace(name="x"),)
        x: ClassVar = {1}

    assert encoded(Attrs()) == {"x": [1]}


class FakeScalar:
    def __init__(self, value: Any) -> None:
        self.value = value

    def item(self) -> Any:
        return self if self.value is None else self.value

    def __repr__(self) -> str:
        return "long double"


class FakeArray:
    """As much of an ndarray as capture may rely on."""

    dtype = "float64"

    def __init__(self, items: list[Any]) -> None:
        self.items = items
        self.size = len(items)
        self.shape = (len(items),)

    def ravel(self) -> FakeArray:
        return self

    def __getitem__(self, index: slice) -> FakeArray:
        return FakeArray(self.items[index])

    def tolist(self) -> list[Any]:
        return self.items


@pytest.fixture
def numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", types.SimpleNamespace(ndarray=FakeArray, generic=FakeScalar))  # type: ignore[arg-type]


@pytest.mark.usefixtures("numpy")
def test_numpy_arrays_and_scalars_are_lists_and_numbers() -> None:
    assert encoded([FakeScalar(5), FakeArray([0.5, math.nan])]) == [5, [0.5, {"$stepwell": "float", "value": "NaN"}]]


@pytest.mark.usefixtures("numpy")
def test_a_numpy_scalar_that_python_has_no_number_for_is_an_object() -> None:
    assert encoded(FakeScalar(None))["repr"] == "long double"


@pytest.mark.usefixtures("numpy")
def test_a_large_numpy_array_keeps_its_head() -> None:
    assert encoded(FakeArray([0.5] * 5000)) == {
        "$stepwell": "array",
        "dtype": "float64",
        "shape": [5000],
        "head": [0.5] * 1000,
    }


# ---- keys


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (1, "1"),
        (None, "null"),
        (True, "true"),
        (0.5, "0.5"),
        (math.inf, '{"$stepwell":"float","value":"Infinity"}'),
        ((1, "a"), '[1,"a"]'),
        (b"k", '{"$stepwell":"bytes","size":1,"base64":"aw=="}'),
        (Color.RED, "red"),
        (Text("hi"), "hi"),
        ("a\ud800", "a\\ud800"),
        (dt.date(2026, 1, 2), "2026-01-02"),
        (Broken(), f'{{"$stepwell":"object","type":"{__name__}.Broken","error":"ZeroDivisionError"}}'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_key_that_is_not_a_string_becomes_one(key: object, name: str) -> None:
    assert encoded({key: "value"}) == {name: "value"}


def test_keys_that_collide_keep_both_values() -> None:
    assert encoded({1: "a", "1": "b", Color.RED: 1, "red": 2, "red (2)": 3}) == {
        "1": "a", "1 (2)": "b", "red": 1, "red (2)": 2, "red (2) (2)": 3,
    }  # fmt: skip


# ---- cycles and depth


def test_a_cycle_is_marked_where_it_closes() -> None:
    items: list[Any] = [1]
    items.append({"again": items})
    assert encoded(items) == [1, {"again": {"$stepwell": "cycle"}}]


def test_cycles_through_objects_and_sets_of_views_are_marked() -> None:
    point = Point(1, None)
    point.y = collections.UserDict(point=point)
    assert encoded(point) == {"x": 1, "y": {"point": {"$stepwell": "cycle"}}}


def test_a_value_seen_twice_is_not_a_cycle() -> None:
    shared = {1}
    assert encoded([shared, shared]) == [[1], [1]]


def test_a_cycle_with_many_ways_around_ends_soon() -> None:
    items: list[Any] = []
    items.extend([items, items])
    assert encoded(items) == [{"$stepwell": "cycle"}, {"$stepwell": "cycle"}]


def test_plain_nesting_that_orjson_takes_is_kept() -> None:
    value: Any = 1
    for _ in range(200):
        value = [value]
    assert CAPTURE.encode(value) == b"[" * 200 + b"1" + b"]" * 200


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"k": value}, lambda value: Point(1, value)])
def test_ten_thousand_levels_end_in_a_depth_marker(wrap: Any) -> None:
    value: Any = 1
    for _ in range(10_000):
        value = wrap(value)
    data = CAPTURE.encode(value)
    assert data.count(b'{"$stepwell":"depth","limit":100}') == 1
    while type(value) is not int:  # a deep dataclass must not be freed recursively
        value = value.y if type(value) is Point else value["k"] if type(value) is dict else value[0]


def test_near_the_recursion_limit_a_value_is_still_recorded() -> None:
    def at_the_limit(value: Any) -> list[bytes]:
        try:
            deeper = at_the_limit(value)
        except RecursionError:
            return [CAPTURE.encode(value)]
        return [*deeper, CAPTURE.encode(value)] if len(deeper) < 60 else deeper

    results = at_the_limit({"plain": {"a": 1}, "odd": {1: {2}}})
    assert all(orjson.loads(data) for data in results)
    assert results[-1] == b'{"plain":{"a":1},"odd":{"1":[2]}}'


# ---- limits


def test_a_long_string_keeps_its_head_and_says_its_length() -> None:
    value = encoded({"text": "x" * 1000, "k": 5}, SMALL)
    assert value["text"]["characters"] == 1000
    assert set(value["text"]["head"]) == {"x"}


def test_a_long_list_keeps_its_head_and_counts_the_rest() -> None:
    value = encoded(list(range(1000)), SMALL)
    assert value[:3] == [0, 1, 2]
    assert value[-1] == {"$stepwell": "truncated", "items": 1000 - len(value) + 1}


def test_a_large_dict_keeps_its_first_items_and_counts_the_rest() -> None:
    value = encoded({f"key{number}": number for number in range(1000)}, SMALL)
    assert value["key0"] == 0
    assert value["$stepwell:truncated"] == {"$stepwell": "truncated", "items": 1000 - len(value) + 1}


def test_a_small_item_next_to_a_large_one_is_kept() -> None:
    value = encoded({"large": "x" * 10_000_000, "small": "kept"})
    assert value["small"] == "kept"
    assert value["large"]["characters"] == 10_000_000


def test_an_item_under_a_key_too_long_to_keep_is_counted() -> None:
    assert encoded({"k" * 1000: 1, "a": 2}, SMALL) == {
        "a": 2,
        "$stepwell:truncated": {"$stepwell": "truncated", "items": 1},
    }


def test_what_is_nested_too_deep_to_be_cut_keeps_the_head_of_its_json() -> None:
    value: Any = "x" * 100_000
    for _ in range(20):
        value = [value]
    data = Capture(max_field_bytes=5000).encode(value)
    assert len(data) <= 5000
    assert data.startswith(b'[[[[[[[[{"$stepwell":"truncated","bytes":')


def test_escaped_text_is_cut_to_fit() -> None:
    data = SMALL.encode("\0" * 10_000 + "x" * 10_000)
    assert len(data) <= 256
    assert orjson.loads(data)["characters"] == 20_000


def test_more_values_than_the_slow_path_visits_are_counted() -> None:
    value = encoded([{1}] * 200_000)
    assert value[0] == [1]
    assert len(value) == 25_001  # a set and its item are two
    assert value[-1] == {"$stepwell": "truncated", "items": 175_000}


def test_more_keys_than_the_slow_path_visits_are_counted() -> None:
    value = encoded(dict.fromkeys(range(100_000)), Capture(max_field_bytes=1000))
    assert value["0"] is None
    assert value["$stepwell:truncated"] == {"$stepwell": "truncated", "items": 100_000 - len(value) + 1}


def test_what_is_cut_after_the_visits_ran_out_is_counted_too() -> None:
    value = encoded([{1}] * 200_000, SMALL)
    assert value[-1] == {"$stepwell": "truncated", "items": 200_000 - len(value) + 1}
    value = encoded([0.5] * 1_000_000, SMALL)
    assert value[-1] == {"$stepwell": "truncated", "items": 1_000_000 - len(value) + 1}


def test_a_vector_over_the_limit_keeps_as_many_numbers_as_fit() -> None:
    data = CAPTURE.encode([1 / 3] * 1_000_000)
    assert 0.9 * DEFAULT_MAX_FIELD_BYTES < len(data) <= DEFAULT_MAX_FIELD_BYTES
    value = orjson.loads(data)
    assert value[-1] == {"$stepwell": "truncated", "items": 1_000_000 - len(value) + 1}
    data = CAPTURE.encode([12345678901234567] * 230_000 + [1] * 230_000)
    assert data.startswith(b"[12345678901234567,")


def test_objects_after_the_room_for_text_is_used_up_keep_their_type() -> None:
    value = encoded([{1}, *["x" * 1000] * 30, object(), "y" * 10, b"z"], Capture(max_field_bytes=3000))
    assert len(orjson.dumps(value)) <= 3000
    deep = Capture(max_field_bytes=256, redact=[lambda data: data])
    assert len(deep.encode([open] * 100)) <= 256


def test_a_long_vector_costs_the_slow_path_nothing() -> None:
    value = encoded({"when": {1}, "vector": [0.5] * 200_000, "ids": list(range(200_000))})
    assert len(value["vector"]) == 200_000
    assert len(value["ids"]) == 200_000


HUGE = "x" * 50_000_000


@pytest.mark.parametrize(
    "value",
    [
        HUGE,
        HUGE.encode(),
        {"a": HUGE},
        {"a": [{"b": HUGE}]},
        [HUGE, {1}],
        {"a": [HUGE] * 100},
        [0] * 5_000_000,
        {"a": [[0.5] * 5_000_000, {1}]},
        [[]] * 5_000_000,
        set(range(1_000_000)),
        dict.fromkeys(range(1_000_000)),
    ],
    ids=[
        "str",
        "bytes",
        "dict",
        "nested",
        "odd list",
        "many",
        "ints",
        "floats",
        "lists",
        "set",
        "keys",
    ],
)
def test_the_work_is_bounded_by_the_limit_not_by_the_value(value: Any) -> None:
    started = time.thread_time()
    data = CAPTURE.encode(value)
    assert time.thread_time() - started < 4.0  # a fortieth of it on a machine that is not shared or measured
    assert len(data) <= DEFAULT_MAX_FIELD_BYTES
    assert b'"$stepwell":"truncated"' in data or b'"size":50000000' in data


@pytest.mark.parametrize("limit", [0, 255, -1, 1e6, True, "4096", None])
def test_a_wrong_limit_is_refused_by_name_and_value(limit: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(f"max_field_bytes must be an int >= 256, got {limit!r}")):
        Capture(max_field_bytes=limit)


# ---- containers that change, code that runs


class Restless(array.array):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        raise RuntimeError("changed size during iteration")


class Endless(array.array):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        raise RecursionError


def test_a_container_that_changes_at_every_attempt_says_so() -> None:
    assert encoded(Restless("d")) == {"$stepwell": "changing", "type": f"{__name__}.Restless"}


def test_a_full_stack_is_not_taken_for_a_change() -> None:
    assert encoded(Endless("d"))["error"] == "RecursionError"


def test_a_container_changed_by_its_own_items_is_a_snapshot() -> None:
    items: list[Any] = []

    class Popper:
        def __repr__(self) -> str:
            items.clear()
            return "pop"

    items.extend([Popper(), 1, 2])
    assert encoded(items)[1:] == [1, 2]


def test_values_other_threads_change_are_recorded_without_harm() -> None:
    shared: dict[str, Any] = {"list": [1], "set": {1}, "dict": {}}
    stop = threading.Event()

    def change() -> None:
        for number in itertools.count():
            shared["list"].append({"n": number, "e": Color.RED})
            shared["set"].add(number % 1000)
            shared["dict"][number % 1000] = number
            if number % 50 == 0:
                shared["list"].clear()
                shared["dict"].clear()
            if stop.is_set():
                return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        results = [CAPTURE.encode(shared) for _ in range(300)]
    finally:
        stop.set()
        thread.join()
    assert all(orjson.loads(data).keys() == shared.keys() for data in results)


def test_an_object_may_encode_while_it_is_encoded() -> None:
    class Inner:
        def __repr__(self) -> str:
            return CAPTURE.encode([{1}]).decode()

    assert encoded([Inner()])[0]["repr"] == "[[1]]"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_not_swallowed(error: type[BaseException]) -> None:
    class Interrupted:
        def __repr__(self) -> str:
            raise error

    with pytest.raises(error):
        CAPTURE.encode(Interrupted())


# ---- texts


def test_a_text_is_a_json_string() -> None:
    assert CAPTURE.text('say "é"') == '"say \\"é\\""'.encode()


def test_a_text_with_lone_surrogates_is_written_with_backslashes() -> None:
    assert CAPTURE.text("a\ud800") == b'"a\\\\ud800"'


def test_a_text_longer_than_its_bound_keeps_its_head() -> None:
    assert CAPTURE.text("x" * 1000, 5) == b'"xxxxx... [1000 characters]"'


def test_a_text_never_exceeds_the_limit_of_a_field() -> None:
    data = SMALL.text("\0" * 1000)
    assert len(data) <= 256
    assert json.loads(data).endswith("... [1000 characters]")


@pytest.mark.parametrize(
    ("text", "data"),
    [(Text("hi"), b'"hi"'), (5, b'"5"'), (None, b'"None"'), (Broken(), b'"[failed]"')],
    ids=["str", "int", "None", "broken"],
)
def test_what_is_not_a_plain_text_is_still_one_in_the_record(text: Any, data: bytes) -> None:
    assert CAPTURE.text(text) == data


# ---- anything

HOSTILE = [
    Color.RED, Level.HIGH, Text("t"), Number(5), Ratio(0.5), Broken(), WrongRepr(), NoMemory(), Deep(), Hidden(),
    BrokenField(1), Restless("d"), object(), int, len, json, range(5), 10**5000, "x" * 5000, b"y" * 5000,
]  # fmt: skip
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.binary(), st.decimals(),
    st.text(st.characters(exclude_categories=())), st.datetimes(), st.dates(), st.times(), st.timedeltas(), st.uuids(),
    st.fractions(), st.integers(0, len(HOSTILE) - 1).map(lambda index: HOSTILE[index]),
)  # fmt: skip


def is_hashable(value: object) -> bool:
    try:
        hash(value)
    except Exception:
        return False
    return True


keys = st.one_of(leaves.filter(is_hashable), st.tuples(st.integers(), st.text()))


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inner, max_size=40)
    return st.one_of(
        lists, lists.map(tuple), lists.map(collections.deque), lists.map(BrokenList), lists.map(iter),
        lists.map(collections.UserList),
        st.dictionaries(keys, inner, max_size=5), st.dictionaries(st.text(), inner, max_size=5).map(BrokenDict),
        inner.map(lambda value: Point(1, value)), inner.map(lambda value: Model(name="m", when=value)),
        inner.map(lambda value: Struct("s", value)), st.sets(st.integers() | st.text(), max_size=5),
        inner.map(lambda value: types.MappingProxyType({"k": value})),
    )  # fmt: skip


@pytest.mark.usefixtures("untraced")
@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(st.recursive(leaves, containers, max_leaves=25), st.sampled_from([256, 300, 1000, 100_000]))
def test_any_object_gives_valid_bounded_json(value: Any, limit: int) -> None:
    for capture in (
        Capture(max_field_bytes=limit),
        Capture(max_field_bytes=limit, redact=[re.compile("[a-m]+"), bytes]),
    ):
        data = capture.encode(value)
        assert len(data) <= limit
        encoded(value, capture)
        text = capture.text(value, 50)
        assert len(text) <= limit
        assert type(json.loads(text)) is str
