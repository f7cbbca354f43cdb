"""What reading through the server takes, of a store of ten thousand steps and of one of a million.

    python benchmarks/reading.py [--folder /tmp/stepwell-reading] [--sizes 10000 1000000] [--rounds 300] [--smoke]

The stores are made in the folder where they are not there yet (a million steps take two minutes and 1.5 GB) and read
through `stepwell serve`, over one kept-alive connection of this process; a second table is made while another process
sends steps as fast as they are taken. The first begins when the server has been up for a moment. Where the file is not
in memory, what is read here and there in it waits for the disk: a folder in memory, such as `/dev/shm`, leaves that
out. A tenth of all steps are in one thread, a hundredth in one run, both among the newest: a list that sums up what it
shows pays for them. Filters of which nothing matches are the rows named `no ...`. The rows after them are read by
`stepwell.Client`, over HTTP and from the file, and the last through `Store` itself, because no route offers them.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from msgspec import json
from server import WORDS, rss_mb, serve

from stepwell import Client
from stepwell.store import StepFilter, Store, ThreadFilter, open_store

START_NS = 1_790_000_000_000_000_000
TRACE = 20  # steps
THREAD = 100
MODELS = ("gpt-4o", "gpt-4o-mini", "claude-sonnet-4", "gemini-2.5-pro")
SYSTEM = "You are a guide to the stepwells of Rajasthan. Answer in the visitor's language, and name your sources. " * 10


class Made:
    """The steps of a store of this size, reproducibly: their ids, and the frames that make them."""

    def __init__(self, size: int) -> None:
        self.size = size
        rng = random.Random(7)
        self.prose = [" ".join(rng.choice(WORDS) for _ in range(65)) for _ in range(997)]

    def id(self, place: int) -> str:
        first = self._root_place(place)
        rng = random.Random(place)
        high = f"{(START_NS + first * 1_000_000) // 1_000_000:012x}7{first % 4096:03x}"
        return str(uuid.UUID(f"{high}{2 << 62 | rng.getrandbits(62):016x}"))

    def _in_fat_run(self, place: int) -> bool:
        return self.size - self.size // 50 <= place < self.size - self.size // 50 + self.size // 100

    def _root_place(self, place: int) -> int:
        return self.size - self.size // 50 if self._in_fat_run(place) else place - place % TRACE

    def root_id(self, place: int) -> str:
        return self.id(self._root_place(place))

    def thread_id(self, place: int) -> str:
        return "thread-fat" if place % 1000 < 100 else f"thread-{place // THREAD}"

    def frame(self, place: int) -> bytes:
        start_ns = START_NS + place * 1_000_000
        root, id = self.root_id(place), self.id(place)
        kind = "run" if id == root else ("llm", "tool", "retrieval")[place % 3]
        step: dict[str, Any] = {
            "kind": "step",
            "id": id,
            "trace_id": root.replace("-", ""),
            "thread_id": self.thread_id(place),
            "root_run_id": root,
            "type": kind,
            "name": f"answer-{place % TRACE}",
            "start_ns": start_ns,
            "end_ns": start_ns + 900_000,
            "status": "failed" if place % 50 == 7 else "success",
            "tags": ["web", f"plan-{place % 7}"],
            "metadata": {"attempt": place % 3, "region": "eu-west-1"},
            "environment": "prod",
            "service": ("guide", "search", "billing")[place % 3],
            "release": f"1.{place * 10 // self.size}",
            "user": f"user-{place // 500}",
            "agent_id": f"agent-{place // TRACE % 10}",
        }
        if id != root:
            step["parent_id"] = root
        if step["status"] == "failed":
            step["error"] = {"type": "TimeoutError", "message": "no answer within 30 s"}
        if place % 400 == 3:
            step["scores"] = [{"id": f"score-{place}", "name": "feedback", "label": "positive", "value": 1.0}]
        prose = self.prose
        if kind == "llm":
            turns = place % THREAD // 6 if place // 1000 % 4 == 0 else 0  # a quarter are chats that grow
            messages = [{"role": "system", "content": SYSTEM}] if turns else []
            messages += [
                {"role": "user" if turn % 2 else "assistant", "content": prose[(place // THREAD + turn) % 997]}
                for turn in range(turns + 1)
            ]
            step["generation"] = {
                "type": "chat",
                "provider": "openai",
                "model": MODELS[place // 3 % 4],
                "messages": messages,
                "message_completion": {"role": "assistant", "content": prose[place * 31 % 997]},
                "settings": {"temperature": 0.2, "max_tokens": 512},
                "usage": {"input_tokens": 100, "output_tokens": 70, "total_tokens": 170},
            }
        else:
            step["input"] = {"question": prose[place % 997]}
            step["output"] = {"answer": prose[place * 31 % 997]}
        return json.encode(step)

    def fill(self, store: Store) -> None:
        for at in range(0, self.size, 1000):
            store.add([self.frame(place) for place in range(at, min(at + 1000, self.size))])
        threads = range(0, self.size, THREAD)
        for at in range(0, len(threads), 1000):
            store.add([self._thread(place) for place in threads[at : at + 1000]])

    def _thread(self, place: int) -> bytes:
        user = {"id": f"user-{place // 500}", "identifier": f"name-{place // 500}"}
        return json.encode(
            {"kind": "thread", "id": f"thread-{place // THREAD}", "name": "visit", "user": user, "tags": ["web"]}
        )


def requests_of(made: Made) -> dict[str, Callable[[int], str]]:
    """Return the path of the n-th request of each row."""
    rng = random.Random(3)
    places = [rng.randrange(made.size // 2) for _ in range(10_000)]
    chats = [place - place % 4000 + place % 1000 for place in places]
    roots = [made.root_id(place) for place in places]
    date = "2026-09-21T00:00:00Z"

    def of(path: str) -> Callable[[int], str]:
        return lambda _: path

    return {
        "newest 50 steps": of("/v1/steps/?limit=50"),
        "newest 50 runs": of("/v1/runs/?limit=50"),
        "newest 50 threads": of("/v1/threads?limit=50"),
        "a step": lambda n: f"/v1/steps/{made.id(places[n])}",
        "a step of a chat": lambda n: f"/v1/steps/{made.id(chats[n])}",
        "its trace": lambda n: f"/v1/steps/{made.id(chats[n])}/trace",
        "metrics of a run": lambda n: f"/v1/steps/{roots[n]}/metrics",
        "a run": lambda n: f"/v1/runs/{roots[n]}",
        "a run's steps": lambda n: f"/v1/runs/{roots[n]}/steps",
        "a run's spans": lambda n: f"/v1/runs/{roots[n]}/trace",
        "a run's tokens": lambda n: f"/v1/runs/{roots[n]}/usage",
        "a run's messages": lambda n: f"/v1/runs/{roots[n]}/messages",
        "a thread": lambda n: f"/v1/threads/{made.thread_id(places[n] - places[n] % 1000 + 500)}",
        "its steps": lambda n: f"/v1/threads/{made.thread_id(places[n] - places[n] % 1000 + 500)}/steps?limit=100",
        "the fat thread": of("/v1/threads/thread-fat"),
        "the fat thread's steps": of("/v1/threads/thread-fat/steps"),
        "its failed steps": of("/v1/threads/thread-fat/steps?status=failed"),
        "no pending step of it": of("/v1/threads/thread-fat/steps?status=pending"),
        "no step of a type of it": of("/v1/threads/thread-fat/steps?type=rerank"),
        "the fat run's steps": lambda _: f"/v1/runs/{made.id(made.size - made.size // 50)}/steps",
        "50 steps after one": lambda n: f"/v1/steps/?limit=50&after={made.id(places[n])}",
        "50 steps before one": lambda n: f"/v1/steps/?limit=50&before={made.id(places[n])}",
        "50 runs after one": lambda n: f"/v1/runs/?limit=50&after={roots[n]}",
        "of a model": of("/v1/steps/?model=gpt-4o"),
        "no model": of("/v1/steps/?model=none"),
        "with a tag": of("/v1/steps/?tags=plan-3"),
        "with two tags": of("/v1/steps/?tags=web&tags=plan-3"),
        "no tag": of("/v1/steps/?tags=none"),
        "of an agent": of("/v1/steps/?agent_id=agent-3"),
        "no agent": of("/v1/steps/?agent_id=none"),
        "of a service": of("/v1/steps/?project_id=billing"),
        "no service": of("/v1/steps/?project_id=none"),
        "with feedback": of("/v1/steps/?has_feedback=true"),
        "no feedback": of("/v1/steps/?feedback=negative"),
        "of a trace": lambda n: f"/v1/steps/?trace_ids={roots[n].replace('-', '')}",
        "since a date": of(f"/v1/steps/?start_date={date}&order=asc"),
        "runs of an agent": of("/v1/runs/?agent_id=agent-3"),
        "no run of an agent": of("/v1/runs/?agent_id=none"),
        "failed runs": of("/v1/runs/?statuses=failed"),
        "active runs": of("/v1/runs/?active=true"),
        "runs of a thread": lambda n: f"/v1/runs/?conversation_id={made.thread_id(places[n])}",
        "threads of a user": lambda n: f"/v1/threads?user=name-{places[n] // 500}",
        "no user": of("/v1/threads?user=none"),
        "threads of an environment": of("/v1/threads?environment=prod"),
        "threads with a tag": of("/v1/threads?tag=web"),
        "no threads with a tag": of("/v1/threads?tag=none"),
        "page: runs": of("/"),
        "page: failed runs": of("/?q=status:failed"),
        "page: runs with a word": of("/?q=monsoon"),
        "page: steps": of("/steps"),
        "page: steps of a model": of("/steps?q=model:gpt-4o"),
        "page: threads": of("/threads"),
        "page: dashboard": of("/dashboard"),
        "page: a run": lambda n: f"/runs/{roots[n]}",
        "page: a run as a tree": lambda n: f"/runs/{roots[n]}?view=tree",
        "page: the fat run": lambda _: f"/runs/{made.id(made.size - made.size // 50)}",
        "page: a step": lambda n: f"/steps/{made.id(chats[n])}",
        "page: a thread": lambda n: f"/threads/{made.thread_id(places[n])}",
        "page: the fat thread": of("/threads/thread-fat"),
        "page: findings of a run": lambda n: f"/findings/{roots[n]}",
        "page: two runs": lambda n: f"/compare?a={roots[n]}&b={roots[n + 1]}",
    }


def reads_of(store: Store) -> dict[str, Callable[[], object]]:
    """Return the reads that no route offers."""

    def steps(**kept: Any) -> Callable[[], object]:
        return lambda: store.steps(StepFilter(**kept))

    return {
        "store.runs()": store.runs,
        "store.steps of a type": steps(type="retrieval"),
        "... no such type": steps(type="rerank"),
        "... status=failed": steps(status="failed"),
        "... status=success": steps(status="success"),
        "... no such name": steps(name="none"),
        "... user": steps(user="user-3"),
        "... no such user": steps(user="none"),
        "... no such environment": steps(environment="none"),
        "... no such service": steps(service="none"),
        "... release": steps(release="1.0"),
        "... no such release": steps(release="none"),
        "... no such provider": steps(provider="none"),
        "... error_type": steps(error_type="TimeoutError"),
        "... no such error_type": steps(error_type="none"),
        "... has_error": steps(has_error=True),
        "... metadata": steps(metadata={"attempt": 1}),
        "... no such metadata": steps(metadata={"attempt": 99}),
        "... min_duration_ns, none": steps(min_duration_ns=1 << 40),
        "... min_cost, none": steps(min_cost=1.0),
        "... min_tokens, none": steps(min_tokens=1 << 20),
        "... threads of an unknown name": lambda: store.threads(ThreadFilter(name="none")),
    }


def asks_of(client: Client, made: Made) -> dict[str, Callable[[], object]]:
    """Return what a client is asked."""
    rng = random.Random(3)
    ids = [made.id(rng.randrange(made.size // 2)) for _ in range(100)]
    turns = itertools.cycle(ids)
    return {
        "newest 50 steps": client.steps,
        "newest 50 runs": client.runs,
        "a step": lambda: client.step(next(turns)),
        "100 steps in full": lambda: client.steps_in_full(ids),
        "1,000 steps of pages": lambda: sum(1 for _ in itertools.islice(client.steps(limit=200), 1000)),
    }


class Times(list[float]):
    """Milliseconds."""

    def at(self, share: float) -> float:
        return sorted(self)[min(len(self) - 1, int(len(self) * share))]


def ask(port: int, path_of: Callable[[int], str], rounds: int, seconds: float = 4.0) -> Times:
    """Ask again and again, for this long at most."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    times, until = Times(), time.perf_counter() + seconds
    for number in range(-2, rounds):  # two to warm up
        before = time.perf_counter()
        connection.request("GET", path_of(number))
        answer = connection.getresponse()
        body = answer.read()
        took = (time.perf_counter() - before) * 1000
        if answer.status != 200:
            raise SystemExit(f"{path_of(number)}: {answer.status} {body[:300]!r}")
        if number >= 0:
            times.append(took)
        if time.perf_counter() > until and times:
            break
    connection.close()
    return times


