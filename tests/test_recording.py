"""A decorated call and a with-block are the user's own code, plus a record of it."""

from __future__ import annotations

import abc
import asyncio
import dataclasses
import functools
import inspect
import pickle
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

import stepwell as sw
from stepwell._recording import StepKind
from stepwell.errors import UsageError
from stepwell.testing import Captured

PACKAGE = str(Path(sw.__file__).parent)
VERBS: list[StepKind] = [sw.run, sw.tool, sw.llm, sw.embedding, sw.retrieval, sw.rerank]
RECORDED_AS = {"run": "run", "tool": "tool", "llm": "run", "embedding": "embedding"}
VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


def verb_of(kind: StepKind) -> str:
    return repr(kind).removeprefix("<stepwell.").removesuffix(">")


def recorded(kind: StepKind) -> str:
    return {"llm": "run"}.get(verb_of(kind), verb_of(kind))  # it asked nothing


every_verb = pytest.mark.parametrize("kind", VERBS, ids=verb_of)
TYPES = [
    "run",
    "tool",
    "embedding",
    "retrieval",
    "rerank",
    "undefined",
    "user_message",
    "assistant_message",
    "system_message",
]


def frames_of(error: BaseException) -> list[str]:
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


@sw.tool
def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


@sw.tool("named")
def named(a: int) -> int:
    return a


@sw.tool
async def add_soon(a: int, b: int = 2) -> int:
    """Add two numbers, later."""
    return a + b


class Calculator:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @sw.tool
    def times(self, n: int) -> int:
        return self.factor * n

    @sw.tool
    async def times_soon(self, n: int) -> int:
        return self.factor * n

    @sw.tool
    @classmethod
    def above_class(cls, n: int) -> tuple[str, int]:
        return cls.__name__, n

    @classmethod
    @sw.tool
    def below_class(cls, n: int) -> tuple[str, int]:
        return cls.__name__, n

    @sw.tool
    @staticmethod
    def above_static(n: int) -> int:
        return n

    @staticmethod
    @sw.tool
    def below_static(n: int) -> int:
        return n

    @property
    @sw.tool
    def value(self) -> int:
        return self.factor

    @sw.tool
    def __call__(self, n: int) -> int:
        return n


class Sub(Calculator):
    pass


# -- the forms


@every_verb
def test_a_bare_decorator_records_a_step_named_after_the_function(kind: StepKind, captured: Captured) -> None:
    @kind
    def work(x: int) -> int:
        return x + 1

    assert work(1) == 2
    assert captured.tree() == [(recorded(kind), "work", "success", [])]


@every_verb
def test_a_decorator_with_arguments_records_a_step_of_the_name_given(kind: StepKind, captured: Captured) -> None:
    @kind("other", tags=["t"], metadata={"k": 1})
    def work(x: int) -> int:
        return x + 1

    assert work(1) == 2
    assert captured.tree() == [(recorded(kind), "other", "success", [])]
    step = captured.fields("other")
    assert (step["tags"], step["metadata"]) == (["t"], {"k": 1})


@every_verb
def test_empty_parentheses_are_as_no_parentheses(kind: StepKind, captured: Captured) -> None:
    @kind()
    def work() -> None: ...

    work()
    assert captured.tree() == [(recorded(kind), "work", "success", [])]


@every_verb
def test_a_with_block_records_a_step(kind: StepKind, captured: Captured) -> None:
    with kind("block", input={"q": 1}) as step:
        step.output = [1]
    assert captured.tree() == [(recorded(kind), "block", "success", [])]
    fields = captured.fields("block")
    assert (fields["input"], fields["output"]) == ({"q": 1}, [1])


@every_verb
def test_an_async_with_block_records_a_step(kind: StepKind, captured: Captured) -> None:
    async def main() -> None:
        async with kind("block") as step:
            await asyncio.sleep(0)
            step.output = "done"

    asyncio.run(main())
    assert captured.tree() == [(recorded(kind), "block", "success", [])]
    assert captured.fields("block")["output"] == "done"


@pytest.mark.parametrize("kind", TYPES)
def test_start_and_end_record_a_step(kind: Any, captured: Captured) -> None:
    step = sw.start(kind, "by hand")
    assert sw.current_step() is step
    step.end()
    assert sw.current_step() is None
    assert captured.tree() == [(kind, "by hand", "success", [])]


@pytest.mark.parametrize("kind", TYPES)
def test_step_takes_any_type_as_decorator_and_block(kind: Any, captured: Captured) -> None:
    @sw.step(type=kind)
    def work() -> None: ...

    work()
    with sw.step("block", type=kind):
        pass
    assert captured.tree() == [(kind, "work", "success", []), (kind, "block", "success", [])]


