"""The fork: what all runs of one question did, as one tree, and both calls where a good run and a bad one part.

What must stay true: it reads the tools' steps of at most `MAX_CASES` runs within a budget, and says what it left out;
what a run did is its tools' steps in the order of their start, and where it has none, the calls that its last model
call tells of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final

from fastapi import Query, Request, Response
from msgspec import UNSET, Raw, json

from stepwell._answers import in_full
from stepwell._vocabulary import MAX_ID_CHARACTERS
from stepwell.errors import NotFoundError
from stepwell.model import Score, StepRecord
from stepwell.server._access import InStore
from stepwell.server._routing import Router
from stepwell.server.pages._aligning import Words, diff_words
from stepwell.server.pages._caching import Prompt, differences, prompt_of
from stepwell.server.pages._content import Message, mapping, message_of, messages_of, read
from stepwell.server.pages._entry import generation_of
from stepwell.server.pages._forks import (
    STATUS,
    Action,
    Case,
    Node,
    Outcome,
    Parting,
    canonical,
    choices_of,
    grow,
    judge,
    parting_at,
    partings,
    rows_of,
)
from stepwell.server.pages._page import page
from stepwell.store import MAX_PAGE, Found, ScoreQuery, StepFilter, StepRow, Store

__all__ = ["MAX_CASES", "router"]

MAX_CASES: Final = 100
MAX_ACTIONS: Final = 200  # of one run, or fewer where there are many, for together there are at most
ALL_ACTIONS: Final = 5_000
MAX_FOLDED: Final = 20  # actions in a fold
MAX_ROWS: Final = 8_000  # of all of them, of any type
MAX_LINES: Final = 1_000
_ENDED: Final[dict[str | None, Outcome]] = {
    "success": "good", "failed": "bad", "cancelled": "bad", "interrupted": "bad",
}  # fmt: skip

router = Router(include_in_schema=False)

Id = Annotated[str, Query(max_length=MAX_ID_CHARACTERS)]


@dataclass(frozen=True, slots=True)
class _Looked:
    """A case and the rows of its steps, in order."""

    case: Case
    rows: Sequence[StepRow]


@dataclass(frozen=True, slots=True)
class Side:
    """A case where it parts: what it did next (None: it ended), and the model call that decided that."""

    case: Case
    action: Action | None
    asking: StepRecord | None
    prompt: Prompt | None
    messages: Sequence[Message]

    @property
    def step_id(self) -> str | None:
        """The step to open: the tool's, else the model call."""
        return self.action.step_id if self.action is not None else None if self.asking is None else self.asking.id


@dataclass(frozen=True, slots=True)
class Before:
    """What was sent to two model calls that is not the same, the first part first, after so many `equal` messages.

    `texts` are of the first message that differs, and `places` where it stands left and right. Where none does, `more`
    is how many messages more were sent to the right one, below zero to the left one.
    """

    parts: Sequence[str]
    places: tuple[int, int] | None
    texts: Words | None
    equal: int
    more: int = 0


