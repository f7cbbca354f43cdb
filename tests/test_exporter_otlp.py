"""The OTLP exporter: steps arrive as spans, whole, once, and whatever the destination does."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from otlp_sink import Answer, GrpcSink, HttpSink, Sink, attributes_of

import stepwell as sw
from stepwell.errors import ExportError, RejectedError, UsageError
from stepwell.exporters import Batch, Exporter, open_exporter
from stepwell.exporters.otlp import OtlpExporter, SpanExporterAdapter
from stepwell.testing._exporter_contract import HOSTILE_RECORDS, ExporterContract

# What was announced is held until it has ended; an update of what was sent has no form.
FORMLESS = frozenset({"an unfinished step", "a partial update"})


def frame(id: str, **fields: Any) -> bytes:
    given = {"type": "tool", "name": id, "start_ns": 5, "end_ns": 9, "status": "success", **fields}
    return orjson.dumps({"kind": "step", "id": id, **given})


def names(sink: Sink) -> list[str]:
    return [span.name for span in sink.spans]


@pytest.fixture
def http() -> Iterator[HttpSink]:
    with HttpSink() as sink:
        yield sink


@pytest.fixture
def grpc() -> Iterator[GrpcSink]:
    with GrpcSink() as sink:
        yield sink


@pytest.fixture(params=["http", "grpc"])
def sink(request: pytest.FixtureRequest) -> Sink:
    found: Sink = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def exporter(sink: Any) -> Iterator[OtlpExporter]:
    made = OtlpExporter(sink.url)
    yield made
    made.close()


def unused() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


class OverOtlp(ExporterContract):
    formless = FORMLESS

    @pytest.fixture(autouse=True)
    def _sinks(self) -> Iterator[None]:
        with ExitStack() as self.stack:
            yield

    def sink_of(self, exporter: Exporter) -> Sink:
        found: Sink = exporter.sink  # type: ignore[attr-defined]
        return found

    def made(self, sink: Any) -> Exporter:
        exporter = OtlpExporter(self.stack.enter_context(sink).url)
        exporter.sink = sink  # type: ignore[attr-defined]
        return exporter

    def delivered(self, exporter: Exporter) -> Sequence[bytes]:
        return [id.encode() for id in self.sink_of(exporter).ids()]


class TestHttpContract(OverOtlp):
    def make_exporter(self) -> Exporter:
        return self.made(HttpSink())

    def make_broken_exporter(self) -> Exporter:
        return OtlpExporter(f"otlp+http://127.0.0.1:{unused()}")


class TestGrpcContract(OverOtlp):
    formless = FORMLESS | {"a huge payload"}

    def make_exporter(self) -> Exporter:
        return self.made(GrpcSink())

    def make_broken_exporter(self) -> Exporter:
        return OtlpExporter(f"otlp+grpc://127.0.0.1:{unused()}")

    @pytest.mark.parametrize("kind", [kind for kind in HOSTILE_RECORDS if kind != "a huge payload"])
    def test_takes_every_valid_record(self, kind: str) -> None:
        super().test_takes_every_valid_record(kind)


class TestAdapterContract(ExporterContract):
    formless = FORMLESS | {"a thread", "a score"}

    def make_exporter(self) -> Exporter:
        self.spans = InMemorySpanExporter()
        return SpanExporterAdapter(self.spans)

    def make_broken_exporter(self) -> Exporter:
        return SpanExporterAdapter(Failing())

    def delivered(self, exporter: Exporter) -> Sequence[bytes]:
        return [str((span.attributes or {})["stepwell.id"]).encode() for span in self.spans.get_finished_spans()]


class Failing(SpanExporter):
    """Fails where a span has the name it is made with, always without one."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.taken: list[str] = []
        self.calls = 0
        self.shut_down = 0

    def export(self, spans: Any) -> SpanExportResult:
        self.calls += 1
        if self.name is None or any(span.name == self.name for span in spans):
            return SpanExportResult.FAILURE
        self.taken += [span.name for span in spans]
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.shut_down += 1


# -- what arrives


