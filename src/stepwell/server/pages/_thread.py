"""The thread page: a conversation as chat, and the work between its messages folded to a line each.

What must stay true: a page costs the page; messages and runs stand in the order of their start, and a run's work stands
after the messages that it began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import Path, Query, Request, Response
from msgspec import UNSET

from stepwell._vocabulary import MAX_ID_CHARACTERS
from stepwell.model import MESSAGE_TYPES, Attachment, Score, StepRecord, ThreadRecord
from stepwell.server._access import InStore
from stepwell.server._routing import Router
from stepwell.server.pages._content import Part, mapping, parts_of, read
from stepwell.server.pages._entry import lines_of
from stepwell.server.pages._listing import Back, Cursor, Listed
from stepwell.server.pages._page import Links, page
from stepwell.server.pages._runs import families_of
from stepwell.server.pages._show import Show
from stepwell.store import Found, RunRow, StepFilter, StepRow, Store, ThreadFilter, ThreadRow

__all__ = ["router"]

PAGE_ROWS: Final = 100
WORK_ROWS: Final = 60
MAX_ALIKE: Final = 101
_IMAGES: Final = frozenset(("image/png", "image/jpeg", "image/gif", "image/webp"))

router = Router(include_in_schema=False)

ThreadId = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARACTERS)]


@dataclass(frozen=True, slots=True)
class Said:
    """What someone said: a message, or what a run was given or returned where the thread has no messages."""

    step: StepRow
    role: str
    field: str
    parts: Sequence[Part]
    attachments: Sequence[Attachment] = ()
    scores: Sequence[Score] = ()
    kind: str = "said"


@dataclass(frozen=True, slots=True)
class Work:
    """What was done between messages: a run with its sums, or another step that stands alone."""

    run: RunRow
    scores: Sequence[Score] = ()
    kind: str = "work"


@dataclass(slots=True)
class _Conversation:
    """Puts the rows of a page in the order in which they are read."""

    records: dict[str, StepRecord]
    runs: dict[str, RunRow]
    plain: bool  # the page has no messages, so what runs were given and returned stands for them
    turns: list[Said | Work] = field(default_factory=list["Said | Work"])
    _begun: StepRow | None = None

    def add(self, row: StepRow) -> None:
        begins = row.type in {"user_message", "system_message"}
        inside = self._begun is not None and row.root_run_id == self._begun.id
        if not (row.type in MESSAGE_TYPES and begins and inside):
            self.end()
        if row.type in MESSAGE_TYPES:
            self.turns.append(self._message(row))
            return
        if self.plain:
            self._payload(row, "user", "input")
        self._begun = row

    def end(self) -> None:
        """Put down the work of the run that has begun."""
        row, self._begun = self._begun, None
        if row is None:
            return
        if row.id in self.runs:
            record = self.records.get(row.id)
            self.turns.append(Work(self.runs[row.id], () if record is None else record.scores or ()))
        if self.plain:
            self._payload(row, "assistant", "output")

    def _message(self, row: StepRow) -> Said:
        record = self.records.get(row.id)
        role = (row.type or "").removesuffix("_message")
        if record is None:
            return Said(row, role, "output", ())
        said = read(record.output)
        content = mapping(said).get("content", said)
        return Said(row, role, "output", parts_of(content), record.attachments or (), record.scores or ())

    def _payload(self, row: StepRow, role: str, name: str) -> None:
        record = self.records.get(row.id)
        payload = UNSET if record is None else getattr(record, name)
        if payload is UNSET or (value := read(payload)) is None:
            return
        fields = mapping(value)
        if len(fields) == 1:
            (value,) = fields.values()
        self.turns.append(Said(row, role, name, parts_of(value)))


@router.get("/threads/{id:path}")
def thread_page(  # noqa: PLR0917 (FastAPI passes them by name)
    store: InStore,
    request: Request,
    id: ThreadId,
    cursor: Cursor = None,
    back: Back = False,
    only: Annotated[Literal["messages"] | None, Query()] = None,
) -> Response:
    """Show a thread as a conversation, from its beginning; going back without a cursor begins at its end."""
    thread = store.thread(id)
    listed = _rows(store, id, cursor, back=back)
    row = next(iter(store.threads(ThreadFilter(id=id)).items), ThreadRow(id))
    links = Links(request)
    context: dict[str, Any] = {
        "section": "threads",
        "thread": row,
        "record": thread,
        "user": _user(thread),
        "metadata": read(thread.metadata),
        "turns": _turns(store, id, listed.items, only),
        "listed": listed,
        "only": only,
        "runs_alike": len(store.alike(Found("thread", id), limit=MAX_ALIKE)),
        "show": partial(Show, links),
        "images": _IMAGES,
        "rows": len(listed.items),
    }
    return page(request, "thread.html", context)


def _rows(store: Store, id: str, cursor: str | None, *, back: bool) -> Listed[StepRow]:
    filter = StepFilter(thread_id=id, outline_only=True)
    if not back:
        page = store.steps(filter, limit=PAGE_ROWS, cursor=cursor, order="asc")
        return Listed(page.items, page.next_cursor, page.previous_cursor if cursor else None, cursor is None)
    page = store.steps(filter, limit=PAGE_ROWS, cursor=cursor, order="desc")
    if cursor is not None and page.next_cursor is None:
        return _rows(store, id, None, back=False)
    further = None if cursor is None else page.previous_cursor
    return Listed(page.items[::-1], further, page.next_cursor, first=page.next_cursor is None)


def _turns(store: Store, id: str, rows: Sequence[StepRow], only: str | None) -> list[Said | Work]:
    plain = not any(row.type in MESSAGE_TYPES for row in rows)
    records = {record.id: record for record in store.steps_in_full([row.id for row in rows])}
    tops = [row.id for row in rows if row.type not in MESSAGE_TYPES]
    runs = store.runs(StepFilter(thread_id=id, ids=tops), limit=PAGE_ROWS).items if tops and only is None else []
    conversation = _Conversation(records, {run.id: run for run in runs}, plain)
    for row in rows:
        conversation.add(row)
    conversation.end()
    return conversation.turns


def _user(thread: ThreadRecord) -> dict[str, Any]:
    """Return what is known of who the thread belongs to."""
    user = thread.user
    if user is None:
        return {}
    named = {"identifier": user.identifier, "id": user.id, "metadata": read(user.metadata)}
    return {name: value for name, value in named.items() if value is not None}


@router.get("/work/{id:path}")
def work(store: InStore, request: Request, id: ThreadId) -> Response:
    """Show the steps of a run in a line each: what a fold of a thread's page opens."""
    family = families_of(request).of(store, id)
    rows = [row for row in family.rows if row is not family.root and row.step.type not in MESSAGE_TYPES]
    shown = rows[:WORK_ROWS]
    lines = {record.id: lines_of(record) for record in store.steps_in_full([row.step.id for row in shown])}
    context = {"rows": shown, "lines": lines, "all": len(rows), "run": id}
    return page(request, "_work.html", context)
