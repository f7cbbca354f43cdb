"""From log records that are events to what they say of steps: messages of a call, judgements, and records of ours.

What must stay true: messages of one call may come in several requests, and any request may come twice. So they are put
after those already known, unless they are among them. Where a conversation repeats itself word by word, what comes
apart and says the same is therefore told once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple
from uuid import UUID

from msgspec import UNSET, Raw, UnsetType, json

from stepwell.errors import UsageError
from stepwell.model import Generation, Record, ScoreRecord, StepRecord, decode_generation
from stepwell.otel._generations import EVENTS, told_by_events
from stepwell.otel._incoming import Origin, step_of
from stepwell.otel._own import is_own, read_event
from stepwell.otel._parts import listing, loads, mapping
from stepwell.otel._spans import LogEvent, Span, hex_of, step_id_of

__all__ = ["Events", "records_of_events"]

_DETAILS: Final = "gen_ai.client.inference.operation.details"
_JUDGEMENT: Final = "gen_ai.evaluation.result"
_THREAD: Final = "stepwell.thread"
_encode: Final = json.Encoder().encode


class Events(NamedTuple):
    """What log records say of steps; `others` is how many say nothing of any."""

    records: list[Record]
    others: int


def records_of_events(
    events: Iterable[tuple[LogEvent, Origin]], known: Callable[[str], Raw | UnsetType] = lambda _: UNSET
) -> Events:
    """Read log records. `known` gives the generation of a step that is there already, by its id."""
    records: list[Record] = []
    told: dict[tuple[int, int], list[tuple[str, Mapping[str, Any]]]] = {}
    others = 0
    for event, origin in events:
        if event.name in EVENTS and event.span_id:
            body = mapping(event.body) or event.attributes
            told.setdefault((event.trace_id, event.span_id), []).append((event.name, body))
        elif (record := _record_of(event, origin)) is not None:
            records.append(record)
        else:
            others += 1
    for (trace_id, span_id), said in told.items():
        id = step_id_of(trace_id, span_id)
        records.append(StepRecord(id=id, trace_id=hex_of(trace_id), generation=_joined(said, known(id))))
    return Events(records, others)


def _record_of(event: LogEvent, origin: Origin) -> Record | None:
    if is_own(event.attributes) and event.name in (_THREAD, _JUDGEMENT):
        try:
            return read_event(event, "thread" if event.name == _THREAD else "score")
        except ValueError:
            return None
    if event.name == _JUDGEMENT and event.span_id:
        return _score_of(event)
    if event.name == _DETAILS and event.span_id:
        return _details_of(event, origin)
    return None


def _score_of(event: LogEvent) -> ScoreRecord:
    """Return a judgement with an id that follows from all it says, so that it may come twice."""
    said = {name.removeprefix("gen_ai.evaluation."): value for name, value in event.attributes.items()}
    value = said.get("score.value")
    texts = {name: each for name, each in said.items() if isinstance(each, str)}
    digest = sha256(_encode([event.trace_id, event.span_id, event.time_ns, sorted(texts.items())])).digest()
    return ScoreRecord(
        id=str(UUID(bytes=digest[:16], version=4)),
        step_id=step_id_of(event.trace_id, event.span_id),
        name=texts.get("name"),
        value=float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None,
        label=texts.get("score.label"),
        comment=texts.get("explanation"),
        created_ns=event.time_ns or None,
    )


def _details_of(event: LogEvent, origin: Origin) -> StepRecord:
    """Return what an event says of a call of a model: the same as the attributes of its span would."""
    attributes = {**event.attributes, **(mapping(event.body) or {})}
    step = step_of(Span(event.trace_id, event.span_id, attributes=attributes), origin)
    return StepRecord(id=step.id, trace_id=step.trace_id, generation=step.generation, output=step.output)


def _joined(said: list[tuple[str, Mapping[str, Any]]], known: Raw | UnsetType) -> Raw:
    """Return the generation that messages of a call make, together with those that are known."""
    asked, answered, reason = told_by_events(said)
    generation = Generation(stop_reason=reason)
    if asked:
        before = _messages_in(known)
        generation.type = "chat"
        generation.messages = Raw(_encode(before if _contains(before, asked) else [*before, *asked]))
    if answered:
        generation.message_completion = Raw(_encode(answered[0] if len(answered) == 1 else answered))
    return Raw(_encode(generation))


def _messages_in(known: Raw | UnsetType) -> list[Any]:
    try:
        messages = decode_generation(known).messages
        return [] if messages is UNSET else [*(listing(loads(messages)) or ())]
    except (UsageError, ValueError):
        return []


def _contains(before: list[Any], asked: list[Any]) -> bool:
    return any(before[at : at + len(asked)] == asked for at in range(len(before) - len(asked) + 1))
