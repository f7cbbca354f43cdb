"""Our messages of OTLP are those that the official encoder makes of the same spans."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from otlp_sink import attributes_of
from records import steps

from stepwell.exporters._otlp_encoding import logs_request, traces_request
from stepwell.exporters._otlp_spans import Sent, readable_of, resource_of, stub_of
from stepwell.model import StepRecord
from stepwell.otel.semconv import LogEvent, Span, SpanEvent, SpanLink, span_of


def traces(spans: list[Sent]) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest.FromString(traces_request(spans))


def sent(**fields: Any) -> Sent:
    return Sent(Span(5, 6, **fields), resource_of("shop", None, None))


@hypothesis_settings(suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(st.lists(steps, max_size=4), st.sampled_from(["shop", None]))
def test_a_request_is_what_the_official_encoder_makes(records: list[StepRecord], service: str | None) -> None:
    spans = [
        Sent(span_of(step), resource_of(service if at % 2 else None, None, None)) for at, step in enumerate(records)
    ]
    assert traces(spans) == encode_spans([readable_of(span) for span in spans])


@pytest.mark.parametrize(
    "value",
    [
        "text",
        "t" * 127,
        "t" * 20_000,
        "\u00e9\U0001f600",
        "",
        True,
        False,
        0,
        -(2**63),
        2**63 - 1,
        1.5,
        b"\xff",
        None,
        ["a", 1, None],
        [],
        {"k": [{"l": 1}]},
    ],
)
def test_a_value_of_any_kind_is_told_as_the_official_encoder_tells_it(value: Any) -> None:
    span = sent(
        name="x",
        attributes={"a": value},
        events=[SpanEvent("e", 5, {"b": value})],
        links=[SpanLink(7, 8, {"c": value})],
    )
    assert traces([span]) == encode_spans([readable_of(span)])


@pytest.mark.parametrize(
    ("value", "told"), [("a\ud800", "a?"), (2**63, str(2**63)), (["a\ud800"], "['a\\ud800']"), (5 + 1j, "(5+1j)")]
)
def test_a_value_that_has_no_form_is_told_as_text_and_its_neighbours_as_they_are(value: Any, told: str) -> None:
    (resource,) = traces([sent(name="x\ud800", attributes={"a": 1, "b": value, "c": 2})]).resource_spans
    (span,) = resource.scope_spans[0].spans
    assert span.name == "x?"
    found = attributes_of(span.attributes)
    assert (found["a"], found["c"]) == (1, 2)
    assert found["b"] == told


def test_a_key_that_is_no_text_is_told_as_text() -> None:
    wrong: Any = {5: 1, "k\ud800": 1}
    (resource,) = traces([sent(attributes=wrong)]).resource_spans
    assert attributes_of(resource.scope_spans[0].spans[0].attributes) == {"5": "1", "k?": "1"}


def test_events_without_a_span_have_no_ids() -> None:
    request = ExportLogsServiceRequest.FromString(
        logs_request([LogEvent("a", time_ns=5), LogEvent("b", 7, 8, 9, None, {"k": 1})])
    )
    first, second = request.resource_logs[0].scope_logs[0].log_records
    assert (first.event_name, first.trace_id, first.span_id) == ("a", b"", b"")
    assert (second.trace_id, second.span_id) == ((7).to_bytes(16, "big"), (8).to_bytes(8, "big"))
    assert attributes_of(second.attributes) == {"k": 1}


def test_a_stub_keeps_what_is_short_and_names_the_rest() -> None:
    attributes = {"short": "x", "number": 5, "long": "x" * 5000, "list": ["x"], "bytes": b"x" * 5000}
    stub = stub_of(
        sent(name="n" * 5000, message="m" * 5000, attributes=attributes, events=[SpanEvent("e", 5, {})])
    ).span
    assert stub.attributes == {"short": "x", "number": 5, "stepwell.cut": ["long", "list", "bytes"]}
    assert (len(stub.name), len(stub.message), stub.events, stub.span_id) == (1024, 1024, (), 6)