def read_by_client(target: str, made: Made, rounds: int) -> dict[str, Times]:
    where = "client, HTTP" if target.startswith("http") else "client, file"
    with Client(target) as client:
        return {f"{where}: {name}": timed(call, rounds) for name, call in asks_of(client, made).items()}


def read_directly(folder: Path, rounds: int) -> dict[str, Times]:
    store = open_store(f"sqlite:{folder}/steps.db", read_only=True)
    found = {name: timed(call, rounds) for name, call in reads_of(store).items()}
    store.close()
    return found


def timed(call: Callable[[], object], rounds: int, seconds: float = 2.0) -> Times:
    """Call again and again, for this long at most; the first call warms up."""
    times, until = Times(), time.perf_counter() + seconds
    for number in range(rounds + 1):
        before = time.perf_counter()
        call()
        if number:
            times.append((time.perf_counter() - before) * 1000)
        if time.perf_counter() > until and times:
            break
    return times


def settle(port: int) -> None:
    """Wait until the server has loaded what it loads once it answers, a quarter of a second after its start."""
    until = time.perf_counter() + 30
    while time.perf_counter() < until:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/metrics")
        told = connection.getresponse().read()
        connection.close()
        if b'{job="ready",outcome="done"} 1' in told:
            return
    raise SystemExit("the server did not get ready")


