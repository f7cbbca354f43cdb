"""The worst values in every place that takes one: the program goes on, gets its own back, and the trace is whole."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import decimal
import enum
import fractions
import functools
import itertools
import json
import operator
import socket
import sys
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import attrs
import msgspec
import pydantic
import pytest
from msgspec import UNSET
from opentelemetry.trace import StatusCode

import stepwell as sw
from stepwell.errors import UsageError
from stepwell.model import StepRecord, decode_generation, decode_record, encode_record
from stepwell.testing import Captured, capture

LIMIT = 4096


# ---- values


def raising(error: BaseException | type[BaseException], *bases: type) -> Any:
    """Make a class whose every special method raises; `bases` make it a kind of str, dict and so on."""

    def fail(self: Any, *_: object, **__: object) -> Any:
        raise error

    names = (
        "repr str eq ne lt hash len bool iter next getattr contains getitem setitem call float int index complex "
        "format bytes enter exit aenter aexit await aiter anext reversed length_hint dir sizeof reduce reduce_ex "
        "getstate fspath instancecheck round trunc add radd mod copy deepcopy buffer"
    )
    return type("Raising", bases, {f"__{name}__": fail for name in names.split()})


class Lying:
    """Claims to be of another class."""

    def __init__(self, claimed: Any) -> None:
        self._claimed = claimed

    @property
    def __class__(self) -> Any:
        claimed = object.__getattribute__(self, "_claimed")
        if isinstance(claimed, BaseException):
            raise claimed
        return claimed


class UnhashableClass(type):
    def __eq__(cls, other: object) -> bool:
        raise RuntimeError("class compared")


class RaisingClass(type):
    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError("attribute of the class")

    def __instancecheck__(cls, instance: object) -> bool:
        raise RuntimeError("instance of the class")

    def __subclasscheck__(cls, subclass: type) -> bool:
        raise RuntimeError("subclass of the class")

    def __repr__(cls) -> str:
        raise RuntimeError("repr of the class")

    __hash__ = type.__hash__


class EndlessMapping(Mapping[str, Any]):
    def __init__(self, length: int = 1) -> None:
        self._length = length

    def __getitem__(self, key: str) -> Any:
        return key

    def __iter__(self) -> Iterator[str]:
        return map(str, itertools.count())

    def __len__(self) -> int:
        return self._length


class EndlessSequence(Sequence[str]):
    def __init__(self, length: int = 1) -> None:
        self._length = length

    def __getitem__(self, index: Any) -> Any:
        return "x"

    def __len__(self) -> int:
        return self._length


class Mutating(list[Any]):
    """A list that an item of its own empties while it is read."""

    def __init__(self) -> None:
        owner = self

        class Item:
            def __repr__(self) -> str:
                del owner[:]
                return "item"

        super().__init__([Item(), 1, 2.5, "x"])


class Lazy:
    """As rows of an object-relational mapper: an attribute loads what it stands for."""

    loads = 0

    @property
    def items(self) -> Any:
        Lazy.loads += 1
        raise RuntimeError("no connection")

    content = text = model_dump = export = body_iterator = __dict__ = items  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        Lazy.loads += 1
        raise RuntimeError("no connection")


@dataclasses.dataclass
class Data:
    field: Any
    other: Any = 1

    def __getattribute__(self, name: str) -> Any:
        if name == "field":
            raise RuntimeError("field")
        return object.__getattribute__(self, name)


@attrs.define(slots=False)
class Attrs:
    good: Any
    bad: Any = 1

    def __getattribute__(self, name: str) -> Any:
        if name == "bad":
            raise RuntimeError("bad")
        return object.__getattribute__(self, name)


class Struct(msgspec.Struct):
    inner: Any


class Plain:
    pass


class Pair(NamedTuple):
    left: Any
    right: Any


class BadEnum(enum.Enum):
    A = object()

    @property
    def value(self) -> Any:
        raise RuntimeError("value")

    def __repr__(self) -> str:
        raise RuntimeError("repr")


class BadModel(pydantic.BaseModel):
    name: str = "n"

    @pydantic.field_serializer("name")
    def fail(self, value: str) -> str:
        raise RuntimeError("serializer")

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def computed(self) -> int:
        raise RuntimeError("computed")

    @pydantic.field_validator("name")
    @classmethod
    def check(cls, value: str) -> str:
        return value


class OldModel(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    old: int = pydantic.Field(1, deprecated="use new")
    odd: Any = None


class BadError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("str")

    __repr__ = __str__


class OddTexts(str):
    __slots__ = ()

    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307 - that is what is wrong with it

    __repr__ = __str__


def of(kind: Callable[[], Any], fill: Callable[[Any], object]) -> Any:
    value = kind()
    fill(value)
    return value


def nested(wrap: Callable[[Any], Any], depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


def dead_proxy() -> Any:
    return weakref.proxy(Plain())


def closed(made: Any) -> Any:
    made.close()
    return made


def started(generator: Any) -> Any:
    next(generator)
    return generator


def numbers() -> Iterator[int]:
    yield from range(10)


async def async_numbers() -> Any:
    yield 1


def chained_error() -> BaseException:
    first, second = ValueError("first"), KeyError("second")
    first.__context__, second.__context__ = second, first
    first.__cause__ = first
    return first


def noted_error() -> BaseException:
    error = ValueError("noted")
    error.__notes__ = raising(RuntimeError)()  # type: ignore[attr-defined]
    return error


def nested_group(depth: int) -> BaseException:
    group: Any = ValueError("innermost")
    for _ in range(depth):
        group = ExceptionGroup("group", [group])
    return group  # type: ignore[no-any-return]


VALUES: dict[str, Callable[[], Any]] = {
    "a plain string": lambda: "plain",
    "a plain dict": lambda: {"a": [1, None, True]},
    "a dict in itself": lambda: of(dict, lambda v: v.update(self=v)),
    "a list in itself": lambda: of(list, lambda v: v.append(v)),
    "a tuple in itself": lambda: of(lambda: ([],), lambda v: v[0].append(v)),
    "a deque in itself": lambda: of(collections.deque, lambda v: v.append(v)),
    "a UserDict in itself": lambda: of(collections.UserDict, lambda v: v.update(self=v)),
    "an object in itself": lambda: of(Plain, lambda v: setattr(v, "me", v)),
    "a struct in itself": lambda: of(lambda: Struct(1), lambda v: setattr(v, "inner", v)),
    "a model in itself": lambda: of(OldModel, lambda v: setattr(v, "odd", v)),
    "a namespace in itself": lambda: of(types.SimpleNamespace, lambda v: setattr(v, "me", v)),
    "a partial in itself": lambda: of(
        lambda: functools.partial(print), lambda v: v.__setstate__((print, (v,), {}, {}))
    ),
    "a dict and a list in each other": lambda: of(dict, lambda v: v.update(a=[v, {"b": v}])),
    "everything raises RuntimeError": lambda: raising(RuntimeError)(),
    "everything raises RecursionError": lambda: raising(RecursionError)(),
    "everything raises MemoryError": lambda: raising(MemoryError)(),
    "everything raises AttributeError": lambda: raising(AttributeError)(),
    "everything raises TypeError": lambda: raising(TypeError)(),
    "everything raises ValueError": lambda: raising(ValueError)(),
    "everything raises StopIteration": lambda: raising(StopIteration)(),
    "everything raises OSError": lambda: raising(OSError)(),
    "everything raises an error that raises": lambda: raising(BadError())(),
    "a str that raises": lambda: str.__new__(raising(RuntimeError, str), "text"),
    "a bytes that raises": lambda: bytes.__new__(raising(RuntimeError, bytes), b"bytes"),
    "an int that raises": lambda: int.__new__(raising(RuntimeError, int), 7),
    "a float that raises": lambda: float.__new__(raising(RuntimeError, float), 0.5),
    "a list that raises": lambda: of(raising(RuntimeError, list), lambda v: list.append(v, 1)),
    "a tuple that raises": lambda: tuple.__new__(raising(RuntimeError, tuple), (1, 2)),
    "a dict that raises": lambda: of(raising(RuntimeError, dict), lambda v: dict.__setitem__(v, "a", 1)),
    "a set that raises": lambda: of(raising(RuntimeError, set), lambda v: set.add(v, 1)),
    "a str whose repr is no string": lambda: OddTexts("odd"),
    "a dict with keys that raise": lambda: dict.fromkeys([of_hash(n) for n in range(3)], 1),
    "its class raises": lambda: Lying(RuntimeError("class")),
    "its class is said to be str": lambda: Lying(str),
    "its class is said to be int": lambda: Lying(int),
    "its class is said to be bool": lambda: Lying(bool),
    "its class is said to be float": lambda: Lying(float),
    "its class is said to be bytes": lambda: Lying(bytes),
    "its class is said to be dict": lambda: Lying(dict),
    "its class is said to be list": lambda: Lying(list),
    "its class is said to be an exception": lambda: Lying(ValueError),
    "its class is no class": lambda: Lying(5),
    "of a class that can not be hashed": lambda: UnhashableClass("Odd", (), {})(),
    "of a class that raises": lambda: type.__call__(RaisingClass("Odd", (), {})),
    "a class that can not be hashed": lambda: UnhashableClass("Odd", (), {}),
    "a class that raises": lambda: RaisingClass("Odd", (), {}),
    "a lock": threading.Lock,
    "a held lock": lambda: of(threading.Lock, lambda v: v.acquire()),
    "a condition": threading.Condition,
    "an event": threading.Event,
    "a thread-local": threading.local,
    "a closed socket": lambda: closed(socket.socket()),
    "a closed file": lambda: closed(Path(__file__).open()),  # noqa: SIM115 - it is closed
    "a generator": numbers,
    "a started generator": lambda: started(numbers()),
    "an async generator": async_numbers,
    "a module": lambda: sys,
    "a frame": sys._getframe,
    "a code object": lambda: numbers.__code__,
    "a dead reference": lambda: weakref.ref(Plain()),
    "a dead proxy": dead_proxy,
    "an integer of 100,000 digits": lambda: 10**100_000,
    "a negative integer of 100,000 digits": lambda: -(10**100_000),
    "not a number": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "a Decimal that is not a number": lambda: decimal.Decimal("NaN"),
    "a Decimal that signals": lambda: decimal.Decimal("sNaN"),
    "a Decimal of a huge exponent": lambda: decimal.Decimal("1e999999"),
    "a fraction of huge integers": lambda: fractions.Fraction(10**5000, 3),
    "a complex that is not a number": lambda: complex("nan+infj"),
    "a lone surrogate": lambda: "a\udcffb",
    "a null character": lambda: "a\0b",
    "quotes that end a record": lambda: '"},{"kind":"step"',
    "line ends of all kinds": lambda: "a\n\r\u2028b",
    "an empty string": lambda: "",
    "a class": lambda: int,
    "a set of all kinds": lambda: {1, "a", None},
    "all of the control characters": lambda: "".join(map(chr, range(0xA0))),
    "a dict of odd keys": lambda: {"\ud800": 1, "\0": 2, None: 3, (): 4, float("nan"): 5, b"\xff": 6, 10**5000: 7},
    "a string of 1 MB": lambda: "x" * 1_000_000,
    "bytes of 1 MB": lambda: b"\0" * 1_000_000,
    "a list of 5,000 items": lambda: [0.5] * 5_000,
    "a dict of 5,000 keys": lambda: dict.fromkeys(range(5_000), 1),
    "a set of 5,000 items": lambda: set(range(5_000)),
    "a list 10,000 levels deep": lambda: nested(lambda v: [v], 10_000),
    "a dict 10,000 levels deep": lambda: nested(lambda v: {"a": v}, 10_000),
    "a tuple 10,000 levels deep": lambda: nested(lambda v: (v,), 10_000),
    "a struct 10,000 levels deep": lambda: nested(Struct, 10_000),
    "a mapping without end": EndlessMapping,
    "a mapping of length -1": lambda: EndlessMapping(-1),
    "a mapping of length 2**63": lambda: EndlessMapping(2**63),
    "a sequence without end": EndlessSequence,
    "a sequence of length -1": lambda: EndlessSequence(-1),
    "a sequence of length 2**63": lambda: EndlessSequence(2**63),
    "an iterator without end": itertools.count,
    "a range of 10**30": lambda: range(10**30),
    "a view of a mapping without end": lambda: types.MappingProxyType(EndlessMapping()),
    "a chain of mappings without end": lambda: collections.ChainMap({"a": 1}, EndlessMapping()),  # type: ignore[arg-type]
    "a list that empties itself": Mutating,
    "a defaultdict": lambda: collections.defaultdict(list, a=[1]),
    "rows that load lazily": Lazy,
    "a dataclass with a raising field": lambda: Data(1),
    "an attrs class with a raising field": lambda: Attrs(1),
    "a namedtuple": lambda: Pair(object(), {1}),
    "an enum with a raising value": lambda: BadEnum.A,
    "a model with a raising serializer": BadModel,
    "a model with a deprecated field": lambda: OldModel(odd=object()),
    "a MagicMock": mock.MagicMock,
    "a MagicMock that says it is a str": lambda: mock.MagicMock(spec=str),
    "a MagicMock that says it is a dict": lambda: mock.MagicMock(spec=dict),
    "a MagicMock that says it is a model": lambda: mock.MagicMock(spec=OldModel),
    "an AsyncMock": mock.AsyncMock,
    "a sentinel": lambda: mock.sentinel.thing,
    "an exception that raises": BadError,
    "exceptions that are each other's context": chained_error,
    "an exception whose notes raise": noted_error,
    "groups 1000 levels deep": lambda: nested_group(1000),
    "an exception of 1 MB": lambda: ValueError("x" * 1_000_000),
}


def of_hash(number: int) -> Any:
    """Make a key that can be hashed and else raises."""
    kind = raising(RuntimeError)
    kind.__hash__ = lambda self: number
    kind.__eq__ = object.__eq__
    return kind()


# ---- places: each opens one step of the given name, and does something with the value


class OwnError(Exception):
    """The program's own."""


