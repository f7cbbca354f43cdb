"""Arguments of a call as `{parameter: value}`, without `inspect.Signature.bind`, which costs more than a whole step.

What must stay true: for every call Python accepts, the result is what `Signature.bind` with defaults applied gives,
less `self` or `cls`; for one it does not accept nothing is raised here, the call itself will.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any

__all__ = ["Binder", "binder"]

Binder = Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]


def binder(function: Callable[..., Any], only: Sequence[str] | None) -> Binder:
    """Make the function that names a call's arguments; `only` keeps these parameters and no other."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except Exception:  # noqa: BLE001 - some built-in callables tell nothing; attributes of a callable object may raise
        return lambda args, kwargs: {"args": args, **kwargs}
    bind = _general(parameters) if _has_rest(parameters) else _simple(parameters)
    if parameters and _is_receiver(function, parameters[0]):
        bind = _without(bind, parameters[0].name)
    return bind if only is None else _reduced(bind, frozenset(only))


def _has_rest(parameters: list[Parameter]) -> bool:
    return any(p.kind in {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD} for p in parameters)


def _is_receiver(function: Callable[..., Any], first: Parameter) -> bool:
    """Say whether the first parameter is the object a method is called on, going by name and place of definition."""
    owner, _, _ = getattr(function, "__qualname__", "").rpartition(".")
    return first.name in {"self", "cls"} and bool(owner) and not owner.endswith("<locals>")


def _simple(parameters: list[Parameter]) -> Binder:
    names = tuple(p.name for p in parameters if p.kind is not Parameter.KEYWORD_ONLY)
    defaults = {p.name: p.default for p in parameters if p.default is not Parameter.empty}
    # What is left at its default when a call gives so many arguments, all by position.
    left = [{p.name: p.default for p in parameters[count:] if p.name in defaults} for count in range(len(names) + 1)]

    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = dict(zip(names, args))  # noqa: B905 - naming `strict` costs as much as the zip
        if kwargs:
            bound.update(kwargs)
            for name, default in defaults.items():
                bound.setdefault(name, default)
        elif missing := left[len(bound)]:
            bound.update(missing)
        return bound

    return bind


def _general(parameters: list[Parameter]) -> Binder:
    names = [p.name for p in parameters if p.kind in {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD}]
    by_keyword = {p.name for p in parameters if p.kind in {Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY}}
    defaults = {p.name: p.default for p in parameters if p.default is not Parameter.empty}
    rest = next((p.name for p in parameters if p.kind is Parameter.VAR_POSITIONAL), None)
    named_rest = next((p.name for p in parameters if p.kind is Parameter.VAR_KEYWORD), None)

    def bind(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound: dict[str, Any] = dict(zip(names, args, strict=False))
        if rest is not None:
            bound[rest] = args[len(names) :]
        bound.update({name: value for name, value in kwargs.items() if name in by_keyword})
        for name, default in defaults.items():
            bound.setdefault(name, default)
        if named_rest is not None:
            bound[named_rest] = {name: value for name, value in kwargs.items() if name not in by_keyword}
        return bound

    return bind


def _without(bind: Binder, receiver: str) -> Binder:
    def bind_rest(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = bind(args, kwargs)
        bound.pop(receiver, None)
        return bound

    return bind_rest


def _reduced(bind: Binder, only: frozenset[str]) -> Binder:
    def bind_some(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in bind(args, kwargs).items() if name in only}

    return bind_some
