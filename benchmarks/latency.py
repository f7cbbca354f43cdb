"""How long a call waits for its recorder while what was recorded is delivered, against bare OpenTelemetry, in one run.

    python benchmarks/latency.py [--seconds 4] [--rounds 3] [--smoke]

Every row runs in processes of its own, in turns. `call` is one decorated function with 1.5 kB of arguments and result,
`agent` a run with a retrieval, a tool and an llm step as in `overhead.py` (four steps in one figure), `100 kB` an llm
step with a chat history. `flat out` calls them without a pause, `steady` at 5,000 steps (100 kB: 200) a second. The
figures are microseconds of wall time: percentiles of the call; of the calls alone in which the journal went over to its
next segment; and, where the pace is steady, of how late the program wakes from its sleep, which is the wait for the
interpreter that all of the program's own input and output feels. Each is the median of the rounds.

`nothing` records nothing: what it shows is the machine. The delivery is to SQLite; OpenTelemetry's, with a
BatchSpanProcessor, over OTLP/HTTP to a sink in another process. The promise: at a steady pace a call in which the
segment changes takes less than a millisecond longer than others, at p99.9. Flat out, the program and its shipper have
one interpreter between them, and whoever wants it back waits for Python's switch interval: what is to be read there is
the difference to OpenTelemetry.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable
from typing import Any

from overhead import HISTORY, QUESTION, opentelemetry_agent, serve_sink, stepwell_agent

LIMIT_US = 1000.0
TEXT = (QUESTION * 3)[:740]
STEPS_A_WORK = {"call": 1, "agent": 4, "100 kB": 1}
STEPS_A_SECOND = {"call": 5000, "agent": 5000, "100 kB": 200}
RECORDERS = ("nothing", "no exporter", "SQLite", "OpenTelemetry")
FIGURES = ("p50", "p99", "p99.9", "max")

Work = Callable[[], object]
Row = dict[str, float]


# -- what is called


def works_with_nothing() -> dict[str, Work]:
    def lookup(text: str) -> str:
        return TEXT

    return {"call": lambda: lookup(TEXT), "agent": lambda: lookup(TEXT), "100 kB": lambda: lookup(TEXT)}


def works_with_stepwell() -> dict[str, Work]:
    import stepwell as sw

    @sw.tool
    def lookup(text: str) -> str:
        return TEXT

    agent = stepwell_agent()

    def history() -> None:
        with sw.llm("answer", model="gpt-4o", messages=HISTORY):
            pass

    return {"call": lambda: lookup(TEXT), "agent": lambda: agent(QUESTION), "100 kB": history}


def works_with_opentelemetry(endpoint: str) -> dict[str, Work]:
    agent, _, tracer = opentelemetry_agent(endpoint)

    def lookup(text: str) -> str:
        with tracer.start_as_current_span("lookup") as span:
            span.set_attribute("input", json.dumps({"text": text}))
            span.set_attribute("output", json.dumps(TEXT))
            return TEXT

    def history() -> None:
        with tracer.start_as_current_span("answer") as span:
            span.set_attribute("messages", json.dumps(HISTORY))

    return {"call": lambda: lookup(TEXT), "agent": agent, "100 kB": history}


# -- what is measured


class Samples:
    """Wall times of calls, in nanoseconds."""

    def __init__(self, journal: Any) -> None:
        self.all = array("q")
        self.rolls = array("q")
        self.late = array("q")
        self._journal = journal
        self._segment = None if journal is None else journal._current

    def take(self, work: Work) -> None:
        began = time.perf_counter_ns()
        work()
        took = time.perf_counter_ns() - began
        self.all.append(took)
        if self._journal is not None and self._journal._current is not self._segment:
            self._segment = self._journal._current
            self.rolls.append(took)

    def row(self) -> Row:
        row = percentiles(self.all, "")
        row["rolls"] = len(self.rolls)
        return row | percentiles(self.rolls, "roll ") | percentiles(self.late, "late ")


def percentiles(samples: array[int], prefix: str) -> Row:
    if not samples:
        return {}
    ordered = sorted(samples)
    last = len(ordered) - 1
    places = (last // 2, round(last * 0.99), round(last * 0.999), last)
    return {prefix + name: ordered[place] / 1000 for name, place in zip(FIGURES, places, strict=True)}


def measure(recorder: str, what: str, pace: str, seconds: float, endpoint: str, home: str) -> Row:
    flush, journal = None, None
    if recorder == "nothing":
        work = works_with_nothing()[what]
    elif recorder == "OpenTelemetry":
        work = works_with_opentelemetry(endpoint)[what]
    else:
        import stepwell as sw
        from stepwell import _config

        export: Any = "sqlite:" if recorder == "SQLite" else []
        sw.configure(export=export, home=home, exit_timeout=0)
        work, flush = works_with_stepwell()[what], sw.flush
    for _ in range(400):
        work()
    if flush is not None:
        flush(60)
        journal = _config._state.pipeline.journal  # type: ignore[union-attr] - the first call has made it
    gc.collect()
    samples = Samples(journal)
    if pace == "steady":
        run_steadily(samples, work, STEPS_A_WORK[what] / STEPS_A_SECOND[what], seconds)
    else:
        run_flat_out(samples, work, seconds, 4000 if what == "100 kB" else sys.maxsize)
    row = samples.row()
    if flush is not None:
        row["balanced"] = all(ledger.balanced for ledger in sw.stats().exporters.values())
    return row


def run_flat_out(samples: Samples, work: Work, seconds: float, most: int) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and len(samples.all) < most:
        for _ in range(50):
            samples.take(work)


def run_steadily(samples: Samples, work: Work, period_s: float, seconds: float) -> None:
    period, until = round(period_s * 1e9), time.perf_counter_ns() + round(seconds * 1e9)
    due = time.perf_counter_ns()
    while due < until:
        due += period
        wait = due - time.perf_counter_ns()
        if wait > 0:
            time.sleep(wait / 1e9)
            samples.late.append(max(0, time.perf_counter_ns() - due))
        samples.take(work)


def run_rows(seconds: float, rounds: int, endpoint: str, only: list[str] | None) -> dict[tuple[str, ...], Row]:
    names = [(what, pace, who) for what in STEPS_A_WORK for pace in ("steady", "flat out") for who in RECORDERS]
    names = [name for name in names if not only or all(word in name for word in only)]
    found: dict[tuple[str, ...], list[Row]] = {name: [] for name in names}
    for name in names * rounds:
        with tempfile.TemporaryDirectory(prefix="stepwell-latency-") as home:
            options = ["--row", *name, "--seconds", str(seconds), "--endpoint", endpoint, "--home", home]
            command = [sys.executable, __file__, *options]
            found[name].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    return {
        name: {
            figure: statistics.median(values)
            for figure in sorted({figure for row in rows for figure in row})
            if (values := [row[figure] for row in rows if figure in row])
        }
        for name, rows in found.items()
    }


def print_rows(rows: dict[tuple[str, ...], Row]) -> bool:
    """Print the table; say whether the promise holds."""
    heads = [*FIGURES, "rolls", *(f"roll {name}" for name in ("p50", "p99.9")), *(f"late {n}" for n in FIGURES[:3])]
    print(f"{'microseconds':<32}" + "".join(f"{head:>11}" for head in heads))
    kept = True
    for name, row in rows.items():
        cells = [f"{row[head]:>11.0f}" if head in row else f"{'':>11}" for head in heads]
        print(f"{', '.join(name):<32}" + "".join(cells))
        is_late = "steady" in name and row.get("roll p99.9", 0.0) - row["p50"] > LIMIT_US
        kept = kept and not is_late and row.get("balanced", 1.0) == 1.0
    return kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each row is measured")
    parser.add_argument("--rounds", type=int, default=3, help="processes a row, of which the median counts")
    parser.add_argument("--smoke", action="store_true", help="a quick run that shows that every row works")
    parser.add_argument("--only", nargs="*", help="words of the rows to run, such as: SQLite steady")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", default="", help=argparse.SUPPRESS)
    parser.add_argument("--home", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        what, pace, who = options.row
        print(json.dumps(measure(who, what, pace, options.seconds, options.endpoint, options.home)))
        sys.stdout.flush()
        os._exit(0)  # what is still to be delivered is not what is measured
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve_sink, args=(there,), daemon=True)
    server.start()
    endpoint = f"http://127.0.0.1:{here.recv()}/v1/traces"
    seconds, rounds = (0.2, 1) if options.smoke else (options.seconds, options.rounds)
    try:
        kept = print_rows(run_rows(seconds, rounds, endpoint, options.only))
    finally:
        server.terminate()
    print(
        f"\n{'' if kept else 'FAILED: '}the promise is, at a steady pace, a change of segment under {LIMIT_US:.0f} µs"
    )
    return 0 if options.smoke else int(not kept)


if __name__ == "__main__":
    sys.exit(main())
