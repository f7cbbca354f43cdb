"""Decorated functions: what happens around each call, for functions, coroutines, generators and async generators.

What must stay true:

1. A decorated call returns what the function returns and raises what it raises, with no frame of ours in the
   traceback; nothing that fails in here changes that.
2. A decorated generator function is one, and so for every kind of function and descriptor.
3. A stream that a decorated function returns keeps the step open until it ends.
4. The sync and async forms differ in `await` alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from stepwell._binding import binder
from stepwell._checks import shown
from stepwell._following import followed
from stepwell._frames import hide_own_frame, named_as, wrap_for
from stepwell._generating import Body, drive, drive_async
from stepwell._recorder import RECORDER
from stepwell._step import Step
from stepwell._values import class_name, is_text
from stepwell.errors import UsageError

if TYPE_CHECKING:
    from stepwell._recording import Recording

__all__ = ["DESCRIPTORS", "decorate"]

F = TypeVar("F", bound=Callable[..., Any])
_Begin = Callable[[tuple[Any, ...], dict[str, Any]], Step]

_HEAP_TYPE: Final = 1 << 9  # in a class's flags: made by a class statement, where `dict` and its like are as functions
_flags_of: Final[Callable[[type], int]] = vars(type)["__flags__"].__get__
DESCRIPTORS: Final[tuple[type, ...]] = (
    classmethod,
    staticmethod,
    property,
    functools.cached_property,
    functools.partialmethod,
)
# What functions mostly return, and what is no stream: one lookup spares the closer look. By identity, since a class
# may have a metaclass that compares or hashes its classes with code of its own.
_NO_STREAMS: Final = frozenset(map(id, (type(None), bool, int, float, str, bytes, dict, list, tuple, set)))


def decorate(function: F, recording: Recording) -> F:
    """Wrap a function of any kind, a method, or the descriptor of one. Raises `UsageError` for what can't be called."""
    target: Any = function
    if issubclass(type(target), DESCRIPTORS):
        return cast("F", _decorate_descriptor(target, recording))
    if not callable(target):
        raise UsageError(f"only a function can be decorated, got {shown(target)}")
    if issubclass(type(target), type) and _flags_of(cast("Any", target)) & _HEAP_TYPE:
        raise UsageError(f"a class can't be decorated, only its methods, got {shown(target)}")
    wrap = wrap_for(target, _KINDS, _calling)
    wrapper = wrap(target, _beginner(target, recording), recording.options.get("capture_output"))
    return cast("F", named_as(target, wrapper))


def _decorate_descriptor(target: Any, recording: Recording) -> Any:
    """Decorate the function inside: what `@run` stands above then works as when it stands below."""
    kind = cast("Any", type(cast("object", target)))
    if issubclass(kind, property):
        return target.getter(decorate(target.fget, recording))
    if issubclass(kind, functools.cached_property):
        return cast("Any", kind)(decorate(target.func, recording))
    if issubclass(kind, functools.partialmethod):
        return cast("Any", kind)(decorate(target.func, recording), *target.args, **target.keywords)
    return kind(decorate(target.__func__, recording))


def _beginner(function: Any, recording: Recording) -> _Begin:
    """Make the function that opens the step of a call and captures its arguments."""
    name = _name_of(function)
    keep = recording.options.get("capture_input")
    bind = binder(cast("Callable[..., Any]", function), None if keep is None or isinstance(keep, bool) else keep)
    wanted = None if keep is None else bool(keep)
    recorder, open_step, is_llm = RECORDER, recording.open, recording.type == "llm"

    def begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        step = open_step(name)
        if (recorder.capture_input if wanted is None else wanted) and step._live:
            try:
                arguments = bind(args, kwargs)
                if is_llm:
                    step.asked(arguments)
                step._input = recorder.encode(arguments)
            except RecursionError:  # the door has no room either
                pass
            except Exception as error:  # noqa: BLE001 - the containment door
                recorder.fault("capture arguments", error)
            except BaseException as error:  # a Ctrl-C while it runs the program's code: the call is not made
                step.leave(error)
                raise
        return step

    return begin


def _name_of(function: Any) -> str:
    inner: object = function.func if issubclass(type(function), functools.partial) else function
    try:
        name: object = getattr(inner, "__name__", None)
    except Exception:  # noqa: BLE001 - a callable object whose attributes raise
        name = None
    return str.__str__(name) if is_text(name) else class_name(type(inner))


def _calling(function: Callable[..., Any], begin: _Begin, keep: bool | None) -> Callable[..., Any]:
    recorder = RECORDER

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not recorder.enabled:
            return function(*args, **kwargs)
        try:
            step = begin(args, kwargs)
        except RecursionError:  # no room on the stack to record it, but perhaps to run it
            step = None
        if step is None:
            return function(*args, **kwargs)
        try:
            result: object = function(*args, **kwargs)
        except BaseException as error:
            hide_own_frame(error)
            step.leave(error)
            raise
        if id(type(result)) not in _NO_STREAMS and (stream := followed(result, step, keep)) is not None:
            return stream
        step.returned(result, capture=recorder.capture_output if keep is None else keep)
        return result

    return wrapper


def _awaiting(function: Callable[..., Any], begin: _Begin, keep: bool | None) -> Callable[..., Any]:
    recorder = RECORDER

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not recorder.enabled:
            return await function(*args, **kwargs)
        try:
            step = begin(args, kwargs)
        except RecursionError:  # no room on the stack to record it, but perhaps to run it
            step = None
        if step is None:
            return await function(*args, **kwargs)
        try:
            result: object = await function(*args, **kwargs)
        except BaseException as error:
            hide_own_frame(error)
            step.leave(error)
            raise
        if id(type(result)) not in _NO_STREAMS and (stream := followed(result, step, keep)) is not None:
            return stream
        step.returned(result, capture=recorder.capture_output if keep is None else keep)
        return result

    return wrapper


def _generating(function: Callable[..., Any], begin: _Begin, keep: bool | None) -> Callable[..., Any]:
    return drive(function, lambda args, kwargs: Body(begin(args, kwargs), keep))


def _async_generating(function: Callable[..., Any], begin: _Begin, keep: bool | None) -> Callable[..., Any]:
    return drive_async(function, lambda args, kwargs: Body(begin(args, kwargs), keep))


_KINDS: Final = (
    (inspect.iscoroutinefunction, _awaiting),
    (inspect.isgeneratorfunction, _generating),
    (inspect.isasyncgenfunction, _async_generating),
)
