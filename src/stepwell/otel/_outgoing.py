"""From steps to spans: GenAI conventions and OpenInference, either or both, and our own attributes for the rest.

What must stay true: nothing here raises for what a payload holds; what is not of a known shape has no attribute of its
own in a convention, and is on the span all the same, in ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, Final

from stepwell.model import ScoreRecord, StepRecord, ThreadRecord
from stepwell.otel._facts import Facts
from stepwell.otel._genai import add_genai, judgement_of
from stepwell.otel._openinference import add_openinference
from stepwell.otel._own import add_own, record_attributes
from stepwell.otel._spans import (
    CLIENT,
    INTERNAL,
    STATUS_ERROR,
    STATUS_OK,
    STATUS_UNSET,
    LogEvent,
    Span,
    SpanEvent,
    span_id_of,
    trace_id_of,
)
from stepwell.otel._tables import Convention

__all__ = ["CONVENTIONS", "event_of", "span_of"]

CONVENTIONS: Final[tuple[Convention, ...]] = ("genai", "openinference")
_CALLS: Final = frozenset({"llm", "embedding", "retrieval", "rerank"})
_MAX_TIME: Final = 2**64 - 1  # OTLP's times are fixed64


def span_of(step: StepRecord, *, conventions: Collection[Convention] = CONVENTIONS) -> Span:
    """Return the span that a step is; read by `step_of` it gives an equal step.

    A message of a chat is some five attributes in OpenInference's form, so their number has no bound: what sends spans
    must not cut them at OpenTelemetry's default of 128. Of payloads there is one copy for each convention, and one more
    of messages that don't follow from their GenAI form byte by byte (extra fields, other order): a call of a model is
    some 2.5 times its record, some 3.5 times at worst.
    """
    facts = Facts(step)
    happened = facts.happened
    span = Span(
        trace_id=trace_id_of(step),
        span_id=span_id_of(step.id),
        parent_id=None if step.parent_id is None else span_id_of(step.parent_id),
        name=facts.name,
        kind=CLIENT if step.type in _CALLS else INTERNAL,
        start_ns=_time(step.start_ns, step.end_ns),
        end_ns=_time(step.end_ns, step.start_ns),
        events=() if happened is None else happened.events,
        links=() if happened is None else happened.links,
    )
    if step.error is not None or step.scores:
        span.events = [*span.events, *_events_of(step)]  # in this order: `put_back` counts on it
    span.status, span.message = _status_of(step)
    span.attributes = attributes = dict[str, Any]()
    if "genai" in conventions:
        add_genai(attributes, facts)
    if "openinference" in conventions:
        add_openinference(attributes, facts)
    add_own(attributes, facts, span)
    return span


def event_of(record: ThreadRecord | ScoreRecord) -> LogEvent:
    """Return the event that tells a thread or a score on its own, as neither is a span: to be sent as a log record.

    A score is `gen_ai.evaluation.result` of the GenAI conventions, with the id of the span judged; its trace is not
    known from the score. A thread is `stepwell.thread`.
    """
    if isinstance(record, ScoreRecord):
        span_id = 0 if record.step_id is None else span_id_of(record.step_id)
        attributes = {**judgement_of(record), **record_attributes(record)}
        return LogEvent("gen_ai.evaluation.result", 0, span_id, _time(record.created_ns), None, attributes)
    attributes = record_attributes(record)
    attributes["session.id"] = attributes["gen_ai.conversation.id"] = record.id
    if record.user is not None and (user := record.user.identifier or record.user.id):
        attributes["user.id"] = user
    return LogEvent("stepwell.thread", 0, 0, _time(record.created_ns), None, attributes)


def _time(time_ns: int | None, other_ns: int | None = None) -> int:
    found = other_ns if time_ns is None else time_ns
    return 0 if found is None else min(max(found, 0), _MAX_TIME)


def _status_of(step: StepRecord) -> tuple[int, str]:
    if step.status in ("failed", "interrupted"):
        return STATUS_ERROR, (step.error.message if step.error else None) or ("" if step.error else step.status)
    return (STATUS_OK if step.status == "success" else STATUS_UNSET), ""


def _events_of(step: StepRecord) -> Iterator[SpanEvent]:
    at = _time(step.end_ns, step.start_ns)
    if (error := step.error) is not None:
        said = {"type": error.type, "message": error.message, "stacktrace": error.traceback}
        yield SpanEvent(
            "exception", at, {f"exception.{key}": value for key, value in said.items() if value is not None}
        )
    for score in step.scores or ():
        yield SpanEvent("gen_ai.evaluation.result", _time(score.created_ns, at), judgement_of(score))
