"""What a run, or a thread, shows when all of it is looked at: failures that passed for success, what fills the context,
where the prompt cache broke, and where the arguments of calls came from.

What must stay true: this reads every step, so it has a page of its own, and what has more than `MAX_STEPS` is looked at
as far as that, which the page says. In a thread each run is judged by itself, as the store does; repeats and what is
carried along are those of the whole thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, Final, cast

from fastapi import Query, Request, Response
from msgspec import UNSET, json

from stepwell._answers import in_full
from stepwell.errors import NotFoundError
from stepwell.model import StepRecord
from stepwell.server._access import InStore
from stepwell.server._routing import Router
from stepwell.server.pages._address import Address, RunLook
from stepwell.server.pages._caching import Prompt, breaks, prompt_of
from stepwell.server.pages._content import Message, mapping, message_of, messages_of, part_of, read, tools_of
from stepwell.server.pages._context import TOOLS, Piece, Sent, carried, kinds_of, tool_uses
from stepwell.server.pages._entry import generation_of
from stepwell.server.pages._origins import Origin, Text, origins
from stepwell.server.pages._page import Links, page
from stepwell.server.pages._rows import Row, family_of
from stepwell.server.pages._runs import StepId, families_of
from stepwell.store import StepFilter, Store, ThreadFilter, ThreadRow
from stepwell.store._outcomes import Act, Finding, answers, can_be_soft, findings, repeats

__all__ = ["acts_of", "router", "sent_of", "texts_of"]

MAX_STEPS: Final = 2_000
MAX_LISTED: Final = 100
_RUNS: Final = 100

router = Router(include_in_schema=False)


@dataclass(frozen=True, slots=True)
class Asked:
    """A call of a tool, and where each of its arguments came from."""

    call_id: str
    tool: str
    origins: Sequence[Origin]


@dataclass(frozen=True, slots=True)
class _Looked:
    """What was looked at: the rows of a run, or of each run of a thread, and how many `all` are."""

    runs: list[tuple[str, Sequence[Row]]]
    all: int

    @property
    def rows(self) -> int:
        return sum(len(rows) for _, rows in self.runs)


@router.get("/findings/{id:path}")
def findings_page(
    store: InStore,
    request: Request,
    id: StepId,
    thread: Annotated[bool, Query(description="The id is a thread's.")] = False,
) -> Response:
    """Look at all steps of a run, or of the runs of a thread."""
    links = Links(request)
    context: dict[str, Any]
    if thread:
        row = next(iter(store.threads(ThreadFilter(id=id)).items), None) or ThreadRow(store.thread(id).id)
        looked = _of_thread(store, id, row.steps)
        context = {"thread": id, "title": row.name or row.asked or id}
    else:
        family = families_of(request).of(store, id)
        looked = _Looked([(id, family.rows[:MAX_STEPS])], len(family.rows))
        top = family.root.step
        context = {"thread": None, "title": top.name or top.id, "top": top, "run": Address(links, id, RunLook())}
    run_of = {row.step.id: run for run, rows in looked.runs for row in rows}

    def place(step: str) -> str:
        return Address(links, run_of[step], RunLook()).to(step=step)

    return page(request, "findings.html", {**context, **_found(store, looked), "place": place})


def _of_thread(store: Store, id: str, steps: int) -> _Looked:
    """Read the runs of a thread, from its beginning, as far as its steps are looked at."""
    runs: list[tuple[str, Sequence[Row]]] = []
    left, cursor = MAX_STEPS, None
    while left > 0:
        listed = store.runs(StepFilter(thread_id=id), limit=_RUNS, cursor=cursor, order="asc")
        for run in listed.items:
            with suppress(NotFoundError):  # it was deleted meanwhile
                runs.append((run.id, family_of(run.id, store.tree(run.id)).rows[:left]))
                left -= len(runs[-1][1])
            if left <= 0:
                break
        if (cursor := listed.next_cursor) is None:
            break
    return _Looked(runs, max(steps, MAX_STEPS - left))


def _found(store: Store, looked: _Looked) -> dict[str, Any]:
    """Return what the template shows of what was looked at."""
    every: list[Act] = []
    soft: list[Finding] = []
    calls: list[Sent] = []
    asked: list[Asked] = []
    prompts: list[Prompt] = []
    for _, rows in looked.runs:
        acts: list[Act] = []
        by_id = {row.step.id: row for row in rows}
        for record in in_full(store, [row.step.id for row in rows if row.step.type in {"llm", "tool"}]):
            acts += acts_of(record)
            if record.type == "llm":
                calls.append(sent_of(record, by_id[record.id]))
                asked += _asked(record)
                prompts.append(prompt_of(record))
        soft += findings(acts)
        every += acts
    values = [value for each in asked for value in each.origins]
    return {
        "looked_at": looked.rows,
        "all": looked.all,
        "errors": [each for each in soft if each.kind == "error"],
        "empty": [each for each in soft if each.kind == "empty"],
        "repeats": list(repeats(every)),
        "calls": calls,
        "kinds": [kinds_of(call) for call in calls],
        "carried": carried(calls),
        "uses": tool_uses(calls),
        "cache": list(breaks(prompts)),
        "cache_told": sum(prompt.cached is not None for prompt in prompts),
        "numbers": {call.id: number for number, call in enumerate(calls, 1)},
        "asked": asked,
        "values": len(values),
        "found": sum(each.source is not None for each in values),
        "listed": MAX_LISTED,
    }


def acts_of(record: StepRecord) -> Iterator[Act]:
    """Yield what a step was of the agent: a tool's call, or the text of a model's answer."""
    when = (record.start_ns, record.end_ns)
    if record.type == "tool":
        failed = not can_be_soft(record.type, record.status)
        result = UNSET if record.output is UNSET else read(record.output)
        yield Act(record.id, record.name or "", read(record.input), result, failed, *when)
    elif record.type == "llm" and answers(record.generation):
        yield Act(record.id, start_ns=when[0], end_ns=when[1])


def sent_of(record: StepRecord, row: Row) -> Sent:
    """Return what a model call sent."""
    generation = generation_of(record)
    pieces: list[Piece] = []
    if generation.tools is not UNSET:
        data = bytes(generation.tools)
        pieces.append(Piece(blake2b(data, digest_size=16).digest(), TOOLS, len(data), "all tools offered"))
    messages = messages_of(generation.messages)
    pieces += (Piece(each.digest, _kind_of(each), _length_of(each), each.preview[:120]) for each in messages)
    answer = message_of(generation.message_completion)
    step = row.step
    return Sent(
        record.id,
        pieces,
        step.input_tokens,
        step.total_tokens or (step.input_tokens or 0) + (step.output_tokens or 0) or None,
        step.cost,
        [tool.name for tool in tools_of(generation.tools)],
        [] if answer is None else [call.name for call in answer.calls],
        generation.context_window_limit,
    )


def _kind_of(message: Message) -> str:
    if message.role in {"tool", "function", "function_call_output"}:
        return f"results of {message.name}" if message.name else "tool results"
    return message.role


def _length_of(message: Message) -> int:
    parts = sum(part.characters or len(part.text) for part in message.parts)
    return parts + sum(len(call.name) + part_of(call.arguments).characters for call in message.calls)


def _asked(record: StepRecord) -> Iterator[Asked]:
    generation = generation_of(record)
    answer = message_of(generation.message_completion)
    if answer is not None and answer.calls:
        before = texts_of(read(generation.messages))
        for call in answer.calls:
            yield Asked(record.id, call.name, origins(call.arguments, before))


def texts_of(messages: Any) -> list[Text]:
    """Return what stood before a call and was not the model's own: system, user and tool messages."""
    found: list[Text] = []
    for place, message in enumerate(cast("Sequence[Any]", messages if isinstance(messages, list) else ())):
        fields = mapping(message)
        role = fields.get("role")
        if isinstance(role, str) and role != "assistant":
            content = fields.get("content")
            text = content if isinstance(content, str) else json.encode(content).decode()
            found.append(Text(place, role, text.lower()))
    return found
