"""Pass a model's stream through, noting when its first chunk came and what its chunks say together.

What must stay true: the consumer sees every chunk, exception and end exactly as without us, and what is kept of the
stream is bounded.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar, cast

from stepwell._recorder import RECORDER
from stepwell._values import is_text

if TYPE_CHECKING:
    from stepwell._span import StepSpan

__all__ = ["StepStream"]

T = TypeVar("T")
MAX_CHUNKS: Final = 100_000
MAX_CHUNK_BYTES: Final = 8 * 1024 * 1024


class StepStream(Generic[T]):
    """An iterator, or async iterator, over the chunks of another; attributes of that one are reached through it."""

    _chunks: Any = None  # on the class too: a copy asks for attributes before it has any
    _step: StepSpan | None = None

    def __init__(self, step: StepSpan, chunks: Iterable[T] | AsyncIterable[T]) -> None:
        self._step = step
        self._source: Any = chunks  # what a with-block enters and leaves
        self._chunks = chunks  # what the chunks come from: the source, or what entering it gave
        self._iterator: Any = None
        self._kept: list[object] = []
        self._bytes = 0
        self._count = 0

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            if self._iterator is None:
                self._iterator = iter(self._chunks)
            chunk = next(self._iterator)
        except BaseException:
            self.finish()
            raise
        self._note(chunk)
        return cast("T", chunk)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        try:
            if self._iterator is None:
                self._iterator = aiter(self._chunks)
            chunk = await anext(self._iterator)
        except BaseException:
            self.finish()
            raise
        self._note(chunk)
        return cast("T", chunk)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chunks, name)

    def __enter__(self) -> Self:
        enter = getattr(self._source, "__enter__", None)
        if enter is not None:
            self._chunks = enter()
        return self

    def __exit__(self, *raised: object) -> Any:
        self.finish()
        leave = getattr(self._source, "__exit__", None)
        if leave is not None:
            return leave(*raised)
        close = getattr(self._source, "close", None)
        if close is not None:
            close()
        return None

    async def __aenter__(self) -> Self:
        enter = getattr(self._source, "__aenter__", None)
        if enter is not None:
            self._chunks = await enter()
        return self

    async def __aexit__(self, *raised: object) -> Any:
        self.finish()
        leave = getattr(self._source, "__aexit__", None)
        if leave is not None:
            return await leave(*raised)
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()
        return None

    def __del__(self) -> None:  # a consumer that broke off
        try:
            self.finish()
        except BaseException as error:  # noqa: BLE001 - from here even a Ctrl-C would only be printed
            RECORDER.fault("read a stream", error)

    def _note(self, chunk: object) -> None:
        step = self._step
        if step is None:
            return
        try:
            self._count += 1
            if self._count == 1:
                step.first_token()
            if self._count <= MAX_CHUNKS and self._bytes < MAX_CHUNK_BYTES:
                # Not `sys.getsizeof`: it asks the chunk, and a mock notes that it was asked.
                self._bytes += str.__len__(chunk) if is_text(chunk) else object.__sizeof__(chunk)
                self._kept.append(chunk)
        except Exception as error:  # noqa: BLE001 - the containment door
            RECORDER.fault("read a stream", error)

    def finish(self) -> None:
        """Put on the step what came so far; the chunks that still come are passed through. Internal."""
        step, self._step = self._step, None
        if step is not None and self._count:
            step.record_stream(self._kept)
