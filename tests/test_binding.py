"""`binder` names the arguments of any call as `inspect.Signature.bind` does."""

from __future__ import annotations

import inspect
from inspect import Parameter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stepwell._binding import binder

KINDS = (
    Parameter.POSITIONAL_ONLY,
    Parameter.POSITIONAL_OR_KEYWORD,
    Parameter.VAR_POSITIONAL,
    Parameter.KEYWORD_ONLY,
    Parameter.VAR_KEYWORD,
)


@st.composite
def signatures(draw: st.DrawFn) -> inspect.Signature:
    names = iter(["a", "b", "c", "d", "e", "f", "g", "h"])
    parameters: list[Parameter] = []
    defaulted = False
    for kind, most in zip(KINDS, (2, 2, 1, 2, 1), strict=True):
        for _ in range(draw(st.integers(0, most))):
            default: Any = Parameter.empty
            if kind in {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}:
                defaulted = defaulted or draw(st.booleans())
                default = draw(st.integers(100, 200)) if defaulted else Parameter.empty
            elif kind is Parameter.KEYWORD_ONLY and draw(st.booleans()):
                default = draw(st.integers(100, 200))
            parameters.append(Parameter(next(names), kind, default=default))
    return inspect.Signature(parameters)


def function_of(signature: inspect.Signature) -> Any:
    def function(*args: Any, **kwargs: Any) -> None: ...

    function.__signature__ = signature  # type: ignore[attr-defined]
    return function


@st.composite
def calls(draw: st.DrawFn) -> tuple[inspect.Signature, tuple[Any, ...], dict[str, Any]]:
    signature = draw(signatures())
    args = draw(st.lists(st.integers(), max_size=6).map(tuple))
    keywords = st.sampled_from([*"abcdefgh", "args", "kwargs", "self", "z"])
    return signature, args, draw(st.dictionaries(keywords, st.integers(), max_size=5))


def bound_by_python(signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    arguments = dict(bound.arguments)
    for parameter in signature.parameters.values():  # what is empty is named as well
        if parameter.kind is Parameter.VAR_KEYWORD:
            arguments.setdefault(parameter.name, {})
    return arguments


@given(calls())
def test_arguments_of_any_valid_call_are_named_as_python_names_them(call: Any) -> None:
    signature, args, kwargs = call
    found = binder(function_of(signature), None)(args, kwargs)  # invalid calls do not raise here either
    try:
        expected = bound_by_python(signature, args, kwargs)
    except TypeError:
        return
    assert found == expected


@st.composite
def valid_calls(draw: st.DrawFn) -> tuple[inspect.Signature, tuple[Any, ...], dict[str, Any]]:
    signature = draw(signatures())
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        given_at_all = parameter.default is Parameter.empty or draw(st.booleans())
        positional = parameter.kind is Parameter.POSITIONAL_ONLY or (
            parameter.kind is Parameter.POSITIONAL_OR_KEYWORD and not kwargs and draw(st.booleans())
        )
        if parameter.kind is Parameter.VAR_POSITIONAL:
            args += draw(st.lists(st.integers(), max_size=3)) if not kwargs and len(args) == _places(signature) else []
        elif parameter.kind is Parameter.VAR_KEYWORD:
            kwargs |= draw(st.dictionaries(st.sampled_from(["x", "y", "self"]), st.integers(), max_size=2))
        elif positional and len(args) == list(signature.parameters).index(parameter.name) and given_at_all:
            args.append(draw(st.integers()))
        elif parameter.kind is not Parameter.POSITIONAL_ONLY and given_at_all:
            kwargs[parameter.name] = draw(st.integers())
    return signature, tuple(args), kwargs


def _places(signature: inspect.Signature) -> int:
    return sum(p.kind in KINDS[:2] for p in signature.parameters.values())


@given(valid_calls())
def test_arguments_of_calls_made_to_fit_are_named_as_python_names_them(call: Any) -> None:
    signature, args, kwargs = call
    expected = bound_by_python(signature, args, kwargs)
    assert binder(function_of(signature), None)(args, kwargs) == expected


@given(valid_calls(), st.sets(st.sampled_from("abcdefgh")))
def test_only_the_parameters_asked_for_are_kept(call: Any, only: set[str]) -> None:
    signature, args, kwargs = call
    found = binder(function_of(signature), sorted(only))(args, kwargs)
    assert found == {name: value for name, value in bound_by_python(signature, args, kwargs).items() if name in only}


class Owner:
    def method(self, a: int, *rest: int, **others: int) -> None: ...
    def plain(self, a: int = 1) -> None: ...
    @classmethod
    def of_class(cls, a: int) -> None: ...


def test_the_receiver_of_a_method_is_left_out() -> None:
    owner = Owner()
    assert binder(Owner.method, None)((owner, 1, 2), {"z": 3}) == {"a": 1, "rest": (2,), "others": {"z": 3}}
    assert binder(Owner.plain, None)((owner,), {}) == {"a": 1}
    assert binder(vars(Owner)["of_class"].__func__, None)((Owner, 5), {}) == {"a": 5}


def test_a_bound_method_has_no_receiver_left_to_leave_out() -> None:
    assert binder(Owner().plain, None)((7,), {}) == {"a": 7}


def test_a_function_that_is_no_method_keeps_a_parameter_called_self() -> None:
    def function(self: int, b: int) -> None: ...

    assert binder(function, None)((1, 2), {}) == {"self": 1, "b": 2}


def test_a_method_of_a_class_in_a_function_leaves_out_its_receiver() -> None:
    class Local:
        def method(self, a: int) -> None: ...

    assert binder(Local.method, None)((Local(), 2), {}) == {"a": 2}


def test_a_callable_that_tells_no_parameters_has_numbered_ones() -> None:
    assert binder(dict, None)(([],), {"a": 1}) == {"args": ([],), "a": 1}


def test_too_many_arguments_are_for_the_call_to_refuse() -> None:
    def function(a: int, b: int = 2) -> None: ...

    assert binder(function, None)((1, 2, 3), {}) == {"a": 1, "b": 2}
