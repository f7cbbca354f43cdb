"""flush, shutdown and the end of a root: they return, and say the truth."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import stepwell as sw
from stepwell.exporters import Batch
from stepwell.exporters.memory import MemoryExporter


class Dead:
    key = "dead:"

    def export(self, batch: Batch) -> None:
        raise ConnectionRefusedError("nobody listens")


class Held:
    """An exporter that waits until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.count = 0

    def export(self, batch: Batch) -> None:
        self.go.wait(30)
        self.count += len(batch)


def test_flush_returns_at_once_where_recording_is_off() -> None:
    sw.configure(export=Dead(), home=None, enabled=False)
    with sw.run("off"):
        pass
    assert sw.flush(timeout=60) is True
    assert sw.shutdown(timeout=60) is True


def test_flush_does_not_wait_for_steps_that_are_open_or_generators_that_are_suspended(tmp_path: Path) -> None:
    @sw.tool
    def numbers() -> Iterator[int]:
        yield 1
        yield 2

    exporter = MemoryExporter()
    sw.configure(export=exporter, home=tmp_path / "home")
    with sw.run("open"):
        suspended = numbers()
        next(suspended)
        with sw.tool("done"):
            pass
        assert sw.flush(timeout=60) is True
        assert [record.name for record in exporter.records] == ["done"]  # type: ignore[union-attr]
        suspended.close()  # type: ignore[attr-defined]


def test_flush_says_that_it_failed_and_takes_no_longer_than_asked(tmp_path: Path) -> None:
    sw.configure(export=Dead(), home=tmp_path / "home", exit_timeout=0.1)
    with sw.run("kept"):
        pass
    began = time.monotonic()
    assert sw.flush(timeout=0.2) is False
    assert time.monotonic() - began < 10
    assert sw.stats().exporters["dead:"].waiting == 1


def test_a_step_that_fails_waits_for_no_exporter(tmp_path: Path) -> None:
    held = Held()
    sw.configure(export=held, home=tmp_path / "home")
    for _ in range(20):
        try:
            with sw.run("failing"):
                raise ValueError
        except ValueError:
            pass
    assert held.count == 0
    held.go.set()
    assert sw.flush(30)
    assert held.count == 20


def test_where_it_is_asked_for_the_end_of_a_root_waits_for_delivery(tmp_path: Path) -> None:
    exporter = MemoryExporter()
    sw.configure(export=exporter, home=tmp_path / "home", flush_on_root_end=True)
    with sw.run("root"), sw.tool("inside"):
        pass
    assert [record.name for record in exporter.records] == ["inside", "root"]  # type: ignore[union-attr]


def test_a_root_that_waits_gives_up_in_time(tmp_path: Path) -> None:
    sw.configure(export=Dead(), home=tmp_path / "home", flush_on_root_end=True, exit_timeout=0.1)
    began = time.monotonic()
    with sw.run("root"):
        pass
    assert time.monotonic() - began < 10
    assert sw.stats().exporters["dead:"].waiting == 1


def test_without_any_configuration_steps_are_stored(tmp_path: Path) -> None:
    code = "import stepwell as sw\nwith sw.run('first'): pass"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL")}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, check=True, timeout=60)
    listed = subprocess.run(
        [sys.executable, "-m", "stepwell", "ls", "runs", "--json"],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert '"name":"first"' in listed.stdout


def test_recording_hands_nothing_to_an_exporter_on_the_programs_thread(tmp_path: Path) -> None:
    seen: set[int | None] = set()

    class Watching:
        def export(self, batch: Batch) -> None:
            seen.add(threading.get_ident())

    sw.configure(export=Watching(), home=tmp_path / "home")
    for _ in range(100):
        with sw.run("step"):
            pass
    assert sw.flush(30)
    assert len(seen) == 1
    assert threading.get_ident() not in seen
