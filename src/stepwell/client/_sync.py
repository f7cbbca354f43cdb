"""`Client`: reads and writes a store, here or behind a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self, TypeVar, Unpack

import stepwell.client._requests as ask
from stepwell.client._adding import Record, batches, together
from stepwell.client._filters import RollupFilters, ScoreFilters, StepFilters, ThreadFilters
from stepwell.client._http import Http
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
from stepwell.client._pages import Page
from stepwell.client._pieces import Lines, Saving, Whole
from stepwell.client._requests import Download, Paging, Request
from stepwell.errors import ClosedError, UsageError
from stepwell.store import Order, Store

__all__ = ["Client", "is_url"]

T = TypeVar("T")


class _Transport(Protocol):
    def run(self, request: Request[T]) -> T: ...
    def pieces(self, download: Download) -> Iterator[bytes]: ...
    def close(self) -> None: ...


class _OnThread:
    """Asks a store on the caller's thread."""

    def __init__(self, local: Local) -> None:
        self._local = local

    def __str__(self) -> str:
        return str(self._local)

    def run(self, request: Request[T]) -> T:
        return request.of_place(self._local.place())

    def pieces(self, download: Download) -> Iterator[bytes]:
        return download.pieces(self._local.place())

    def close(self) -> None:
        self._local.close()


def is_url(target: object) -> bool:
    """Say whether a target is a server's URL."""
    return isinstance(target, str) and target.lower().startswith(("http:", "https:"))


