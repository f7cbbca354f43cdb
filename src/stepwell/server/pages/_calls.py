"""How the model calls of a run belong together: what a call sent that the one before had not, and which call of a tool
has which step and which answer.

What must stay true: a pair is made only where it can be told. An id that comes again, or is not there, pairs by what
the arguments say or not at all: no answer ever stands beside a call that it may not belong to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Final, Literal

from msgspec import UNSET, json

from stepwell.model import StepRecord
from stepwell.server.pages._content import Call, Message, json_in, mapping, message_of, messages_of, read
from stepwell.server.pages._entry import generation_of
from stepwell.server.pages._rows import Family, Row
from stepwell.store import StepFilter, Store

__all__ = [
    "MAX_LOOKED_AT",
    "MAX_TOOLS",
    "Answer",
    "Before",
    "Stretch",
    "answer_of",
    "call_before",
    "calls_of",
    "compare",
    "pair",
    "tools_between",
]

MAX_LOOKED_AT: Final = 6
MAX_TOOLS: Final = 200
_MAX_PRODUCT: Final = 1_000_000

Kind = Literal["same", "new", "edited", "dropped"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Messages `first` to `last` (excluded) of a call, against `old_first` to `old_last` of the one before."""

    kind: Kind
    first: int
    last: int
    old_first: int
    old_last: int


def compare(old: Sequence[bytes], new: Sequence[bytes]) -> list[Stretch]:
    """Say of all messages of a call, given by their digests, what they are to those of the call before."""
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    found = [Stretch("same", 0, head, 0, head)]
    middle, other = old[head : len(old) - tail], new[head : len(new) - tail]
    codes: Sequence[tuple[str, int, int, int, int]] = [("replace", 0, len(middle), 0, len(other))]
    if len(middle) * len(other) <= _MAX_PRODUCT:
        codes = SequenceMatcher(None, middle, other, autojunk=False).get_opcodes()
    for code, a, b, c, d in codes:
        found += _stretches(code, a + head, b + head, c + head, d + head)
    found.append(Stretch("same", len(new) - tail, len(new), len(old) - tail, len(old)))
    return [each for each in found if each.last > each.first or each.old_last > each.old_first]


def _stretches(code: str, a: int, b: int, c: int, d: int) -> Iterator[Stretch]:
    if code == "equal":
        yield Stretch("same", c, d, a, b)
        return
    edited = min(b - a, d - c)
    yield Stretch("edited", c, c + edited, a, a + edited)
    yield Stretch("dropped", c + edited, c + edited, a + edited, b)
    yield Stretch("new", c + edited, d, b, b)


@dataclass(frozen=True, slots=True)
class Before:
    """The call before on the same branch: its row where it is in this run, and its messages."""

    record: StepRecord
    row: Row | None
    messages: list[Message]


def call_before(store: Store, family: Family, row: Row, messages: Sequence[Message]) -> Before | None:
    """Return the latest earlier call that this one goes on from: most of its messages are sent again.

    Branches that run side by side below other parents send other messages; where a run has no such call, the last one
    before it in its thread may be it.
    """
    if row.step.type != "llm" or not messages:
        return None
    sent = Counter(message.digest for message in messages)
    earlier = [call for call in family.calls() if call.place < row.place]
    near = [call for call in earlier if call.parent is row.parent][-2:]
    looked_at = [*reversed(near), *(call for call in earlier[: -1 - MAX_LOOKED_AT : -1] if call not in near)]
    rows = {call.step.id: call for call in looked_at}
    best: Before | None = None
    most = 0
    for record in [*store.steps_in_full(list(rows)), *_in_thread(store, row, rows)]:
        theirs = messages_of(generation_of(record).messages)
        shared = (sent & Counter(message.digest for message in theirs)).total()
        at = rows.get(record.id)
        beside = at is not None and at.parent is row.parent and shared > 1
        if shared > most and (beside or shared * 2 > len(theirs)):
            best, most = Before(record, at, theirs), shared
    return best


