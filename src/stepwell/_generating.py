"""What runs a generator's own code inside its step: the drivers of generators and async generators, and their state.

What must stay true:

1. `send`, `throw`, `close`, the return value and exceptions pass through, with no frame of ours in the traceback.
2. The step is current only while the generator's own code runs; it ends once, at exhaustion, error, close or
   collection, in any task or thread.
3. What is kept of the items is bounded, and is what they were when they were yielded.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Final, cast

import orjson

from stepwell._context import Context, attach, get_current
from stepwell._frames import hide_own_frame
from stepwell._recorder import RECORDER
from stepwell._step import Step

__all__ = ["Body", "Inside", "MakeBody", "drive", "drive_async"]

MAX_ITEMS: Final = 10_000  # yielded items kept as a generator's output
MAX_ITEM_BYTES: Final = 4 * 1024 * 1024

MakeBody = Callable[[tuple[Any, ...], dict[str, Any]], "Inside"]


def drive(function: Callable[..., Any], make_body: MakeBody) -> Callable[..., Any]:
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


def drive_async(function: Callable[..., Any], make_body: MakeBody) -> Callable[..., Any]:
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


class Inside:
    """A generator's own code: the context it runs in, which it may change, and the time it takes."""

    def __init__(self, context: Context) -> None:
        self._inside = context
        self._active_ns = 0

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
        """Hear of an item that was yielded."""

    def end(self, error: BaseException | None) -> None:
        """Hear of the end, and of what was raised."""


class Body(Inside):
    """The same with a step, and with what is yielded."""

    def __init__(self, step: Step, keep: bool | None) -> None:
        """Take the context that is current now for the body, and give the caller back the one before the step."""
        super().__init__(get_current())
        self._step = step
        self._keep = RECORDER.capture_output if keep is None else keep
        self._items: list[bytes] = []
        self._texts: list[Any] | None = []  # the items as long as all are strings, or all are bytes
        self._count = self._kept = self._size = 0
        step._restore()

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
            kind = type(item)  # by identity: a class may be hashed, and compared, by code of its own
            if (kind is str or kind is bytes) and kind is type(self._texts[0] if self._texts else item):
                self._texts.append(item)
                self._size += len(cast("str", item))
                self._kept += 1
                return
            self._items = RECORDER.capture.pieces(self._texts)
            self._texts = None
        encoded = RECORDER.encode(item)
        self._items.append(encoded)
        self._kept += 1
        self._size += len(encoded)

    def __del__(self) -> None:
        if self._step.is_recording():  # a returned generator that nobody ever asked for an item
            try:
                self.end(GeneratorExit())
            except BaseException as error:  # noqa: BLE001 - from here even a Ctrl-C would only be printed
                RECORDER.fault("finish a step", error)

    @property
    def unread(self) -> bool:
        """Whether nobody has got an item yet."""
        return self._count == 0

    def end(self, error: BaseException | None) -> None:
        """End the step, with what was yielded as its output."""
        step = self._step
        try:
            if self._keep and step.is_recording():
                self._give(step)
        finally:
            step.drained(error, self._active_ns)

    def _give(self, step: Step) -> None:
        whole = self._kept == self._count
        if whole and self._texts and type(self._texts[0]) is str:
            text = "".join(self._texts)
            step.yielded(RECORDER.encode(text), text)
        elif whole and self._texts is None and step.type == "llm":
            step.record_stream([orjson.loads(item) for item in self._items])  # a provider's chunks
        else:
            step.yielded(self._output(), None)

    def _output(self) -> bytes:
        items = self._items if self._texts is None else RECORDER.capture.pieces(self._texts)
        if self._kept < self._count:
            items = [*items, b'{"$stepwell":"truncated","items":%d}' % (self._count - self._kept)]
        return b"[" + b",".join(items) + b"]"
