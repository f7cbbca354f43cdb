"""What a step costs, against bare OpenTelemetry doing the same recording, in one run.

    python benchmarks/overhead.py [--steps 40000] [--smoke]

Every row runs in a process of its own. A step is a decorated function or a with-block with arguments and result
captured, the journal on, and the SQLite exporter running. The workload is a run with a retrieval, a tool and an llm
step with two messages of 250 and 300 characters: four steps. The baseline records the same four spans with
`start_as_current_span`, `json.dumps` of the same values as attributes, a BatchSpanProcessor and the OTLP/HTTP exporter
to a sink in another process; `agent_stepwell_http` records to such a sink too. The calls with a history come in bursts
of 20. The rows `redacted_` and `plain_` are the capture of one payload, with and without the default rules: a small
dict, a text of 4 kB, a chat of 100 kB captured again, the same chat with one message more, and a chat of which no text
was captured before. `caller` is CPU time of the calling thread, `all threads` CPU of the whole process until everything
is delivered; both in microseconds a step.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

QUESTION = ("Where does the second well of the old town get its water from in a dry summer? " * 4)[:250]
ANSWER = ("It is fed by the spring above the northern gate, through a channel cut in the rock. " * 4)[:300]
MESSAGES = [{"role": "system", "content": QUESTION}, {"role": "user", "content": ANSWER}]
DOCUMENTS = [{"id": index, "score": 0.9 - index / 10, "text": ANSWER[:80]} for index in range(3)]
RESPONSE = {"role": "assistant", "content": ANSWER}
HISTORY = [{"role": "user" if n % 2 else "assistant", "content": f"{n} " + ANSWER * 3 + QUESTION} for n in range(87)]

# With the bytes that secrets begin with, about as often as notes and chats have them; the texts above have none.
NOTE = (
    "The well-known shaft below the market gives three and a half litres a second in a dry summer, says the map "
    "that Jan Kowalski drew in 1911, and it has never been seen to fail. Before the upper sluice is closed somebody "
    "has to go down and read the flow meter: its last twelve values are in north_gate.csv, and a zero among them is "
    "not a fault but a day on which nobody went. Bring a lamp. Write to wells@example.org where the water is brown, or "
    "where it smells. The step-by-step list that hangs at the door is older than the pump, so that its second half no "
    "longer applies; what counts is the order of the valves, from left to right, and that the air is let out first. "
    "But do not hurry: the level comes up by a hand's width an hour, whatever is done at the top, and most of what was "
    "thought to be a leak in the past ten years was somebody who did not wait. The readings go into flow_meter.csv, "
    "one line a day, with the name of who went. "
)
NOTES = [{"role": "user" if n % 2 else "assistant", "content": f"{n} {NOTE}{NOTE[:250]}"} for n in range(87)]

BURST = 20

Row = dict[str, float]


# -- the baseline


def opentelemetry_agent(endpoint: str) -> tuple[Callable[[], None], Callable[[], object], Any]:
    """Return the agent, what flushes its spans, and the tracer."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    # A queue that holds them all: the default of 2,048 would drop most of the spans, and the work they make.
    processor = BatchSpanProcessor(OTLPSpanExporter(endpoint), max_queue_size=1 << 20, schedule_delay_millis=200)
    provider.add_span_processor(processor)
    tracer = provider.get_tracer("baseline")

    def retrieve(query: str, k: int) -> Any:
        with tracer.start_as_current_span("retrieve") as span:
            span.set_attribute("type", "retrieval")
            span.set_attribute("input", json.dumps({"query": query, "k": k}))
            span.set_attribute("output", json.dumps(DOCUMENTS))
            return DOCUMENTS

    def lookup(name: str) -> Any:
        with tracer.start_as_current_span("lookup") as span:
            span.set_attribute("type", "tool")
            span.set_attribute("input", json.dumps({"name": name}))
            span.set_attribute("output", json.dumps(ANSWER))
            return ANSWER

    def agent(question: str) -> str:
        with tracer.start_as_current_span("agent") as span:
            span.set_attribute("type", "run")
            span.set_attribute("input", json.dumps({"question": question}))
            retrieve(question, 3)
            lookup("well")
            with tracer.start_as_current_span("answer") as call:
                call.set_attribute("type", "llm")
                call.set_attribute("model", "gpt-4o")
                call.set_attribute("provider", "openai")
                call.set_attribute("settings", json.dumps({"temperature": 0}))
                call.set_attribute("messages", json.dumps(MESSAGES))
                call.set_attribute("output", json.dumps(RESPONSE))
            span.set_attribute("output", json.dumps(ANSWER))
            return ANSWER

    return lambda: _drop(agent(QUESTION)), lambda: processor.force_flush(60_000), tracer