@router.get("/fork")
def fork(  # noqa: PLR0917 (FastAPI passes them by name)
    store: InStore,
    request: Request,
    run: Id = "",
    thread: Id = "",
    by: Annotated[str, Query(max_length=MAX_ID_CHARACTERS)] = "",
    least: Annotated[float | None, Query(allow_inf_nan=False)] = None,
    least_of: Annotated[str, Query(max_length=MAX_ID_CHARACTERS)] = "",
    at: Annotated[str, Query(max_length=16)] = "",
) -> Response:
    """Show the runs that were asked the same as a run or a thread; `least` is a value of the score `least_of`."""
    of = Found("step", run) if run else Found("thread", thread)
    alike = store.alike(of, limit=MAX_CASES + 1)
    if not alike:
        raise NotFoundError(f"nothing is known of what {of.kind} {of.id!r} was asked")
    looked = list(_looked(store, alike[-MAX_CASES:]))[::-1]
    cases = [each.case for each in looked]
    for number, case in enumerate(cases, 1):
        case.number = number
    choices = choices_of(cases)
    by = by if by in {choice.name for choice in choices} else choices[0].name
    bound = judge(cases, by, least if least_of in {"", by} else None)
    root, nodes = grow(cases)
    first, every = partings(root, nodes, cases)
    chosen = nodes.get(at)
    parting = first if chosen is None else parting_at(chosen, cases) or first
    rows = list(rows_of(root, cases, None if parting is None else parting.node))
    sides = None if parting is None else (_side(store, looked, parting, 0), _side(store, looked, parting, 1))
    context = {
        "section": "runs",
        "of": of,
        "cases": cases,
        "question": _question(looked),
        "all_counts": {name: sum(case.outcome == name for case in cases) for name in ("good", "bad", "unknown")},
        "more": len(alike) > MAX_CASES,
        "unread": len(alike[-MAX_CASES:]) - len(cases),
        "choices": choices,
        "by": by,
        "status": STATUS,
        "bound": bound,
        "rows": rows[:MAX_LINES],
        "all_rows": len(rows),
        "folded": MAX_FOLDED,
        "root": root,
        "every": every,
        "parting": parting,
        "depth": 0 if parting is None else _depth(parting.node),
        "sides": sides,
        "diffs": [] if sides is None else _diffs(*sides),
        "before": None if sides is None else _before(*sides),
    }
    return page(request, "fork.html", context)