class Client:
    """Reads and writes what was recorded, in a store here or behind a server; safe to use from several threads.

    `target` is the URL of a server (`https://HOST[:PORT][/BASE]`), a store's file (`sqlite:PATH`, or a path), a home
    folder, or a `Store` that is open; without it, the home that `STEPWELL_HOME` names, else `.stepwell`. A file is
    opened with the first question; a home's store then holds what its journal still does. `key` is the server's; the
    one in the URL (`https://KEY@HOST`) goes before it, and `STEPWELL_API_KEY` is asked for last. `timeout` is how many
    seconds each wait for the server may take, `deadline` how many a question may take altogether; what is streamed
    (`export`, `attachment`, `download`) may take longer.

    The same question has the same answer whatever the target is. Raises `UsageError` for wrong arguments,
    `NotFoundError` for what is not there, `ClientError` where a server gives no answer or refuses the request,
    `StoreError` for a store that can't be used, `ClosedError` after `close`.

        with stepwell.Client("http://127.0.0.1:8765") as client:
            for step in client.steps(type="llm", min_tokens=1000):
                print(step.name, step.total_tokens, client.step(step.id).output)
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
            self._transport: _Transport = Http(target, key, timeout, deadline)
        elif key is not None:
            raise UsageError("a key is for a server: the target is none")
        else:
            self._transport = _OnThread(Local(target))
        self._closed = False

    def __repr__(self) -> str:
        return f"Client({self._transport})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close connections and files; a `Store` that was given stays open. Closing again does nothing."""
        self._closed = True
        self._transport.close()

    def _run(self, request: Request[T]) -> T:
        self._check_open()
        return self._transport.run(request)

    def _page(self, paging: Paging[T], cursor: str | None) -> Page[T]:
        return Page(self._run(paging(cursor)), lambda after: self._page(paging, after))

    def _pieces(self, download: Download) -> Iterator[bytes]:
        self._check_open()
        return self._transport.pieces(download)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this client is closed")

    # -- lists

    def steps(
        self, *, limit: int = 50, cursor: str | None = None, order: Order = "desc", **filters: Unpack[StepFilters]
    ) -> Page[Step]:
        """List steps by their start, `limit` (1 to 1000) a page; iterate over the page for those of all pages."""
        return self._page(ask.steps(filters, limit, order), cursor)

    def search(
        self,
        text: str,
        /,
        *,
        limit: int = 50,
        cursor: str | None = None,
        order: Order = "desc",
        **filters: Unpack[StepFilters],
    ) -> Page[Hit]:
        """List the steps that hold words, and where, by their start, as `steps` does."""
        return self._page(ask.search(text, filters, limit, order), cursor)

    def runs(
        self, *, limit: int = 50, cursor: str | None = None, order: Order = "desc", **filters: Unpack[StepFilters]
    ) -> Page[Run]:
        """List top-level runs and steps without a parent, by their start, with the sums of what is below them."""
        return self._page(ask.runs(filters, limit, order), cursor)

    def threads(
        self, *, limit: int = 50, cursor: str | None = None, order: Order = "desc", **filters: Unpack[ThreadFilters]
    ) -> Page[Thread]:
        """List threads by their latest activity, with sums over their steps."""
        return self._page(ask.threads(filters, limit, order), cursor)

    def thread_steps(
        self, thread_id: str, *, limit: int = 50, cursor: str | None = None, order: Order = "asc"
    ) -> Page[Step]:
        """List the steps of a thread by their start, oldest first; an unknown thread has none."""
        return self._page(ask.thread_steps(thread_id, limit, order), cursor)

    def scores(
        self, *, limit: int = 50, cursor: str | None = None, order: Order = "desc", **filters: Unpack[ScoreFilters]
    ) -> Page[Score]:
        """List scores by their creation, also those of steps that are not known."""
        return self._page(ask.scores(filters, limit, order), cursor)

    def users(self, *, limit: int = 50, cursor: str | None = None, order: Order = "desc") -> Page[User]:
        """List users by their latest step, with the sums of all their steps."""
        return self._page(ask.users(limit, order), cursor)

    # -- one thing

    def step(self, id: str) -> FullStep:
        """Return a whole step, payloads included."""
        return self._run(ask.step(id))

    def steps_in_full(self, ids: Sequence[str]) -> list[FullStep]:
        """Return whole steps, at most 1000, in the order of their ids; those that are not there are left out."""
        return self._run(ask.steps_in_full(ids))

    def tree(self, id: str) -> list[Step]:
        """Return a step and all steps below it, by start."""
        return self._run(ask.tree(id))

    def thread(self, id: str) -> ThreadDetail:
        """Return a thread, also one known only by its steps."""
        return self._run(ask.thread(id))

    def find(self, id: str) -> Found:
        """Say what an id names, also by 8 or more of a step's first characters if they are unique."""
        return self._run(ask.find(id))

    def changes(self, after: int | None = None, *, limit: int = 500) -> Changes:
        """Return steps added or updated since a position, oldest change first; without one, the position of now."""
        return self._run(ask.changes(after, limit))

    def stats(self) -> Stats:
        """Count what there is; this reads all of it."""
        return self._run(ask.stats())

    def rollups(self, **filters: Unpack[RollupFilters]) -> list[Rollup]:
        """Sum steps by hour, day or over all time, and by fields, oldest first; times without steps are left out."""
        return self._run(ask.rollups(filters))

    # -- writing

    def score(
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
        return self._run(
            ask.score(step_id, name, value, label=label, comment=comment, type=type, tags=tags),
        )

    def feedback(self, step_id: str, label: Literal["positive", "negative"], *, comment: str | None = None) -> Score:
        """Keep a user's verdict on a step: the score named `feedback`."""
        return self._run(ask.feedback(step_id, label, comment))

    def add(self, records: Iterable[Record]) -> Added:
        """Add records: lines of JSON, mappings, or `stepwell.model` records. Those added before change nothing."""
        return together(self._run(batch) for batch in batches(records))

    def delete_thread(self, id: str) -> Deleted:
        """Delete a thread, its steps, their scores and attachments of no other step; a key needs the scope admin."""
        return self._run(ask.delete_thread(id))

    def delete_run(self, id: str) -> Deleted:
        """Delete the run that a step is of: all steps of its trace, and those below its root."""
        return self._run(ask.delete_run(id))

    def delete_user(self, user: str) -> Deleted:
        """Delete the threads of a user (identifier or id) and all runs with a step of the user."""
        return self._run(ask.delete_user(user))

    # -- bytes

    def export(self, **filters: Unpack[StepFilters]) -> Iterator[bytes]:
        """Yield records as lines of JSON: threads, then steps by start, then scores whose step is unknown.

        With a condition: the steps that meet it and their threads. `add` takes them, in this order or any other.
        """
        return _lines_of(self._pieces(ask.export(filters)))

    def attachment(self, sha256: str) -> bytes:
        """Return the bytes of an attachment, of 256 MiB at most: `download` takes larger ones."""
        whole = Whole(sha256)
        for piece in self._pieces(ask.attachment(sha256)):
            whole.add(piece)
        return whole.checked()

    def download(self, sha256: str, path: str | Path) -> Path:
        """Write an attachment to a file, which is there only when it is whole; return its path. Raises `OSError`."""
        pieces = self._pieces(ask.attachment(sha256))
        with Saving(Path(path), sha256) as file:
            for piece in pieces:
                file.write(piece)
            return file.keep()


def _lines_of(pieces: Iterator[bytes]) -> Iterator[bytes]:
    lines = Lines()
    for piece in pieces:
        yield from lines.of(piece)
    lines.end()