def read(folder: Path, made: Made, rounds: int, only: str) -> tuple[dict[str, Times], float]:
    """Return the times of each row, and the most memory that the server had, in MB."""
    with serve(folder) as (server, port):
        settle(port)
        rows = {name: path for name, path in requests_of(made).items() if only in name}
        found = {name: ask(port, path_of, rounds) for name, path_of in rows.items()}
        peak = rss_mb(server.pid, "VmHWM")
        for target in (f"http://127.0.0.1:{port}", f"sqlite:{folder}/steps.db"):
            if only in ("", "client"):
                found |= read_by_client(target, made, min(rounds, 100))
    if not only:
        found |= read_directly(folder, min(rounds, 100))
    return found, peak


def read_beside(folder: Path, made: Made, rounds: int) -> tuple[dict[str, Times], float, float]:
    """Return likewise while steps come in, with how many of them did a second; the store is a copy."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as copy:
        shutil.copy(folder / "steps.db", copy)
        beside = Path(__file__).with_name("server.py")
        steps = 300_000 if rounds > 50 else 2_000
        with serve(copy) as (server, port):
            options = [f"--load={port}", "--until-told", f"--steps={steps}", "--batch=500", "--clients=1"]
            load = subprocess.Popen(
                [sys.executable, str(beside), *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            try:
                assert load.stdin is not None
                assert load.stdout is not None
                load.stdout.readline()  # it has made its steps
                load.stdin.write("\n")
                load.stdin.flush()
                wanted = ("newest 50 steps", "newest 50 threads", "a step", "a thread", "its steps", "a run's steps")
                rows = requests_of(made)
                found = {name: ask(port, rows[name], rounds, seconds=1.5) for name in wanted}
                load.stdin.write("\n")
                load.stdin.flush()
                told = json.decode(load.communicate()[0])
                peak = rss_mb(server.pid, "VmHWM")
            finally:
                load.kill()
                load.wait()
    return found, peak, told["accepted"] / told["seconds"]


def stores(folder: Path, sizes: list[int]) -> Iterator[tuple[Path, Made]]:
    for size in sizes:
        made, home = Made(size), folder / str(size)
        if not (home / "steps.db").exists():
            started = time.perf_counter()
            store = open_store(f"sqlite:{home}/making.db")
            made.fill(store)
            while not store.catch_up():  # as a server that has run for a while has done
                pass
            store.close()
            (home / "making.db").rename(home / "steps.db")
            print(f"made {size:,} steps in {time.perf_counter() - started:.0f} s", flush=True)
        yield home, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "stepwell-reading")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--only", default="", help="rows with this in their name; client: those of clients")
    parser.add_argument("--smoke", action="store_true", help="a moment only, to see that it runs")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as small:
        folder, sizes, rounds = (
            (Path(small), [2_000], 2) if options.smoke else (options.folder, options.sizes, options.rounds)
        )
        found = [(*read(home, made, rounds, options.only), made.size) for home, made in stores(folder, sizes)]
        print(
            f"{'milliseconds':<34}"
            + "".join(f"{f'p50 of {size:,}':>18}{'p99':>9}" for *_, size in found)
            + f"{'ratio':>8}"
        )
        for name in found[0][0]:
            cells = "".join(f"{rows[name].at(0.5):>18.2f}{rows[name].at(0.99):>9.2f}" for rows, *_ in found)
            print(f"{name:<34}{cells}{found[-1][0][name].at(0.5) / found[0][0][name].at(0.5):>8.1f}")
        print(f"{'server, most memory, MB':<34}" + "".join(f"{peak:>18.0f}{'':>9}" for _, peak, _ in found))
        if not options.only:
            home, made = list(stores(folder, sizes))[-1]
            beside, peak, rate = read_beside(home, made, rounds)
            print(f"\nof {made.size:,} while {rate:,.0f} steps/s come in; most memory {peak:.0f} MB")
            for name, times in beside.items():
                print(f"{name:<34}{times.at(0.5):>18.2f}{times.at(0.99):>9.2f}")


if __name__ == "__main__":
    main()
