"""What the embedded store costs: CPU and time of adding, of the reads that pages and commands make, and of deleting.

    python benchmarks/store.py [--steps 100000] [--smoke]

CPU is the whole process's, user and system, over the steps added: what the background thread takes from the program.
"""

from __future__ import annotations

import argparse
import gc
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import json

from stepwell.store import StepFilter, Store, open_store

START_NS = 1_790_000_000_000_000_000
MESSAGES = [
    {"role": "system", "content": "You are a guide to the stepwells of Rajasthan."},
    {"role": "user", "content": "How deep is the one at Chand Baori, and who built it?"},
]


def uuid_of(high: str, low: str) -> str:
    digits = high + low
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def make_frames(count: int, seed: int = 7) -> list[bytes]:
    """Make runs of four steps (run, retrieval, tool, llm), ten runs a thread, about 700 bytes a step."""
    rng = random.Random(seed)
    frames: list[bytes] = []
    while len(frames) < count:
        start_ns = START_NS + len(frames) * 1_000_000
        high = f"{start_ns // 1_000_000:012x}7{rng.getrandbits(12):03x}"
        lows = [f"{(2 << 62) | rng.getrandbits(62):016x}" for _ in range(4)]
        root = uuid_of(high, lows[0])
        for place, (kind, low) in enumerate(zip(("run", "retrieval", "tool", "llm"), lows, strict=True)):
            step = {
                "kind": "step",
                "id": uuid_of(high, low),
                "trace_id": high + lows[0],
                "thread_id": f"thread-{len(frames) // 40}",
                "root_run_id": root,
                "type": kind,
                "name": f"answer-{kind}",
                "start_ns": start_ns + place * 1000,
                "end_ns": start_ns + 900_000,
                "status": "success" if rng.random() < 0.98 else "failed",
                "output": {"answer": "It is about thirty metres deep, and was built by King Chanda. " * 3},
                "metadata": {"attempt": 1},
                "environment": "prod",
                "service": "guide",
            }
            if place:
                step["parent_id"] = root
            if kind == "llm":
                usage = {"input_tokens": 100, "output_tokens": 20, "total_tokens": 120}
                step["generation"] = {
                    "type": "chat",
                    "provider": "openai",
                    "model": "gpt-4o",
                    "messages": MESSAGES,
                    "usage": usage,
                }
            else:
                step["input"] = {"question": "How deep is the stepwell at Chand Baori? " * 3}
            frames.append(json.encode(step))
    return frames[:count]


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def fill(store: Store, frames: list[bytes], batch: int) -> tuple[float, float, list[float]]:
    """Add all frames; return seconds, CPU seconds and the seconds of each batch."""
    times: list[float] = []
    started, cpu = time.perf_counter(), time.process_time()
    for index in range(0, len(frames), batch):
        before = time.perf_counter()
        store.add(frames[index : index + batch])
        times.append(time.perf_counter() - before)
    return time.perf_counter() - started, time.process_time() - cpu, times