def _looked(store: Store, alike: Sequence[Found]) -> Iterator[_Looked]:
    """Yield the cases with their steps, the latest first, as many as the budget allows."""
    left, most = MAX_ROWS, min(MAX_ACTIONS, ALL_ACTIONS // len(alike))
    for found in reversed(alike):
        rows, cut = _rows(store, found)
        left -= len(rows)
        if left < 0:
            return
        tools = [row for row in rows if row.type == "tool"]
        actions = _actions(store, rows, tools[:most])
        left_out = max(len(tools), len(actions)) - most
        case = Case(found.id, found.kind, rows[0].start_ns if rows else None, actions[:most], max(left_out, 0), cut)
        case.status = _status(rows, found)
        case.scores = {score.name: score for score in _scores(store, rows) if score.name is not None}
        yield _Looked(case, rows)


def _rows(store: Store, found: Found) -> tuple[list[StepRow], bool]:
    """Return the first steps of a case, and whether it has more."""
    if found.kind == "thread":
        listed = store.steps(StepFilter(thread_id=found.id), limit=MAX_PAGE, order="asc")
        return listed.items, listed.next_cursor is not None
    rows = store.tree(found.id)
    return rows[:MAX_PAGE], len(rows) > MAX_PAGE


def _actions(store: Store, rows: Sequence[StepRow], tools: Sequence[StepRow]) -> list[Action]:
    if not tools:
        return _told_actions(store, rows)
    return [
        Action(record.id, record.name or "", b"" if record.input is UNSET else canonical(read(record.input)))
        for record in in_full(store, [row.id for row in tools])
    ]


def _told_actions(store: Store, rows: Sequence[StepRow]) -> list[Action]:
    """Return the calls of tools that the last model call tells of: those it was sent, and those it asked for."""
    last = next((row for row in reversed(rows) if row.type == "llm"), None)
    if last is None:
        return []
    record = store.step(last.id)
    generation = generation_of(record)
    answer = message_of(generation.message_completion)
    messages = messages_of(generation.messages) + ([] if answer is None else [answer])
    return [
        Action(record.id, call.name, canonical(call.arguments), place)
        for place, message in enumerate(messages)
        for call in message.calls
    ]


def _status(rows: Sequence[StepRow], found: Found) -> Outcome:
    """Return how a case ended: good where all of its top-level runs did, or its only step."""
    tops = [row for row in rows if row.id == found.id or row.parent_id is None]
    statuses = {_ENDED.get(row.status, "unknown") for row in tops}
    return "bad" if "bad" in statuses else "unknown" if not statuses or "unknown" in statuses else "good"


def _scores(store: Store, rows: Sequence[StepRow]) -> Iterator[Score]:
    """Yield the scores of a case, the latest of a name last."""
    for first in range(0, len(rows), MAX_PAGE):
        ids = [row.id for row in rows[first : first + MAX_PAGE]]
        yield from store.scores(ScoreQuery(step_ids=ids), limit=MAX_PAGE, order="asc").items


def _question(looked: Sequence[_Looked]) -> str | None:
    """Return the beginning of what the first case was asked."""
    rows = looked[0].rows if looked else ()
    shown = (row.output_preview if row.type == "user_message" else row.input_preview for row in rows)
    return next((preview for preview in shown if preview), None)


def _depth(node: Node) -> int:
    depth = 0
    while node.parent is not None:
        node, depth = node.parent, depth + 1
    return depth


def _side(store: Store, looked: Sequence[_Looked], parting: Parting, which: int) -> Side:
    each = looked[(parting.left, parting.right)[which]]
    depth = _depth(parting.node)
    action = each.case.actions[depth] if depth < len(each.case.actions) else None
    asking = _asking(store, each.rows, action)
    if asking is None:
        return Side(each.case, action, None, None, ())
    prompt, messages = prompt_of(asking), messages_of(generation_of(asking).messages)
    if action is not None and action.place is not None:
        messages = messages[: action.place]
        prompt = replace(prompt, messages=prompt.messages[: max(action.place - prompt.first, 0)])
    return Side(each.case, action, asking, prompt, messages)


def _asking(store: Store, rows: Sequence[StepRow], action: Action | None) -> StepRecord | None:
    """Return the last model call before an action, or of all where a case ended."""
    last: StepRow | None = None
    for row in rows:
        last = row if row.type == "llm" else last
        if action is not None and row.id == action.step_id:
            break
    return None if last is None else store.step(last.id)


def _diffs(left: Side, right: Side) -> list[tuple[str, Words]]:
    """Compare what both did: the tool and its arguments; where one ended, what it said."""
    pairs = [
        ("Tool", *(side.action.tool if side.action is not None else "" for side in (left, right))),
        ("Arguments", *(_pretty(side.action) for side in (left, right))),
    ]
    if left.action is None or right.action is None:
        pairs = [("Answer", _said(left), _said(right)), *(pairs if left.action is not right.action else ())]
    return [(name, diff_words(one, other)) for name, one, other in pairs if one or other]


def _pretty(action: Action | None) -> str:
    if action is None or not action.arguments:
        return ""
    value = read(Raw(action.arguments))
    return value if isinstance(value, str) else json.format(action.arguments, indent=2).decode("utf-8", "replace")


def _said(side: Side) -> str:
    """Return what the model answered in words."""
    if side.asking is None or side.action is not None:
        return ""
    answer = message_of(generation_of(side.asking).message_completion)
    return "" if answer is None else _text(answer)


def _text(message: Message) -> str:
    texts = [part.text + part.tail for part in message.parts]
    return "\n".join([*texts, *(f"{call.name}({call.line})" for call in message.calls)])


def _before(left: Side, right: Side) -> Before | None:
    """Compare what the model was sent before both did what they did."""
    one, other = left.prompt, right.prompt
    if one is None or other is None or left.asking is None or right.asking is None:
        return None
    found = list(differences(one, other))
    parts = list(dict.fromkeys([*_set_otherwise(left.asking, right.asking), *(name for name, _, _, _ in found)]))
    place, old_place = next(((place, old) for _, _, place, old in found if place is not None), (None, None))
    if place is None or old_place is None:
        equal = min(len(one.messages), len(other.messages))
        return Before(parts, None, None, equal + other.first, len(other.messages) - len(one.messages))
    texts = diff_words(_text(left.messages[old_place]), _text(right.messages[place]))
    return Before(parts, (old_place, place), texts, place)


def _set_otherwise(left: StepRecord, right: StepRecord) -> Iterator[str]:
    """Yield what two model calls were set to that is not the same: the model, and all settings that were recorded."""
    one, other = generation_of(left), generation_of(right)
    if one.model != other.model:
        yield f"model ({one.model or 'unknown'} and {other.model or 'unknown'})"
    old, new = mapping(read(one.settings)), mapping(read(other.settings))
    yield from (f"setting {name}" for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name))