def test_step_without_a_type_is_undefined(captured: Captured) -> None:
    with sw.step("x"):
        pass
    assert captured.tree() == [("undefined", "x", "success", [])]


def test_a_block_or_started_step_without_a_name_is_named_after_its_type(captured: Captured) -> None:
    with sw.tool():
        pass
    sw.start("run").end()
    assert captured.tree() == [("tool", "tool", "success", []), ("run", "run", "success", [])]


def test_a_started_step_can_be_left_by_with(captured: Captured) -> None:
    with pytest.raises(KeyError), sw.start("tool", "x"):
        raise KeyError("k")
    assert captured.tree() == [("tool", "x", "failed", [])]


def test_the_same_recording_can_be_entered_inside_itself(captured: Captured) -> None:
    again = sw.tool("again")
    with again as outer, again as inner:
        assert inner.parent_id == outer.id
    assert captured.tree() == [("tool", "again", "success", [("tool", "again", "success", [])])]


def test_tasks_that_are_in_the_same_recording_at_once_end_their_own_steps(captured: Captured) -> None:
    shared = sw.tool("shared")

    async def main() -> list[Any]:
        first_in, second_in, first_out = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def first() -> None:
            async with shared as step:
                first_in.set()
                await second_in.wait()
                step.output = "first"
            first_out.set()

        async def second() -> None:
            await first_in.wait()
            async with shared as step:
                second_in.set()
                await first_out.wait()
                step.output = "second"
                raise KeyError

        return await asyncio.gather(first(), second(), return_exceptions=True)

    asyncio.run(main())
    assert sorted((step.status, bytes(step.output)) for step in captured.steps) == [  # type: ignore[type-var, arg-type]
        ("failed", b'"second"'),
        ("success", b'"first"'),
    ]


# -- what is decorated


def test_a_coroutine_function_is_recorded_until_it_returns(captured: Captured) -> None:
    assert asyncio.run(add_soon(1, b=3)) == 4
    fields = captured.fields("add_soon")
    assert (fields["input"], fields["output"]) == ({"a": 1, "b": 3}, 4)


def test_a_coroutine_that_is_never_awaited_records_nothing(captured: Captured) -> None:
    add_soon(1).close()
    assert captured.tree() == []


def test_a_method_is_recorded_without_self(captured: Captured) -> None:
    assert Calculator(3).times(n=2) == 6
    assert captured.fields("times")["input"] == {"n": 2}


def test_an_async_method_is_recorded_without_self(captured: Captured) -> None:
    assert asyncio.run(Calculator(3).times_soon(2)) == 6
    assert captured.fields("times_soon")["input"] == {"n": 2}


@pytest.mark.parametrize("name", ["above_class", "below_class"])
def test_a_classmethod_can_be_decorated_above_and_below(name: str, captured: Captured) -> None:
    assert getattr(Sub, name)(5) == ("Sub", 5)
    assert getattr(Sub(1), name)(n=5) == ("Sub", 5)
    assert [bytes(step.input) for step in captured.steps] == [b'{"n":5}'] * 2  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["above_static", "below_static"])
def test_a_staticmethod_can_be_decorated_above_and_below(name: str, captured: Captured) -> None:
    assert getattr(Calculator, name)(5) == 5
    assert getattr(Calculator(1), name)(n=5) == 5
    assert [bytes(step.input) for step in captured.steps] == [b'{"n":5}'] * 2  # type: ignore[arg-type]


def test_a_property_and_a_call_method_are_recorded(captured: Captured) -> None:
    assert Calculator(7).value == 7
    assert Calculator(7)(1) == 1
    assert [step.name for step in captured.steps] == ["value", "__call__"]


class Descriptors:
    def __init__(self) -> None:
        self.computed = 0

    @sw.tool
    @property
    def above_property(self) -> int:
        """What it is."""
        return 5

    @above_property.setter
    def above_property(self, value: int) -> None:
        self.computed = value

    @sw.tool
    @functools.cached_property
    def above_cached(self) -> int:
        self.computed += 1
        return self.computed

    @functools.cached_property
    @sw.tool
    def below_cached(self) -> int:
        self.computed += 1
        return self.computed

    def power(self, base: int, exponent: int) -> int:
        return base**exponent

    square = sw.tool("square")(functools.partialmethod(power, exponent=2))


