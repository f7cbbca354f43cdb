"""What the server takes of OTLP: spans a second, durable when acknowledged, the load coming from another process.

    python benchmarks/otlp.py [--spans 50000] [--batch 512] [--clients 2] [--form plain|genai|...] [--smoke]

The server is `stepwell serve` on a new store; the client sends prepared protobuf requests over kept-alive connections.
The spans are those of `benchmarks/server.py`'s steps (1.5 kB, every third a call of a model), told by one convention
alone, as an instrumentation would, or by both and our own attributes, as the exporter does. At the end the rows of the
store are counted: they must be as many as were sent.
"""

from __future__ import annotations

import argparse
import http.client
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from msgspec import json
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from server import chunks, cpu_s, make_steps, rss_mb, serve

from stepwell.model import StepRecord, decode_record
from stepwell.otel.semconv import CONVENTIONS, Convention, Span, span_of
from stepwell.store import open_store

FORMS: dict[str, tuple[Convention, ...]] = {
    "plain": (),
    "genai": ("genai",),
    "openinference": ("openinference",),
    "stepwell": CONVENTIONS,
}


def make_spans(count: int, form: str) -> list[Span]:
    spans: list[Span] = []
    for line in make_steps(count):
        step = decode_record(line)
        assert isinstance(step, StepRecord)
        span = span_of(step, conventions=FORMS[form])
        if form == "plain":
            span.attributes = {"http.route": "/ask", "input": bytes(step.input or b"").decode()}
        elif form != "stepwell":
            span.attributes = {
                name: value for name, value in span.attributes.items() if not name.startswith("stepwell.")
            }
        spans.append(span)
    return spans


def value_of(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    found = AnyValue()
    found.array_value.values.extend(map(value_of, value))
    return found


def body_of(spans: list[Span]) -> bytes:
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name", value=AnyValue(string_value="guide"))
    scope = resource.scope_spans.add()
    scope.scope.name = "benchmark"
    for span in spans:
        sent = scope.spans.add(
            trace_id=span.trace_id.to_bytes(16, "big"),
            span_id=span.span_id.to_bytes(8, "big"),
            parent_span_id=b"" if span.parent_id is None else span.parent_id.to_bytes(8, "big"),
            name=span.name,
            start_time_unix_nano=span.start_ns,
            end_time_unix_nano=span.end_ns,
        )
        for name, value in span.attributes.items():
            sent.attributes.add(key=name, value=value_of(value))
    return request.SerializeToString()


class Client(threading.Thread):
    """One connection that sends its share of the requests."""

    def __init__(self, port: int, bodies: list[bytes]) -> None:
        super().__init__()
        self.port, self.bodies = port, bodies
        self.seconds: list[float] = []

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        for body in self.bodies:
            started = time.perf_counter()
            connection.request("POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"})
            answer = connection.getresponse()
            if answer.read() or answer.status != 200:
                raise SystemExit(f"a request was answered with {answer.status}")
            self.seconds.append(time.perf_counter() - started)
        connection.close()


def load(port: int, spans: int, batch: int, clients: int, form: str) -> None:
    """Be the load generator: print what it saw as JSON."""
    bodies = [body_of(part) for part in chunks(make_spans(spans, form), batch)]
    threads = [Client(port, bodies[place::clients]) for place in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - started
    seconds = sorted(each for thread in threads for each in thread.seconds)
    told = {
        "seconds": took,
        "p50_ms": seconds[len(seconds) // 2] * 1000,
        "p99_ms": seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))] * 1000,
        "bytes": sum(map(len, bodies)),
    }
    print(json.encode(told).decode())


def measure(spans: int, batch: int, clients: int, form: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with serve(folder) as (server, port):
            before = cpu_s(server.pid)
            options = [f"--spans={spans}", f"--batch={batch}", f"--clients={clients}", f"--form={form}"]
            done = subprocess.run(
                [sys.executable, __file__, f"--load={port}", *options], stdout=subprocess.PIPE, check=True, text=True
            )
            told = json.decode(done.stdout)
            cpu, peak = cpu_s(server.pid) - before, rss_mb(server.pid, "VmHWM")
        store = open_store(f"sqlite:{folder}/steps.db", read_only=True)
        held = store.stats().steps
        store.close()
    if held != spans:
        raise SystemExit(f"sent {spans} spans, {held} steps are there")
    print(
        f"{form:>13} {batch:>6} {clients:>8} {spans / told['seconds']:>9,.0f} {told['p50_ms']:>8.1f} "
        f"{told['p99_ms']:>8.1f} {cpu / spans * 1e6:>8.1f} {peak:>8.0f} {told['bytes'] / spans:>10.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spans", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--form", choices=FORMS)
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="a moment only, to see that it runs")
    given = parser.parse_args()
    spans = 1000 if given.smoke else given.spans
    if given.load:
        load(given.load, spans, given.batch, given.clients, given.form)
        return
    print(f"{'form':>13} {'batch':>6} {'clients':>8} {'spans/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'us CPU':>8} ", end="")
    print(f"{'peak MB':>8} {'bytes/span':>10}")
    for form in [given.form] if given.form else FORMS:
        measure(spans, given.batch, given.clients, form)


if __name__ == "__main__":
    main()