def test_steps_arrive_as_spans_of_one_trace(sink: Any, tmp_path: Path) -> None:
    sw.configure(export=sink.url, home=tmp_path, service="shop", environment="test", release="7")
    with sw.thread("t", user="ada"), sw.run("agent") as run:
        with pytest.raises(ValueError, match="no tea"), sw.tool("kettle") as tool:
            raise ValueError("no tea")
        with sw.llm("answer", model="gpt-4o", messages=[{"role": "user", "content": "Tea?"}]) as call:
            call.output = "Yes"
            call.usage(input_tokens=3, output_tokens=1)
            call.score("taste", 0.5)
    assert sw.flush(20)
    spans = {span.name: span for span in sink.spans}
    assert set(spans) == {"agent", "kettle", "answer"}
    assert {span.trace_id.hex() for span in sink.spans} == {run.trace_id}
    assert spans["agent"].parent_span_id == b""
    assert spans["kettle"].parent_span_id == spans["answer"].parent_span_id == spans["agent"].span_id
    assert spans["agent"].span_id.hex() == run.id[19:].replace("-", "")
    assert [spans[name].kind for name in ("agent", "kettle", "answer")] == [1, 1, 3]
    assert (spans["kettle"].status.code, spans["kettle"].status.message) == (2, "no tea")
    assert [event.name for event in spans["kettle"].events] == ["exception"]
    assert [event.name for event in spans["answer"].events] == ["gen_ai.evaluation.result"]
    assert spans["kettle"].start_time_unix_nano >= spans["agent"].start_time_unix_nano > 10**18
    found = attributes_of(spans["answer"].attributes)
    assert found["gen_ai.request.model"] == "gpt-4o"
    assert (found["gen_ai.usage.input_tokens"], found["session.id"], found["user.id"]) == (3, "t", "ada")
    assert json.loads(found["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "Tea?"}]}
    ]
    assert tool.id in sink.ids()
    (resource,) = sink.resources
    assert resource["service.name"] == "shop"
    assert (resource["deployment.environment.name"], resource["service.version"]) == ("test", "7")
    assert [record.event_name for record in sink.logs] == ["stepwell.thread"]
    assert sw.stats().exporters[next(iter(sw.stats().exporters))].delivered == 4


def test_the_resource_is_what_the_environment_says(http: HttpSink, monkeypatch: pytest.MonkeyPatch) -> None:
    from stepwell.exporters import _otlp_spans

    _otlp_spans.resource_of.cache_clear()
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "host.name=well,service.version=3")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "from-environment")
    exporter = OtlpExporter(http.url)
    exporter.export(Batch([frame("a"), frame("b", service="mine", release="4")]))
    exporter.close()
    _otlp_spans.resource_of.cache_clear()
    first, second = http.resources
    assert (first["service.name"], first["service.version"], first["host.name"]) == ("from-environment", "3", "well")
    assert (second["service.name"], second["service.version"], second["host.name"]) == ("mine", "4", "well")


def test_a_chat_of_any_length_arrives_whole(sink: Any, exporter: OtlpExporter) -> None:
    messages = [{"role": "user" if n % 2 else "assistant", "content": f"message {n}"} for n in range(600)]
    generation = {"type": "chat", "model": "m", "messages": messages}
    exporter.export(Batch([frame("long", type="llm", generation=generation)]))
    found = attributes_of(sink.spans[0].attributes)
    assert [found[f"llm.input_messages.{n}.message.content"] for n in range(600)] == [
        f"message {n}" for n in range(600)
    ]
    assert len(json.loads(found["gen_ai.input.messages"])) == 600
    assert sink.spans[0].dropped_attributes_count == 0


def test_a_step_that_was_announced_is_sent_when_it_has_ended(sink: Any, exporter: OtlpExporter) -> None:
    pending = frame("a", status="pending", end_ns=None).replace(b'"end_ns":null,', b"")
    exporter.export(Batch([pending]))
    assert names(sink) == []
    exporter.export(Batch([frame("a")]))
    assert names(sink) == ["a"]


def test_a_step_whose_end_nobody_sees_is_sent_as_interrupted(sink: Any, exporter: OtlpExporter) -> None:
    pending = frame("a", status="pending", end_ns=None).replace(b'"end_ns":null,', b"")
    interruption = b'{"kind":"step","id":"a","status":"interrupted"}'
    exporter.export(Batch([pending]))
    exporter.export(Batch([interruption]))
    (span,) = sink.spans
    assert (span.name, span.status.code, span.status.message) == ("a", 2, "interrupted")
    assert span.start_time_unix_nano == span.end_time_unix_nano == 5
    exporter.export(Batch([interruption]))  # it is held no more
    assert names(sink) == ["a"]


