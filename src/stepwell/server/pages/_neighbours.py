"""The runs before and after a run, in the list that it was opened from.

What must stay true: the neighbours are those of the list with the same query, in its order, to the run; a run that the
list does not have has none. It costs four short reads of columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stepwell.server.pages._listing import read_query, runs_filter
from stepwell.store import Order, StepFilter, StepRow, Store

__all__ = ["Neighbours", "neighbours_of"]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The runs that started before and after one, None where the list ends; `listed` says that the list has the run."""

    older: StepRow | None = None
    newer: StepRow | None = None
    listed: bool = False


def neighbours_of(store: Store, id: str, query: str) -> Neighbours:
    """Find the neighbours of a run in the list of runs with a query."""
    found = read_query(query)
    if found.error:
        return Neighbours()
    filter = runs_filter(found)
    if filter.ids is not None and id not in filter.ids:
        return Neighbours()
    alone = replace(filter, ids=(id,))
    if not store.steps(alone, limit=1).items:
        return Neighbours()
    return Neighbours(_beside(store, filter, alone, "desc"), _beside(store, filter, alone, "asc"), listed=True)


def _beside(store: Store, filter: StepFilter, alone: StepFilter, order: Order) -> StepRow | None:
    """Return the next one in an order. Cursors lead back in the other order, from where the run is among all."""
    back = store.steps(alone, limit=1, order="asc" if order == "desc" else "desc").previous_cursor
    return next(iter(store.steps(filter, limit=1, cursor=back, order=order).items), None)