def test_a_property_can_be_decorated_from_above(captured: Captured) -> None:
    given = Descriptors()
    assert given.above_property == 5
    given.above_property = 7
    assert given.computed == 7
    assert Descriptors.above_property.__doc__ == "What it is."
    assert [(step.name, bytes(step.input)) for step in captured.steps] == [("above_property", b"{}")]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["above_cached", "below_cached"])
def test_a_cached_property_is_recorded_when_it_is_computed(name: str, captured: Captured) -> None:
    given = Descriptors()
    assert [getattr(given, name), getattr(given, name)] == [1, 1]
    assert [step.name for step in captured.steps] == [name]


def test_a_partial_method_is_recorded_with_all_its_arguments(captured: Captured) -> None:
    assert Descriptors().square(3) == 9
    assert captured.fields("square")["input"] == {"base": 3, "exponent": 2}


def test_methods_of_a_dataclass_are_recorded_and_its_fields_stay(captured: Captured) -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Point:
        x: int
        y: int = 2

        @sw.tool
        def sum(self, *, scale: int = 1) -> int:
            return (self.x + self.y) * scale

        @sw.tool
        def __post_init__(self) -> None:
            pass

    assert Point(1).sum(scale=2) == 6
    assert [field.name for field in dataclasses.fields(Point)] == ["x", "y"]
    assert captured.fields("sum")["input"] == {"scale": 2}
    assert [step.name for step in captured.steps] == ["__post_init__", "sum"]


def test_an_abstract_method_stays_abstract(captured: Captured) -> None:
    class Base(abc.ABC):
        @sw.tool
        @abc.abstractmethod
        def work(self) -> int: ...

    class Derived(Base):
        @sw.tool
        def work(self) -> int:
            return 1

    with pytest.raises(TypeError, match="abstract"):
        Base()
    assert Derived().work() == 1


def test_a_class_is_refused_where_it_is_decorated() -> None:
    with pytest.raises(UsageError, match=r"a class can't be decorated, only its methods, got <class .*Agent'>"):

        @sw.run
        class Agent:
            pass


def test_a_partial_is_recorded_under_the_name_of_its_function(captured: Captured) -> None:
    def power(base: int, exponent: int) -> int:
        return base**exponent

    square = sw.tool(functools.partial(power, exponent=2))
    assert square(3) == 9
    assert captured.fields("power")["input"] == {"base": 3, "exponent": 2}


def test_a_callable_object_is_recorded_under_the_name_of_its_class(captured: Captured) -> None:
    class Search:
        def __call__(self, query: str) -> str:
            return query.upper()

    assert sw.tool(Search())("x") == "X"
    assert captured.fields("Search")["input"] == {"query": "x"}


def test_an_object_with_an_async_call_is_recorded_until_it_returns(captured: Captured) -> None:
    class Search:
        async def __call__(self, query: str) -> str:
            await asyncio.sleep(0)
            return query.upper()

    assert asyncio.run(sw.tool(Search())("x")) == "X"
    assert captured.fields("Search")["output"] == "X"


def test_a_lambda_and_a_builtin_are_recorded(captured: Captured) -> None:
    assert sw.tool(lambda x: x + 1)(1) == 2
    assert sw.tool(len)("abc") == 3
    assert sw.tool(dict)(a=1) == {"a": 1}
    assert [step.name for step in captured.steps] == ["<lambda>", "len", "dict"]


def test_nested_calls_nest_and_recursion_does_too(captured: Captured) -> None:
    @sw.tool
    def countdown(n: int) -> int:
        return 0 if n == 0 else countdown(n - 1)

    @sw.run
    def agent() -> int:
        add(1)
        return countdown(2)

    agent()
    innermost = ("tool", "countdown", "success", [])
    assert captured.tree() == [
        (
            "run",
            "agent",
            "success",
            [
                ("tool", "add", "success", []),
                ("tool", "countdown", "success", [("tool", "countdown", "success", [innermost])]),
            ],
        )
    ]


def test_concurrent_tasks_nest_under_the_step_that_started_them(captured: Captured) -> None:
    @sw.run
    async def agent() -> list[int]:
        return await asyncio.gather(*(add_soon(n) for n in range(3)))

    assert asyncio.run(agent()) == [2, 3, 4]
    assert captured.tree() == [("run", "agent", "success", [("tool", "add_soon", "success", [])] * 3)]


def test_threads_do_not_disturb_each_other(captured: Captured) -> None:
    @sw.run
    def agent(n: int) -> int:
        return add(n)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(agent, range(200))) == [n + 2 for n in range(200)]
    assert captured.tree() == [("run", "agent", "success", [("tool", "add", "success", [])])] * 200


