"""Decorated functions: what happens around each call, for functions, coroutines, generators and async generators.

What must stay true:

1. A decorated call returns what the function returns and raises what it raises, with no frame of ours in the
   traceback; nothing that fails in here changes that.
2. A decorated generator function is one: `send`, `throw`, `close` and the return value pass through. Its step is
   current only while its own code runs; it ends once, at exhaustion, error, close or collection, in any task or thread.
3. A generator or streaming response that a decorated function returns keeps the step open until it ends.
4. The sync and async forms differ in `await` alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from stepwell._binding import binder
from stepwell._checks import shown
from stepwell._context import attach, get_current
from stepwell._frames import hide_own_frame
from stepwell._recorder import RECORDER
from stepwell._step import Step
from stepwell.errors import UsageError

if TYPE_CHECKING:
    from stepwell._recording import Recording

__all__ = ["decorate"]

F = TypeVar("F", bound=Callable[..., Any])
_Begin = Callable[[tuple[Any, ...], dict[str, Any]], Step]
_MakeBody = Callable[[tuple[Any, ...], dict[str, Any]], "_Body"]

MAX_ITEMS: Final = 10_000  # yielded items kept as a generator's output
MAX_ITEM_BYTES: Final = 4 * 1024 * 1024
_GENERATORS: Final = frozenset({GeneratorType, AsyncGeneratorType})
# What functions mostly return, and what is no stream: one lookup spares the closer look.
_NO_STREAMS: Final = frozenset({type(None), bool, int, float, str, bytes, dict, list, tuple, set})


def decorate(function: F, recording: Recording) -> F:
    """Wrap a function of any kind, a method, or the descriptor of one. Raises `UsageError` for what can't be called."""
    target: Any = function
    if isinstance(target, classmethod):
        return cast("F", classmethod(decorate(cast("Any", target).__func__, recording)))
    if isinstance(target, staticmethod):
        return cast("F", staticmethod(decorate(cast("Any", target).__func__, recording)))
    if not callable(target):
        raise UsageError(f"only a function can be decorated, got {shown(target)}")
    wrap = _calling
    for is_kind, wrap_kind in _KINDS:
        if is_kind(target) or is_kind(getattr(target, "__call__", None)):  # noqa: B004 - the method itself is asked for
            wrap = wrap_kind
    wrapper = wrap(target, _beginner(target, recording), recording.options.get("capture_output"))
    functools.update_wrapper(wrapper, target)
    return cast("F", wrapper)


def _beginner(function: Any, recording: Recording) -> _Begin:
    """Make the function that opens the step of a call and captures its arguments."""
    inner: Any = function.func if isinstance(function, functools.partial) else function
    name = str(getattr(inner, "__name__", type(inner).__name__))
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
            except Exception as error:  # noqa: BLE001 - the containment door
                recorder.fault("capture arguments", error)
        return step

    return begin


def _calling(function: Callable[..., Any], begin: _Begin, keep: bool | None) -> Callable[..., Any]:
    recorder = RECORDER

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not recorder.enabled:
            return function(*args, **kwargs)
        step = begin(args, kwargs)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            hide_own_frame(error)
            step.leave(error)
            raise
        if type(result) not in _NO_STREAMS and (stream := _streamed(result, step, keep)) is not None:
            return stream
        step.returned(result, capture=recorder.capture_output if keep is None else keep)
        return result

    return wrapper


def _awaiting(function: Callable[..., Any], begin: _Begin, keep: bool | None) -> Callable[..., Any]:
    recorder = RECORDER

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not recorder.enabled:
            return await function(*args, **kwargs)
        step = begin(args, kwargs)
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            hide_own_frame(error)
            step.leave(error)
            raise
        if type(result) not in _NO_STREAMS and (stream := _streamed(result, step, keep)) is not None:
            return stream
        step.returned(result, capture=recorder.capture_output if keep is None else keep)
        return result

    return wrapper


def _generating(function: Callable[..., Any], begin: _Begin, keep: bool | None) -> Callable[..., Any]:
    return _drive(function, lambda args, kwargs: _Body(begin(args, kwargs), keep))


def _async_generating(function: Callable[..., Any], begin: _Begin, keep: bool | None) -> Callable[..., Any]:
    return _drive_async(function, lambda args, kwargs: _Body(begin(args, kwargs), keep))


def _drive(function: Callable[..., Any], make_body: _MakeBody) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        body = make_body(args, kwargs)
        try:
            generator = body.run(function, *args, **kwargs)
            item = body.run(generator.send, None)
            while True:
                body.note(item)
                try:
                    sent = yield item
                except GeneratorExit:
                    body.run(generator.close)
                    raise
                except BaseException as thrown:  # noqa: BLE001 - the generator decides
                    item = body.run(generator.throw, thrown)
                else:
                    item = body.run(generator.send, sent)
        except StopIteration as stop:
            body.end(None)
            return stop.value
        except BaseException as error:
            hide_own_frame(error)
            body.end(error)
            raise

    return wrapper