def _in_thread(store: Store, row: Row, rows: dict[str, Row]) -> list[StepRecord]:
    """Return the last model call of the thread before this one, where the run has none before it."""
    if rows or row.step.thread_id is None or row.step.start_ns is None:
        return []
    filter = StepFilter(type="llm", thread_id=row.step.thread_id, until_ns=row.step.start_ns)
    return store.steps_in_full([found.id for found in store.steps(filter, limit=1).items])


@dataclass(frozen=True, slots=True)
class Answer:
    """What may belong to a call of a tool: a tool's step, or the message with its result. None is not known."""

    id: str | None
    name: str | None
    arguments: Any = UNSET


def answer_of(record: StepRecord) -> Answer:
    """Return what a tool's step says of the call that it was made for."""
    metadata = mapping(read(record.metadata))
    id = next((metadata[key] for key in ("tool_call_id", "call_id", "tool_use_id") if key in metadata), None)
    arguments = UNSET if record.input is UNSET else read(record.input)
    return Answer(id if isinstance(id, str) else None, record.name, arguments)


def pair(calls: Sequence[Call], answers: Sequence[Answer]) -> list[int | None]:
    """Return for each call the place of its answer, None where there is none or it can't be told."""
    found: list[int | None] = [None] * len(calls)
    free = set(range(len(answers)))

    def take(wanted: Sequence[int], given: Sequence[int]) -> None:
        if len(wanted) == len(given):
            for call, answer in zip(wanted, given, strict=True):
                found[call] = answer
                free.discard(answer)

    named = [answer.id for answer in answers if answer.id is not None]
    for id in dict.fromkeys(call.id for call in calls if call.id is not None):
        wanted = [at for at, call in enumerate(calls) if call.id == id]
        given = [at for at, answer in enumerate(answers) if answer.id == id and at in free]
        if len(wanted) == len(given) == 1:
            take(wanted, given)
        else:  # the id comes again: only what was asked for tells them apart
            _by_arguments(wanted, given, calls, answers, take)
    rest = [at for at, call in enumerate(calls) if found[at] is None and call.id not in named]
    for name in dict.fromkeys(calls[at].name for at in rest):
        wanted = [at for at in rest if calls[at].name == name]
        given = [at for at in sorted(free) if answers[at].name == name and answers[at].id is None]
        if len(wanted) == len(given) == 1 and not _differ(calls[wanted[0]], answers[given[0]]):
            take(wanted, given)
        else:
            _by_arguments(wanted, given, calls, answers, take)
    return found


def _by_arguments(
    wanted: Sequence[int],
    given: Sequence[int],
    calls: Sequence[Call],
    answers: Sequence[Answer],
    take: Callable[[Sequence[int], Sequence[int]], None],
) -> None:
    """Pair those of equal arguments, in order, where there are as many of them on either side."""
    keys = {at: _key(calls[at].name, calls[at].arguments) for at in wanted}
    others = {at: _key(answers[at].name, answers[at].arguments) for at in given if answers[at].arguments is not UNSET}
    for key in dict.fromkeys(keys.values()):
        take([at for at in wanted if keys[at] == key], [at for at in given if others.get(at) == key])


def _differ(call: Call, answer: Answer) -> bool:
    known = answer.arguments is not UNSET
    return known and _key(call.name, call.arguments) != _key(answer.name, answer.arguments)


def _key(name: str | None, arguments: Any) -> bytes:
    decoded = json_in(arguments) if isinstance(arguments, str) else None
    try:
        return json.encode([name, arguments if decoded is None else decoded], order="deterministic")
    except (TypeError, ValueError, RecursionError):
        return repr((name, id(arguments))).encode()


def tools_between(family: Family, call: Row) -> list[Row]:
    """Return the tool steps after a call and before the next beside it: those it may have asked for."""
    found: list[Row] = []
    for row in family.rows[call.place + 1 :]:
        if (row.step.type == "llm" and row.parent is call.parent) or len(found) >= MAX_TOOLS:
            break
        if row.step.type == "tool":
            found.append(row)
    return found


def calls_of(record: StepRecord) -> list[Call]:
    """Return the tools that a model call asked for."""
    answer = message_of(generation_of(record).message_completion)
    return [] if answer is None else answer.calls