def test_a_decorated_function_can_be_decorated_again(captured: Captured) -> None:
    assert sw.run("outer")(add)(1) == 3
    assert captured.tree() == [("run", "outer", "success", [("tool", "add", "success", [])])]


# -- what passes through


@pytest.mark.parametrize("value", [None, 0, "", [], object(), NotImplemented])
def test_the_very_object_a_function_returns_is_returned(value: object, captured: Captured) -> None:
    assert sw.tool(lambda: value)() is value


def test_a_recorded_null_tells_a_function_that_returned_none(captured: Captured) -> None:
    sw.tool("x")(lambda: None)()
    assert captured.fields("x")["output"] is None


class BareError(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class FrozenError(Exception):
    code: int


@pytest.mark.parametrize(
    "error", [ValueError("bad"), KeyboardInterrupt(), SystemExit(3), StopIteration(1), FrozenError(7), BareError()]
)
def test_the_very_exception_a_function_raises_is_raised(error: BaseException, captured: Captured) -> None:
    @sw.tool
    def work() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        work()
    assert raised.value is error
    assert frames_of(error) == [__file__, __file__]


def test_a_traceback_has_no_frame_of_ours_from_nested_functions(captured: Captured) -> None:
    @sw.run
    def outer() -> None:
        inner()

    @sw.tool("i", capture_input=False)
    def inner() -> None:
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad") as raised:
        outer()
    assert [name for name in frames_of(raised.value) if name.startswith(PACKAGE)] == []
    assert [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)][1:] == ["outer", "inner"]


def test_a_traceback_has_no_frame_of_ours_from_nested_coroutines(captured: Captured) -> None:
    @sw.run
    async def outer() -> None:
        await inner()

    @sw.tool
    async def inner() -> None:
        await asyncio.sleep(0)
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad") as raised:
        asyncio.run(outer())
    assert [name for name in frames_of(raised.value) if name.startswith(PACKAGE)] == []


def test_a_traceback_has_no_frame_of_ours_from_blocks(captured: Captured) -> None:
    async def main() -> None:
        async with sw.thread("t"), sw.tool("x"):
            with sw.run("y"), sw.thread("u"):
                raise ValueError("bad")

    with pytest.raises(ValueError, match="bad") as raised:
        asyncio.run(main())
    assert [name for name in frames_of(raised.value) if name.startswith(PACKAGE)] == []


def test_an_exception_that_is_raised_again_and_again_keeps_the_users_frames(captured: Captured) -> None:
    error = ValueError("one object")

    @sw.tool
    def work() -> None:
        raise error

    for _ in range(3):
        with pytest.raises(ValueError, match="one object"):
            work()
    assert [name for name in frames_of(error) if name.startswith(PACKAGE)] == []


def test_a_wrong_call_raises_what_python_raises(captured: Captured) -> None:
    wrong: Any = add
    with pytest.raises(TypeError, match=r"add\(\) missing 1 required positional argument: 'a'"):
        wrong()
    with pytest.raises(TypeError, match=r"add\(\) got an unexpected keyword argument 'c'"):
        wrong(1, c=2)
    assert [step.status for step in captured.steps] == ["failed", "failed"]


def test_a_context_variable_set_in_a_decorated_function_is_set_for_its_caller(captured: Captured) -> None:
    @sw.tool
    def work() -> None:
        VARIABLE.set("inside")

    token = VARIABLE.set("outside")
    work()
    assert VARIABLE.get() == "inside"
    VARIABLE.reset(token)


# -- what stays of the function


def test_a_decorated_function_keeps_name_documentation_and_signature() -> None:
    assert (add.__name__, add.__qualname__, add.__doc__, add.__module__) == (
        "add",
        "add",
        "Add two numbers.",
        __name__,
    )
    assert str(inspect.signature(add)) == "(a: 'int', b: 'int' = 2) -> 'int'"
    assert inspect.unwrap(add) is not add


def test_a_decorated_function_keeps_its_kind() -> None:
    assert inspect.iscoroutinefunction(add_soon)
    assert asyncio.iscoroutinefunction(add_soon)
    assert inspect.iscoroutinefunction(Calculator.times_soon)
    assert not inspect.iscoroutinefunction(add)
    assert inspect.isfunction(add)
    assert inspect.ismethod(Calculator(1).times)


def test_a_decorated_function_is_pickled_by_name() -> None:
    for function in (add, named, add_soon):
        assert pickle.loads(pickle.dumps(function)) is function


def test_a_bound_method_is_pickled_with_its_object(captured: Captured) -> None:
    assert pickle.loads(pickle.dumps(Calculator(4).times))(2) == 8


# -- what is captured


