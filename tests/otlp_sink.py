"""What receives OTLP in tests, over HTTP and gRPC: it keeps all it is sent, and answers as it is told."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

Traces = trace_service_pb2.ExportTraceServiceRequest
Logs = logs_service_pb2.ExportLogsServiceRequest


class Answer(NamedTuple):
    """`status` of HTTP, or a name of gRPC's codes; `wait_s` before any of it."""

    status: int | str = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}
    wait_s: float = 0.0


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(each) for each in value.array_value.values]
    if kind == "kvlist_value":
        return {each.key: value_of(each.value) for each in value.kvlist_value.values}
    return None if kind is None else getattr(value, kind)


def attributes_of(pairs: Any) -> dict[str, Any]:
    return {pair.key: value_of(pair.value) for pair in pairs}


class Sink:
    """Keeps requests. `answers` are given in turn, then all is well; `refuses` says which spans it never takes."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.taken: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answers: list[Answer] = []
        self.always: Answer | None = None
        self.refuses: tuple[str, Answer] | None = None
        self.lock = threading.Lock()

    def receive(self, request: Any, path: str, headers: Mapping[str, str]) -> Answer:
        with self.lock:
            self.requests.append(request)
            self.paths.append(path)
            self.headers.append({name.lower(): value for name, value in headers.items()})
            answer = self.always or (self.answers.pop(0) if self.answers else Answer())
            if self.refuses is not None and any(span.name == self.refuses[0] for span in spans_of(request)):
                answer = self.refuses[1]
            if answer.status in (200, "OK"):
                self.taken.append(request)
        if answer.wait_s:
            time.sleep(answer.wait_s)
        return answer

    @property
    def spans(self) -> list[Any]:
        return [span for request in self.taken for span in spans_of(request)]

    @property
    def logs(self) -> list[Any]:
        return [
            record
            for request in self.taken
            if isinstance(request, Logs)
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    @property
    def resources(self) -> list[dict[str, Any]]:
        return [
            attributes_of(each.resource.attributes)
            for request in self.taken
            if isinstance(request, Traces)
            for each in request.resource_spans
        ]

    def ids(self) -> list[str]:
        """Return the ids of steps, threads and scores, as they were recorded."""
        named = [attributes_of(each.attributes).get("stepwell.id") for each in (*self.spans, *self.logs)]
        from stepwell.otel.semconv import step_id_of

        spans = [
            step_id_of(int.from_bytes(span.trace_id, "big"), int.from_bytes(span.span_id, "big")) for span in self.spans
        ]
        return [name or span for name, span in zip(named, [*spans, *[""] * len(self.logs)], strict=True)]


def spans_of(request: Any) -> Iterator[Any]:
    if isinstance(request, Traces):
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                yield from scope.spans


class HttpSink(Sink):
    """OTLP/HTTP."""

    def __init__(self) -> None:
        super().__init__()
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                kind: Any = Logs if self.path.endswith("/v1/logs") else Traces
                answer = sink.receive(kind.FromString(body), self.path, dict(self.headers.items()))
                assert isinstance(answer.status, int)
                self.send_response(answer.status)
                for name, value in {"content-type": "application/x-protobuf", **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # who sends may be gone

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"otlp+http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


class GrpcSink(Sink):
    """OTLP/gRPC, which takes 4 MiB."""

    def __init__(self, port: int = 0) -> None:
        super().__init__()
        self.server = grpc.server(ThreadPoolExecutor(2))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(
            self._servicer("Traces", trace_service_pb2.ExportTraceServiceResponse), self.server
        )
        logs_service_pb2_grpc.add_LogsServiceServicer_to_server(
            self._servicer("Logs", logs_service_pb2.ExportLogsServiceResponse), self.server
        )
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.url = f"otlp+grpc://127.0.0.1:{self.port}"

    def _servicer(self, path: str, response: Any) -> Any:
        sink = self

        class Servicer:
            def Export(self, request: Any, context: Any) -> Any:
                answer = sink.receive(request, path, dict(context.invocation_metadata()))
                if answer.status not in (200, "OK"):
                    assert isinstance(answer.status, str)
                    context.set_trailing_metadata(tuple(answer.headers.items()))
                    context.abort(grpc.StatusCode[answer.status], answer.body.decode())
                return response.FromString(answer.body)

        return Servicer()

    def __enter__(self) -> Self:
        self.server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.stop(None).wait(10)