def bench_add(folder: Path, frames: list[bytes]) -> None:
    print(f"add: {len(frames)} steps of {sum(map(len, frames)) // len(frames)} bytes")
    print(f"{'batch':>8} {'steps/s':>10} {'CPU us/step':>12} {'batch p50 ms':>13} {'p99 ms':>8} {'bytes/step':>11}")
    for batch in (1, 10, 100, 500, 1000, 2000):
        part = frames[: max(batch, len(frames) // 10)] if batch < 100 else frames
        path = folder / f"add-{batch}.db"
        store = open_store(f"sqlite:{path}")
        seconds, cpu, times = fill(store, part, batch)
        store.close()
        middle, worst = percentile(times, 0.5) * 1e3, percentile(times, 0.99) * 1e3
        print(
            f"{batch:>8} {len(part) / seconds:>10,.0f} {cpu / len(part) * 1e6:>12.2f} {middle:>13.2f} {worst:>8.2f}"
            f" {path.stat().st_size / len(part):>11.0f}"
        )
        if batch == 1000:
            store = open_store(f"sqlite:{path}")
            seconds, cpu, _ = fill(store, part, batch)
            store.close()
            print(f"{'again':>8} {len(part) / seconds:>10,.0f} {cpu / len(part) * 1e6:>12.2f}  (all duplicates)")
        path.unlink()


def bench_read(folder: Path, frames: list[bytes], rounds: int) -> None:
    store = open_store(f"sqlite:{folder / 'read.db'}")
    fill(store, frames, 2000)
    rng = random.Random(3)
    ids = [json.decode(rng.choice(frames))["id"] for _ in range(rounds)]
    roots = [json.decode(rng.choice(frames))["root_run_id"] for _ in range(rounds)]
    threads = [json.decode(rng.choice(frames))["thread_id"] for _ in range(rounds)]
    depth = StepFilter(until_ns=START_NS + len(frames) * 500_000)
    cursor = store.steps(depth, limit=50).next_cursor
    position = store.changes()[1]
    reads: dict[str, Callable[[int], object]] = {
        "step": lambda n: store.step(ids[n]),
        "find": lambda n: store.find(ids[n]),
        "tree": lambda n: store.tree(roots[n]),
        "thread steps": lambda n: store.thread_steps(threads[n]),
        "newest 50 steps": lambda _: store.steps(),
        "newest 50 runs": lambda _: store.runs(),
        "newest 50 threads": lambda _: store.threads(),
        "50 steps, half way down": lambda _: store.steps(cursor=cursor),
        "50 failed": lambda _: store.steps(StepFilter(status="failed")),
        "50 of a model": lambda _: store.steps(StepFilter(model="gpt-4o")),
        "changes, none": lambda _: store.changes(position),
    }
    print(f"\nread: of {len(frames)} steps\n{'':<26} {'p50 ms':>8} {'p99 ms':>8}")
    for name, read in reads.items():
        times: list[float] = []
        for number in range(rounds):
            before = time.perf_counter()
            read(number)
            times.append((time.perf_counter() - before) * 1e3)
        print(f"{name:<26} {percentile(times, 0.5):>8.3f} {percentile(times, 0.99):>8.3f}")
    store.close()


def bench_delete(folder: Path, frames: list[bytes], rounds: int) -> None:
    """Delete threads of forty steps, the older half, and pack the rest, of steps whose histories are kept once."""
    calls = make_calls(len(frames) // 10)
    print(f"\ndelete: of {len(frames)} steps, and of {len(calls)} calls of which each sends the history before it")
    print(f"{'':<26} {'p50 ms':>8} {'p99 ms':>8} {'steps/s':>10}")
    for name, records, length in (("steps", frames, 40), ("calls", calls, 40)):
        path = folder / f"delete-{name}.db"
        store = open_store(f"sqlite:{path}")
        fill(store, records, 1000)
        rng = random.Random(4)
        ids = rng.sample(range(len(records) // length), rounds)
        times: list[float] = []
        for id in ids:
            before = time.perf_counter()
            store.delete_thread(f"thread-{id}")
            times.append((time.perf_counter() - before) * 1e3)
        print(f"{name + ': a thread':<26} {percentile(times, 0.5):>8.2f} {percentile(times, 0.99):>8.2f}")
        before = time.perf_counter()
        deleted = store.expire(before_ns=START_NS + len(records) * 500_000).steps
        seconds = time.perf_counter() - before
        print(f"{name + ': the older half':<26} {'':>8} {'':>8} {deleted / seconds:>10,.0f}")
        left, size = store.stats().steps, store.stats().bytes_on_disk
        before = time.perf_counter()
        store.vacuum()
        seconds = time.perf_counter() - before
        shrunk = store.stats().bytes_on_disk
        print(f"{name + ': vacuum':<26} {'':>8} {'':>8} {left / seconds:>10,.0f}  {size:,} bytes to {shrunk:,}")
        store.close()


def make_calls(count: int) -> list[bytes]:
    """Make calls of conversations of forty turns, each with the whole history before it."""
    frames: list[bytes] = []
    for number in range(count):
        turn = number % 40
        texts = [f"{number // 40}: turn {n}, how deep is the stepwell at Chand Baori? " * 3 for n in range(turn + 1)]
        generation = {"model": "gpt-4o", "messages": [{"role": "user", "content": text} for text in texts]}
        start_ns = START_NS + number * 1_000_000
        step = {"kind": "step", "id": f"call-{number}", "type": "llm", "thread_id": f"thread-{number // 40}"}
        frames.append(json.encode({**step, "start_ns": start_ns, "end_ns": start_ns + 1, "generation": generation}))
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--smoke", action="store_true", help="2,000 steps, only to see that it runs")
    arguments = parser.parse_args()
    frames = make_frames(2_000 if arguments.smoke else arguments.steps)
    gc.freeze()  # the frames are the benchmark's, not the program's
    with tempfile.TemporaryDirectory() as folder:
        bench_add(Path(folder), frames)
        bench_read(Path(folder), frames, 20 if arguments.smoke else 200)
        bench_delete(Path(folder), frames, 2 if arguments.smoke else 100)


if __name__ == "__main__":
    main()
