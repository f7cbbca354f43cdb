"""All that is shown of one step: decoded, told from what was there before, and linked to what belongs to it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import UNSET, Raw, UnsetType

from stepwell.model import Generation, StepRecord
from stepwell.server.pages._caching import AHEAD, BEHIND, Break, branch_of, breaks, held, may_have_broken, prompt_of
from stepwell.server.pages._calls import (
    MAX_LOOKED_AT,
    MAX_TOOLS,
    Answer,
    Before,
    Stretch,
    answer_of,
    call_before,
    calls_of,
    compare,
    pair,
    tools_between,
)
from stepwell.server.pages._content import Call, Message, Part, Tool, message_of, messages_of, part_of, read, tools_of
from stepwell.server.pages._entry import generation_of
from stepwell.server.pages._rows import Family, Row
from stepwell.store import StepFilter, Store

__all__ = ["Panel", "Passage", "ToolCall", "panel_of"]

MAX_OPEN: Final = 30  # new messages shown at once; what is before them is folded


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call in a model's answer: the number of the tool that was offered, its step and the message with its result.

    `result` is the place of that message in the model call `later`, which may be in the thread's next run. `why` says
    why there is no step.
    """

    call: Call
    tool: int | None
    step: Row | None
    result: int | None
    later: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Passage:
    """Messages of a call one after another, to show or to fold; `first` is the place of the first of them.

    Of a message with a result, `asked` has the tool step, by place.
    """

    kind: str
    first: int
    last: int
    old_first: int = 0
    old_last: int = 0
    messages: Sequence[Message] = ()


@dataclass(slots=True)
class Panel:
    """What the panel shows; parts are None, and lists empty, where nothing was recorded."""

    row: Row
    record: StepRecord
    generation: Generation
    family: Family
    input: Part | None
    output: Part | None
    prompt: Part | None
    completion: Part | None
    messages: list[Message]
    answer: Message | None
    tools: list[Tool]
    before: Before | None
    passages: list[Passage] = field(default_factory=list[Passage])
    calls: list[ToolCall] = field(default_factory=list[ToolCall])
    asked_by: Row | None = None
    results: dict[int, str] = field(default_factory=dict[int, str])
    others: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])
    broke: Break | None = None

    @property
    def metadata(self) -> Any:
        """The step's metadata, decoded."""
        return read(self.record.metadata)

    @property
    def number(self) -> int | None:
        """Which model call of the run it is, from 1."""
        return number_of(self.family, self.row)

    @property
    def before_number(self) -> int | None:
        """Which model call of the run the one before is, None where it is in another run."""
        return None if self.before is None or self.before.row is None else number_of(self.family, self.before.row)

    @property
    def broke_number(self) -> int | None:
        """Which model call of the run the one is that this one broke the cache of, from 1."""
        row = None if self.broke is None else self.family.by_id.get(self.broke.before_id)
        return None if row is None else number_of(self.family, row)

    @property
    def peers(self) -> tuple[Row | None, Row | None]:
        """The steps of the same type and name before and after it."""
        like = self.family.like(self.row)
        at = bisect_left(like, self.row.place, key=lambda row: row.place)
        return (like[at - 1] if at else None, like[at + 1] if at + 1 < len(like) else None)


def number_of(family: Family, row: Row) -> int | None:
    """Return which model call of the run a row is, from 1."""
    return next((at for at, call in enumerate(family.calls(), 1) if call is row), None)


def panel_of(store: Store, family: Family, row: Row) -> Panel:
    """Decode a step, and find what belongs to it."""
    record = store.step(row.step.id)
    generation = generation_of(record)
    messages = messages_of(generation.messages)
    panel = Panel(
        row,
        record,
        generation,
        family,
        _payload(record.input),
        _payload(record.output),
        _payload(generation.prompt),
        _payload(generation.completion),
        messages,
        message_of(generation.message_completion),
        tools_of(generation.tools),
        call_before(store, family, row, messages),
    )
    panel.passages = list(_passages(messages, panel.before))
    if panel.answer is not None and panel.answer.calls:
        panel.calls = _tool_calls(store, panel)
    if row.step.type == "tool":
        panel.asked_by = _asking(store, family, row)
    if panel.before is not None:
        panel.results = _results(store, panel, panel.before)
    panel.broke = _broke(store, family, row)
    named = ("settings", "variables", "provider_request", "provider_response", "cost")
    panel.others = [(name, read(getattr(generation, name))) for name in named if getattr(generation, name) is not UNSET]
    return panel


def _broke(store: Store, family: Family, row: Row) -> Break | None:
    """Say whether a call broke the prompt cache; calls are read only where the tokens they reported let it be."""
    step = row.step
    if step.type != "llm" or step.cached_input_tokens is None:
        return None
    branch = branch_of(step, step.model, step.provider)
    every = (each.step for each in family.calls())
    calls = [each for each in every if branch_of(each, each.model, each.provider) == branch]
    at = calls.index(step)
    before = calls[max(at - BEHIND, 0) : at]
    left = (
        held(each.provider, each.model, each.input_tokens, each.cached_input_tokens, each.cache_write_tokens)
        for each in before
    )
    if not any(may_have_broken(each, step.input_tokens, step.cached_input_tokens) for each in left):
        return None
    records = store.steps_in_full([each.id for each in [*before, *calls[at : at + 1 + AHEAD]]])
    found = (each for each in breaks([prompt_of(record) for record in records]) if each.id == step.id)
    return next((each for each in found if each.kind == "broken"), None)


def _payload(payload: Raw | UnsetType) -> Part | None:
    return None if payload is UNSET else part_of(read(payload))