def test_what_is_held_is_bounded(exporter: OtlpExporter, sink: Any) -> None:
    for start in range(0, 11_000, 1000):
        ids = range(start, start + 1000)
        exporter.export(Batch([b'{"kind":"step","id":"s%d","start_ns":1,"status":"pending"}' % n for n in ids]))
    big = b'{"kind":"step","id":"big","start_ns":1,"status":"pending","input":"%b"}' % (b"x" * 17_000_000)
    assert exporter._sender._held is not None
    assert len(exporter._sender._held._frames) == 10_000
    exporter.export(Batch([big]))
    assert exporter._sender._held._frames == {}
    assert exporter._sender._held._size == 0


# -- what a destination may do


@pytest.mark.parametrize("status", [429, 502, 503, 504, "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED"])
def test_what_may_be_sent_again_is_left_to_the_shipper(
    status: int | str, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    sink: Any = request.getfixturevalue("http" if isinstance(status, int) else "grpc")
    exporter = OtlpExporter(sink.url)
    sink.answers = [Answer(status, b"busy")]
    began = time.monotonic()
    with pytest.raises(ExportError) as caught:
        exporter.export(Batch([frame("a")]))
    assert not isinstance(caught.value, RejectedError)
    assert time.monotonic() - began < 0.7  # the official exporters would wait for 0.8 s at least
    assert len(sink.requests) == 1
    exporter.export(Batch([frame("a")]))
    assert names(sink) == ["a"]
    exporter.close()
    assert [record.getMessage() for record in caplog.records] == []


def test_a_destination_may_say_how_long_to_wait(http: HttpSink, grpc: GrpcSink) -> None:
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]

    info = RetryInfo()
    info.retry_delay.seconds = 7
    http.answers = [Answer(503, headers={"Retry-After": "7"}), Answer(429, headers={"Retry-After": "soon"})]
    grpc.answers = [Answer("UNAVAILABLE", headers={"google.rpc.retryinfo-bin": info.SerializeToString()})]
    for url, wished in ((http.url, 7.0), (http.url, None), (grpc.url, 7.0)):
        exporter = OtlpExporter(url)
        with pytest.raises(ExportError) as caught:
            exporter.export(Batch([frame("a")]))
        assert caught.value.retry_after_s == wished
        exporter.close()


@pytest.mark.parametrize("status", [401, 403, 404, 301, "UNAUTHENTICATED", "UNIMPLEMENTED"])
def test_what_is_wrong_with_key_or_path_is_waited_for(status: int | str, request: pytest.FixtureRequest) -> None:
    sink: Any = request.getfixturevalue("http" if isinstance(status, int) else "grpc")
    exporter = OtlpExporter(sink.url)
    sink.answers = [Answer(status)]
    with pytest.raises(ExportError, match=str(status)) as caught:
        exporter.export(Batch([frame("a")]))
    assert not isinstance(caught.value, RejectedError)
    assert caught.value.retry_after_s == 30
    exporter.close()


@pytest.mark.parametrize("status", [400, "INVALID_ARGUMENT"])
def test_a_span_that_is_refused_is_found_and_its_neighbours_arrive_once(
    status: int | str, request: pytest.FixtureRequest
) -> None:
    sink: Any = request.getfixturevalue("http" if isinstance(status, int) else "grpc")
    sink.refuses = ("s3", Answer(status, b"bad span"))
    exporter = OtlpExporter(sink.url)
    with pytest.raises(RejectedError) as caught:
        exporter.export(Batch([frame(f"s{n}") for n in range(8)]))
    assert list(caught.value.rejected) == [3]
    assert "bad span" in caught.value.rejected[3]
    assert sorted(names(sink)) == ["s0", "s1", "s2", "s4", "s5", "s6", "s7"]
    exporter.close()


