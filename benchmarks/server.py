"""What the server takes: steps a second, durable when acknowledged, the load coming from another process.

    python benchmarks/server.py [--steps 200000] [--batch 1000] [--clients 2] [--encoding gzip|zstd] [--writers N]

The server is `stepwell serve` on a new store; the client sends prepared bodies of steps of about 1.5 kB over kept-alive
connections of its own, each waiting for the answer to its last. Both share this machine's cores. At the end the rows
of the store are counted: they must be as many as were acknowledged. Time and memory are those of the server and of
the processes that write for it together, memory the sum of what each had at most.
"""

from __future__ import annotations

import argparse
import gzip
import http.client
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from msgspec import json

from stepwell.store import open_store

START_NS = 1_790_000_000_000_000_000
WORDS = ("depth", "stair", "water", "carved", "pavilion", "king", "monsoon", "stone", "gallery", "pillar", "shaft")


def make_steps(count: int, seed: int = 7) -> list[bytes]:
    """Make llm, tool, retrieval and run steps in turn, 1.5 kB each, in traces of twenty and threads of a hundred."""
    rng = random.Random(seed)

    def prose(words: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(words))

    steps: list[bytes] = []
    high = low = ""
    for place in range(count):
        start_ns = START_NS + place * 1_000_000
        if place % 20 == 0:
            high, low = (
                f"{start_ns // 1_000_000:012x}7{rng.getrandbits(12):03x}",
                f"{2 << 62 | rng.getrandbits(62):016x}",
            )
        own = low if place % 20 == 0 else f"{2 << 62 | rng.getrandbits(62):016x}"
        root = str(uuid.UUID(high + low))
        step = {
            "kind": "step",
            "id": str(uuid.UUID(high + own)),
            "trace_id": high + low,
            "thread_id": f"thread-{place // 100}",
            "root_run_id": root,
            "type": "run" if own == low else ("llm", "tool", "retrieval")[place % 3],
            "name": f"answer-{place % 20}",
            "start_ns": start_ns,
            "end_ns": start_ns + 900_000,
            "status": "success",
            "tags": ["web", "prod"],
            "metadata": {"attempt": 1, "region": "eu-west-1"},
            "environment": "prod",
            "service": "guide",
        }
        if own != low:
            step["parent_id"] = root
        if step["type"] == "llm":
            step["generation"] = {
                "type": "chat",
                "provider": "openai",
                "model": "gpt-4o",
                "messages": [{"role": "user", "content": prose(65)}],
                "message_completion": {"role": "assistant", "content": prose(58)},
                "settings": {"temperature": 0.2, "max_tokens": 512},
                "usage": {"input_tokens": 100, "output_tokens": 70, "total_tokens": 170},
            }
        else:
            step["input"] = {"question": prose(65)}
            step["output"] = {"answer": prose(77)}
        steps.append(json.encode(step))
    return steps


def encoder(name: str) -> Callable[[bytes], bytes]:
    if name == "gzip":
        return lambda body: gzip.compress(body, 1)
    if name == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=3).compress
    return bytes


class Client(threading.Thread):
    """One connection that sends its share of the bodies."""

    def __init__(self, port: int, bodies: list[tuple[int, bytes]], encoding: str) -> None:
        super().__init__()
        self.stopped = False
        self.port, self.bodies, self.encoding = port, bodies, encoding
        self.seconds: list[float] = []
        self.accepted = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        headers = {"Content-Type": "application/x-ndjson"}
        if self.encoding:
            headers["Content-Encoding"] = self.encoding
        for _, body in self.bodies:
            if self.stopped:
                break
            started = time.perf_counter()
            connection.request("POST", "/v1/ingest", body, headers)
            answer = json.decode(connection.getresponse().read())
            self.seconds.append(time.perf_counter() - started)
            self.accepted += answer["accepted"]
        connection.close()


