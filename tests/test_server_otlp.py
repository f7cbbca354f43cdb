"""`POST /v1/traces` and `/v1/logs`: what is taken, what is refused and how, and that what came is in the store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode, set_span_in_context
from otlp import PROTOBUF, request_of
from served import AppServer

from stepwell.otel.semconv import Span, step_id_of
from stepwell.server._limits import Limits

TRACE = 0x01A2018CC5CD743386C4A5277C5FCCC5
FIRST = "01a2018c-c5cd-7433-0000-000000000001"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AppServer]:
    with AppServer(tmp_path / "home") as server:
        yield server


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[AppServer]:
    """A server with little room."""
    limits = Limits(body_bytes=4000, lines=5, line_bytes=2000, depth=20, waiting_bytes=10_000)
    with AppServer(tmp_path / "home", limits) as server:
        yield server


def span(number: int = 1, **fields: Any) -> Span:
    return Span(TRACE, number, **{"name": f"span {number}", "start_ns": 5, "end_ns": 9, **fields})


def post(
    server: AppServer, body: bytes, type: str = PROTOBUF, path: str = "/v1/traces", **headers: str
) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.client.post(path, content=body, headers={"Content-Type": type, **named})


def body_of(*spans: Span) -> bytes:
    return request_of(*spans).SerializeToString()


def provider(exporter: Any) -> TracerProvider:
    made = TracerProvider(resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
    made.add_span_processor(SimpleSpanProcessor(exporter))
    return made


# -- taken


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip, Compression.Deflate])
def test_the_official_exporter_delivers_spans(server: AppServer, compression: Compression) -> None:
    made = provider(OTLPSpanExporter(f"{server.url}/v1/traces", compression=compression))
    tracer = made.get_tracer("app", "1.0")
    with tracer.start_as_current_span("outer", kind=SpanKind.SERVER, attributes={"k": (1, 2)}) as outer:
        context = set_span_in_context(outer)
        with tracer.start_as_current_span("inner", context, links=[Link(outer.get_span_context())]) as inner:
            inner.set_status(StatusCode.ERROR, "no")
            inner.add_event("tried", {"n": 1})
    made.shutdown()
    told = outer.get_span_context()
    root = server.store.step(step_id_of(told.trace_id, told.span_id))
    child = server.store.step(step_id_of(told.trace_id, inner.get_span_context().span_id))
    assert (root.type, root.name, root.status, root.service, root.sdk) == ("run", "outer", "success", "shop", "app/1.0")
    assert root.start_ns is not None
    assert root.end_ns is not None
    assert 0 < root.end_ns - root.start_ns < 60_000_000_000
    assert json.loads(bytes(root.metadata)) == {"k": [1, 2], "otel.kind": 2}
    assert (child.type, child.status, child.parent_id, child.trace_id) == (
        "undefined",
        "failed",
        root.id,
        f"{told.trace_id:032x}",
    )
    assert child.error is not None
    assert child.error.message == "no"
    metadata = json.loads(bytes(child.metadata))
    assert metadata["otel.links"] == [{"trace_id": f"{told.trace_id:032x}", "span_id": f"{told.span_id:016x}"}]
    assert [(event["name"], event["attributes"]) for event in metadata["otel.events"]] == [("tried", {"n": 1})]
