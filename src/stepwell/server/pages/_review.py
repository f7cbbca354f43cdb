"""Reviewing: where a queue begins and ends, and the bar on the page of the item that a reviewer has.

What must stay true: looking changes nothing. An item is given out, judged or passed over by a form, which the guard
takes from pages of ours alone; who a reviewer is, as far as giving out goes, a cookie says that means nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Annotated, Final, Literal, cast

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from stepwell.server._access import InPlace
from stepwell.server._errors import Problem
from stepwell.server._places import Place
from stepwell.server._routing import Router
from stepwell.server.pages._address import RunLook
from stepwell.server.pages._judging import VALUES, keep_judgement, read_form
from stepwell.server.pages._listing import Cursor, QueryText, Sorted
from stepwell.server.pages._page import Links, page
from stepwell.server.pages._queue import (
    MAX_LABELS_TEXT,
    MAX_NAME,
    Items,
    Queue,
    give_out,
    items_of,
    taken_by_others,
    tally,
    verdict_of,
)
from stepwell.store import MAX_PAGE, Order, StepFilter
from stepwell.store._language import value_text

__all__ = ["Bar", "bar_of", "router"]

REVIEWER: Final = "stepwell_reviewer"
_TOKEN: Final = re.compile(r"[0-9a-f]{32}")
_MAX_AGE_S: Final = 30 * 86_400

router = Router(include_in_schema=False)

Which = Literal["runs", "steps"]
Name = Annotated[str, Query(min_length=1, max_length=MAX_NAME)]
Labels = Annotated[str, Query(max_length=MAX_LABELS_TEXT)]


@dataclass(frozen=True, slots=True)
class Bar:
    """What stands beside an item: how far its queue is, and what is known of the item itself.

    `verdict` is what it was judged to be, None where it was not; `taken_until_s` says that another reviewer has it.
    """

    queue: Queue
    item: str
    items: Items
    others: int
    verdict: str | None
    taken_until_s: int | None


def bar_of(request: Request, place: Place, look: RunLook, which: Which, id: str) -> Bar | None:
    """Return the bar of a page's run or step, None where it is not looked at in a review. Raises `UsageError`."""
    if not look.review:
        return None
    queue = Queue(which, look.within, look.review, look.labels, look.order, look.cursor)
    queue.check()
    items = items_of(place.store, queue)
    taken = taken_by_others(place, queue, request.cookies.get(REVIEWER))
    verdict = verdict_of(place.store.judgements([id]).get(id), queue.name)
    return Bar(queue, id, items, _held(items, taken), verdict, taken.get(id))


def _held(items: Items, taken: Container[str]) -> int:
    return sum(row.id in taken and row.id not in items.done for row in items.rows)


@router.get("/review/{which}")
def review_page(  # noqa: PLR0917 (FastAPI passes them by name)
    place: InPlace,
    request: Request,
    which: Which,
    q: QueryText = "",
    name: Name = "feedback",
    labels: Labels = "",
    order: Sorted = "desc",
    cursor: Cursor = None,
) -> Response:
    """Show how far a queue is, and what to begin it with; at its end, what came of it."""
    queue = Queue(which, q.strip(), name, labels, order, cursor)
    queue.check()
    items = items_of(place.store, queue)
    taken = taken_by_others(place, queue, request.cookies.get(REVIEWER))
    context = {
        "section": which,
        "queue": queue,
        "items": items,
        "others": _held(items, taken),
        "tally": tally(place.store, items, name),
        "most": MAX_PAGE,
        "quoted": value_text(name, "<>="),
    }
    return page(request, "review.html", context)


@router.post("/review/{which}")
async def go_on(place: InPlace, request: Request, which: Which) -> Response:
    """Keep what the form says of an item, if anything, and give out the next one."""
    form = await read_form(request)
    order = form.get("order") or "desc"
    if order not in {"asc", "desc"}:
        raise Problem(422, "order is asc or desc")
    name, labels = form.get("name", "").strip() or "feedback", form.get("labels", "").strip()
    query, cursor = form.get("q", "").strip(), form.get("cursor") or None
    queue = Queue(which, query, name, labels, cast("Order", order), cursor)
    queue.check()
    if (label := form.get("label", "")) not in {*VALUES, *queue.several, ""}:
        raise Problem(422, "expected positive, negative or one of the queue's labels")
    known = request.cookies.get(REVIEWER, "")
    reviewer = known if _TOKEN.fullmatch(known) else os.urandom(16).hex()
    said = (form.get("item", ""), label, form.get("comment", "").strip())
    item = await run_in_threadpool(_judge_and_go_on, place, queue, reviewer, *said)
    links = Links(request)
    answer = RedirectResponse(queue.address(links) if item is None else queue.item_address(links, item), 303)
    path = str(request.scope.get("root_path", "")) or "/"
    answer.set_cookie(REVIEWER, reviewer, max_age=_MAX_AGE_S, path=path, httponly=True, samesite="strict")
    return answer


def _judge_and_go_on(  # noqa: PLR0917 (what the form says)
    place: Place, queue: Queue, reviewer: str, item: str, label: str, comment: str
) -> str | None:
    current = next(iter(place.store.steps(StepFilter(ids=[item]), limit=1).items), None) if item else None
    if item and (label or comment):
        keep_judgement(place.store, item, queue.name, label, comment)
    return give_out(place, queue, reviewer, current)
