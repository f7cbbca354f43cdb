"""A run as numbered lines, so that an address can point at some of them: `/lines/ID?lines=120-134`.

What must stay true: the lines are those of the run saved as Markdown, so that their numbers come from what was
recorded, not from how a page shows it; those of a run that has ended stay as they are. A page has `PER_PAGE` of them,
and the lines after `MAX_LINES` are in the file alone, which the page says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Annotated, Final

from fastapi import Query, Request, Response

from stepwell.server._access import InStore
from stepwell.server._routing import Router
from stepwell.server.pages._page import page
from stepwell.server.pages._runs import StepId, families_of
from stepwell.server.pages._sharing import markdown_of

__all__ = ["lines_of_parts", "router"]

PER_PAGE: Final = 500
MAX_LINES: Final = 20_000  # each page reads the run from its beginning

router = Router(include_in_schema=False)


@router.get("/lines/{id:path}")
def lines_page(
    store: InStore,
    request: Request,
    id: StepId,
    lines: Annotated[str, Query(pattern=r"^(\d{1,6}(-\d{1,6})?)?$", description="Marked: 120 or 120-134.")] = "",
    first: Annotated[int, Query(ge=1, le=MAX_LINES)] = 1,
) -> Response:
    """Show lines of a run, those that are marked among them, else from a line on."""
    family = families_of(request).of(store, id)
    begin, _, end = lines.partition("-")
    marked = range(int(begin), int(end or begin) + 1) if begin else range(0)
    start = min(marked.start or first, MAX_LINES)
    start -= (start - 1) % PER_PAGE
    every = islice(lines_of_parts(markdown_of(store, family)), MAX_LINES)
    shown = list(islice(every, start - 1, start + PER_PAGE))
    context = {
        "root": family.root.step,
        "marked": marked,
        "first": start,
        "lines": shown[:PER_PAGE],
        "earlier": start - PER_PAGE if start > 1 else None,
        "later": start + PER_PAGE if len(shown) > PER_PAGE else None,
        "is_cut": start + len(shown) > MAX_LINES,
        "most": MAX_LINES,
    }
    return page(request, "lines.html", context)


def lines_of_parts(parts: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a text that comes in parts, without their ends; a line ends with LF alone, as in a file."""
    rest = ""
    for part in parts:
        *whole, rest = (rest + part).split("\n")
        yield from whole
    if rest:
        yield rest