def call(name: str, value: Any) -> None:
    @sw.tool(name)
    def work(argument: Any, *rest: Any, default: Any = value, **others: Any) -> Any:
        return value

    end(work(value, value, other=value), value)


def end(result: Any, value: Any) -> None:
    """Check that it is the very value, or what stands for a stream; which ends here."""
    if result is not value:
        assert result.__class__ is type(value)
        assert hasattr(value, "__next__") or hasattr(value, "__anext__")
        if isinstance(result, types.GeneratorType):
            result.close()


def call_of_a_model(name: str, value: Any) -> None:
    @sw.llm(name)
    def work(messages: Any, model: Any, prompt: Any) -> Any:
        return [value]

    assert work(value, value, value)[0] is value


def answer_of_a_model(name: str, value: Any) -> None:
    @sw.llm(name, messages=["hi"])
    def work() -> Any:
        return value

    end(work(), value)


def call_of_a_coroutine(name: str, value: Any) -> None:
    @sw.tool(name)
    async def work(argument: Any) -> Any:
        return [argument]

    with contextlib.closing(work(value)) as coroutine, pytest.raises(StopIteration) as stop:
        coroutine.send(None)
    assert stop.value.value[0] is value


def yielded(name: str, value: Any) -> None:
    @sw.tool(name)
    def work() -> Any:
        yield value
        yield "text"
        yield value
        return value

    generator = work()
    assert next(generator) is value
    next(generator)
    assert next(generator) is value
    with pytest.raises(StopIteration) as stop:
        next(generator)
    assert stop.value.value is value


