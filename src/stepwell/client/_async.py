"""`AsyncClient`: `Client` for programs with an event loop, asyncio's or trio's."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Protocol, Self, TypeVar, Unpack

from anyio import to_thread

import stepwell.client._requests as ask
from stepwell.client._adding import Record, batches, together
from stepwell.client._filters import RollupFilters, ScoreFilters, StepFilters, ThreadFilters
from stepwell.client._http import AsyncHttp
from stepwell.client._local import Local
from stepwell.client._models import (
    Added,
    Changes,
    Deleted,
    Found,
    FullStep,
    Hit,
    Rollup,
    Run,
    Score,
    Stats,
    Step,
    Thread,
    ThreadDetail,
    User,
)
from stepwell.client._pages import AsyncPage, AsyncPages
from stepwell.client._pieces import Lines, Saving, Whole
from stepwell.client._requests import Download, Paging, Request
from stepwell.client._sync import is_url
from stepwell.errors import ClosedError, UsageError
from stepwell.store import Order, Store

__all__ = ["AsyncClient"]

T = TypeVar("T")
_PIECE: Final = 64 * 1024


class _Transport(Protocol):
    async def run(self, request: Request[T]) -> T: ...
    def pieces(self, download: Download) -> AsyncGenerator[bytes]: ...
    async def close(self) -> None: ...


class _OnWorkers:
    """Asks a store on worker threads, so that the event loop goes on."""

    def __init__(self, local: Local) -> None:
        self._local = local

    def __str__(self) -> str:
        return str(self._local)

    async def run(self, request: Request[T]) -> T:
        return await to_thread.run_sync(self._run, request)

    def _run(self, request: Request[T]) -> T:
        return request.of_place(self._local.place())

    async def pieces(self, download: Download) -> AsyncGenerator[bytes]:
        pieces = await to_thread.run_sync(lambda: download.pieces(self._local.place()))
        while piece := await to_thread.run_sync(_some_of, pieces):
            yield piece

    async def close(self) -> None:
        await to_thread.run_sync(self._local.close)


def _some_of(pieces: Iterator[bytes]) -> bytes:
    """Return the next pieces together; nothing where they end."""
    some = bytearray()
    for piece in pieces:
        some += piece
        if len(some) >= _PIECE:
            break
    return bytes(some)


class AsyncClient:
    """Is `Client` for programs with an event loop: the same arguments, questions, answers and errors.

    What `Client` returns is awaited here; lists are awaited for a page, or iterated over with `async for`. A store on
    this machine is asked on worker threads, so that the loop goes on.

        async with stepwell.AsyncClient("http://127.0.0.1:8765") as client:
            async for step in client.steps(type="llm", min_tokens=1000):
                print(step.name, step.total_tokens)
    """

    def __init__(
        self,
        target: str | Path | Store | None = None,
        *,
        key: str | None = None,
        timeout: float = 30.0,
        deadline: float = 300.0,
    ) -> None:
        if isinstance(target, str) and is_url(target):
            self._transport: _Transport = AsyncHttp(target, key, timeout, deadline)
        elif key is not None:
            raise UsageError("a key is for a server: the target is none")
        else:
            self._transport = _OnWorkers(Local(target))
        self._closed = False

    def __repr__(self) -> str:
        return f"AsyncClient({self._transport})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close connections and files; a `Store` that was given stays open. Closing again does nothing."""
        self._closed = True
        await self._transport.close()

    async def _run(self, request: Request[T]) -> T:
        self._check_open()
        return await self._transport.run(request)

    async def _page(self, paging: Paging[T], cursor: str | None) -> AsyncPage[T]:
        return AsyncPage(await self._run(paging(cursor)), lambda after: self._page(paging, after))

    def _pages(self, paging: Paging[T], cursor: str | None) -> AsyncPages[T]:
        return AsyncPages(lambda: self._page(paging, cursor))

    def _pieces(self, download: Download) -> AsyncGenerator[bytes]:
        self._check_open()
        return self._transport.pieces(download)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this client is closed")

    # -- lists

    def steps(
        self, *, limit: int = 50, cursor: str | None = None, order: Order = "desc", **filters: Unpack[StepFilters]
    ) -> AsyncPages[Step]:
        """List steps by their start, `limit` (1 to 1000) a page: `await` gives a page, `async for` all steps."""
        return self._pages(ask.steps(filters, limit, order), cursor)

    def search(
        self,
        text: str,
        /,
        *,
        limit: int = 50,
        cursor: str | None = None,
        order: Order = "desc",
        **filters: Unpack[StepFilters],
    ) -> AsyncPages[Hit]:
        """List the steps that hold words, and where, by their start, as `steps` does."""
        return self._pages(ask.search(text, filters, limit, order), cursor)

    def runs(
        self, *, limit: int = 50, cursor: str | None = None, order: Order = "desc", **filters: Unpack[StepFilters]
    ) -> AsyncPages[Run]:
        """List top-level runs and steps without a parent, by their start, with the sums of what is below them."""
        return self._pages(ask.runs(filters, limit, order), cursor)

    def threads(
        self, *, limit: int = 50, cursor: str | None = None, order: Order = "desc", **filters: Unpack[ThreadFilters]
    ) -> AsyncPages[Thread]:
        """List threads by their latest activity, with sums over their steps."""
        return self._pages(ask.threads(filters, limit, order), cursor)

    def thread_steps(
        self, thread_id: str, *, limit: int = 50, cursor: str | None = None, order: Order = "asc"
    ) -> AsyncPages[Step]:
        """List the steps of a thread by their start, oldest first; an unknown thread has none."""
        return self._pages(ask.thread_steps(thread_id, limit, order), cursor)

    def scores(
        self, *, limit: int = 50, cursor: str | None = None, order: Order = "desc", **filters: Unpack[ScoreFilters]
    ) -> AsyncPages[Score]:
        """List scores by their creation, also those of steps that are not known."""
        return self._pages(ask.scores(filters, limit, order), cursor)

    def users(self, *, limit: int = 50, cursor: str | None = None, order: Order = "desc") -> AsyncPages[User]:
        """List users by their latest step, with the sums of all their steps."""
        return self._pages(ask.users(limit, order), cursor)

    # -- one thing

    async def step(self, id: str) -> FullStep:
        """Return a whole step, payloads included."""
        return await self._run(ask.step(id))

    async def steps_in_full(self, ids: Sequence[str]) -> list[FullStep]:
        """Return whole steps, at most 1000, in the order of their ids; those that are not there are left out."""
        return await self._run(ask.steps_in_full(ids))

    async def tree(self, id: str) -> list[Step]:
        """Return a step and all steps below it, by start."""
        return await self._run(ask.tree(id))

    async def thread(self, id: str) -> ThreadDetail:
        """Return a thread, also one known only by its steps."""
        return await self._run(ask.thread(id))

    async def find(self, id: str) -> Found:
        """Say what an id names, also by 8 or more of a step's first characters if they are unique."""
        return await self._run(ask.find(id))

    async def changes(self, after: int | None = None, *, limit: int = 500) -> Changes:
        """Return steps added or updated since a position, oldest change first; without one, the position of now."""
        return await self._run(ask.changes(after, limit))

    async def stats(self) -> Stats:
        """Count what there is; this reads all of it."""
        return await self._run(ask.stats())

    async def rollups(self, **filters: Unpack[RollupFilters]) -> list[Rollup]:
        """Sum steps by hour, day or over all time, and by fields, oldest first; times without steps are left out."""
        return await self._run(ask.rollups(filters))

    # -- writing

    async def score(
        self,
        step_id: str,
        name: str,
        value: float | None = None,
        *,
        label: str | None = None,
        comment: str | None = None,
        type: Literal["HUMAN", "CODE", "AI"] = "CODE",
        tags: Sequence[str] | None = None,
    ) -> Score:
        """Judge a step by a value, a label, or both; one that is not known yet has the score when it comes."""
        return await self._run(
            ask.score(step_id, name, value, label=label, comment=comment, type=type, tags=tags),
        )

    async def feedback(
        self, step_id: str, label: Literal["positive", "negative"], *, comment: str | None = None
    ) -> Score:
        """Keep a user's verdict on a step: the score named `feedback`."""
        return await self._run(ask.feedback(step_id, label, comment))

    async def add(self, records: Iterable[Record]) -> Added:
        """Add records: lines of JSON, mappings, or `stepwell.model` records. Those added before change nothing."""
        return together([await self._run(batch) for batch in batches(records)])

    async def delete_thread(self, id: str) -> Deleted:
        """Delete a thread, its steps, their scores and attachments of no other step; a key needs the scope admin."""
        return await self._run(ask.delete_thread(id))

    async def delete_run(self, id: str) -> Deleted:
        """Delete the run that a step is of: all steps of its trace, and those below its root."""
        return await self._run(ask.delete_run(id))

    async def delete_user(self, user: str) -> Deleted:
        """Delete the threads of a user (identifier or id) and all runs with a step of the user."""
        return await self._run(ask.delete_user(user))

    # -- bytes

    def export(self, **filters: Unpack[StepFilters]) -> AsyncIterator[bytes]:
        """Yield records as lines of JSON: threads, then steps by start, then scores whose step is unknown.

        With a condition: the steps that meet it and their threads. `add` takes them, in this order or any other.
        """
        return _lines_of(self._pieces(ask.export(filters)))

    async def attachment(self, sha256: str) -> bytes:
        """Return the bytes of an attachment, of 256 MiB at most: `download` takes larger ones."""
        whole = Whole(sha256)
        async with aclosing(self._pieces(ask.attachment(sha256))) as pieces:
            async for piece in pieces:
                whole.add(piece)
        return whole.checked()

    async def download(self, sha256: str, path: str | Path) -> Path:
        """Write an attachment to a file, which is there only when it is whole; return its path. Raises `OSError`."""
        file = await to_thread.run_sync(Saving, Path(path), sha256)
        with file:
            async with aclosing(self._pieces(ask.attachment(sha256))) as pieces:
                async for piece in pieces:
                    await to_thread.run_sync(file.write, piece)
            return await to_thread.run_sync(file.keep)


async def _lines_of(pieces: AsyncGenerator[bytes]) -> AsyncIterator[bytes]:
    lines = Lines()
    async with aclosing(pieces):
        async for piece in pieces:
            for line in lines.of(piece):
                yield line
    lines.end()
