"""Whether a program that records for long, and badly, stays as it was: memory, files, threads, ledger, latency.

    python benchmarks/soak.py [--minutes 3] [--smoke]

Threads and asyncio tasks record runs with tools, models and messages in threads of conversation; generators are left in
the middle, steps are started and never ended, exceptions of new kinds are raised at new places; one exporter fails now
and then, is slow, refuses records and names reasons without end; one is SQLite. Every so often it is configured anew.

A line is one window of time: resident memory, objects the garbage collector knows, descriptors, threads, what the
journal has on disk, what waits for delivery, and the wall time of a decorated call. The status is 1 where the ledger
does not balance or something grows: the median of the last third of the windows is compared with the middle third
(memory by LIMIT_MB at most, objects by a tenth, p99 by a factor of two, descriptors and threads not at all). `--smoke`
looks at ledger, descriptors and threads only: in ten seconds the rest is noise.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import stepwell as sw
from stepwell._recorder import RECORDER
from stepwell.errors import ExportError, RejectedError
from stepwell.exporters import Batch

LIMIT_MB = 8.0
RECONFIGURE_S = 20.0
COLUMNS = {"MB": 8, "objects": 10, "files": 7, "threads": 9, "journal/MB": 12, "waiting": 9, "steps": 9} | {
    "p50/µs": 9,
    "p99/µs": 9,
    "max/µs": 9,
    "open": 7,
}
MESSAGES = [{"role": "user", "content": "Where does the second well get its water from? " * 5}]


class Window(NamedTuple):
    rss: float
    objects: int
    files: int
    threads: int
    journal: float
    waiting: int
    steps: int
    p50: float
    p99: float
    worst: float


class Troubled:
    """An exporter on a bad day; `seen` counts what it took over all its lives."""

    key = "soak:"
    seen = 0

    def __init__(self) -> None:
        self._random = random.Random(7)
        self._calls = 0

    def export(self, batch: Batch) -> None:
        self._calls += 1
        chance = self._random.random()
        if chance < 0.05:
            raise ExportError(f"call {self._calls} failed")
        if chance < 0.08:
            raise ConnectionResetError(f"call {self._calls} was cut off")
        if chance < 0.10:
            threading.Event().wait(0.3)
        if chance < 0.15:
            refused = {0: f"reason {self._calls}", len(batch) - 1: "bad"}
            Troubled.seen += len(batch) - len(refused)
            raise RejectedError("refused some", rejected=refused)
        Troubled.seen += len(batch)


# -- what a program does


@sw.tool
def lookup(name: str) -> str:
    return name * 20


@sw.run
def streaming(count: int) -> Iterator[str]:
    for number in range(count):
        with sw.tool("inside"):
            yield f"piece {number}"


@sw.run
async def streaming_async(count: int) -> AsyncIterator[str]:
    for number in range(count):
        await asyncio.sleep(0)
        yield f"piece {number}"


def fail(number: int) -> None:
    raise type(f"Error{number}", (Exception,), {})(number)


def converse(number: int, chance: random.Random) -> None:
    """Have one conversation, in which something goes wrong."""
    with sw.thread(f"t-{number}", user=f"user-{number}"):
        sw.user_message("Hi", attachments=[sw.attach(b"a,b", name="a.csv")] if number % 50 == 0 else None)
        with sw.run(f"agent-{number}", tags=[f"tag-{number}"]) as run:
            with sw.llm("answer", model=f"model-{number}", messages=MESSAGES) as step:
                step.usage(input_tokens=number)
                step.score("relevance", chance.random())
            lookup("well")
            left = streaming(5)
            next(left)
            if chance.random() < 0.2:
                sw.start("tool", "leaked")  # never ended
            if chance.random() < 0.2:
                cycle: list[Any] = [left]
                cycle.append(cycle)
            if chance.random() < 0.3:
                try:
                    with sw.tool("failing"):
                        fail(number)
                except Exception as error:  # noqa: BLE001 - each is of a class of its own
                    run.fail(error)
        run.score("late", 1.0)
        sw.assistant_message("Bye")


async def converse_async(number: int, chance: random.Random) -> None:
    async with sw.run(f"async-{number}"):
        with sw.llm("answer", prompt="?") as step:
            for _ in step.stream(["a", "b"]):
                break
        async for _ in streaming_async(4):
            if chance.random() < 0.5:
                break
        forgotten = asyncio.create_task(asyncio.sleep(60))
        await asyncio.sleep(0)
        forgotten.cancel()


def record_in_thread(stop: threading.Event, seed: int) -> None:
    chance = random.Random(seed)
    number = seed
    while not stop.wait(0.005):
        number += 10
        converse(number, chance)


def record_in_tasks(stop: threading.Event, seed: int) -> None:
    chance = random.Random(seed)

    async def main() -> None:
        number = seed
        while not stop.is_set():
            number += 100
            await asyncio.gather(*(converse_async(number + place, chance) for place in range(5)))
            await asyncio.sleep(0.02)

    asyncio.run(main())


# -- what is watched


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Watch:
    """Calls a decorated function, steadily, and looks around at the end of each window."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self.windows: list[Window] = []
        self.ledger: Counter[str] = Counter()
        self.unbalanced: list[str] = []
        self._steps_before = 0

    def window(self, seconds: float) -> None:
        costs: list[int] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.perf_counter_ns()
            lookup("watched")
            costs.append(time.perf_counter_ns() - began)
            time.sleep(0.001)
        gc.collect()
        costs.sort()
        ledgers = self.check_ledgers()
        segments = [*self._home.rglob("*.seg")]
        steps = self.ledger["recorded"] + sum(ledger.recorded for ledger in ledgers[:1])
        self.windows.append(
            Window(
                resident_mb(),
                len(gc.get_objects()),
                len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - one call
                threading.active_count(),
                sum(path.stat().st_size for path in segments if path.exists()) / 1e6,
                sum(ledger.waiting for ledger in ledgers),
                steps - self._steps_before,
                costs[len(costs) // 2] / 1000,
                costs[len(costs) * 99 // 100] / 1000,
                costs[-1] / 1000,
            )
        )
        self._steps_before = steps
        w = self.windows[-1]
        print(
            f"{w.rss:>8.1f}{w.objects:>10,}{w.files:>7}{w.threads:>9}{w.journal:>12.1f}{w.waiting:>9,}{w.steps:>9,}"
            f"{w.p50:>9.0f}{w.p99:>9.0f}{w.worst:>9.0f}{len(RECORDER.open_steps):>7}",
            flush=True,
        )

    def check_ledgers(self) -> list[Any]:
        ledgers = list(sw.stats().exporters.items())
        self.unbalanced += [f"{name}: {ledger}" for name, ledger in ledgers if not ledger.balanced]
        return [ledger for _, ledger in ledgers]

    def close_ledgers(self) -> None:
        """Add up what stands before it is configured anew."""
        for ledger in self.check_ledgers()[:1]:
            self.ledger["recorded"] += ledger.recorded

    def problems(self, *, smoke: bool) -> list[str]:
        found = [*self.unbalanced]
        third = len(self.windows) // 3
        middle, last = self.windows[third : 2 * third], self.windows[-third:]

        def median(windows: list[Window], name: str) -> float:
            return statistics.median(getattr(window, name) for window in windows)

        found += [
            f"{name} grew from {median(middle, name)} to {median(last, name)}"
            for name in ("files", "threads")
            if median(last, name) > median(middle, name)
        ]
        if smoke:
            return found
        if median(last, "rss") - median(middle, "rss") > LIMIT_MB:
            found.append(f"memory grew from {median(middle, 'rss'):.1f} to {median(last, 'rss'):.1f} MB")
        if median(last, "objects") > 1.1 * median(middle, "objects"):
            found.append(f"objects grew from {median(middle, 'objects'):,} to {median(last, 'objects'):,}")
        if median(last, "p99") > 2 * median(middle, "p99"):
            found.append(f"p99 grew from {median(middle, 'p99'):.0f} to {median(last, 'p99'):.0f} µs")
        return found


def configure(home: Path) -> None:
    sw.configure(export=[Troubled(), "sqlite:"], home=home, exit_timeout=10.0)


def soak(home: Path, seconds: float, windows: int, *, smoke: bool) -> list[str]:
    configure(home)
    stop, watch = threading.Event(), Watch(home)
    threads = [threading.Thread(target=record_in_thread, args=(stop, seed)) for seed in range(3)]
    threads.append(threading.Thread(target=record_in_tasks, args=(stop, 50)))
    lookup("first")
    for thread in threads:
        thread.start()
    print("".join(f"{head:>{width}}" for head, width in COLUMNS.items()))
    configured = time.monotonic()
    for _ in range(windows):
        watch.window(seconds / windows)
        if time.monotonic() - configured > (2.0 if smoke else RECONFIGURE_S):
            watch.close_ledgers()
            configure(home)
            configured = time.monotonic()
    stop.set()
    for thread in threads:
        thread.join()
    delivered = sw.flush(60)
    watch.close_ledgers()
    recorded, faults = watch.ledger["recorded"], sw.stats().faults
    print(f"\n{recorded:,} records, {Troubled.seen:,} taken by the troubled exporter; faults: {faults}")
    found = watch.problems(smoke=smoke)
    if not delivered:
        found.append("not all was delivered in the end")
    sw.shutdown(10)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--smoke", action="store_true", help="ten seconds: does it run, does the ledger balance")
    options = parser.parse_args()
    seconds, windows = (9.0, 6) if options.smoke else (options.minutes * 60, max(9, round(options.minutes * 12)))
    with tempfile.TemporaryDirectory(prefix="stepwell-soak-") as folder:
        problems = soak(Path(folder) / "home", seconds, windows, smoke=options.smoke)
    for problem in problems:
        print(f"FAILED: {problem}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
