"""Streams that a decorated function returns: its step stays open until they end.

Followed are generators, async generators, pure iterators (what can be done with them is `next`, `close` and being
entered), and responses of Starlette and FastAPI by their `body_iterator`. What can be read in other ways too (a file, a
database cursor, a sequence) is left alone: nobody could tell when it ends.

What must stay true:

1. A generator that was returned is one for the caller too; another iterator is stood for by an object that passes for
   it: its class, attributes and copies are those of the original.
2. Looking for a stream runs no code of the program.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable
from types import AsyncGeneratorType, GeneratorType
from typing import Any, Final, Self, cast

from stepwell._frames import hide_own_frame
from stepwell._generating import Body, drive, drive_async
from stepwell._step import Step
from stepwell._values import mro_of, namespace_of, own_fields

__all__ = ["followed"]

_ENTER: Final = frozenset({"__enter__", "__aenter__"})
_OTHER_USES: Final = frozenset({"__len__", "__getitem__", "__call__", "read", "fetchone", "recv"})
_ENDS: Final = frozenset({"close", "aclose"})


def followed(result: Any, step: Step, keep: bool | None) -> Any:
    """Return what to give the caller in place of a stream, so that the step ends with it; None for what is none."""
    kind: type = type(cast("object", result))
    if kind is GeneratorType or kind is AsyncGeneratorType:
        return _driven(result, step, keep)
    spaces = list(map(namespace_of, mro_of(kind)))
    if any("__next__" in space or "__anext__" in space for space in spaces):
        names = set[str]().union(*spaces)
        if not names.isdisjoint(_OTHER_USES):
            return None
        return _STAND_INS["__anext__" in names, not names.isdisjoint(_ENTER)](result, Body(step, keep))
    fields = own_fields(result)
    stream: object = None if fields is None else fields.get("body_iterator")
    if fields is None or stream is None or not _is_async_iterable(stream):
        return None
    fields["body_iterator"] = _driven(
        cast("Any", stream if type(stream) is AsyncGeneratorType else _items_of(cast("Any", stream))), step, keep
    )
    return result


def _is_async_iterable(value: object) -> bool:
    return any("__aiter__" in namespace_of(base) for base in mro_of(type(value)))


def _driven(stream: Any, step: Step, keep: bool | None) -> Any:
    body = Body(step, keep)  # now: the caller gets the context back before the first item is asked for

    def make_body(_args: object, _kwargs: object) -> Body:
        return body

    def give() -> Any:
        return stream

    return (drive if type(cast("object", stream)) is GeneratorType else drive_async)(give, make_body)()


async def _items_of(stream: AsyncIterable[Any]) -> AsyncIterator[Any]:
    async for item in stream:
        yield item


class _StandIn:
    """Passes for an iterator, and runs its code inside the step."""

    __slots__ = ("__weakref__", "_stepwell_body", "_stepwell_stream")

    _stepwell_body: Body
    _stepwell_stream: Any

    def __init__(self, stream: Any, body: Body) -> None:
        object.__setattr__(self, "_stepwell_stream", stream)
        object.__setattr__(self, "_stepwell_body", body)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(cast("object", self._stepwell_stream))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._stepwell_stream, name)
        return _closing(value, self._stepwell_body) if name in _ENDS else value

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._stepwell_stream, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._stepwell_stream, name)

    def __dir__(self) -> list[str]:
        return dir(self._stepwell_stream)

    def __repr__(self) -> str:
        return repr(self._stepwell_stream)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._stepwell_stream.__reduce_ex__(protocol)

    def __del__(self) -> None:
        if self._stepwell_body.unread:  # it was consumed in a way of its own, or not at all: the call itself went well
            self._stepwell_body.end(None)


def _closing(close: Callable[..., Any], body: Body) -> Callable[..., Any]:
    def closing(*args: Any, **kwargs: Any) -> Any:
        try:
            return body.run(close, *args, **kwargs)
        finally:
            body.end(GeneratorExit())

    async def closing_async(*args: Any, **kwargs: Any) -> Any:
        try:
            return await body.wait(close(*args, **kwargs))
        finally:
            body.end(GeneratorExit())

    return closing_async if inspect.iscoroutinefunction(close) else closing


class _Iterator(_StandIn):
    __slots__ = ()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        body = self._stepwell_body
        try:
            item = body.run(next, self._stepwell_stream)
        except BaseException as error:
            hide_own_frame(error)
            body.end(None if isinstance(error, StopIteration) else error)
            raise
        body.note(item)
        return item


class _AsyncIterator(_StandIn):
    __slots__ = ()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        body = self._stepwell_body
        try:
            item = await body.wait(anext(self._stepwell_stream))
        except BaseException as error:
            hide_own_frame(error)
            body.end(None if isinstance(error, StopAsyncIteration) else error)
            raise
        body.note(item)
        return item


class _EnteredIterator(_Iterator):
    __slots__ = ()

    def __enter__(self) -> Any:
        entered = self._stepwell_stream.__enter__()
        return self if entered is self._stepwell_stream else entered

    def __exit__(self, *raised: object) -> Any:
        try:
            return self._stepwell_stream.__exit__(*raised)
        finally:
            self._stepwell_body.end(cast("BaseException | None", raised[1]) or GeneratorExit())


class _EnteredAsyncIterator(_AsyncIterator):
    __slots__ = ()

    async def __aenter__(self) -> Any:
        entered = await self._stepwell_stream.__aenter__()
        return self if entered is self._stepwell_stream else entered

    async def __aexit__(self, *raised: object) -> Any:
        try:
            return await self._stepwell_stream.__aexit__(*raised)
        finally:
            self._stepwell_body.end(cast("BaseException | None", raised[1]) or GeneratorExit())


# By whether it is async, and whether a with-block takes it.
_STAND_INS: Final[dict[tuple[bool, bool], Callable[[Any, Body], Any]]] = {
    (False, False): _Iterator,
    (False, True): _EnteredIterator,
    (True, False): _AsyncIterator,
    (True, True): _EnteredAsyncIterator,
}
