"""The lists: runs, threads and steps. They read columns only, a page at a time."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, cast

from fastapi import Query, Request, Response

from stepwell.server._access import InPlace, access_of
from stepwell.server._places import Place
from stepwell.server._routing import Router
from stepwell.server.pages._listing import (
    ROWS,
    Back,
    Cursor,
    Found,
    Listed,
    QueryText,
    Sorted,
    facets_of,
    list_page,
    names_types,
    read_query,
    runs_filter,
)
from stepwell.server.pages._marks import judged_html
from stepwell.server.pages._page import Links, page
from stepwell.server.pages._strip import strip_of
from stepwell.server.pages._views import read_views
from stepwell.store import Order, StepFilter, Store, ThreadFilter, ThreadRow
from stepwell.store._conditions import thread_query
from stepwell.store._language import QueryError, value_text
from stepwell.store._shell import shell_line, steps_as_sql, threads_as_sql

__all__ = ["router"]

router = Router(include_in_schema=False)

Messages = Annotated[bool, Query(description="Also messages that are in no run.")]

_NOTHING: Final[dict[str, Any]] = {"facets": None, "groups": [], "strip": None}
_TITLES: Final = {"runs": "Runs", "threads": "Threads", "steps": "Steps"}


@router.get("/")
@router.get("/runs")
def runs(  # noqa: PLR0917 (FastAPI passes them by name)
    place: InPlace,
    request: Request,
    q: QueryText = "",
    cursor: Cursor = None,
    order: Sorted = "desc",
    back: Back = False,
    messages: Messages = False,
) -> Response:
    """List runs, the newest first. A message that is in no run is no run, so it is left out unless asked for."""
    found, store = read_query(q), place.store
    filter = runs_filter(found, messages=messages)
    listed = None if found.error else list_page(store.runs, cursor, order, back=back, filter=filter)
    extra = {
        **_narrowed(request, store, "runs", found, filter, listed),
        "messages": messages,
        "named": names_types(found),
        "judged": judged_html(request, store, "runs", listed),
        "sql": None if found.error else steps_as_sql(filter, limit=ROWS, order=order),
    }
    return _answer(request, place, "runs", found, listed, order, **extra)


@router.get("/steps")
def steps(  # noqa: PLR0917 (FastAPI passes them by name)
    place: InPlace,
    request: Request,
    q: QueryText = "",
    cursor: Cursor = None,
    order: Sorted = "desc",
    back: Back = False,
) -> Response:
    """List steps of all kinds, the newest first."""
    found, store = read_query(q), place.store
    listed = None if found.error else list_page(store.steps, cursor, order, back=back, filter=found.filter)
    extra = _narrowed(request, store, "steps", found, found.filter, listed)
    extra["judged"] = judged_html(request, store, "steps", listed)
    extra["sql"] = None if found.error else steps_as_sql(found.filter, limit=ROWS, order=order)
    return _answer(request, place, "steps", found, listed, order, **extra)


@router.get("/threads")
def threads(  # noqa: PLR0917 (FastAPI passes them by name)
    place: InPlace,
    request: Request,
    q: QueryText = "",
    cursor: Cursor = None,
    order: Sorted = "desc",
    back: Back = False,
) -> Response:
    """List threads, the latest active first."""
    found, listed, sql, extra = read_query(q), None, None, _NOTHING
    if not found.error:
        try:
            filter = thread_query(found.text)
        except QueryError as error:
            found = Found(found.text, found.filter, str(error), error.position)
        else:
            listed = list_page(place.store.threads, cursor, order, back=back, filter=filter)
            sql = threads_as_sql(filter, limit=ROWS, order=order)
            extra = _narrowed(request, place.store, "threads", found, filter, listed)
    return _answer(request, place, "threads", found, listed, order, **extra, sql=sql)


def _narrowed(  # noqa: PLR0917 (what a list is)
    request: Request,
    store: Store,
    section: str,
    found: Found,
    filter: StepFilter | ThreadFilter,
    listed: Listed[Any] | None,
) -> dict[str, Any]:
    """Return what the template needs to narrow a list: values that occur in it, and the strip of its times."""
    if listed is None:
        return _NOTHING
    facets = store.facets(filter)
    rows = [_time_of(row) for row in listed.items]
    known = [] if listed.first else [ns for ns in rows if ns is not None]
    summed = filter if isinstance(filter, StepFilter) else None
    strip = strip_of(Links(request), store, section, found, summed, facets, known)
    return {"facets": facets, "groups": facets_of(facets, found.text), "strip": strip}


def _time_of(row: Any) -> int | None:
    """Return the time that a row is ordered by."""
    if isinstance(row, ThreadRow):
        return row.created_ns if row.last_step_ns is None else row.last_step_ns
    time_ns: int | None = row.start_ns
    return time_ns


def _shell_line(request: Request, store: Store, sql: str | None) -> str | None:
    """Return the command line for a statement, None where the store is no file; who has a key is not told its path."""
    path = cast("object", getattr(store, "path", None))
    if sql is None or not isinstance(path, Path):
        return None
    return shell_line(str(path) if access_of(request).key is None else path.name, sql)


def _answer(  # noqa: PLR0917 (what the three lists have found)
    request: Request, place: Place, section: str, found: Found, listed: Listed[Any] | None, order: Order, **extra: Any
) -> Response:
    (_, position) = place.store.changes(None)
    links = Links(request)

    @cache
    def tagged(tag: str) -> str:  # the same few in many rows
        return links.here(q=f"tag:{value_text(tag)}", cursor=None, back=None)

    context = {
        "section": section,
        "title": _TITLES[section],
        "found": found,
        "listed": listed,
        "order": order,
        "views": read_views(place),
        "position": position,
        "tagged": tagged,
        **extra,
        "sql": _shell_line(request, place.store, extra["sql"]),
        "is_local": access_of(request).key is None,
    }
    return page(request, f"{section}.html", context, 422 if found.error else 200)
