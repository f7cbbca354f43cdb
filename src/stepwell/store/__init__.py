"""Where records are kept and found again: the store protocol, its filters and rows, and `open_store`.

What must stay true, of every store:

1. `add` is one transaction, committed when it returns, and idempotent on the record's id: delivering a batch again
   changes nothing. A record that is refused does not take its neighbours with it.
2. A later record with the same id is a partial update: present fields win, absent ones stay; tags unite; scores and
   attachments unite by id; `generation` merges field by field. A finished step never goes back to
   `pending` or `interrupted`.
3. What was added comes back equal, payloads byte by byte.
4. A list costs its page: keyset pagination with an opaque cursor, never an offset. A cursor is a place in the order of
   all that the list may show, so it is good under any filter of the same list and order.
5. Reading never waits for writing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Final, Generic, Literal, Protocol, TypeVar, cast

from msgspec import Struct

from stepwell.errors import UsageError
from stepwell.model import Score, Status, StepRecord, StepType, ThreadRecord
from stepwell.store._filters import (
    Feedback,
    Reaction,
    Scalar,
    ScoreFilter,
    ScoreQuery,
    SoftError,
    StepFilter,
    ThreadFilter,
)
from stepwell.store._summaries import (
    MAX_ROLLUPS,
    Dimension,
    Every,
    Facets,
    Histogram,
    HistogramBin,
    Rollup,
    RollupQuery,
    UserRow,
)

__all__ = [
    "MAX_PAGE",
    "MAX_ROLLUPS",
    "AddResult",
    "Deleted",
    "Dimension",
    "Every",
    "Facets",
    "Feedback",
    "Found",
    "Histogram",
    "HistogramBin",
    "Judgements",
    "Order",
    "Page",
    "Reaction",
    "Rejection",
    "Rollup",
    "RollupQuery",
    "RunRow",
    "Scalar",
    "ScoreFilter",
    "ScoreQuery",
    "SoftError",
    "StepFilter",
    "StepRow",
    "Store",
    "StoreStats",
    "ThreadFilter",
    "ThreadRow",
    "UserRow",
    "open_store",
]

T = TypeVar("T")
Order = Literal["desc", "asc"]

MAX_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Rejection:
    """One record that was not taken: its place in the batch, its id where it could be read, and why."""

    index: int
    id: str | None
    error: str


@dataclass(frozen=True, slots=True)
class AddResult:
    """What became of a batch: `accepted` records changed the store, `duplicates` said nothing new.

    `duplicate_places` are the places of the duplicates in the batch, ascending; results are compared without them.
    """

    accepted: int
    duplicates: int
    rejected: tuple[Rejection, ...] = ()
    duplicate_places: tuple[int, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some rows in order; `next_cursor` continues after them, None where they end.

    `previous_cursor` leads back: in the other order it continues with what is before them.
    """

    items: list[T]
    next_cursor: str | None = None
    previous_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion took away; `blobs` are the SHA-256 (hex) of those that nothing in the store names any more."""

    steps: int = 0
    threads: int = 0
    messages: int = 0
    blobs: tuple[str, ...] = ()


class StepRow(Struct, frozen=True, omit_defaults=True, gc=False):  # it holds texts and numbers: no circle
    """A step as lists show it: everything but its payloads. Absent fields are None, as in the record.

    `error_message` is the first 200 characters. `cost` is the number that the generation names, its `total`, or the sum
    of its parts, in whatever currency it is in. `feedback` is the label of the score of that name
    that was made last (by `created_ns`, then by arrival), None where that is neither `positive` nor `negative`.
    `input_preview` and `output_preview` are the beginnings of what was asked and answered, of what `Store.runs` lists.
    `soft_error` and `reaction` are as `StepFilter` has them, once `Store.catch_up` has looked at the step.
    """

    id: str
    trace_id: str | None = None
    parent_id: str | None = None
    thread_id: str | None = None
    root_run_id: str | None = None
    type: StepType | None = None
    name: str | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    status: Status | None = None
    error_type: str | None = None
    model: str | None = None
    provider: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    tags: tuple[str, ...] = ()
    downgraded_from: StepType | None = None
    child_count: int | None = None
    user: str | None = None
    environment: str | None = None
    service: str | None = None
    release: str | None = None
    error_message: str | None = None
    agent_id: str | None = None
    cost: float | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    ttft_ns: int | None = None
    request_id: str | None = None
    feedback: Feedback | None = None
    input_preview: str | None = None
    output_preview: str | None = None
    soft_error: SoftError | None = None
    reaction: Reaction | None = None


class RunRow(StepRow, frozen=True, omit_defaults=False):
    """What `Store.runs` lists, with sums over it and all below; `spent` is the cost of model calls, where known."""

    steps: int = 1
    errors: int = 0
    tokens: int = 0
    tools: int = 0
    spent: float | None = None


class ThreadRow(Struct, frozen=True, omit_defaults=True, gc=False):
    """A thread as lists show it, with sums over its steps. `user` is the user's identifier, else the user's id.
    `spent` is the cost of model calls, where known. `asked` and `answered` are previews of the first message or run,
    and of the last.
    """

    id: str
    name: str | None = None
    user: str | None = None
    tags: tuple[str, ...] = ()
    environment: str | None = None
    created_ns: int | None = None
    first_step_ns: int | None = None
    last_step_ns: int | None = None
    steps: int = 0
    errors: int = 0
    tokens: int = 0
    spent: float | None = None
    asked: str | None = None
    answered: str | None = None


@dataclass(frozen=True, slots=True)
class Judgements:
    """The latest score of each name that a step has (by `created_ns`, then by arrival), by name, without comments.

    They are found among the 100 scores that came last; `more` says that the step has others.
    """

    latest: tuple[Score, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """What an id names, with the id in full."""

    kind: Literal["thread", "step"]
    id: str


@dataclass(frozen=True, slots=True)
class StoreStats:
    """How much a store holds. `bytes_on_disk` is 0 for a store in memory; times are of steps."""

    steps: int = 0
    threads: int = 0
    scores: int = 0
    by_type: dict[str, int] = field(default_factory=dict[str, int])
    by_status: dict[str, int] = field(default_factory=dict[str, int])
    oldest_ns: int | None = None
    newest_ns: int | None = None
    bytes_on_disk: int = 0
    schema_version: int = 0


class Store(Protocol):
    """Keeps records and finds them again; safe to use from several threads.

    Every method raises `StoreError` when the store can't be read or written now, and `ClosedError` after `close`.
    """

    def add(self, frames: Sequence[bytes]) -> AddResult:
        """Take JSON record lines, all that are valid, in one transaction that is committed on return."""
        ...

    def step(self, id: str) -> StepRecord:
        """Return the whole step; raises `NotFoundError`."""
        ...

    def steps_in_full(self, ids: Sequence[str]) -> list[StepRecord]:
        """Return whole steps, in the order of their ids; those that are not there are left out. At most `MAX_PAGE`."""
        ...

    def thread(self, id: str) -> ThreadRecord:
        """Return the thread, also one known only by its steps; raises `NotFoundError`."""
        ...

    def steps(
        self, filter: StepFilter = ..., *, limit: int = 50, cursor: str | None = None, order: Order = "desc"
    ) -> Page[StepRow]:
        """List steps by start; raises `UsageError` for a cursor that is not one of this list's."""
        ...

    def cursor(self, id: str, order: Order = "desc") -> str:
        """Return the cursor that continues `steps` after this step, in this order; raises `NotFoundError`."""
        ...

    def runs(
        self, filter: StepFilter = ..., *, limit: int = 50, cursor: str | None = None, order: Order = "desc"
    ) -> Page[RunRow]:
        """List top-level runs and steps without a parent, by start, with the sums of what is below them."""
        ...

    def threads(
        self, filter: ThreadFilter = ..., *, limit: int = 50, cursor: str | None = None, order: Order = "desc"
    ) -> Page[ThreadRow]:
        """List threads by latest activity, with the sums of their steps."""
        ...

    def facets(self, filter: StepFilter | ThreadFilter = ...) -> Facets:
        """Count the values of the fields by which a list is narrowed, among its latest 1,000 steps or threads.

        It may be as few as 100 of a text of which that many are found soon, and all 1,000 late.
        """
        ...

    def histogram(self, filter: StepFilter = ...) -> Histogram | None:
        """Count the steps of a filter over time, from the sums that `catch_up` makes and what they don't have yet.

        None where that would take more than some milliseconds: for filters of more than `type` `name` `model`
        `environment` `status` (with `root_only`: failed ones), times, `root_only` and types to leave out, and for less
        than an hour.
        """
        ...

    def scores(
        self, filter: ScoreQuery = ..., *, limit: int = 50, cursor: str | None = None, order: Order = "desc"
    ) -> Page[Score]:
        """List scores by creation, each with the id of its step, whether or not the step is known."""
        ...

    def judgements(self, ids: Sequence[str]) -> dict[str, Judgements]:
        """Return what those of the steps that have scores were given, by id. At most `MAX_PAGE`."""
        ...

    def tree(self, id: str) -> list[StepRow]:
        """Return the step and all steps below it, by start; raises `NotFoundError`.

        Steps whose parent never arrived are included when their `root_run_id` says that they belong to this one.
        """
        ...

    def thread_steps(self, thread_id: str) -> list[StepRow]:
        """Return all steps of a thread, by start; an unknown thread has none."""
        ...

    def find(self, id: str) -> Found:
        """Say what an id names: a thread, or a step, also by 8 or more of its first characters if they are unique.

        Raises `NotFoundError` for nothing, `UsageError` for several.
        """
        ...

    def alike(self, of: Found, *, limit: int = 50) -> list[Found]:
        """Return the threads, and the runs outside of threads, that were asked the same as this one, with itself.

        That is, with the same dataset item in the metadata (`dataset_item_id`, `example_id`, `sample_id`, `task_id`),
        else with the same input of the first run or message. The latest, oldest first; none where nothing is known.
        Raises `NotFoundError` for a step that is not there.
        """
        ...

    def records(self, filter: StepFilter | None = None) -> Iterator[bytes]:
        """Stream records as JSON lines: threads, then steps by start, then scores whose step is unknown.

        Added to an empty store they make an equal store. With a filter: the steps it keeps and their threads.
        """
        ...

    def changes(self, after: int | None = None, limit: int = 500) -> tuple[list[StepRow], int]:
        """Return steps added or updated since a position, in order of change, and the position they lead to.

        `after=None` returns no steps and the position of now; 0 starts from the beginning.
        """
        ...

    def delete_thread(self, id: str) -> Deleted:
        """Delete a thread, its steps and their scores; raises `NotFoundError`.

        This and the deletions below take transactions short enough for others to add beside them. One that ends early
        leaves a whole store, and is to be called again. A step that arrives later makes its thread and run again.
        """
        ...

    def delete_run(self, id: str) -> Deleted:
        """Delete all steps of the trace of a step, and those below its root; raises `NotFoundError`."""
        ...

    def delete_user(self, user: str) -> Deleted:
        """Delete the threads of a user (id or identifier) and all runs with a step of the user; or `NotFoundError`."""
        ...

    def expire(self, *, before_ns: int | None = None, max_bytes: int | None = None) -> Deleted:
        """Delete whole runs and threads: those without activity since `before_ns`, then the longest inactive until
        the store uses `max_bytes` or less. One that has a pending step of the last 24 hours stays.

        Activity is the latest start or end. A run of which no time is known goes with `max_bytes` alone, and first.
        Without a bound it only removes what updates have replaced.
        """
        ...

    def loose_blobs(self) -> list[str]:
        """Return the SHA-256 (hex) of blobs whose last step was deleted, until `forget_blobs`."""
        ...

    def forget_blobs(self, hashes: Sequence[str]) -> None:
        """Say that these blobs are gone, or are kept for other reasons."""
        ...

    def vacuum(self) -> None:
        """Write the store anew without its gaps, and compressed; raises `StoreError` where others are in the way.

        Others may read meanwhile; who writes waits for the last part of it, which takes a second for some 200 MB.
        """
        ...

    def backup(self, path: Path) -> None:
        """Write a copy of the store as it is now to a new file, which appears when it is whole; raises `UsageError`
        for one that is there, `StoreError` where it can't be written. Others may read and write meanwhile.
        """
        ...

    def stats(self) -> StoreStats:
        """Count what the store holds."""
        ...

    def rollups(self, query: RollupQuery = ...) -> list[Rollup]:
        """Sum steps by time and fields, oldest first; hours and days without any are left out.

        Raises `UsageError` for more than `MAX_ROLLUPS`.
        """
        ...

    def users(self, *, limit: int = 50, cursor: str | None = None, order: Order = "desc") -> Page[UserRow]:
        """List users by their latest step, with the sums of all their steps."""
        ...

    def catch_up(self, deadline_s: float = 10.0) -> bool:
        """Bring up to date what is derived from the records, off the way of `add`; tell whether nothing is left to do.

        Rollups and users are exact without it, but then read what was added since; `text` finds only the newest of
        that, `soft_error` and `reaction` nothing. Begins nothing after `deadline_s`.
        """
        ...

    def check(self) -> list[str]:
        """Return what is wrong with the store, nothing when it is healthy."""
        ...

    def close(self) -> None:
        """Free what the store holds; closing again does nothing."""
        ...


class _StoreFactory(Protocol):
    def __call__(self, url: str, *, read_only: bool) -> Store: ...


_BUILT_IN: Final = {
    "sqlite": "stepwell.store.sqlite:SqliteStore.from_url",
}
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):")


def open_store(url: str, *, read_only: bool = False) -> Store:
    """Open the store that a URL names: `sqlite:PATH`, a plain path, or `sqlite::memory:`.

    A file that does not exist is made, unless `read_only`. Raises `UsageError` for a URL that names no store,
    `StoreError` for one that can't be opened, `CorruptStoreError` for a file that is not a store.
    """
    match = _SCHEME.match(url)
    scheme = match[1] if match else "sqlite"
    if scheme not in _BUILT_IN:
        raise UsageError(f"store URL {url!r}: no store for {scheme!r}, there are {', '.join(sorted(_BUILT_IN))}")
    module, _, path = _BUILT_IN[scheme].partition(":")
    target: object = import_module(module)
    for name in path.split("."):
        target = getattr(target, name)
    return cast("_StoreFactory", target)(url if match else f"sqlite:{url}", read_only=read_only)