def serve_sink(address: Any) -> None:
    """Answer 200 to every POST, as OTLP or as our own server does, until killed."""

    class Sink(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            lines = body.count(b"\n")
            answer = b'{"accepted":%d,"duplicates":0,"rejected":[]}' % lines if self.path == "/v1/ingest" else b""
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a row may end in the middle of a request

    server = Server(("127.0.0.1", 0), Sink)
    address.send(server.server_port)
    server.serve_forever()


def _drop(_: object) -> None:
    pass


# -- what is measured


def agent_opentelemetry(steps: int, endpoint: str) -> Row:
    agent, flush, _ = opentelemetry_agent(endpoint)
    return measure(agent, flush, steps, 4)


def _configure(export: str = "sqlite:") -> Callable[[], object]:
    import stepwell as sw

    sw.configure(export=export, home=tempfile.mkdtemp(prefix="stepwell-overhead-"))
    return lambda: sw.flush(60)


def stepwell_agent() -> Callable[[str], str]:
    """Make the agent that is recorded: a run with a retrieval, a tool and a call of a model."""
    import stepwell as sw

    @sw.retrieval
    def retrieve(query: str, k: int) -> Any:
        return DOCUMENTS

    @sw.tool
    def lookup(name: str) -> Any:
        return ANSWER

    @sw.run
    def agent(question: str) -> str:
        retrieve(question, 3)
        lookup("well")
        with sw.llm("answer", model="gpt-4o", provider="openai", messages=MESSAGES, temperature=0) as step:
            step.output = RESPONSE
        return ANSWER

    return agent


def agent_stepwell(steps: int, _: str) -> Row:
    flush = _configure()
    agent = stepwell_agent()
    return measure(lambda: _drop(agent(QUESTION)), flush, steps, 4)


def agent_stepwell_http(steps: int, endpoint: str) -> Row:
    import stepwell as sw

    flush = _configure(endpoint.removesuffix("/v1/traces"))
    agent = stepwell_agent()
    row = measure(lambda: _drop(agent(QUESTION)), flush, steps, 4)
    told = sw.stats()
    delivered = sum(each.delivered for each in told.exporters.values())
    if delivered != told.recorded:
        raise SystemExit(f"of {told.recorded} steps {delivered} were delivered")
    return row


def sync_decorator(steps: int, _: str) -> Row:
    import stepwell as sw

    flush = _configure()

    @sw.tool
    def lookup(name: str, limit: int = 3) -> str:
        return ANSWER

    return measure(lambda: _drop(lookup(QUESTION)), flush, steps, 1)


def sync_with(steps: int, _: str) -> Row:
    import stepwell as sw

    flush = _configure()

    def work() -> None:
        with sw.tool("lookup", input={"name": QUESTION, "limit": 3}) as step:
            step.output = ANSWER

    return measure(work, flush, steps, 1)


def async_decorator(steps: int, _: str) -> Row:
    import stepwell as sw

    flush = _configure()

    @sw.tool
    async def lookup(name: str, limit: int = 3) -> str:
        return ANSWER

    async def loop(times: int) -> None:
        for _ in range(times):
            await lookup(QUESTION)

    return measure(lambda: asyncio.run(loop(1000)), flush, steps, 1000)


def async_with(steps: int, _: str) -> Row:
    import stepwell as sw

    flush = _configure()

    async def loop(times: int) -> None:
        for _ in range(times):
            async with sw.tool("lookup", input={"name": QUESTION, "limit": 3}) as step:
                step.output = ANSWER

    return measure(lambda: asyncio.run(loop(1000)), flush, steps, 1000)


def four_threads(steps: int, _: str) -> Row:
    import stepwell as sw

    flush = _configure()

    @sw.tool
    def lookup(name: str, limit: int = 3) -> str:
        return ANSWER

    rows: list[Row] = []

    def thread() -> None:
        rows.append(measure(lambda: _drop(lookup(QUESTION)), lambda: None, steps // 4, 1))

    cpu = time.process_time_ns()
    threads = [threading.Thread(target=thread) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    flush()
    everything = (time.process_time_ns() - cpu) / steps / 1000
    return {"caller": statistics.mean(row["caller"] for row in rows), "all": everything}


def history_stepwell(steps: int, _: str) -> Row:
    import stepwell as sw

    flush = _configure()

    def work() -> None:
        with sw.llm("answer", model="gpt-4o", messages=HISTORY):
            pass

    return measure_bursts(work, flush, max(steps // 40, 40))


def history_msgspec(steps: int, _: str) -> Row:
    import msgspec

    import stepwell as sw

    flush = _configure()
    encode = msgspec.json.Encoder().encode

    def between() -> None:  # what the other row has between its bursts, so that both find the same caches
        for _ in range(BURST):
            with sw.llm("answer", model="gpt-4o", messages=HISTORY):
                pass
        flush()

    row = measure_bursts(lambda: _drop(encode(HISTORY)), between, max(steps // 40, 40))
    return {**row, "all": row["caller"]}  # what was between is not the encoder's


def _payload(value: Any, times: int, *, rules: bool) -> Row:
    """Measure capture alone; a list of payloads is gone through, any other is captured again and again."""
    from stepwell._capture import Capture

    encode = Capture(default_redaction=rules).encode
    values = value if isinstance(value, list) else [value]
    index = iter(range(1 << 60))
    return measure(lambda: _drop(encode(values[next(index) % len(values)])), lambda: None, times, 1)


def redacted_dict(steps: int, _: str) -> Row:
    return _payload({"name": QUESTION[:20], "limit": 3, "exact": True}, steps, rules=True)


def plain_dict(steps: int, _: str) -> Row:
    return _payload({"name": QUESTION[:20], "limit": 3, "exact": True}, steps, rules=False)


def redacted_text(steps: int, _: str) -> Row:
    return _payload((NOTE * 20)[:4096], steps, rules=True)


def plain_text(steps: int, _: str) -> Row:
    return _payload((NOTE * 20)[:4096], steps, rules=False)


def redacted_notes(steps: int, _: str) -> Row:
    return _payload([NOTES], steps // 10, rules=True)


def plain_notes(steps: int, _: str) -> Row:
    return _payload([NOTES], steps // 10, rules=False)


def _chats(grown: bool) -> list[Any]:
    """Return more chats than the recorder remembers, each of new texts, or of those of the one before and one more."""
    if grown:
        return [[*NOTES, {"role": "user", "content": f"{chat} {NOTE}"}] for chat in range(9999)]
    return [[{**note, "content": f"{chat} {note['content']}"} for note in NOTES] for chat in range(60)]


def redacted_grown(steps: int, _: str) -> Row:
    return _payload(_chats(True), steps // 20, rules=True)


def plain_grown(steps: int, _: str) -> Row:
    return _payload(_chats(True), steps // 20, rules=False)


def redacted_new(steps: int, _: str) -> Row:
    return _payload(_chats(False), steps // 20, rules=True)


def plain_new(steps: int, _: str) -> Row:
    return _payload(_chats(False), steps // 20, rules=False)


def disabled(steps: int, _: str) -> Row:
    import stepwell as sw

    sw.configure(enabled=False, home=None, export="memory:")

    @sw.tool
    def lookup(name: str, limit: int = 3) -> str:
        return name

    return measure(lambda: _drop(lookup(QUESTION)), lambda: None, steps * 5, 1)


def bare_wrapt(steps: int, _: str) -> Row:
    import wrapt

    @wrapt.decorator
    def pass_on(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        return wrapped(*args, **kwargs)

    @pass_on
    def lookup(name: str, limit: int = 3) -> str:
        return name

    return measure(lambda: _drop(lookup(QUESTION)), lambda: None, steps * 5, 1)


def bare_call(steps: int, _: str) -> Row:
    def lookup(name: str, limit: int = 3) -> str:
        return name

    return measure(lambda: _drop(lookup(QUESTION)), lambda: None, steps * 5, 1)


def measure(work: Callable[[], None], flush: Callable[[], object], steps: int, each: int) -> Row:
    """Run `work`, which is `each` steps, after a warm-up; times in microseconds a step."""
    for _ in range(max(1, 400 // each)):
        work()
    flush()
    gc.collect()
    times = max(1, steps // each)
    cpu, begin, wall = time.process_time_ns(), time.thread_time_ns(), time.perf_counter_ns()
    for _ in range(times):
        work()
    caller, waited = time.thread_time_ns() - begin, time.perf_counter_ns() - wall
    flush()
    everything = time.process_time_ns() - cpu
    return {
        name: value / times / each / 1000 for name, value in (("caller", caller), ("wall", waited), ("all", everything))
    }


def measure_bursts(work: Callable[[], None], between: Callable[[], object], times: int) -> Row:
    """Measure bursts of calls with a pause for the disk between them, each after two calls that warm up."""
    caller = waited = 0
    bursts = max(2, times // BURST)
    cpu = time.process_time_ns()
    for _ in range(bursts):
        for _ in range(2):
            work()
        begin, wall = time.thread_time_ns(), time.perf_counter_ns()
        for _ in range(BURST):
            work()
        caller += time.thread_time_ns() - begin
        waited += time.perf_counter_ns() - wall
        between()
    everything = time.process_time_ns() - cpu
    calls = bursts * BURST
    return {name: value / calls / 1000 for name, value in (("caller", caller), ("wall", waited), ("all", everything))}


def import_seconds(statement: str, times: int) -> float:
    """Return the median wall time of a fresh interpreter that runs one statement, with all modules compiled.

    An installation compiles them, a checkout may not: where the environment forbids to write byte code, say.
    """
    found: list[float] = []
    with tempfile.TemporaryDirectory() as compiled:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        for _ in range(times + 1):  # the first one compiles
            begin = time.perf_counter()
            subprocess.run(
                [sys.executable, "-X", f"pycache_prefix={compiled}", "-c", statement], check=True, env=variables
            )
            found.append(time.perf_counter() - begin)
    return statistics.median(found[1:])


ROWS: dict[str, Callable[[int, str], Row]] = {
    row.__name__: row
    for row in (
        agent_opentelemetry,
        agent_stepwell,
        agent_stepwell_http,
        sync_decorator,
        sync_with,
        async_decorator,
        async_with,
        four_threads,
        history_stepwell,
        history_msgspec,
        redacted_dict,
        plain_dict,
        redacted_text,
        plain_text,
        redacted_notes,
        plain_notes,
        redacted_grown,
        plain_grown,
        redacted_new,
        plain_new,
        disabled,
        bare_wrapt,
        bare_call,
    )
}
RATIOS = [
    ("agent, caller's thread", "agent_stepwell", "agent_opentelemetry", "caller", 0.25),
    ("agent, all threads", "agent_stepwell", "agent_opentelemetry", "all", 0.45),
    ("agent to a server, all threads", "agent_stepwell_http", "agent_opentelemetry", "all", 0.35),
    ("100 kB history, caller's thread", "history_stepwell", "history_msgspec", "caller", 2.0),
    ("redaction, small dict", "redacted_dict", "plain_dict", "caller", 1.3),
    ("redaction, 4 kB text", "redacted_text", "plain_text", "caller", 1.3),
    ("redaction, 100 kB chat", "redacted_notes", "plain_notes", "caller", 1.3),
    ("redaction, the same and a message", "redacted_grown", "plain_grown", "caller", 1.3),
    ("redaction, all texts new", "redacted_new", "plain_new", "caller", 1.3),
    ("disabled, caller's thread", "disabled", "bare_wrapt", "caller", 2.0),
]


def run_rows(names: list[str], steps: int, endpoint: str, rounds: int, program: str = __file__) -> dict[str, Row]:
    """Run every row in processes of its own, in turns, and keep the best of each figure: noise only adds."""
    rows: dict[str, Row] = {}
    for name in names * rounds:
        command = [sys.executable, program, "--row", name, "--steps", str(steps), "--endpoint", endpoint]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        best = rows.setdefault(name, found)
        rows[name] = {figure: min(value, best[figure]) for figure, value in found.items()}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=5, help="processes a row, of which the best figure counts")
    parser.add_argument("--smoke", action="store_true", help="a quick run that shows that every row works")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="*", help="the rows to run")
    parser.add_argument("--endpoint", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    steps, rounds = (800, 1) if options.smoke else (options.steps, options.rounds)
    if options.row:
        print(json.dumps(ROWS[options.row](options.steps, options.endpoint)))
        return
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve_sink, args=(there,), daemon=True)
    server.start()
    endpoint = f"http://127.0.0.1:{here.recv()}/v1/traces"
    try:
        names = [name for name in ROWS if not options.only or name in options.only]
        rows = run_rows(names, steps, endpoint, rounds)
    finally:
        server.terminate()
    print(f"{'microseconds a step':<28}{'caller':>10}{'wall':>10}{'all threads':>14}")
    for name, row in rows.items():
        print(f"{name:<28}{row['caller']:>10.2f}{row.get('wall', float('nan')):>10.2f}{row['all']:>14.2f}")
    print(f"\n{'ratio':<60}{'is':>8}{'aim':>8}")
    for what, ours, theirs, figure, aim in RATIOS:
        if ours in rows and theirs in rows:
            print(f"{f'{what} ({ours} / {theirs})':<60.60}{rows[ours][figure] / rows[theirs][figure]:>8.2f}{aim:>8.2f}")
    if not options.only:
        times = 3 if options.smoke else 15
        bare, ours, otel = (import_seconds(s, times) for s in ("pass", "import stepwell", "import opentelemetry.trace"))
        print(f"\nseconds: python {bare:.3f}, import stepwell {ours:.3f}, import opentelemetry.trace {otel:.3f}")
        print(f"{'import (stepwell / opentelemetry.trace, interpreter included)':<60.60}{ours / otel:>8.2f}{2.0:>8.2f}")


if __name__ == "__main__":
    main()
