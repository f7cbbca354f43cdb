"""What comes in while a list is on the screen, as server-sent events: ids only, for the page to say how many are new.

What must stay true: a stream costs one look at the changes a second, ends by itself, and never keeps the server from
stopping.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal

from fastapi import Query, Request, Response
from msgspec import json
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from stepwell.server._access import InStore
from stepwell.server._errors import Problem
from stepwell.server._routing import Router
from stepwell.server.pages._listing import MESSAGES, QueryText, read_query, top_filter
from stepwell.store import StepFilter, Store
from stepwell.store._conditions import thread_filter

__all__ = ["Live", "router"]

EVERY_S: Final = 1.0
MAX_S: Final = 300.0  # then the browser connects again
MAX_STREAMS: Final = 64
_AT_ONCE: Final = 500

router = Router(include_in_schema=False)
Kind = Literal["runs", "threads", "steps"]


class Live:
    """The streams of a server; closed, they end within a second."""

    def __init__(self) -> None:
        self.closed = False
        self.streams = 0

    def close(self) -> None:
        """Have all streams end."""
        self.closed = True


@router.get("/live/{kind}")
async def live(  # noqa: PLR0917 (FastAPI passes them by name)
    store: InStore,
    request: Request,
    kind: Kind,
    after: Annotated[int, Query(ge=0)],
    q: QueryText = "",
    messages: bool = False,
) -> Response:
    """Stream the ids of what was added to a list, or changed in it, since a position."""
    state: Live = request.app.state.live
    if state.streams >= MAX_STREAMS:
        raise Problem(503, "too many pages are watching", headers={"Retry-After": "10"})
    try:
        after = int(request.headers.get("last-event-id", after))
    except ValueError:
        raise Problem(422, "Last-Event-ID is no position") from None
    found = read_query(q)
    if found.error:
        raise Problem(422, found.error)
    watch = _Watch(store, kind, found.filter, hidden=None if messages or found.filter.type else MESSAGES)
    stream = _events(watch, state, after)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@dataclass(frozen=True, slots=True)
class _Watch:
    """A list that is looked at; `hidden` are steps that it leaves out."""

    store: Store
    kind: Kind
    filter: StepFilter
    hidden: StepFilter | None

    def changed(self, after: int) -> tuple[list[str], int]:
        """Return the ids of rows of the list that are new or changed since a position, and the position of now."""
        rows, after = self.store.changes(after, _AT_ONCE)
        if not rows:
            return [], after
        if self.kind == "threads":
            names = dict.fromkeys(row.thread_id for row in rows if row.thread_id is not None)
            wanted = thread_filter(self.filter)
            return [id for id in names if self.store.threads(replace(wanted, id=id), limit=1).items], after
        filter, ids = self.filter, [row.id for row in rows]
        if self.kind == "runs":  # a step below changes the sums of its run
            filter = top_filter(filter, self.hidden)
            ids = list(dict.fromkeys([*ids, *(row.root_run_id for row in rows if row.root_run_id is not None)]))
        if filter.ids is not None:
            ids = [id for id in ids if id in set(filter.ids)]
        return [row.id for row in self.store.steps(replace(filter, ids=ids), limit=2 * _AT_ONCE).items], after


async def _events(watch: _Watch, state: Live, after: int) -> AsyncGenerator[bytes]:
    state.streams += 1
    try:
        yield b"retry: 2000\n\n: connected\n\n"
        for turn in range(int(MAX_S / EVERY_S)):
            ids, after = await run_in_threadpool(watch.changed, after)
            if ids:
                yield b"id: %d\ndata: %s\n\n" % (after, json.encode(ids))
            elif turn % 15 == 14:
                yield b": still here\n\n"
            for _ in range(5):
                if state.closed:
                    return
                await asyncio.sleep(EVERY_S / 5)
    finally:
        state.streams -= 1
