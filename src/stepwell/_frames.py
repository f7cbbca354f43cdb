"""What wrappers owe what they wrap: its name, and tracebacks without frames of ours that a reader must skip."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = ["hide_own_frame", "is_coroutine_function", "named_as", "wrap_for"]

Wrap = TypeVar("Wrap")


def hide_own_frame(error: BaseException) -> None:
    """Take the first frame, the caller's, off the traceback of the exception it is handling.

    The bare `raise` that follows does not add it again (CPython since 3.11). Done by the base class's method, since
    the exception may be one that refuses to be changed, a frozen dataclass for instance.
    """
    frames = sys.exc_info()[2]
    if frames is not None:
        BaseException.with_traceback(error, frames.tb_next)


def named_as(wrapped: Any, wrapper: Callable[..., Any]) -> Any:
    """Give the wrapper the name, module, signature and attributes of what it wraps, as far as that tells them."""
    # The fields of a class are those of its instances, not of what makes them.
    fields = () if issubclass(type(wrapped), type) else functools.WRAPPER_UPDATES
    try:
        return functools.update_wrapper(wrapper, wrapped, updated=fields)
    except Exception:  # noqa: BLE001 - a callable object whose attributes raise
        return wrapper


def wrap_for(function: Any, kinds: Iterable[tuple[Callable[[Any], bool], Wrap]], plain: Wrap) -> Wrap:
    """Return what wraps a function of this kind: a coroutine or generator function, or an object called as one."""
    try:
        method: Any = getattr(function, "__call__", None)  # noqa: B004 - the method itself is asked for
        found = [wrap for is_kind, wrap in kinds if is_kind(function) or is_kind(method)]
    except Exception:  # noqa: BLE001 - a callable object whose attributes raise
        return plain
    return found[-1] if found else plain


def is_coroutine_function(function: Any) -> bool:
    """Say whether calling it gives a coroutine: a function, or an object whose `__call__` is one."""
    return wrap_for(function, [(inspect.iscoroutinefunction, True)], False)