@pytest.mark.parametrize("status", [500, "INTERNAL"])
def test_a_failure_without_a_reason_is_put_down_to_a_span_only_where_others_are_taken(
    status: int | str, request: pytest.FixtureRequest
) -> None:
    sink: Any = request.getfixturevalue("http" if isinstance(status, int) else "grpc")
    exporter = OtlpExporter(sink.url)
    batch = Batch([frame(f"s{n}") for n in range(8)])
    sink.always = Answer(status)
    for _ in range(6):  # an outage
        with pytest.raises(ExportError) as caught:
            exporter.export(batch)
        assert not isinstance(caught.value, RejectedError)
    assert len(sink.requests) < 20
    sink.always, sink.refuses = None, ("s3", Answer(status))
    with pytest.raises(RejectedError) as refused:
        exporter.export(batch)
    assert list(refused.value.rejected) == [3]
    assert set(names(sink)) == {"s0", "s1", "s2", "s4", "s5", "s6", "s7"}
    exporter.close()


def test_what_was_delivered_before_a_failure_is_not_sent_again(http: HttpSink) -> None:
    exporter = OtlpExporter(http.url)
    batch = Batch((frame("a"), frame("b"), frame("c"), frame("d")))
    http.answers = [Answer(413), Answer(), Answer(503)]
    with pytest.raises(ExportError, match="503"):
        exporter.export(batch)
    exporter.export(batch)
    assert names(http) == ["a", "b", "c", "d"]
    exporter.close()


def test_what_was_refused_before_a_failure_is_told_after_it(http: HttpSink) -> None:
    exporter = OtlpExporter(http.url)
    batch = Batch((frame("a"), frame("b")))
    http.answers = [Answer(400), Answer(400), Answer(503)]
    with pytest.raises(ExportError, match="503"):
        exporter.export(batch)
    with pytest.raises(RejectedError) as caught:
        exporter.export(batch)
    assert list(caught.value.rejected) == [0]
    assert names(http) == ["b"]
    exporter.close()


def test_a_batch_that_is_too_large_goes_in_parts_and_a_step_that_is_as_a_stub(grpc: GrpcSink) -> None:
    exporter = OtlpExporter(grpc.url)
    many = [frame(f"s{n}", input="x" * 700_000) for n in range(6)]
    exporter.export(Batch(many))
    assert sorted(names(grpc)) == [f"s{n}" for n in range(6)]
    assert len(grpc.requests) > 1
    with pytest.raises(RejectedError) as caught:
        exporter.export(Batch([frame("a"), frame("huge", input="x" * 5_000_000, output="kept"), frame("b")]))
    (reason,) = caught.value.rejected.values()
    assert reason.endswith("; a stub of it was delivered")
    found = {span.name: attributes_of(span.attributes) for span in grpc.spans}
    assert {"a", "huge", "b"} <= set(found)
    assert "input.value" in found["huge"]["stepwell.cut"]
    assert found["huge"]["output.value"] == "kept"
    exporter.close()


def test_a_proxy_that_takes_less_gets_less(http: HttpSink) -> None:
    exporter = OtlpExporter(http.url)
    http.refuses = ("large", Answer(413))
    with pytest.raises(RejectedError, match="refused 1 of 3") as caught:
        exporter.export(Batch([frame("a"), frame("large", input="x" * 2000), frame("b")]))
    (reason,) = caught.value.rejected.values()
    assert reason.startswith("too large (413 ")
    assert not reason.endswith("delivered")
    assert names(http) == ["a", "b"]
    exporter.close()


def test_what_a_destination_takes_in_part_is_not_sent_again_and_is_told(
    http: HttpSink, caplog: pytest.LogCaptureFixture
) -> None:
    answer = ExportTraceServiceResponse()
    answer.partial_success.rejected_spans = 1
    answer.partial_success.error_message = "too old\n"
    http.answers = [Answer(body=answer.SerializeToString())] * 2 + [Answer(body=b"\xff\xff")]
    exporter = OtlpExporter(http.url)
    for _ in range(3):
        exporter.export(Batch([frame("a"), frame("b")]))
    assert len(http.requests) == 3
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("took what it was sent, and says: 1 spans were not taken: too old")
    exporter.close()


