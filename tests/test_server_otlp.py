"""`POST /v1/traces` and `/v1/logs`: what is taken, what is refused and how, and that what came is in the store."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import records
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanKind, StatusCode, set_span_in_context
from otlp import PROTOBUF, any_value, key_values, request_of
from served import AppServer, ids

from stepwell.model import ScoreRecord, StepRecord, ThreadRecord, decode_generation, decode_record, encode_record
from stepwell.otel._tables import FAMILIES, SLOTS
from stepwell.otel.semconv import (
    CONVENTIONS,
    LogEvent,
    Span,
    SpanEvent,
    event_of,
    records_of_events,
    span_of,
    step_id_of,
    step_of,
)
from stepwell.server import _otlp_wire as wire
from stepwell.server._keys import KeyRing
from stepwell.server._limits import Limits

JSON = "application/json"
RESTS = (
    *("message.role", "message.content", "message.tool_calls.0.tool_call.function.arguments", "message"),
    *("message.contents.1.message_content.image.image.url", "content", "role", "tool_calls.0.arguments", "tool_calls"),
    *("document.metadata", "annotation.score", "annotation.annotator_kind", "tool.json_schema", "parameters", ""),
)
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
    link = {"trace_id": f"{told.trace_id:032x}", "span_id": f"{told.span_id:016x}", "attributes": {}}
    assert metadata["links"] == [link]
    assert [(event["name"], event["attributes"]) for event in metadata["events"]] == [("tried", {"n": 1})]


def json_span(**fields: Any) -> dict[str, Any]:
    return {
        "traceId": f"{TRACE:032X}",
        "spanId": "0000000000000001",
        "name": "by hand",
        "kind": "SPAN_KIND_CLIENT",
        "startTimeUnixNano": "1790000000000000005",
        "endTimeUnixNano": 1790000000000000009,
        "strange": {"unknown": [1]},
        **fields,
    }


def json_body(*spans: dict[str, Any]) -> bytes:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    scope_spans = [{"scope": {"name": "lib", "version": "3"}, "spans": spans}]
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": scope_spans}]}).encode()


def test_json_is_read_by_the_rules_of_otlp(server: AppServer) -> None:
    values = {
        "s": {"stringValue": "x"},
        "b": {"boolValue": False},
        "i": {"intValue": "9007199254740993"},
        "j": {"intValue": 7},
        "d": {"doubleValue": 0.5},
        "nan": {"doubleValue": "NaN"},
        "a": {"arrayValue": {"values": [{"intValue": "1"}, {"stringValue": "2"}]}},
        "k": {"kvlistValue": {"values": [{"key": "in", "value": {"boolValue": True}}]}},
        "raw": {"bytesValue": "AAEC"},
        "none": {},
        "null": None,
    }
    attributes = [{"key": name, "value": value} for name, value in values.items()]
    status = {"code": "STATUS_CODE_ERROR", "message": "no"}
    sent = json_span(attributes=attributes, status=status, parentSpanId="", events=None, links=[])
    answer = post(server, json_body(sent), JSON)
    assert (answer.status_code, answer.headers["content-type"], answer.json()) == (200, JSON, {})
    step = server.store.step(FIRST)
    assert (step.name, step.service, step.sdk, step.status) == ("by hand", "shop", "lib/3", "failed")
    assert (step.start_ns, step.end_ns) == (1790000000000000005, 1790000000000000009)
    assert json.loads(bytes(step.metadata)) == {
        "s": "x",
        "b": False,
        "i": 9007199254740993,
        "j": 7,
        "d": 0.5,
        "nan": None,
        "a": [1, "2"],
        "k": {"in": True},
        "raw": "AAEC",
        "none": None,
        "null": None,
    }


def test_json_and_protobuf_say_the_same(server: AppServer) -> None:
    attributes = {"gen_ai.operation.name": "chat", "n": [1, 2], "k": {"a": "b"}, "b": b"\x00", "t": True, "f": 0.5}
    sent = span(attributes=attributes, parent_id=7, events=[], links=[])
    [(from_protobuf, _)] = wire.read("spans", PROTOBUF, body_of(sent), 10).items

    def value(of: Any) -> dict[str, Any]:
        if isinstance(of, bool):
            return {"boolValue": of}
        if isinstance(of, int):
            return {"intValue": str(of)}
        if isinstance(of, float):
            return {"doubleValue": of}
        if isinstance(of, bytes):
            return {"bytesValue": base64.b64encode(of).decode()}
        if isinstance(of, dict):
            return {"kvlistValue": {"values": [{"key": name, "value": value(each)} for name, each in of.items()]}}
        return {"arrayValue": {"values": [value(each) for each in of]}} if isinstance(of, list) else {"stringValue": of}

    told = json_span(
        name=sent.name,
        kind=1,
        startTimeUnixNano=5,
        endTimeUnixNano="9",
        parentSpanId="0000000000000007",
        attributes=[{"key": name, "value": value(each)} for name, each in attributes.items()],
    )
    [(from_json, _)] = wire.read("spans", JSON, json_body(told), 10).items
    assert from_json == from_protobuf == sent


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
def test_a_body_may_be_compressed(server: AppServer, encoding: str) -> None:
    compress: dict[str, Any] = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstandard.compress}
    assert post(server, compress[encoding](body_of(span())), Content_Encoding=encoding).status_code == 200
    assert ids(server.store) == [FIRST]


@pytest.mark.parametrize(("type", "body", "answered"), [(PROTOBUF, b"", b""), (JSON, b"{}", b"{}"), (JSON, b"", b"{}")])
@pytest.mark.parametrize("path", ["/v1/traces", "/v1/logs"])
def test_an_empty_request_is_taken(server: AppServer, path: str, type: str, body: bytes, answered: bytes) -> None:
    answer = post(server, body, type, path)
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, type, answered)


def test_the_same_spans_again_change_nothing(server: AppServer) -> None:
    body = body_of(span(), span(2, parent_id=1))
    assert [post(server, body).content for _ in range(2)] == [b"", b""]
    assert ids(server.store) == [FIRST, FIRST[:-1] + "2"]
    told = server.client.get("/metrics").text
    assert 'stepwell_ingest_records_total{outcome="duplicate"} 2' in told


def test_what_left_as_steps_comes_back_equal_with_their_threads_and_scores(server: AppServer) -> None:
    step = decode_record(
        b'{"kind":"step","id":"01a2018c-c5cd-7433-a29f-56ddf5693e36","trace_id":"01a2018cc5cd743386c4a5277c5fccc5",'
        b'"thread_id":"t-1","type":"llm","name":"answer","start_ns":5,"end_ns":9,"status":"success",'
        b'"generation":{"type":"chat","messages":[{"role":"user","content":"Hi"}]},"child_count":0,"tags":[]}'
    )
    thread = decode_record(b'{"kind":"thread","id":"t-1","name":"Talk","user":{"identifier":"ada"},"created_ns":3}')
    score = decode_record(b'{"kind":"score","id":"s-1","step_id":"01a2018c-c5cd-7433-a29f-56ddf5693e36","value":1.0}')
    assert isinstance(step, StepRecord)
    assert isinstance(thread, ThreadRecord)
    assert isinstance(score, ScoreRecord)
    assert post(server, body_of(span_of(step))).content == b""
    assert post(server, logs_of(event_of(thread), event_of(score)), path="/v1/logs").content == b""
    stored = server.store.step(step.id)
    assert (stored.scores or [])[0].value == 1.0
    stored.scores = None
    assert stored == step
    assert server.store.thread("t-1") == thread


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(records.steps, st.lists(st.sampled_from(CONVENTIONS), unique=True))
def test_any_step_comes_back_equal_over_the_wire(step: StepRecord, conventions: list[Any]) -> None:
    frame = encode_record(step)
    sent = decode_record(frame)
    assert isinstance(sent, StepRecord)
    body = request_of(span_of(sent, conventions=conventions)).SerializeToString()
    [(received, origin)] = wire.read("spans", PROTOBUF, body, 10).items
    assert encode_record(step_of(received, origin)) == encode_record(sent)


@settings(max_examples=100, suppress_health_check=list(HealthCheck), deadline=None)
@given(records.threads | records.score_records)
def test_any_thread_and_score_comes_back_equal_over_the_wire(record: ThreadRecord | ScoreRecord) -> None:
    sent = decode_record(encode_record(record))
    assert isinstance(sent, ThreadRecord | ScoreRecord)
    items = wire.read("logs", PROTOBUF, logs_of(event_of(sent)), 10).items
    [received] = records_of_events(items).records
    assert encode_record(received) == encode_record(sent)


# -- log records


def logs_of(*events: LogEvent) -> bytes:
    request = ExportLogsServiceRequest()
    scope = request.resource_logs.add().scope_logs.add()
    for event in events:
        sent = scope.log_records.add(
            time_unix_nano=event.time_ns,
            trace_id=event.trace_id.to_bytes(16, "big") if event.trace_id else b"",
            span_id=event.span_id.to_bytes(8, "big") if event.span_id else b"",
            event_name=event.name,
            attributes=key_values(event.attributes),
        )
        if event.body is not None:
            sent.body.CopyFrom(any_value(event.body))
    return request.SerializeToString()


def message(role: str, content: str) -> LogEvent:
    return LogEvent(f"gen_ai.{role}.message", TRACE, 1, 5, {"content": content})


@pytest.mark.parametrize("first", ["spans", "logs"])
def test_messages_in_log_records_join_their_step_whichever_comes_first(server: AppServer, first: str) -> None:
    spans = body_of(span(attributes={"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4o"}))
    if first == "spans":
        post(server, spans)
        assert server.store.step(FIRST).type == "run"  # the llm rule: nothing was asked as far as is known
    for event in (message("system", "Be terse."), message("user", "Hi"), message("user", "Hi")):
        assert post(server, logs_of(event), path="/v1/logs").content == b""
    post(server, spans)
    step = server.store.step(FIRST)
    generation = json.loads(bytes(step.generation))
    assert (step.type, step.downgraded_from, step.status) == ("llm", None, "success")
    assert (generation["model"], generation["messages"]) == (
        "gpt-4o",
        [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Hi"}],
    )


def test_log_records_in_json_are_read(server: AppServer) -> None:
    log = {
        "traceId": f"{TRACE:032x}",
        "spanId": "0000000000000001",
        "observedTimeUnixNano": "5",
        "body": {"kvlistValue": {"values": [{"key": "content", "value": {"stringValue": "Hi"}}]}},
        "attributes": [{"key": "event.name", "value": {"stringValue": "gen_ai.user.message"}}],
    }
    body = json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [log]}]}]}).encode()
    assert post(server, body, JSON, "/v1/logs").json() == {}
    messages = json.loads(bytes(server.store.step(FIRST).generation))["messages"]
    assert messages == [{"role": "user", "content": "Hi"}]


def test_other_log_records_are_counted_and_not_kept(server: AppServer) -> None:
    answer = post(
        server, logs_of(LogEvent("app.started"), LogEvent("", body="hello"), message("user", "Hi")), path="/v1/logs"
    )
    partial = ExportLogsServiceResponse.FromString(answer.content).partial_success
    assert (answer.status_code, partial.rejected_log_records) == (200, 2)
    assert partial.error_message == "log records are kept that are events of the GenAI conventions"


# -- refused


def status_of(answer: httpx.Response) -> tuple[int, str]:
    """Read `google.rpc.Status`, in the encoding that it came in."""
    if answer.headers["content-type"] == PROTOBUF:
        body = answer.content
        assert body[0] == 8
        assert body[2] == 18
        start = 4 if body[3] < 128 else 5
        length = body[3] if start == 4 else (body[3] & 127) + (body[4] << 7)
        assert len(body) == start + length
        return body[1], body[start:].decode()
    told = answer.json()
    assert set(told) == {"code", "message"}
    return told["code"], told["message"]


def test_a_span_that_is_none_is_refused_alone(server: AppServer) -> None:
    request = request_of(span(), span(2), span(3))
    request.resource_spans[0].scope_spans[0].spans[1].trace_id = b"short"
    request.resource_spans[0].scope_spans[0].spans[2].span_id = b""
    answer = post(server, request.SerializeToString())
    partial = ExportTraceServiceResponse.FromString(answer.content).partial_success
    assert (answer.status_code, partial.rejected_spans, partial.error_message) == (200, 2, "trace_id has not 16 bytes")
    assert ids(server.store) == [FIRST]
    in_json = post(server, json_body(json_span(spanId="xyz"), json_span(startTimeUnixNano="soon")), JSON)
    assert in_json.json() == {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "spanId is not 16 hex digits"}}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"traceId": None}, "a span has no trace id or no span id"),
        ({"endTimeUnixNano": -1}, "a time is not within 64 bits"),
        ({"attributes": [{"key": "a", "value": {"intValue": "x"}}]}, "an integer is none"),
        ({"attributes": [{"key": "a", "value": {"doubleValue": "x"}}]}, "a number is none"),
        ({"attributes": [{"key": "a", "value": {"bytesValue": "*"}}]}, "bytesValue is not base64"),
    ],
)
def test_the_first_thing_that_is_wrong_is_told(server: AppServer, fields: dict[str, Any], error: str) -> None:
    told = post(server, json_body(json_span(**fields)), JSON).json()["partialSuccess"]
    assert told == {"rejectedSpans": "1", "errorMessage": error}


@pytest.mark.parametrize(("type", "body"), [(PROTOBUF, b"\xff\xff"), (JSON, b"{"), (JSON, b'{"resourceSpans": 7}')])
@pytest.mark.parametrize("path", ["/v1/traces", "/v1/logs"])
def test_what_is_no_request_is_answered_in_its_encoding(server: AppServer, path: str, type: str, body: bytes) -> None:
    answer = post(server, body, type, path)
    told = (3, f"the body is no request of OTLP in {type}")
    if path == "/v1/logs" and b"resourceSpans" in body:
        assert answer.status_code == 200  # a field of no meaning there
    else:
        assert (answer.status_code, answer.headers["content-type"], status_of(answer)) == (400, type, told)


def test_other_types_and_encodings_are_refused(server: AppServer) -> None:
    answer = post(server, b"", "text/plain")
    assert (answer.status_code, status_of(answer)) == (
        415,
        (3, "OTLP is taken as application/x-protobuf or application/json"),
    )
    answer = post(server, b"", Content_Encoding="br")
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "zstd, gzip, deflate")
    assert post(server, b"\x1f\x8b", Content_Encoding="gzip").status_code == 400


def test_limits_are_kept(strict: AppServer) -> None:
    assert post(strict, b"x" * 5000).status_code == 413
    assert post(strict, gzip.compress(b"\x00" * 5000), Content_Encoding="gzip").status_code == 413
    many = post(strict, body_of(*[span(number) for number in range(1, 7)]))
    assert (many.status_code, status_of(many)) == (413, (8, "there are more than 5 spans"))
    large = post(strict, body_of(span(attributes={"a": "x" * 2500}), span(2)))
    partial = ExportTraceServiceResponse.FromString(large.content).partial_success
    assert (partial.rejected_spans, partial.error_message) == (1, "a record is longer than 2000 bytes")
    deep: Any = "bottom"
    for _ in range(25):
        deep = [deep]
    partial = ExportTraceServiceResponse.FromString(
        post(strict, body_of(span(3, attributes={"a": deep}))).content
    ).partial_success
    assert (partial.rejected_spans, partial.error_message) == (1, "not a record: it is nested deeper than 20")
    assert ids(strict.store) == [FIRST[:-1] + "2"]


@pytest.mark.parametrize("path", ["/v1/traces", "/v1/logs", "/api/public/otel/v1/traces"])
def test_a_body_may_be_longer_than_those_of_other_routes(tmp_path: Path, path: str) -> None:
    with AppServer(tmp_path / "home", Limits(json_bytes=10)) as server:
        body = logs_of(message("user", "Hi")) if path == "/v1/logs" else body_of(span())
        assert (len(body) > 10, post(server, body, path=path).status_code) == (True, 200)


def test_too_much_at_once_is_to_be_tried_again(tmp_path: Path) -> None:
    with AppServer(tmp_path / "home", Limits(waiting_bytes=10)) as server:
        answer = post(server, body_of(span()))
        assert (answer.status_code, answer.headers["retry-after"], status_of(answer)) == (
            503,
            "1",
            (14, "too much is arriving at once"),
        )


def test_spans_need_a_key_where_there_are_keys(tmp_path: Path) -> None:
    with AppServer(tmp_path / "home") as server:
        key = KeyRing(server.home).add("app", ["ingest"], project="blue")
        reader = KeyRing(server.home).add("reader", ["read"])
        refused = post(server, body_of(span()))
        assert (refused.status_code, status_of(refused)) == (401, (16, "a key is needed: Authorization: Bearer KEY"))
        assert post(server, body_of(span()), Authorization=f"Bearer {reader}").status_code == 403
        basic = base64.b64encode(f"pk:{key}".encode()).decode()
        assert post(server, body_of(span()), Authorization=f"Bearer {key}").status_code == 200
        langfuse = "/api/public/otel/v1/traces"
        assert post(server, body_of(span(2)), path=langfuse, Authorization=f"Basic {basic}").status_code == 200
        for wrong in ("Basic *", "Basic " + base64.b64encode(b"pk:no").decode(), "Basic cGs=", "Digest x"):
            assert post(server, body_of(span(3)), Authorization=wrong).status_code == 401
        assert ids(server.store) == []
        assert ids(server.app.state.places.of("blue").store) == [FIRST, FIRST[:-1] + "2"]


# -- hostile


@settings(max_examples=100, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    st.binary(max_size=200) | st.just(body_of(span(attributes={"input.value": "x" * 50}))),
    st.sampled_from([PROTOBUF, JSON]),
    st.sampled_from(["spans", "logs"]),
    st.data(),
)
def test_no_bytes_break_the_reading(body: bytes, type: str, signal: Any, data: st.DataObject) -> None:
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = wire.read(signal, type, bytes(damaged), 10)
    except ValueError as error:
        assert str(error) == f"the body is no request of OTLP in {type}"  # noqa: PT017
        return
    for item, origin in found.items:
        if signal == "spans":
            encode_record(step_of(item, origin))


OWN = [f"stepwell.{name}" for name in (*StepRecord.__struct_fields__, "carried", "absent")]
names = st.sampled_from(
    [*SLOTS, *OWN, *[f"{family}.{n}.{rest}" for family in FAMILIES for n in (0, 3) for rest in RESTS]]
)


@settings(max_examples=150, suppress_health_check=list(HealthCheck), deadline=None)
@given(
    st.dictionaries(
        names | records.texts,
        records.values | records.values.map(json.dumps) | st.sampled_from(["[[]]", '{"messages":[7]}', "chat", "LLM"]),
        max_size=10,
    ),
    st.sampled_from(["", "chat", "embeddings", "execute_tool", "retrieval", "invoke_agent", "rerank"]),
)
def test_no_attributes_break_the_mapping(attributes: dict[str, Any], operation: str) -> None:
    told = {**attributes, **({"gen_ai.operation.name": operation} if operation else {"stepwell.version": 1})}
    events = [
        SpanEvent(name, 1, attributes)
        for name in ("exception", "gen_ai.choice", "gen_ai.user.message", "gen_ai.content.prompt", "db.query.result")
    ]
    step = step_of(span(attributes=told, events=events, status=2))
    decoded = decode_record(encode_record(step))
    assert encode_record(decoded) == encode_record(step)
    if operation and step.generation is not UNSET:  # ours is taken as it is; the store refuses what is none
        decode_generation(step.generation)
