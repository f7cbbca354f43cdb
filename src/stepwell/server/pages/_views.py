"""Saved views: names for queries, kept in `views.json` beside the store, one file a project.

What must stay true: a view is a name of an address and nothing else; the file is replaced as a whole.
"""

from __future__ import annotations

from typing import Final, Literal

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from msgspec import Struct, ValidationError, convert
from starlette.concurrency import run_in_threadpool

from stepwell.errors import UsageError
from stepwell.server._access import InPlace
from stepwell.server._places import Place
from stepwell.server._routing import Router
from stepwell.server.pages._judging import read_form
from stepwell.server.pages._kept import changing, read_kept, write_kept
from stepwell.server.pages._page import Links
from stepwell.store._language import MAX_QUERY_CHARACTERS

__all__ = ["View", "read_views", "router"]

MAX_VIEWS: Final = 100
MAX_NAME: Final = 80

router = Router(include_in_schema=False)


class View(Struct, frozen=True):
    """A query of a list, by name."""

    name: str
    list: Literal["runs", "threads", "steps"]
    query: str


class _File(Struct):
    version: Literal[1]
    views: list[View]


def read_views(place: Place) -> list[View]:
    """Return the saved views, in order of their names. Raises `StoreError` where the file can't be read."""
    kept = read_kept(place, "views", _File, "views")
    return [] if kept is None else kept.views


def _change(place: Place, name: str, view: View | None) -> None:
    """Put a view in, or take it out."""
    with changing(place, "views"):
        views = [each for each in read_views(place) if each.name != name] + ([] if view is None else [view])
        if len(views) > MAX_VIEWS:
            raise UsageError(f"there are {MAX_VIEWS} views already: delete one first")
        views.sort(key=lambda each: (each.name.casefold(), each.name))
        write_kept(place, "views", _File(1, views))


@router.post("/views")
async def save(place: InPlace, request: Request) -> Response:
    """Save or delete a view, as the form says, and go back to its list."""
    form = await read_form(request)
    name, query, which = form.get("name", "").strip(), form.get("q", ""), form.get("list", "")
    try:
        view = convert({"name": name, "list": which, "query": query}, View)
    except ValidationError as error:
        raise UsageError(f"a view is of runs, threads or steps, not of {which!r}") from error
    if not 0 < len(name) <= MAX_NAME or len(query) > MAX_QUERY_CHARACTERS:
        raise UsageError(
            f"a view has a name of 1 to {MAX_NAME} characters, and a query of {MAX_QUERY_CHARACTERS:,} at most"
        )
    await run_in_threadpool(_change, place, name, None if "delete" in form else view)
    return RedirectResponse(Links(request).to(which, q=query), 303)