def test_an_export_takes_no_longer_than_the_timeout(sink: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.5")
    exporter = OtlpExporter(sink.url)
    sink.answers = [Answer(wait_s=3)]
    began = time.monotonic()
    with pytest.raises(ExportError):
        exporter.export(Batch([frame("a")]))
    assert time.monotonic() - began < 2.5
    exporter.close()


def test_an_answer_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "2")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n\r\n")
                try:
                    while True:
                        connection.sendall(b"x" * 65536)
                except OSError:
                    pass

        thread = threading.Thread(target=answer)
        thread.start()
        exporter = OtlpExporter(f"otlp+http://127.0.0.1:{server.getsockname()[1]}")
        began = time.monotonic()
        exporter.export(Batch([frame("a")]))
        assert time.monotonic() - began < 10
        exporter.close()
        thread.join(20)
        assert not thread.is_alive()


def test_an_outage_costs_nothing_and_one_line_of_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    port = unused()
    sw.configure(export=f"otlp+grpc://127.0.0.1:{port}", home=tmp_path)
    with sw.run("a"):
        pass
    assert not sw.flush(1.5)
    with GrpcSink(port) as sink:
        assert sw.flush(20)
        assert names(sink) == ["a"]
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 1
    assert "could not export to" in lines[0]


def test_what_takes_no_logs_gets_none(http: HttpSink) -> None:
    exporter = OtlpExporter(http.url)
    thread = b'{"kind":"thread","id":"t"}'
    http.answers = [Answer(), Answer(404)]
    exporter.export(Batch([thread, frame("a")]))
    exporter.export(Batch([thread, frame("b")]))
    assert http.paths == ["/v1/traces", "/v1/logs", "/v1/traces"]
    exporter.close()


def test_a_thread_alone_finds_its_way(sink: Any, exporter: OtlpExporter) -> None:
    exporter.export(Batch([b'{"kind":"thread","id":"t","name":"Tea"}']))
    assert sink.ids() == ["t"]


def test_threads_are_no_reason_to_send_steps_again(http: HttpSink) -> None:
    exporter = OtlpExporter(http.url)
    batch = Batch((b'{"kind":"thread","id":"t"}', frame("a")))
    http.answers = [Answer(), *[Answer(503)] * 5]
    for _ in range(5):
        with pytest.raises(ExportError, match="503"):
            exporter.export(batch)
    exporter.export(batch)
    assert names(http) == ["a"]
    exporter.close()


