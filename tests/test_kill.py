"""Killed by SIGKILL or SIGTERM at any moment: a step whose end was seen outside is delivered by the next process."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

import stepwell as sw
from stepwell import _config
from stepwell._journal import Journal
from stepwell._recovery import peek
from stepwell.exporters import Batch, open_exporter
from stepwell.exporters.jsonl import JsonLinesExporter
from stepwell.store import open_store

ROUNDS = 30


class DeadExporter:
    """A destination that never answers, by the name of one that does."""

    def __init__(self, key: str) -> None:
        self.key = key

    def export(self, batch: Batch) -> None:
        raise ConnectionRefusedError("nobody listens")


def killed(
    work: Callable[[Callable[[str], None]], None], lines: int, number: signal.Signals = signal.SIGKILL
) -> list[str]:
    """Run `work` in a forked child, kill it as soon as it has told `lines` lines, and return all that it told."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            os.close(read)
            work(lambda line: os.write(write, line.encode() + b"\n") and None)
        os._exit(3)
    os.close(write)
    told = b""
    with suppress(InterruptedError):
        while told.count(b"\n") < lines and (chunk := os.read(read, 4096)):
            told += chunk
    os.kill(pid, number)
    while chunk := os.read(read, 65536):
        told += chunk
    os.close(read)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -number
    return told.decode().splitlines()


def record_steps(tell: Callable[[str], None], threads: int) -> None:
    def record() -> None:
        while True:
            with sw.tool("search", input={"query": "x" * 300}) as step:
                step.output = "y" * 100
            tell(step.id)

    for _ in range(threads - 1):
        threading.Thread(target=record, daemon=True).start()
    record()


def deliver(url: str, home: Path) -> None:
    """Do what the next process does: record, and so adopt what was left."""
    sw.configure(export=url, home=home)
    with sw.run("next"):
        pass
    pipeline = _config._state.pipeline
    assert pipeline is not None
    pipeline.adopt_orphans()
    assert sw.flush(20)
    assert pipeline.flush(deadline=float("inf"), adopted=True)
    stats = sw.stats()
    assert all(ledger.balanced for ledger in stats.exporters.values())
    assert sw.shutdown(20)
    assert list((home / "journal").iterdir()) == []


def ids_in_store(path: Path) -> list[str]:
    store = open_store(str(path), read_only=True)
    try:
        return [json.loads(line)["id"] for line in store.records()]
    finally:
        store.close()


def ids_in_file(path: Path) -> list[str]:
    return list(dict.fromkeys(json.loads(line)["id"] for line in path.read_bytes().splitlines()))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("backend", ["sqlite", "jsonl", "dead"])
def test_every_step_that_had_ended_is_delivered_once(tmp_path: Path, backend: str, threads: int) -> None:
    told: list[str] = []
    pick = random.Random(f"{backend}{threads}")
    target = tmp_path / ("steps.jsonl" if backend == "jsonl" else "steps.db")
    url = f"{'jsonl' if backend == 'jsonl' else 'sqlite'}:{target}"
    for round_ in range(ROUNDS):

        def work(tell: Callable[[str], None]) -> None:
            sw.configure(export=DeadExporter(url) if backend == "dead" else url, home=tmp_path / "home")
            record_steps(tell, threads)

        number = signal.SIGTERM if round_ % 3 == 2 else signal.SIGKILL
        ended = killed(work, pick.choice((1, 2, 10, pick.randrange(50, 400))), number)
        assert ended
        told += ended
        if round_ % 8 == 7:
            deliver(url, tmp_path / "home")
    deliver(url, tmp_path / "home")
    delivered = ids_in_file(target) if backend == "jsonl" else ids_in_store(target)
    assert sorted(set(told) - set(delivered)) == []
    assert len(delivered) == len(set(delivered))


def append_frames(folder: Path, tell: Callable[[str], None], threads: int, *, read: bool) -> None:
    journal = Journal(folder, max_bytes=1 << 30, report=lambda *_: None, segment_bytes=16 * 1024)
    cursor = journal.cursor("a")
    destination = JsonLinesExporter(folder.parent / "delivered")

    def append(thread: int) -> None:
        number = 0
        while True:
            name = f"{os.getpid()}.{thread}.{number}"
            journal.append(b'{"id":"%b","x":"%b"}' % (name.encode(), b"x" * (number * 37 % 1500)))
            tell(name)
            number += 1

    def ship() -> None:
        while True:
            found = cursor.read(50, 1 << 20)
            destination.export(Batch(found))
            cursor.commit()
            cursor.save()
            journal.tend()

    workers = [threading.Thread(target=append, args=(thread,), daemon=True) for thread in range(threads)]
    workers += [threading.Thread(target=ship, daemon=True)] if read else []
    for worker in workers:
        worker.start()
    workers[0].join()


def names(frames: Sequence[bytes]) -> set[str]:
    return {json.loads(frame)["id"] for frame in frames}


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("read", [False, True])
def test_killed_while_segments_roll_and_are_used_again_nothing_is_lost(
    tmp_path: Path, threads: int, read: bool
) -> None:
    told: list[str] = []
    pick = random.Random(threads)
    for _ in range(ROUNDS):
        lines = pick.choice((1, 5, pick.randrange(20, 60), pick.randrange(100, 600)))
        told += killed(lambda tell: append_frames(tmp_path / "journal", tell, threads, read=read), lines)
    left = list(peek(tmp_path / "journal", "a"))
    JsonLinesExporter(tmp_path / "delivered").export(Batch([b'{"id":"end"}']))  # mends what the last kill cut
    delivered = (tmp_path / "delivered").read_bytes().splitlines()
    assert sorted(set(told) - names(left) - names(delivered)) == []


def test_killed_while_it_adopts_the_next_one_goes_on(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'steps.db'}"
    told: list[str] = []

    def leave(tell: Callable[[str], None]) -> None:
        sw.configure(export=DeadExporter(url), home=tmp_path / "home")
        record_steps(tell, 1)

    def adopt(tell: Callable[[str], None]) -> None:
        sw.configure(export=url, home=tmp_path / "home")
        with sw.run("next"):
            pass
        tell("recorded")
        sw.flush()
        tell("flushed")
        threading.Event().wait()

    for lines in (1, 2) * 8:
        told += killed(leave, 100)
        killed(adopt, lines)
    deliver(url, tmp_path / "home")
    delivered = ids_in_store(tmp_path / "steps.db")
    assert sorted(set(told) - set(delivered)) == []


def test_a_file_cut_in_the_middle_of_a_line_is_mended(tmp_path: Path) -> None:
    """The file exporter's own writes are cut short by a kill too: what was half written is written again."""
    target = tmp_path / "steps.jsonl"
    exporter = open_exporter(f"jsonl:{target}", None)
    batch = Batch([b'{"kind":"step","id":"%d","x":"%b"}' % (number, b"x" * 3000) for number in range(1000)])

    def write(tell: Callable[[str], None]) -> None:
        tell("now")
        while True:
            exporter.export(batch)

    for _ in range(20):
        killed(write, 1)
    exporter.export(Batch([b'{"id":"end"}']))
    lines = target.read_bytes().splitlines()
    assert {json.loads(line)["id"] for line in lines} <= {*map(str, range(1000)), "end"}
    assert json.loads(lines[-1]) == {"id": "end"}