def test_the_input_has_every_parameter_with_its_default(captured: Captured) -> None:
    @sw.tool
    def work(a: int, /, b: int, *rest: int, c: int = 3, **others: int) -> None: ...

    work(1, 2, 9, d=4)
    assert captured.fields("work")["input"] == {"a": 1, "b": 2, "rest": [9], "c": 3, "others": {"d": 4}}


@pytest.mark.parametrize(
    ("keep", "found"), [(True, {"a": 1, "b": 2}), (False, None), (["b"], {"b": 2}), ((), None), (["missing"], {})]
)
def test_capture_input_says_which_parameters_are_kept(keep: Any, found: Any, captured: Captured) -> None:
    @sw.tool("x", capture_input=keep)
    def work(a: int, b: int) -> None: ...

    work(1, b=2)
    assert captured.fields("x").get("input") == found


@pytest.mark.parametrize(("keep", "found"), [(True, True), (False, False)])
def test_capture_output_says_whether_the_result_is_kept(keep: bool, found: bool, captured: Captured) -> None:
    sw.tool("x", capture_output=keep)(lambda: 5)()
    assert ("output" in captured.fields("x")) is found


def test_the_settings_decide_where_the_decorator_does_not_say() -> None:
    from stepwell.testing import capture

    with capture(capture_input=False, capture_output=False) as captured:
        add(1)
        sw.tool("kept", capture_input=True, capture_output=True)(lambda a: a)(5)
    assert captured.fields("add").keys().isdisjoint({"input", "output"})
    assert (captured.fields("kept")["input"], captured.fields("kept")["output"]) == ({"a": 5}, 5)


def test_arguments_are_recorded_as_they_were_when_the_call_began(captured: Captured) -> None:
    @sw.tool
    def work(items: list[int]) -> list[int]:
        items.append(2)
        return items

    result = work([1])
    result.append(3)
    fields = captured.fields("work")
    assert (fields["input"], fields["output"]) == ({"items": [1]}, [1, 2])


def test_an_output_set_in_the_function_wins_over_what_it_returns(captured: Captured) -> None:
    @sw.tool
    def work() -> str:
        step = sw.current_step()
        assert step is not None
        step.output = "set"
        return "returned"

    assert work() == "returned"
    assert captured.fields("work")["output"] == "set"


def test_tags_and_metadata_of_a_decorator_are_new_for_every_call(captured: Captured) -> None:
    tags, metadata = ["a"], {"k": [1]}

    @sw.tool("x", tags=tags, metadata=metadata)
    def work() -> None:
        step = sw.current_step()
        assert step is not None
        step.tags.append("b")
        step.metadata["n"] = 1

    work()
    work()
    assert [step.tags for step in captured.steps] == [["a", "b"], ["a", "b"]]
    assert (tags, metadata) == (["a"], {"k": [1]})


def test_the_current_step_is_the_calls_own(captured: Captured) -> None:
    @sw.tool
    def work() -> str | None:
        step = sw.current_step()
        return step and step.name

    assert work() == "work"
    assert sw.current_step() is None


# -- wrong use


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: sw.step("x", type="tol"), r"type must be one of run, tool, .*, got 'tol'"),  # type: ignore[arg-type]
    (lambda: sw.start("tol"), r"type must be one of run, tool, .*, got 'tol'"),  # type: ignore[arg-type]
    (lambda: sw.start([]), r"type must be one of run, tool, .*, got \[\]"),  # type: ignore[arg-type]
    (lambda: sw.tool("x", tags="web"), "tags must be a list of strings, got 'web'"),
    (lambda: sw.tool("x", tags=[1]), r"tags must be strings, got 1 in \[1\]"),  # type: ignore[list-item]
    (lambda: sw.tool(5), "the name of a tool step must be a string, got 5"),  # type: ignore[call-overload]
    (lambda: sw.tool("x")(5), "only a function can be decorated, got 5"),  # type: ignore[type-var]
    (lambda: sw.step(len), "step.. takes a name, then decorates"),  # type: ignore[arg-type]
    (lambda: sw.user_message("x", tags="web"), "tags must be a list of strings, got 'web'"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_what_is_wrong_raises_where_it_is_written(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        wrong()
    assert sw.current_step() is None


def test_an_option_there_is_not_raises_type_error() -> None:
    wrong: Any = sw.tool
    with pytest.raises(TypeError, match=r"tool\(\) has no option colour"):
        wrong("x", colour="red")


def test_capture_input_must_not_be_a_string() -> None:
    with pytest.raises(UsageError, match="capture_input"):
        sw.tool("x", capture_input="query")(lambda query: query)
