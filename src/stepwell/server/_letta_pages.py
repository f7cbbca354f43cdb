"""Letta's pages: up to `limit` items after the one named, or before it, in the order asked for.

What must stay true: whoever goes on from the last item of each page with `after`, or from the first with `before`,
meets every item once, also among equal times. A page before an item is the one next to it, not the first of the list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
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
    if passed is not None and before is not None and before.id != passed.id and passed(before):
        raise Problem(400, "'before' reference must be later than 'after' reference")
    wanted = min(window.limit, MAX_PAGE)
    rows: Iterator[StepRow] = iter(())
    if wanted:
        rows = _rows(store, filter, after if before is None else before, order, wanted)
    if passed is not None:
        rows = takewhile(lambda row: not passed(row), rows)
    found: list[StepRecord] = []
    while len(found) < wanted and (ids := [row.id for row in islice(rows, wanted)]):
        found += [step for step in store.steps_in_full(ids) if keep is None or keep(step)]
    del found[wanted:]
    return found if before is None else found[::-1]


def _anchor(store: Store, id: str | None, prefix: str) -> StepRow | None:
    if not id:
        return None
    names = (id.removeprefix(prefix), id)  # the latter of one that came from Letta
    rows = {row.id: row for row in store.steps(StepFilter(ids=names)).items}
    for name in names:
        if name in rows:
            return rows[name]
    raise Problem(404, f"No {'Run' if prefix == 'run-' else 'Step'} found with id {id}")


def _rows(store: Store, filter: StepFilter, anchor: StepRow | None, order: Order, page_size: int) -> Iterator[StepRow]:
    """Yield the rows after a step, which the filter need not keep."""
    cursor = None if anchor is None else store.cursor(anchor.id, order)
    while True:
        page = store.steps(filter, limit=page_size, cursor=cursor, order=order)
        yield from page.items
        if (cursor := page.next_cursor) is None:
            return


class _Passed:
    """Tells whether a step stands at or before another one, the `after` of a window, in the window's order."""

    def __init__(self, store: Store, after: StepRow, order: Order) -> None:
        self.id = after.id
        self._store = store
        self._time = _time(after)
        self._order: Order = order
        self._cursor = store.cursor(after.id, order)

    def __call__(self, row: StepRow) -> bool:
        time = _time(row)
        if time != self._time:
            return (time > self._time) is (self._order == "desc")
        rest = self._store.steps(StepFilter(ids=(row.id,)), limit=1, cursor=self._cursor, order=self._order)
        return not rest.items


def _time(row: StepRow) -> int:
    return _UNKNOWN_NS if row.start_ns is None else row.start_ns


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
