"""Letta's pages: up to `limit` items after the one named, or before it, in the order asked for.

What must stay true: whoever goes on from the last item of each page with `after`, or from the first with `before`,
meets every item once, also among equal times. A page before an item is the one next to it, not the first of the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from typing import Any, Final

from stepwell.errors import NotFoundError
from stepwell.model import StepRecord
from stepwell.server._errors import Problem
from stepwell.store import MAX_PAGE, Order, StepFilter, StepRow, Store

__all__ = ["Keep", "Window", "find_step", "page_of_items", "page_of_steps"]

Keep = Callable[[StepRecord], bool]

_REVERSED: Final[dict[Order, Order]] = {"asc": "desc", "desc": "asc"}
_UNKNOWN_NS: Final = -1  # where lists put steps whose start is unknown


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a list. With both `after` and `before`: what is between them, from its end."""

    limit: int
    order: Order
    after: str | None = None
    before: str | None = None


def find_step(store: Store, id: str, prefix: str = "step-") -> StepRecord:
    """Return a step by its id, with or without Letta's prefix. Raises `NotFoundError`."""
    try:
        return store.step(id.removeprefix(prefix))
    except NotFoundError:
        if id.startswith(prefix):  # one that came from Letta
            return store.step(id)
        raise


def page_of_steps(
    store: Store, filter: StepFilter, window: Window, keep: Keep | None = None, *, prefix: str = "step-"
) -> list[StepRecord]:
    """Return the steps of a window, of those that the filter and `keep` keep.

    Raises `Problem`: 404 for a cursor that is no step, 400 where `before` comes before `after`.
    """
    after = _anchor(store, window.after, prefix)
    before = _anchor(store, window.before, prefix)
    order = window.order if before is None else _REVERSED[window.order]
    passed = _Passed(store, after, window.order) if before is not None and after is not None else None
    if passed is not None and before is not None and before.id != passed.id and passed(before.id, before.start_ns):
        raise Problem(400, "'before' reference must be later than 'after' reference")
    wanted = min(window.limit, MAX_PAGE)
    rows: Iterator[StepRow] = iter(())
    if wanted:
        rows = _rows(store, filter, after if before is None else before, order, wanted)
    if passed is not None:
        rows = takewhile(lambda row: not passed(row.id, row.start_ns), rows)
    found: list[StepRecord] = []
    while len(found) < wanted and (ids := [row.id for row in islice(rows, wanted)]):
        found += [step for step in store.steps_in_full(ids) if keep is None or keep(step)]
    del found[wanted:]
    return found if before is None else found[::-1]


def _anchor(store: Store, id: str | None, prefix: str) -> StepRecord | None:
    if not id:
        return None
    try:
        return find_step(store, id, prefix)
    except NotFoundError:
        raise Problem(404, f"No {'Run' if prefix == 'run-' else 'Step'} found with id {id}") from None


def _rows(
    store: Store, filter: StepFilter, anchor: StepRecord | None, order: Order, page_size: int
) -> Iterator[StepRow]:
    """Yield the rows after a step, which the filter need not keep."""
    cursor = None
    if anchor is not None:
        cursor = _cursor_after(store, anchor, order)
        if cursor is None:  # it is the last of its time
            filter = _beyond(filter, _time(anchor.start_ns), order)
    while True:
        page = store.steps(filter, limit=page_size, cursor=cursor, order=order)
        yield from page.items
        if (cursor := page.next_cursor) is None:
            return


def _cursor_after(store: Store, anchor: StepRecord, order: Order) -> str | None:
    """Return the store's cursor that continues after a step, None where it is the last of all with its start.

    A cursor is a place in the order of all steps, so one found among the steps of a time serves under any filter.
    What it costs grows with the steps that start in the very same nanosecond, in most applications one.
    """
    filter = _same_time(anchor.start_ns)
    cursor = None
    while True:
        page = store.steps(filter, limit=MAX_PAGE, cursor=cursor, order=order)
        place = next((at for at, row in enumerate(page.items, 1) if row.id == anchor.id), None)
        if place is None and page.next_cursor is not None:
            cursor = page.next_cursor
        elif place is None or place == len(page.items):
            return page.next_cursor
        else:
            return store.steps(filter, limit=place, cursor=cursor, order=order).next_cursor


class _Passed:
    """Tells whether a step stands at or before another one, the `after` of a window, in the window's order."""

    def __init__(self, store: Store, after: StepRecord, order: Order) -> None:
        self.id = after.id
        self._time = _time(after.start_ns)
        self._descending = order == "desc"
        self._ids: set[str] = set()  # of the same time
        for row in _rows(store, _same_time(after.start_ns), None, order, MAX_PAGE):
            self._ids.add(row.id)
            if row.id == after.id:
                break

    def __call__(self, id: str, start_ns: int | None) -> bool:
        time = _time(start_ns)
        if time == self._time:
            return id in self._ids
        return (time > self._time) is self._descending


def _time(start_ns: int | None) -> int:
    return _UNKNOWN_NS if start_ns is None else start_ns


def _same_time(start_ns: int | None) -> StepFilter:
    return StepFilter(since_ns=_time(start_ns), until_ns=_time(start_ns) + 1)


def _beyond(filter: StepFilter, time_ns: int, order: Order) -> StepFilter:
    if order == "asc":
        since = time_ns + 1 if filter.since_ns is None else max(filter.since_ns, time_ns + 1)
        return replace(filter, since_ns=since)
    until = time_ns if filter.until_ns is None else min(filter.until_ns, time_ns)
    return replace(filter, until_ns=until)


def page_of_items(items: Sequence[dict[str, Any]], window: Window, noun: str) -> list[dict[str, Any]]:
    """Return the items of a window, of a list that is whole and oldest first. Raises `Problem` 404 for a cursor."""
    ordered = list(items) if window.order == "asc" else list(items)[::-1]
    places = {item["id"]: at for at, item in enumerate(ordered)}
    for id in (window.after, window.before):
        if id and id not in places:
            raise Problem(404, f"No {noun} found with id {id}")
    first = places[window.after] + 1 if window.after else 0
    last = places[window.before] if window.before else len(ordered)
    if window.before:
        first = max(first, last - window.limit)
    else:
        last = min(last, first + window.limit)
    return ordered[first:last]
