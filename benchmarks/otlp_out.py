"""What sending steps by OTLP costs, against bare OpenTelemetry sending the same spans, in one run.

    python benchmarks/otlp_out.py [--steps 40000] [--rounds 3] [--smoke]

The workload is that of `overhead.py`: a run with a retrieval, a tool and an llm step, four steps. `opentelemetry` is
the SDK with a BatchSpanProcessor and its OTLP/HTTP exporter, `stepwell` the exporter `otlp+http:`, to the same sink in
another process; `genai` is ours with one convention where the default sends two. `all` is CPU time of the whole process
until everything is delivered, in microseconds a step. Then the time a call takes on the caller's thread while a program
records 20,000 steps a second, with the exporter and without one.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from typing import Any

from overhead import QUESTION, Row, agent_opentelemetry, measure, run_rows, serve_sink, stepwell_agent

RATE = 20_000  # steps a second
STEPS_A_CALL = 4


def exporter_for(endpoint: str, *conventions: Any) -> Any:
    from stepwell.exporters.otlp import OtlpExporter

    url = f"otlp+{endpoint}"
    return OtlpExporter(url, conventions=conventions) if conventions else OtlpExporter(url)


def configured(*exporters: Any) -> Callable[[], object]:
    import stepwell as sw

    sw.configure(export=list(exporters), home=tempfile.mkdtemp(prefix="stepwell-otlp-"))

    def flush() -> None:
        if not sw.flush(300):
            raise SystemExit("not delivered")

    return flush


def opentelemetry(steps: int, endpoint: str) -> Row:
    return agent_opentelemetry(steps, endpoint)


def stepwell(steps: int, endpoint: str) -> Row:
    flush = configured(exporter_for(endpoint))
    agent = stepwell_agent()
    return measure(lambda: _drop(agent(QUESTION)), flush, steps, STEPS_A_CALL)


def genai(steps: int, endpoint: str) -> Row:
    flush = configured(exporter_for(endpoint, "genai"))
    agent = stepwell_agent()
    return measure(lambda: _drop(agent(QUESTION)), flush, steps, STEPS_A_CALL)


def paced(steps: int, *exporters: Any) -> Row:
    """Record at the rate, and return what calls took, in microseconds."""
    import stepwell as sw

    configured(*exporters)
    agent = stepwell_agent()
    agent(QUESTION)
    took: list[int] = []
    begin = time.perf_counter_ns()
    for number in range(steps // STEPS_A_CALL):
        due = begin + number * STEPS_A_CALL * 1_000_000_000 // RATE
        while (now := time.perf_counter_ns()) < due:
            time.sleep(max(0, due - now) / 2_000_000_000)
        agent(QUESTION)
        took.append(time.perf_counter_ns() - now)
    seconds = (time.perf_counter_ns() - begin) / 1e9
    sw.shutdown(0)
    took.sort()
    at = [took[int(len(took) * part)] / 1000 for part in (0.5, 0.99)]
    return {"p50": at[0], "p99": at[1], "rate": steps / seconds}


class Nothing:
    def export(self, batch: Any) -> None:
        pass


def paced_without(steps: int, _: str) -> Row:
    return paced(steps, Nothing())


def paced_stepwell(steps: int, endpoint: str) -> Row:
    return paced(steps, exporter_for(endpoint))


ROWS: dict[str, Callable[[int, str], Row]] = {
    row.__name__: row for row in (opentelemetry, stepwell, genai, paced_without, paced_stepwell)
}


def _drop(_: object) -> None:
    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="a quick run that shows that every row works")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--only", nargs="*", help="the rows to run")
    parser.add_argument("--endpoint", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(ROWS[options.row](options.steps, options.endpoint)))
        return
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve_sink, args=(there,), daemon=True)
    server.start()
    try:
        endpoint = f"http://127.0.0.1:{here.recv()}/v1/traces"
        steps, rounds = (800, 1) if options.smoke else (options.steps, options.rounds)
        names = [name for name in ROWS if not options.only or name in options.only]
        rows = run_rows(names, steps, endpoint, rounds, program=__file__)
    finally:
        server.terminate()
    for name, row in rows.items():
        print(f"{name:<20}" + "".join(f"{figure:>10} {value:10.2f}" for figure, value in row.items()))
    for ours, theirs, figure, aim in (
        ("stepwell", "opentelemetry", "all", 1.0),
        ("genai", "opentelemetry", "all", 1.0),
        ("paced_stepwell", "paced_without", "p99", 2.0),
    ):
        if ours in rows and theirs in rows:
            print(f"{f'{ours} / {theirs}, {figure}':<50}{rows[ours][figure] / rows[theirs][figure]:8.2f}{aim:8.2f}")


if __name__ == "__main__":
    main()
