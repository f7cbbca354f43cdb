"""Steps as spans by the semantic conventions for generative AI.

`span_of` gives the span of a step. The tables of attributes are in `_tables`.
"""

from __future__ import annotations

from stepwell.otel._outgoing import CONVENTIONS, attributes_of, event_of, span_of
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
    "LogEvent",
    "Span",
    "SpanEvent",
    "SpanLink",
    "attributes_of",
    "event_of",
    "span_id_of",
    "span_of",
    "step_id_of",
    "trace_id_of",
]