def _passages(messages: list[Message], before: Before | None) -> Iterator[Passage]:
    stretches = [Stretch("new", 0, len(messages), 0, 0)]
    if before is not None:
        stretches = compare([each.digest for each in before.messages], [each.digest for each in messages])
    for each in stretches:
        if each.kind == "same":
            yield Passage("same", each.first, each.last, each.old_first, each.old_last)
        elif each.kind == "dropped":
            lost = before.messages[each.old_first : each.old_last][:MAX_OPEN] if before is not None else ()
            yield Passage("dropped", each.first, each.first, each.old_first, each.old_last, lost)
        else:
            first = max(each.first, each.last - MAX_OPEN)
            if first > each.first:
                yield Passage("folded", each.first, first)
            old = each.old_first + first - each.first
            yield Passage(each.kind, first, each.last, old, each.old_last, messages[first : each.last])


def _tool_calls(store: Store, panel: Panel) -> list[ToolCall]:
    """Link the calls of a model's answer to their steps, and to their results in the next call on the branch."""
    answer = panel.answer
    calls = [] if answer is None else answer.calls
    rows = tools_between(panel.family, panel.row)
    records = {record.id: record for record in store.steps_in_full([row.step.id for row in rows])}
    rows = [row for row in rows if row.step.id in records]
    steps = pair(calls, [answer_of(records[row.step.id]) for row in rows])
    later = _later(store, panel.family, panel.row)
    results: list[int | None] = [None] * len(calls)
    places: list[int] = []
    if later is not None:
        places, answers = _answers_in(messages_of(generation_of(later).messages), panel)
        results = pair(calls, answers)
    offered = {tool.name: number for number, tool in reversed(list(enumerate(panel.tools, 1)))}
    found: list[ToolCall] = []
    for at, call in enumerate(calls):
        step, result = steps[at], results[at]
        found.append(
            ToolCall(
                call,
                offered.get(call.name),
                None if step is None else rows[step],
                None if result is None else places[result],
                None if later is None else later.id,
                _why(call, rows),
            )
        )
    return found


def _why(call: Call, rows: Sequence[Row]) -> str:
    like = sum(row.step.name == call.name for row in rows)
    if not like:
        return "no step of this tool follows"
    return f"not paired: {like} {'step' if like == 1 else 'steps'} of this tool, none that can be told to be its"


def _later(store: Store, family: Family, row: Row) -> StepRecord | None:
    """Return the next model call below the same parent; where the run ends before, the first after it in the thread."""
    after = (each for each in family.rows[row.place + 1 :] if each.step.type == "llm" and each.parent is row.parent)
    found = next(after, None)
    if found is not None:
        return store.step(found.step.id)
    thread_id, start_ns = row.step.thread_id, row.step.start_ns
    if thread_id is None or start_ns is None:
        return None
    filter = StepFilter(type="llm", thread_id=thread_id, since_ns=start_ns)
    rows = store.steps(filter, limit=MAX_LOOKED_AT, order="asc").items
    return next(iter(store.steps_in_full([each.id for each in rows if each.id not in family.by_id][:1])), None)


def _answers_in(messages: Sequence[Message], panel: Panel) -> tuple[list[int], list[Answer]]:
    """Return the results that a later call sent after what this one had sent, and their places."""
    known = len(panel.messages)
    if [each.digest for each in messages[:known]] != [each.digest for each in panel.messages]:
        return [], []
    places: list[int] = []
    for place in range(known, len(messages)):
        message = messages[place]
        if message.calls and places:
            break  # the results of another call follow
        if message.answers is not None or message.role in {"tool", "function", "function_call_output"}:
            places.append(place)
    return places, [Answer(messages[place].answers, messages[place].name) for place in places]


def _asking(store: Store, family: Family, row: Row) -> Row | None:
    """Return the model call that asked for a tool's step, None where it can't be told."""
    earlier = [call for call in family.calls() if call.place < row.place]
    near = [call for call in earlier if call.parent is row.parent][-1:] or earlier[-1:]
    for call in near:
        rows = tools_between(family, call)
        if row not in rows:
            continue
        records = store.steps_in_full([each.step.id for each in rows])
        if row in (at := [family.by_id[record.id] for record in records]):
            pairs = pair(calls_of(store.step(call.step.id)), [answer_of(record) for record in records])
            return call if at.index(row) in pairs else None
    return None


def _results(store: Store, panel: Panel, before: Before) -> dict[int, str]:
    """Return the tool steps, by id, of the results that came with this call, by the places of the messages."""
    known = len(before.messages)
    places = [at for at in range(known, len(panel.messages)) if panel.messages[at].answers is not None]
    calls = calls_of(before.record)
    if not places or not calls:
        return {}
    if before.row is not None:
        ids = [row.step.id for row in tools_between(panel.family, before.row)]
    else:
        ids = _tools_in_thread(store, before.record, panel.row)
    records = store.steps_in_full(ids)
    steps = pair(calls, [answer_of(record) for record in records])
    results = pair(calls, [Answer(panel.messages[at].answers, panel.messages[at].name) for at in places])
    return {
        places[result]: records[step].id
        for step, result in zip(steps, results, strict=True)
        if step is not None and result is not None
    }


def _tools_in_thread(store: Store, call: StepRecord, row: Row) -> list[str]:
    """Return the tool steps of a thread between a call and a step of a later run."""
    filter = StepFilter(type="tool", thread_id=call.thread_id, since_ns=call.start_ns, until_ns=row.step.start_ns)
    return [each.id for each in store.steps(filter, limit=MAX_TOOLS, order="asc").items]