def _drive_async(function: Callable[..., Any], make_body: _MakeBody) -> Callable[..., Any]:
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        body = make_body(args, kwargs)
        try:
            generator = body.run(function, *args, **kwargs)
            item = await body.wait(generator.asend(None))
            while True:
                body.note(item)
                try:
                    sent = yield item
                except GeneratorExit:
                    await body.wait(generator.aclose())
                    raise
                except BaseException as thrown:  # noqa: BLE001 - the generator decides
                    item = await body.wait(generator.athrow(thrown))
                else:
                    item = await body.wait(generator.asend(sent))
        except StopAsyncIteration:
            body.end(None)
        except BaseException as error:
            hide_own_frame(error)
            body.end(error)
            raise

    return wrapper


def _streamed(result: Any, step: Step, keep: bool | None) -> Any:
    """Return what to give the caller in place of a stream, so that the step ends with it; None for what is none."""
    if type(result) in _GENERATORS:
        return _followed(result, step, keep)
    try:  # by the instance's own fields: asking for the attribute might run code of the program
        fields: Any = object.__getattribute__(result, "__dict__")
        stream: Any = fields.get("body_iterator")  # of a response of Starlette, and so of FastAPI
    except Exception:  # noqa: BLE001 - no such fields
        return None
    if type(stream) is not AsyncGeneratorType:
        return None
    fields["body_iterator"] = _followed(stream, step, keep)
    return result


def _followed(stream: Any, step: Step, keep: bool | None) -> Any:
    body = _Body(step, keep)  # now: the caller gets the context back before the first item is asked for
    drive = _drive if inspect.isgenerator(stream) else _drive_async
    return drive(lambda: stream, lambda _, __: body)()


_KINDS: Final = (
    (inspect.iscoroutinefunction, _awaiting),
    (inspect.isgeneratorfunction, _generating),
    (inspect.isasyncgenfunction, _async_generating),
)


class _Body:
    """A generator's own code: the context it runs in, the time it takes, and what it yields."""

    def __init__(self, step: Step, keep: bool | None) -> None:
        """Take the context that is current now for the body, and give the caller back the one before the step."""
        self._step = step
        self._keep = RECORDER.capture_output if keep is None else keep
        self._inside = get_current()
        self._active_ns = 0
        self._items: list[bytes] = []
        self._texts: list[str] | None = []
        self._count = self._size = 0
        attach(step._previous)

    def run(self, advance: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the code up to its next yield, in its own context, and put the caller's back."""
        outside, began = self._enter()
        try:
            return advance(*args, **kwargs)
        except BaseException as error:
            hide_own_frame(error)
            raise
        finally:
            self._leave(outside, began)

    async def wait(self, advance: Any) -> Any:
        """Do what `run` does, for an awaitable."""
        outside, began = self._enter()
        try:
            return await advance
        except BaseException as error:
            hide_own_frame(error)
            raise
        finally:
            self._leave(outside, began)

    def _enter(self) -> tuple[Any, int]:
        outside = get_current()
        attach(self._inside)
        return outside, RECORDER.monotonic_ns()

    def _leave(self, outside: Any, began: int) -> None:
        self._active_ns += RECORDER.monotonic_ns() - began
        self._inside = get_current()
        attach(outside)

    def note(self, item: object) -> None:
        """Keep what was yielded, as it is now, within bounds."""
        self._count += 1
        if not self._step.is_recording():
            return
        if self._count == 1 and self._step.type == "llm":
            self._step.first_token()
        if self._keep and self._count <= MAX_ITEMS and self._size < MAX_ITEM_BYTES:
            try:
                self._keep_item(item)
            except Exception as error:  # noqa: BLE001 - the containment door
                RECORDER.fault("capture an item", error)

    def _keep_item(self, item: object) -> None:
        if self._texts is not None:
            if type(item) is str:
                self._texts.append(item)
                self._size += len(item)
                return
            self._items = [RECORDER.encode(text) for text in self._texts]
            self._texts = None
        encoded = RECORDER.encode(item)
        self._items.append(encoded)
        self._size += len(encoded)

    def __del__(self) -> None:
        if self._step.is_recording():  # a returned generator that nobody ever asked for an item
            self.end(GeneratorExit())

    def end(self, error: BaseException | None) -> None:
        """End the step, with what was yielded as its output."""
        step = self._step
        if self._keep and step.is_recording():
            text = "".join(self._texts) if self._texts and len(self._texts) == self._count else None
            step.yielded(self._output() if text is None else RECORDER.encode(text), text)
        step.drained(error, self._active_ns)

    def _output(self) -> bytes:
        kept = len(self._items) if self._texts is None else len(self._texts)
        items = self._items if self._texts is None else [RECORDER.encode(text) for text in self._texts]
        if kept < self._count:
            items = [*items, b'{"$stepwell":"truncated","items":%d}' % (self._count - kept)]
        return b"[" + b",".join(items) + b"]"
