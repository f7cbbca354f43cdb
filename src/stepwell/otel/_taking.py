"""One span of the SDK as the record of a step, at its place among ours.

What must stay true: what the span says, its name and payloads included, passes the rules of capture and redaction.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

import orjson
from msgspec import UNSET, Raw, Struct, UnsetType, json, structs

from stepwell._recorder import RECORDER
from stepwell.model import ErrorInfo, Generation, StepRecord, decode_generation, encode_record
from stepwell.otel.semconv import Origin, Span, SpanEvent, SpanLink, origin_of, step_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from stepwell._thread import Thread

__all__ = ["frame_of"]

_PAYLOADS: Final = tuple(
    name
    for name in Generation.__struct_fields__
    if name not in ("type", "usage", "ttft_ns", "tokens_per_second", "duration_ns", "context_window_limit")
)


class _Tail(Struct):
    """What every step of this program ends with."""

    environment: str | None = None
    release: str | None = None
    service: str | None = None


def frame_of(span: ReadableSpan, parent_id: str | None, thread: Thread | None, run_id: str | None) -> bytes:
    """Return the record of the step that a span is, as JSON."""
    scope = span.instrumentation_scope
    named = () if scope is None else (scope.name, scope.version or "")
    step = step_of(_plain(span), _origin(tuple(_pairs(span.resource.attributes)), *named))
    step.parent_id = parent_id
    if thread is not None:
        step.thread_id = thread.id
        step.user = thread.user or step.user
    step.root_run_id = run_id or step.root_run_id
    tail = _tail(RECORDER.tail)
    step.environment = step.environment or tail.environment
    step.release = step.release or tail.release
    step.service = step.service or tail.service
    _pass_rules(step)
    return encode_record(step)


def _plain(span: ReadableSpan) -> Span:
    context: Any = span.get_span_context()
    parent = span.parent
    return Span(
        trace_id=context.trace_id,
        span_id=context.span_id,
        name=span.name,
        parent_id=None if parent is None or not parent.is_valid else parent.span_id,
        kind=span.kind.value + 1,  # the SDK counts from 0
        start_ns=span.start_time or 0,
        end_ns=span.end_time or 0,
        status=span.status.status_code.value,
        message=span.status.description or "",
        attributes=dict(span.attributes or {}),
        events=[SpanEvent(each.name, each.timestamp, dict(each.attributes or {})) for each in span.events],
        links=[
            SpanLink(each.context.trace_id, each.context.span_id, dict(each.attributes or {})) for each in span.links
        ],
    )


def _pairs(attributes: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in attributes.items() if isinstance(value, str | int | float)]


@lru_cache(maxsize=256)
def _origin(resource: tuple[tuple[str, Any], ...], scope: str = "", version: str = "") -> Origin:
    return origin_of(dict(resource), scope, version)


@lru_cache(maxsize=4)
def _tail(tail: bytes) -> _Tail:
    return json.decode(b'{"sdk_":0' + tail, type=_Tail)


# -- the rules


def _pass_rules(step: StepRecord) -> None:
    """Put everything that the span's program said through capture and redaction."""
    step.input, step.output, step.metadata = _clean(step.input), _clean(step.output), _clean(step.metadata)
    step.name = _text(step.name)
    step.user, step.agent_id = _text(step.user), _text(step.agent_id)
    if step.thread_id is not None:
        step.thread_id = orjson.loads(RECORDER.id_json(step.thread_id))
    if step.error is not None:
        error = step.error
        step.error = ErrorInfo(_text(error.type), _text(error.message), _text(error.traceback))
    if step.tags:
        step.tags = [text for tag in step.tags if (text := _text(tag)) is not None]
    for score in step.scores or ():
        score.name, score.label, score.comment = _text(score.name), _text(score.label), _text(score.comment)
    if step.generation is not UNSET:
        _pass_generation(step, step.generation)
    elif step.type == "llm":
        step.type, step.downgraded_from = "run", "llm"


def _pass_generation(step: StepRecord, payload: Raw) -> None:
    generation = decode_generation(payload)
    changes: dict[str, Any] = {}
    for name in _PAYLOADS:
        value = getattr(generation, name)
        if isinstance(value, str):
            changes[name] = _text(value)
        elif value is not None:
            changes[name] = _clean(value)
    generation = structs.replace(generation, **changes)
    if step.type == "llm" and generation.messages is UNSET and generation.prompt is UNSET:
        step.type, step.downgraded_from = "run", "llm"  # Literal's rule: it asked nothing
    step.generation = Raw(json.encode(generation))


def _text(text: str | None) -> str | None:
    return None if text is None else cast("str", orjson.loads(RECORDER.text(text)))


def _clean(payload: Raw | UnsetType) -> Raw | UnsetType:
    return UNSET if payload is UNSET else Raw(RECORDER.encode(json.decode(payload)))