def sent_and_thrown(name: str, value: Any) -> None:
    @sw.tool(name)
    def work() -> Any:
        got = yield
        assert got is value
        with contextlib.suppress(OwnError):
            yield
        yield value

    generator = work()
    next(generator)
    generator.send(value)
    assert generator.throw(OwnError(value)) is value
    generator.close()


def raised(name: str, value: Any) -> None:
    error = OwnError(value)
    error.payload = value  # type: ignore[attr-defined]

    @sw.tool(name)
    def work() -> None:
        raise error

    with pytest.raises(OwnError) as caught:
        work()
    assert caught.value is error
    assert (error.__context__, error.__cause__, error.args[0]) == (None, None, error.args[0])
    assert error.args[0] is value
    assert [frame.name for frame in caught.traceback] == ["raised", "work"]


def raised_itself(name: str, value: Any) -> None:
    if not issubclass(type(value), BaseException):
        value = OwnError()
    context, cause = value.__context__, value.__cause__

    @sw.tool(name)
    def work() -> None:
        raise value

    found: list[BaseException] = []
    try:
        work()
    except BaseException as error:
        found.append(error)
    assert [id(error) for error in found] == [id(value)]
    assert value.__context__ is context
    assert value.__cause__ is cause


def in_block(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.input = value
        step.output = value
        step.metadata["value"] = value
        step.tags.append(value)
        step.fail(value)


def in_block_metadata_key(name: str, value: Any) -> None:
    with sw.tool(name) as step, contextlib.suppress(Exception):
        hash(value)
        step.metadata[value] = 1


def in_block_metadata(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.metadata = value


def in_block_tags(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.tags = value


def in_block_generation(name: str, value: Any) -> None:
    with sw.llm(name, messages=[1]) as step:
        step.generation = value
        for field in GENERATION_FIELDS:
            step.generation = {field: value}
        with contextlib.suppress(Exception):
            hash(value)
            step.generation = {value: value}


def in_block_usage(name: str, value: Any) -> None:
    with sw.llm(name, messages=[1]) as step:
        step.usage(input_tokens=value, output_tokens=value, total_tokens=value, cached_input_tokens=value)


def in_block_record(name: str, value: Any) -> None:
    with sw.llm(name, messages=[1]) as step:
        step.record(value)


def in_block_record_parts(name: str, value: Any) -> None:
    message = {"role": value, "content": value, "tool_calls": value}
    for body in (
        {"choices": value, "usage": value, "model": value, "id": value},
        {"choices": [value]},
        {"choices": [{"message": message, "finish_reason": value, "text": value}]},
        {"object": "response", "output": value, "incomplete_details": value, "status": value},
        {"object": "response", "output": [value, {"content": value}, {"content": [value, {"text": value}]}]},
        {"type": "message", "role": value, "content": value, "stop_reason": value},
        {"usage": {"input_tokens": value, "prompt_tokens_details": value, "cache_read_input_tokens": value}},
    ):
        with sw.llm(name, messages=[1]) as step:
            step.record(body)


def in_block_stream(name: str, value: Any) -> None:
    with sw.llm(name, messages=[1]) as step:
        (chunk,) = step.stream([value])
        assert chunk is value


def in_block_stream_parts(name: str, value: Any) -> None:
    delta = {"content": value, "text": value, "tool_calls": value, "type": "input_json_delta", "partial_json": value}
    call = {"index": value, "id": value, "function": {"name": value, "arguments": value}}
    with sw.llm(name, messages=[1]) as step:
        chunks = [
            {"choices": [{"delta": delta, "finish_reason": value}], "usage": value},
            {"choices": [{"delta": {"tool_calls": [value, call]}}], "usage": {"prompt_tokens": value}},
            {"index": value, "content_block": {"type": "tool_use", "id": value, "name": value}, "message": value},
            {"type": "response.output_text.delta", "delta": value, "response": value},
        ]
        assert all(map(operator.is_, step.stream(chunks), chunks))


def in_block_stream_itself(name: str, value: Any) -> None:
    with sw.llm(name, messages=[1]) as step:
        step.stream(value)


def in_block_score(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.score(value, value, label=value, comment=value)
    step.score(value, value, label=value, comment=value)


def in_block_score_type(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.score("type", 1, type=value)


def in_block_score_tags(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.score("tags", 1, tags=value)


def in_block_attach(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.attach(value)


def in_block_attach_name(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.attach(b"x", name=value)


def in_block_attach_mime(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.attach(b"x", mime=value)


def in_block_add_attachment(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.add_attachment(value)


def in_block_name(name: str, value: Any) -> None:
    with sw.tool(name):
        pass
    with sw.tool("other") as step:
        step.name = value


def in_block_type(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.type = value


def span(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.set_attribute("value", value)
        step.set_attribute(value, value)
        step.set_attributes(value)
        step.set_attributes({"other": value})


def span_event(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.add_event(value, {"value": value}, value)
        step.add_event("event", value)
        step.add_link(value, value)
        step.add_link(value, {"value": value})


def span_status(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.set_status(value, value)
        step.set_status(StatusCode.ERROR, value)


def span_exception(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        step.record_exception(value, value, value, value)
        step.record_exception(ValueError(value), {"value": value})


def span_name(name: str, value: Any) -> None:
    with sw.tool(name):
        pass
    with sw.tool("other") as step:
        step.update_name(value)


def span_end(name: str, value: Any) -> None:
    step = sw.start("tool", name)
    step.end(value)


def thread_id(name: str, value: Any) -> None:
    with sw.thread(value), sw.tool(name):
        pass


def thread_user(name: str, value: Any) -> None:
    with sw.thread("t", user=value), sw.tool(name):
        pass


def thread_name(name: str, value: Any) -> None:
    with sw.thread("t", name=value), sw.tool(name):
        pass


def thread_tags(name: str, value: Any) -> None:
    with sw.thread("t", tags=value), sw.tool(name):
        pass


def thread_tag(name: str, value: Any) -> None:
    with sw.thread("t", tags=[value]), sw.tool(name):
        pass


def thread_metadata(name: str, value: Any) -> None:
    with sw.thread("t", metadata=value), sw.thread("u", metadata={"value": value}), sw.tool(name):
        pass


def in_thread(name: str, value: Any) -> None:
    for field in ("name", "user", "tags", "metadata"):
        with sw.thread(f"in {field}") as thread:
            setattr(thread, field, value)
    with sw.thread("in") as thread, sw.tool(name):
        thread.tags.append(value)
        thread.metadata["value"] = value


def message(name: str, value: Any) -> None:
    sw.user_message(value, name=name, metadata={"value": value})


def message_metadata(name: str, value: Any) -> None:
    sw.user_message("hi", name=name, metadata=value)


def message_attachments(name: str, value: Any) -> None:
    sw.user_message("hi", name=name, attachments=value)


def message_attachment(name: str, value: Any) -> None:
    sw.user_message("hi", name=name, attachments=[value])


def message_tags(name: str, value: Any) -> None:
    sw.user_message("hi", name=name, tags=value)


def message_name(name: str, value: Any) -> None:
    sw.user_message("hi", name=value)


def option_input(name: str, value: Any) -> None:
    with sw.tool(name, input=value):
        pass


def option_metadata(name: str, value: Any) -> None:
    with sw.tool(name, metadata=value, input=1):
        pass
    with sw.tool("other", metadata={"value": value}):
        pass


def option_tags(name: str, value: Any) -> None:
    with sw.tool(name, tags=value):
        pass


def option_tag(name: str, value: Any) -> None:
    with sw.tool(name, tags=[value]):
        pass


def option_name(name: str, value: Any) -> None:
    found = sw.tool(value)
    if hasattr(type(found), "__enter__"):
        with found:
            pass


def option_type(name: str, value: Any) -> None:
    with sw.step(name, type=value):
        pass


def option_start(name: str, value: Any) -> None:
    sw.start("tool", value).end()


def option_capture_input(name: str, value: Any) -> None:
    sw.tool(name, capture_input=value)(lambda a: a)(1)


def option_capture_output(name: str, value: Any) -> None:
    sw.tool(name, capture_output=value)(lambda a: a)(1)


def option_model(name: str, value: Any) -> None:
    with sw.llm(name, model=value, provider=value, messages=value, tools=value, temperature=value):
        pass


def option_prompt(name: str, value: Any) -> None:
    with sw.llm(name, prompt=value):
        pass


def decorated(name: str, value: Any) -> None:
    sw.tool(name)(value)


def decorated_bare(name: str, value: Any) -> None:
    sw.tool(value)


def decorated_by_thread(name: str, value: Any) -> None:
    sw.thread("t")(value)


def later_score(name: str, value: Any) -> None:
    with sw.tool(name) as step:
        pass
    sw.score(step.id, value, value, label=value, comment=value)


def later_score_id(name: str, value: Any) -> None:
    sw.score(value, "name", 1)


def later_score_type(name: str, value: Any) -> None:
    sw.score("id", "name", 1, type=value)


def later_score_tags(name: str, value: Any) -> None:
    sw.score("id", "name", 1, tags=value)


def later_feedback(name: str, value: Any) -> None:
    sw.feedback("id", "positive", comment=value)
    sw.feedback("id", value)


def later_feedback_id(name: str, value: Any) -> None:
    sw.feedback(value, "positive")


def headers(name: str, value: Any) -> None:
    with sw.tool(name):
        sw.inject(value)
    with sw.extract(value), sw.tool("other"):
        pass
    for field in ("traceparent", "baggage", "tracestate"):
        with sw.extract({field: value}), sw.tool("other"):
            pass


def bound(name: str, value: Any) -> None:
    sw.bind(value)


GENERATION_FIELDS = [
    "provider", "model", "response_model", "messages", "message_completion", "prompt", "completion", "settings",
    "tools", "variables", "prompt_id", "ttft_ns", "tokens_per_second", "duration_ns", "stop_reason", "response_id",
    "request_id", "model_endpoint", "context_window_limit", "cost", "provider_request", "provider_response", "type",
]  # fmt: skip

PLACES: list[Callable[[str, Any], None]] = [
    call, call_of_a_model, answer_of_a_model, call_of_a_coroutine, yielded, sent_and_thrown, raised, raised_itself,
    in_block, in_block_metadata_key, in_block_metadata, in_block_tags, in_block_generation, in_block_usage,
    in_block_record, in_block_record_parts, in_block_stream, in_block_stream_parts, in_block_stream_itself,
    in_block_score, in_block_name, in_block_type, span, span_event, span_status, span_exception, span_name, span_end,
    in_thread, message, message_metadata, message_attachments, message_attachment, in_block_add_attachment,
    option_input, option_metadata, option_model, option_prompt, thread_metadata, later_score,
    headers,
]  # fmt: skip
# Where what is wrong may raise `UsageError`, and nothing else: it is written there.
WRITTEN: list[Callable[[str, Any], None]] = [
    in_block_score_type, in_block_score_tags, in_block_attach, in_block_attach_name, in_block_attach_mime, thread_id,
    thread_user, thread_name, thread_tags, thread_tag, message_tags, message_name, option_tags, option_tag,
    option_name, option_type, option_start, option_capture_input, option_capture_output, decorated, decorated_bare,
    decorated_by_thread, later_score_id, later_score_type, later_score_tags, later_feedback, later_feedback_id, bound,
]  # fmt: skip


# What is counted where a value is not what the place takes, or is and raises; anything else is a defect of ours.
EXPECTED_FAULTS = {
    "misuse", "capture a result", "extract from headers", "inject into headers", "read a generation", "read a response",
    "set attributes",
}  # fmt: skip


def decoded(captured: Captured) -> dict[str | None, StepRecord]:
    """Return the steps by name, having read every record as a reader of the wire does."""
    steps: dict[str | None, StepRecord] = {}
    for record in captured.records:
        data = encode_record(record)
        json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        decode_record(data)
        if isinstance(record, StepRecord):
            decode_generation(record.generation)
            assert len(data) < 100 * LIMIT
            steps[record.name] = record
    (ledger,) = sw.stats().exporters.values()
    assert (ledger.rejected, ledger.dropped, ledger.waiting) == ({}, {}, 0)
    return steps


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
@pytest.mark.usefixtures("silence")
def test_a_hostile_value_anywhere_leaves_program_and_trace_whole(make: Callable[[], Any]) -> None:
    opened = {"before", "after", "root"}
    raised: dict[str, str] = {}
    with capture(max_field_bytes=LIMIT) as captured, sw.run("root") as root:
        with sw.tool("before", input={"a": 1}):
            pass
        for place in (*PLACES, *WRITTEN):
            try:
                place(place.__name__, make())
            except UsageError as error:
                if place not in WRITTEN:
                    raised[place.__name__] = f"UsageError: {error}"
            except BaseException as error:
                raised[place.__name__] = "".join(traceback.format_exception_only(type(error), None))
            else:
                opened |= {place.__name__} if place in PLACES else set()
            if sw.current_step() is not root:
                pytest.fail(f"{place.__name__} left another step current")
        with sw.tool("after", input={"a": 1}):
            pass
        root.end()
        assert raised == {}
        steps = decoded(captured)
        assert sw.stats().faults.keys() <= EXPECTED_FAULTS
    assert opened <= steps.keys()
    for name in ("call", "call_of_a_coroutine", "in_block", "option_model"):
        assert (steps[name].input is UNSET, steps[name].output is UNSET) == (name == "option_model",) * 2
    failed = {place.__name__ for place in PLACES if steps[place.__name__].status == "failed"}
    assert failed - {"span_status"} == {"raised", "raised_itself", "in_block"}
    for name in ("before", "after"):
        assert (steps[name].status, steps[name].parent_id, bytes(steps[name].input)) == ("success", root.id, b'{"a":1}')
