"""Steps as spans by the semantic conventions for generative AI, and steps of spans by whichever conventions.

`span_of` gives the span of a step, `step_of` the step of a span: of that span, an equal one. `event_of` and
`records_of_events` do so for what is no span but a log record. The tables of attributes are in `_tables`.
"""

from __future__ import annotations

from stepwell.otel._incoming import Origin, origin_of, step_of
from stepwell.otel._logs import Events, records_of_events
from stepwell.otel._outgoing import CONVENTIONS, event_of, span_of
from stepwell.otel._spans import (
    CLIENT,
    INTERNAL,
    STATUS_ERROR,
    STATUS_OK,
    STATUS_UNSET,
    LogEvent,
    Span,
    SpanEvent,
    SpanLink,
    span_id_of,
    step_id_of,
    trace_id_of,
)
from stepwell.otel._tables import Convention

__all__ = [
    "CLIENT",
    "CONVENTIONS",
    "INTERNAL",
    "STATUS_ERROR",
    "STATUS_OK",
    "STATUS_UNSET",
    "Convention",
    "Events",
    "LogEvent",
    "Origin",
    "Span",
    "SpanEvent",
    "SpanLink",
    "event_of",
    "origin_of",
    "records_of_events",
    "span_id_of",
    "span_of",
    "step_id_of",
    "step_of",
    "trace_id_of",
]
