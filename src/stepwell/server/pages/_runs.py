"""The run page: transcript, tree and timeline over the same rows, with one selection, and what is new while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Path, Query, Request, Response
from msgspec import json

from stepwell._vocabulary import MAX_ID_CHARACTERS
from stepwell.server._access import InPlace, InStore
from stepwell.server._routing import Router
from stepwell.server.pages._address import Address, Looked, RunLook
from stepwell.server.pages._entry import lines_of
from stepwell.server.pages._families import Families
from stepwell.server.pages._find import found_in
from stepwell.server.pages._lane import lane_of
from stepwell.server.pages._neighbours import Neighbours, neighbours_of
from stepwell.server.pages._outline import PAGE_ROWS, Item, Look, outline
from stepwell.server.pages._overview import overview_of
from stepwell.server.pages._page import Links, page
from stepwell.server.pages._panel import panel_of
from stepwell.server.pages._review import bar_of
from stepwell.server.pages._rows import Family, Row
from stepwell.server.pages._show import Show
from stepwell.store import MAX_PAGE, Found, Store

__all__ = ["StepId", "families_of", "panel_context", "router"]

VIEWS: Final = ("transcript", "tree", "timeline")
MAX_CHANGES: Final = 20_000
MAX_ALIKE: Final = 101

router = Router(include_in_schema=False)

StepId = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARACTERS)]


@dataclass(frozen=True, slots=True)
class Search:
    """What was found in a run: how many, the place of the selected one among them, and its neighbours."""

    count: int
    at: int | None
    before: Row | None
    after: Row | None
    ids: frozenset[str]


@router.get("/runs/{id:path}")
def run_page(place: InPlace, request: Request, id: StepId, look: Looked) -> Response:
    """Show a run: its rows, and one of its steps in full."""
    store = place.store
    _, position = store.changes(None)
    family = families_of(request).of(store, id)
    address = Address(Links(request), id, look)
    chosen = family.by_id.get(look.step or "")
    bounds = _bounds(family, look)
    part = family if bounds is None else family.part(*bounds)
    found = found_in(store, family, look.q.strip()) if look.q.strip() else None
    if found:
        found = [row for row in found if row.step.id in part.by_id]
    search = None if found is None else _search(found, chosen)
    if found and search is not None and look.go is not None:
        chosen = search.after if look.go == "next" else search.before
        look = look.model_copy(update={"step": None if chosen is None else chosen.step.id, "go": None})
        address, search = Address(Links(request), id, look), _search(found, chosen)
    listed = None if chosen is None else part.by_id.get(chosen.step.id)
    rows = outline(part, _look(part, look, listed, search))
    first, shown = _window(rows, look, listed)
    records = store.steps_in_full([item.row.step.id for item in shown if item.kind == "step"])
    lines = {record.id: lines_of(record) for record in records}
    selected = chosen or family.root
    context = {
        "first": first,
        "items": shown,
        "all_items": len(rows),
        "on_page": _counted(shown),
        "page_rows": PAGE_ROWS,
        "lines": lines,
        "asked": lines.get(id) or lines_of(store.step(id)),
        "views": VIEWS,
        "look": look,
        "chosen": chosen,
        "search": search,
        "position": position,
        "overview": overview_of(family),
        "range": None if bounds is None else family.between(*bounds),
        "lane": lane_of,
        "runs_alike": len(store.alike(Found("step", id), limit=MAX_ALIKE)),
        "beside": Neighbours() if look.review else neighbours_of(store, id, look.within),
        "review": bar_of(request, place, look, "runs", id),
        **panel_context(store, request, family, selected, address, look),
    }
    return page(request, "run.html", context)


def families_of(request: Request) -> Families:
    """Return what keeps the runs that were looked at last."""
    families: Families = request.app.state.families
    return families


def panel_context(  # noqa: PLR0917 (they are what a panel stands in)
    store: Store, request: Request, family: Family, row: Row, address: Address, look: RunLook
) -> dict[str, Any]:
    """Return what the panel's template needs."""
    return {
        "family": family,
        "row": row,
        "panel": panel_of(store, family, row),
        "run": address,
        "show": Show(Links(request), row.step.id, plain=look.plain),
        "look": look,
        "selected": row.step.id,
    }


def _search(found: list[Row], chosen: Row | None) -> Search:
    place = -1 if chosen is None else chosen.place
    before = [row for row in found if row.place < place]
    after = [row for row in found if row.place > place]
    at = len(before) if chosen in found else None
    ids = frozenset(row.step.id for row in found)
    if not found:
        return Search(0, None, None, None, ids)
    return Search(len(found), at, (before or found)[-1], (after or found)[0], ids)


def _look(family: Family, look: RunLook, chosen: Row | None, search: Search | None) -> Look:
    needed = frozenset[str](() if chosen is None else (row.step.id for row in chosen.path()))
    only: frozenset[str] | None = None
    if search is not None and look.show != "all":
        only = search.ids
        above = {row.step.id for id in only for row in family.by_id[id].path()}
        only |= above
    return Look(
        level=look.level,
        opened=frozenset(look.open),
        closed=frozenset(look.close) - needed,
        fold_runs=look.view == "transcript" and look.level is None,
        selected=chosen,
        children_of=look.children,
        first=look.first,
        only=only,
        marked=frozenset() if search is None else search.ids,
        needed=needed,
    )


def _window(items: Sequence[Item], look: RunLook, chosen: Row | None) -> tuple[int, Sequence[Item]]:
    """Return the rows of a page, and how many are before them: as the address says, else where the selected one is."""
    first = look.row or 0
    if look.row is None and chosen is not None:
        at = next((at for at, item in enumerate(items) if item.row is chosen and item.kind == "step"), 0)
        first = at // PAGE_ROWS * PAGE_ROWS
    first = min(first, max(len(items) - 1, 0))
    return first, items[first : first + PAGE_ROWS]


def _counted(items: Sequence[Item]) -> int:
    """Return how many steps the rows of a page stand for, shown and announced."""
    return sum(item.hidden + (item.kind == "step") for item in items)


def _bounds(family: Family, look: RunLook) -> tuple[int, int] | None:
    """Return the range that the address asks for, in nanoseconds."""
    if look.since is None and look.until is None:
        return None
    first = family.start_ns + round((look.since or 0) * 1e6)
    last = family.end_ns if look.until is None else family.start_ns + round(look.until * 1e6)
    return min(first, last), max(first, last)


@router.get("/progress/{id:path}")
def progress(store: InStore, request: Request, id: StepId, after: Annotated[int, Query(ge=0)]) -> Response:
    """Say what has come to a run since a position: `steps` and `pending` are those of now, null where none has."""
    root = store.step(id)
    mine, changed = {id, root.trace_id, root.root_run_id} - {None}, set[str]()
    position, left = after, MAX_CHANGES
    while left > 0:
        rows, position = store.changes(position, MAX_PAGE)
        changed |= {row.id for row in rows if mine & {row.id, row.trace_id, row.root_run_id, row.parent_id}}
        left -= MAX_PAGE if len(rows) == MAX_PAGE else left
    answer: dict[str, Any] = {"position": position, "steps": None, "pending": None, "status": root.status}
    if changed:
        family = families_of(request).of(store, id)
        if changed & family.by_id.keys():
            answer |= {"steps": len(family.rows), "pending": family.root.sums.pending}
    return Response(json.encode(answer), media_type="application/json", headers={"Cache-Control": "no-store"})