def load(port: int, steps: int, batch: int, clients: int, encoding: str, until_told: bool) -> None:
    """Be the load generator: print what it saw as JSON. `until_told` begins and ends it with a line on its input."""
    encode = encoder(encoding)
    bodies = [(len(part), encode(b"\n".join(part) + b"\n")) for part in chunks(make_steps(steps), batch)]
    threads = [Client(port, bodies[place::clients], encoding) for place in range(clients)]
    if until_told:
        print(flush=True)
        sys.stdin.readline()
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    if until_told:
        sys.stdin.readline()
        for thread in threads:
            thread.stopped = True
    for thread in threads:
        thread.join()
    took = time.perf_counter() - started
    seconds = sorted(each for thread in threads for each in thread.seconds)
    told = {
        "accepted": sum(thread.accepted for thread in threads),
        "seconds": took,
        "p50_ms": seconds[len(seconds) // 2] * 1000,
        "p99_ms": seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))] * 1000,
        "bytes": sum(len(body) for _, body in bodies),
    }
    print(json.encode(told).decode())


def rss_mb(pid: int, line: str) -> float:
    """Return the memory of a process and its children, in the words of `/proc/PID/status`."""
    statuses = [Path(f"/proc/{each}/status").read_text().splitlines() for each in family(pid)]
    return sum(int(text.split()[1]) / 1024 for lines in statuses for text in lines if text.startswith(line))


def cpu_s(pid: int) -> float:
    """Return the time of a process and its children."""
    fields = [Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split() for each in family(pid)]
    return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    children = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [pid, *(int(child) for each in children for child in each)]


@contextmanager
def serve(folder: str | Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Start `stepwell serve` over a folder, and end it; give its process and its port when it is ready.

    pydantic's plug-ins are left out: those of other packages in the environment of development are not the server's.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "stepwell", "serve", "--home", str(folder), "--port", "0", *options],
        env={**os.environ, "PYDANTIC_DISABLE_PLUGINS": "__all__"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            yield server, int(server.stdout.readline().strip().rpartition(":")[2])
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)


def measure(steps: int, batch: int, clients: int, encoding: str, writers: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with serve(folder, *writers.split()) as (server, port):
            ready = time.perf_counter() - started
            before = cpu_s(server.pid)
            options = [f"--steps={steps}", f"--batch={batch}", f"--clients={clients}", f"--encoding={encoding}"]
            done = subprocess.run(
                [sys.executable, __file__, f"--load={port}", *options], stdout=subprocess.PIPE, check=True, text=True
            )
            told = json.decode(done.stdout)
            cpu, peak = cpu_s(server.pid) - before, rss_mb(server.pid, "VmHWM")
        store = open_store(f"sqlite:{folder}/steps.db", read_only=True)
        held = store.stats().steps
        store.close()
    if not held == told["accepted"] == steps:
        raise SystemExit(f"sent {steps} steps, {told['accepted']} were acknowledged and {held} are there")
    rate = steps / told["seconds"]
    sent = told["bytes"] / steps
    print(
        f"{encoding or 'plain':>6} {batch:>6} {clients:>8} {rate:>9,.0f} {told['p50_ms']:>8.1f} {told['p99_ms']:>8.1f} "
        f"{cpu / steps * 1e6:>8.1f} {peak:>8.0f} {sent:>10.0f} {ready:>8.2f}"
    )


def chunks(steps: list[bytes], size: int) -> list[list[bytes]]:
    return [steps[at : at + size] for at in range(0, len(steps), size)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--encoding", default="", choices=["", "gzip", "zstd"])
    parser.add_argument("--writers", help="of the server: how many processes write")
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--until-told", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true", help="a moment only, to see that it runs")
    options = parser.parse_args()
    if options.load:
        load(options.load, options.steps, options.batch, options.clients, options.encoding, options.until_told)
        return
    steps = 2000 if options.smoke else options.steps
    sizes = [options.batch] if options.batch else [500] if options.smoke else [500, 1000, 2000]
    counts = [options.clients] if options.clients else [2] if options.smoke else [1, 2]
    print(f"{steps:,} steps of {len(b''.join(make_steps(1000))) / 1000:,.0f} bytes")
    print("encoding batch clients   steps/s   p50 ms   p99 ms   CPU us  RSS MB  bytes/step  ready s")
    for batch in sizes:
        for clients in counts:
            measure(steps, batch, clients, options.encoding, f"--writers {options.writers}" if options.writers else "")


if __name__ == "__main__":
    main()
