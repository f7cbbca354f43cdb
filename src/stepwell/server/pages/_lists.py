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
from stepwell.server.pages._views import read_views
from stepwell.store import Order, StepFilter, Store
from stepwell.store._conditions import thread_query
from stepwell.store._language import QueryError, value_text
from stepwell.store._shell import shell_line, steps_as_sql, threads_as_sql

__all__ = ["router"]

router = Router(include_in_schema=False)

Messages = Annotated[bool, Query(description="Also messages that are in no run.")]

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
        **_faceted(store, None if found.error else filter, found),
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
    extra = _faceted(store, None if found.error else found.filter, found)
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
    found, listed, sql = read_query(q), None, None
    if not found.error:
        try:
            filter = thread_query(found.text)
        except QueryError as error:
            found = Found(found.text, found.filter, str(error), error.position)
        else:
            listed = list_page(place.store.threads, cursor, order, back=back, filter=filter)
            sql = threads_as_sql(filter, limit=ROWS, order=order)
    return _answer(request, place, "threads", found, listed, order, **_faceted(place.store, None, found), sql=sql)


def _faceted(store: Store, filter: StepFilter | None, found: Found) -> dict[str, Any]:
    """Return what the template needs to narrow a list of steps; None is a list that has nothing to be narrowed by."""
    facets = None if filter is None else store.facets(filter)
    return {"facets": facets, "groups": [] if facets is None else facets_of(facets, found.text)}


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
