"""What is answered to questions that are more than one call of a store: by the server and from a local file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from msgspec import UNSET, Struct, structs

from stepwell._unused_blobs import remove_unused
from stepwell.blobs import BlobStore
from stepwell.errors import StoreError, UsageError
from stepwell.model import Score, ScoreRecord, StepRecord, encode_record
from stepwell.store import Deleted, Page, StepFilter, StepRow, Store, ThreadFilter, ThreadRow
from stepwell.store._snippets import snippet_of

__all__ = [
    "Hit",
    "Place",
    "caught_up_for",
    "in_full",
    "keep_score",
    "page_of",
    "remove_run",
    "remove_thread",
    "remove_user",
    "search",
    "thread_in_detail",
]


_DERIVING_S: Final = 30.0  # of what a store has that was never looked at
_AT_ONCE: Final = 100  # steps read whole: each may carry a whole conversation


class Place(NamedTuple):
    """Where the data of a home, or of one of its projects, is."""

    store: Store
    blobs: BlobStore


def caught_up_for(store: Store, filter: StepFilter | None, *, text: bool = True) -> Store:
    """Return the store, after bringing up to date what is derived of it where that is asked for and it may be written.

    A server does so all the time. `text` says that words, of which the newest are found at any rate, are reason enough.
    """
    for each in () if filter is None else (filter, *filter.none_of):
        derived = (each.has_soft_error, each.soft_error, each.reaction, each.text if text else None)
        if any(value is not None for value in derived):
            with suppress(StoreError):
                store.catch_up(_DERIVING_S)
            break
    return store


def in_full(store: Store, ids: Sequence[str]) -> Iterator[StepRecord]:
    """Yield whole steps, in the order of their ids, of which only some are held at a time; not those that are gone."""
    for first in range(0, len(ids), _AT_ONCE):
        yield from store.steps_in_full(ids[first : first + _AT_ONCE])


def page_of(page: Page[Any]) -> dict[str, object]:
    """Return a page as it is sent."""
    return {"items": page.items, "next_cursor": page.next_cursor}


class Hit(Struct):
    """A found step, and the text around the first place where its words stand."""

    step: StepRow
    snippet: str | None


def search(store: Store, filter: StepFilter, at: dict[str, Any]) -> Page[Hit]:
    """Return a page of the steps that `filter.text` finds, each with where; only these are read whole."""
    page = store.steps(filter, **at)
    whole = {step.id: step for step in store.steps_in_full([row.id for row in page.items])}
    hits = [Hit(row, snippet_of(whole[row.id], filter.text or "") if row.id in whole else None) for row in page.items]
    return Page(hits, page.next_cursor)


def thread_in_detail(store: Store, id: str) -> dict[str, object]:
    """Return a thread, also one known only by its steps, with sums over them. Raises `NotFoundError`."""
    thread = store.thread(id)
    sums = next(iter(store.threads(ThreadFilter(id=id)).items), ThreadRow(id))
    return {
        "id": thread.id,
        "name": thread.name,
        "user": thread.user,
        "tags": thread.tags or [],
        "metadata": None if thread.metadata is UNSET else thread.metadata,
        "environment": thread.environment,
        "created_ns": thread.created_ns,
        "first_step_ns": sums.first_step_ns,
        "last_step_ns": sums.last_step_ns,
        "steps": sums.steps,
        "errors": sums.errors,
        "tokens": sums.tokens,
    }


def keep_score(store: Store, score: Score) -> Score:
    """Add a score of a step, which may be unknown yet, and return it with its time. Raises `UsageError`."""
    now = structs.replace(score, created_ns=time.time_ns())
    result = store.add([encode_record(ScoreRecord(**structs.asdict(now)))])
    if result.rejected:
        raise UsageError(result.rejected[0].error)
    return now


def remove_thread(place: Place, id: str) -> dict[str, int]:
    """Delete a thread with its steps, and the blobs that nothing names any more,
    now or when they have been idle for ten minutes. Raises `NotFoundError`."""
    return _deleted(place, place.store.delete_thread(id))


def remove_run(place: Place, id: str) -> dict[str, int]:
    """Delete the run of a step, and the blobs that nothing names any more,
    now or when they have been idle for ten minutes. Raises `NotFoundError`."""
    return _deleted(place, place.store.delete_run(id))


def remove_user(place: Place, user: str) -> dict[str, int]:
    """Delete all of a user, and the blobs that nothing names any more,
    now or when they have been idle for ten minutes. Raises `NotFoundError`."""
    return _deleted(place, place.store.delete_user(user))


def _deleted(place: Place, deleted: Deleted) -> dict[str, int]:
    try:
        remove_unused(place.store, place.blobs)
    except OSError as error:
        raise StoreError(f"{place.blobs.folder} can't be written") from error
    return {
        "threads": deleted.threads,
        "steps": deleted.steps,
        "messages": deleted.messages,
        "blobs": len(deleted.blobs),
    }