# -- processes


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_forked_child_delivers_what_it_records(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    sink: Any = request.getfixturevalue(kind)
    code = f"""
import os, sys
import stepwell as sw
sw.configure(export={sink.url!r}, home={str(tmp_path)!r})
with sw.run("parent before"): pass
assert sw.flush(20)
pid = os.fork()
with sw.run("child" if pid == 0 else "parent after"): pass
done = sw.shutdown(20)
if pid == 0:
    os._exit(0 if done else 1)
assert done and os.waitpid(pid, 0)[1] == 0
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(names(sink)) == ["child", "parent after", "parent before"]


# -- exporters of the SDK


def test_an_exporter_of_the_sdk_is_taken_as_it_is(tmp_path: Path) -> None:
    spans = InMemorySpanExporter()
    sw.configure(export=spans, home=tmp_path)
    with sw.run("agent"), sw.tool("kettle"):
        pass
    assert sw.flush(20)
    kettle, agent = spans.get_finished_spans()
    assert kettle.parent is not None
    assert (kettle.name, agent.name, kettle.parent.span_id) == ("kettle", "agent", agent.context.span_id)
    assert json.loads(agent.to_json())["resource"]["attributes"]["service.name"].startswith("unknown_service")
    assert agent.instrumentation_scope is not None
    assert agent.instrumentation_scope.name == "stepwell"


def test_the_console_exporter_of_the_sdk_shows_steps(tmp_path: Path) -> None:
    from io import StringIO

    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    shown = StringIO()
    sw.configure(export=["memory:", ConsoleSpanExporter(out=shown)], home=tmp_path)
    with sw.run("agent"):
        pass
    assert sw.shutdown(20)
    assert json.loads(shown.getvalue())["attributes"]["openinference.span.kind"] == "CHAIN"


def test_an_exporter_of_the_sdk_that_fails_is_asked_again_and_a_span_it_never_takes_is_found() -> None:
    failing = Failing("s3")
    adapter = SpanExporterAdapter(failing)
    batch = Batch([frame(f"s{n}") for n in range(8)])
    for _ in range(3):
        with pytest.raises(ExportError, match="Failing failed, and logs why"):
            adapter.export(batch)
    with pytest.raises(RejectedError) as caught:
        adapter.export(batch)
    assert list(caught.value.rejected) == [3]
    adapter.close()
    adapter.close()
    assert failing.shut_down == 1


def test_a_step_alone_that_is_never_taken_is_rejected_in_the_end() -> None:
    failing = Failing()
    adapter = SpanExporterAdapter(failing)
    batch = Batch([frame("a")])
    for _ in range(19):
        with pytest.raises(ExportError) as caught:
            adapter.export(batch)
        assert not isinstance(caught.value, RejectedError)
    with pytest.raises(RejectedError):
        adapter.export(batch)
    assert failing.calls == 20


def test_what_an_exporter_of_the_sdk_raises_is_the_shippers_to_judge() -> None:
    class Raising(Failing):
        def export(self, spans: Any) -> SpanExportResult:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        SpanExporterAdapter(Raising()).export(Batch([frame("a")]))


# -- URLs


@pytest.mark.parametrize(
    ("url", "endpoint", "headers"),
    [
        ("otlp+http://h", "http://h:4318/v1/traces", {}),
        ("otlp+http://h:80/", "http://h:80/v1/traces", {}),
        ("otlp+https://h/api/public/otel", "https://h/api/public/otel/v1/traces", {}),
        ("otlp+https://h/x/v1/traces", "https://h/x/v1/traces", {}),
        ("otlp+http://[::1]:5", "http://[::1]:5/v1/traces", {}),
        ("otlp+https://k%2F@h", "https://h/v1/traces", {"authorization": "Bearer k/"}),
        ("otlp+https://pk:sk@h", "https://h/v1/traces", {"authorization": "Basic cGs6c2s="}),
        ("otlp+grpc://h", "http://h:4317", {}),
        ("otlp+grpcs://k@h:5", "https://h:5", {"authorization": "Bearer k"}),
        ("otlp:", None, {}),
    ],
)
def test_a_url_says_where_spans_go(url: str, endpoint: str | None, headers: dict[str, str]) -> None:
    exporter = open_exporter(url, None)
    assert isinstance(exporter, OtlpExporter)
    assert (exporter._target.endpoint, exporter._target.headers) == (endpoint, headers)
    assert "sk" not in exporter.key
    assert "@" not in exporter.key


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("otlp:x", "otlp: takes no more"),
        ("otlp+http://", "expected otlp\\+http://HOST"),
        ("otlp+http://h?x=1", "with no query"),
        ("otlp+http://h:port", "is not a URL"),
        ("otlp+http://secret@h h", "expected otlp"),
        ("otlp+grpc://h/path", "gRPC has no paths"),
        ("otlp+ftp://h", "no exporter for 'otlp\\+ftp'"),
    ],
)
def test_a_url_that_is_none_is_refused(url: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        open_exporter(url, None)
    assert "secret" not in str(caught.value)


def test_the_standard_variables_say_where_spans_go_and_with_what(
    http: HttpSink, grpc: GrpcSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", http.url.removeprefix("otlp+") + "/base")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=abc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    over_http = OtlpExporter("otlp:")
    over_http.export(Batch([frame("a"), b'{"kind":"thread","id":"t"}']))
    over_http.close()
    assert http.paths == ["/base/v1/traces", "/base/v1/logs"]
    assert [headers["x-key"] for headers in http.headers] == ["abc", "abc"]
    assert http.headers[0]["content-encoding"] == "gzip"
    assert http.ids() == ["a", "t"]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", grpc.url.removeprefix("otlp+grpc://"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_INSECURE", "true")
    over_grpc = OtlpExporter("otlp:")
    over_grpc.export(Batch([frame("b")]))
    over_grpc.close()
    assert (grpc.ids(), grpc.headers[0]["x-key"]) == (["b"], "abc")


def test_a_missing_package_is_named_with_the_extra_that_brings_it() -> None:
    code = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("opentelemetry.exporter"): raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import stepwell as sw
try:
    sw.configure(export="otlp+http://h")
except sw.errors.UsageError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code.replace("import stepwell as sw", "import stepwell as sw, stepwell.errors")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.stdout == "export='otlp+http://h' needs the extra otlp: pip install 'stepwell[otlp]'\n", done.stderr
