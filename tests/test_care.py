"""Keeping a home small: `stepwell vacuum`, `backup`, `rm`, blobs that nobody names, what a server does of itself."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from served import AppServer, ServeProcess, step

import stepwell as sw
from stepwell import cli
from stepwell._unused_blobs import Removed, remove_unused
from stepwell.blobs import BlobStore
from stepwell.server._places import Place, Places
from stepwell.server._upkeep import Job, Retention, Upkeep, jobs_of
from stepwell.store import open_store
from stepwell.store.sqlite import SqliteStore

DAY_NS = 24 * 3600 * 1_000_000_000


class Result(NamedTuple):
    status: int
    out: str
    err: str


def run(*arguments: object) -> Result:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = cli.run([str(argument) for argument in arguments])
    return Result(status, out.getvalue(), err.getvalue())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Make a home with an old thread, an old run, a new run, and a blob of each."""
    home = tmp_path / "home"
    home.mkdir()
    blobs = BlobStore(home / "blobs")
    old_ns, now = time.time_ns() - 60 * DAY_NS, time.time_ns()

    def made(id: str, start_ns: int, **fields: object) -> bytes:
        attachments = [{"id": "1", "sha256": blobs.put(id.encode())}]
        return step(id, start_ns=start_ns, end_ns=start_ns + 1, attachments=attachments, **fields)

    store = open_store(f"sqlite:{home / 'steps.db'}")
    store.add([made("old-run", old_ns), made("old-step", old_ns, thread_id="t-old"), made("new-run", now, user="ada")])
    store.close()
    idle(home)
    return home


def idle(home: Path) -> None:
    """Make all blobs such that nobody asked for in a day."""
    for path in (home / "blobs").rglob("*"):
        if path.is_file():
            os.utime(path, (0, time.time() - 86_400))


def blobs_of(home: Path) -> set[bytes]:
    return {path.read_bytes() for path in (home / "blobs").rglob("*") if path.is_file()}


def ids_of(home: Path) -> list[str]:
    store = open_store(f"sqlite:{home / 'steps.db'}", read_only=True)
    try:
        return sorted(row.id for row in store.steps(limit=1000).items)
    finally:
        store.close()


# commands


def test_vacuum_deletes_what_is_too_old_with_its_blobs_and_says_so(home: Path) -> None:
    result = run("vacuum", "--keep", "30d", "--home", home, "--json")
    freed = json.loads(result.out)
    assert (result.status, freed["steps"], freed["threads"], freed["blobs"], freed["blob_bytes"]) == (0, 2, 1, 2, 15)
    assert (ids_of(home), blobs_of(home)) == (["new-run"], {b"new-run"})
    said = run("vacuum", "--home", home).out.splitlines()
    assert said[:2] == ["0 steps, 0 threads and 0 messages deleted", "0 blobs of 0 bytes removed"]
    assert run("vacuum", "--max-bytes", "0", "--store", f"sqlite:{home / 'steps.db'}").status == 0
    assert (ids_of(home), blobs_of(home)) == ([], set())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--keep", "soon", "--keep 'soon' is not an age like 12h, 30d or 8w"),
        ("--max-bytes", "2XB", "--max-bytes '2XB' is not a size like 500MB or 2GB"),
    ],
)
@pytest.mark.parametrize("command", ["vacuum", "serve"])
def test_a_bound_that_is_none_is_named(home: Path, command: str, option: str, value: str, message: str) -> None:
    result = run(command, option, value, "--home", home)
    assert (result.status, message in result.err) == (2, True)


def test_vacuum_makes_no_store(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("vacuum", "--home", tmp_path / "empty")
    assert result.status == 2
    assert "there is no store at" in result.err
    assert list((tmp_path / "empty").iterdir()) == []


def test_rm_says_what_goes_and_deletes_it(home: Path) -> None:
    result = run("rm", "t-old", "new-run", "--yes", "--home", home)
    assert result.status == 0
    assert result.err.splitlines() == ["delete thread t-old with 1 steps", "delete run new-run of 1 steps"]
    assert result.out.splitlines()[:2] == ["2 steps, 1 threads and 0 messages deleted", "2 blobs of 15 bytes removed"]
    assert (ids_of(home), blobs_of(home)) == (["old-run"], {b"old-run"})


def test_rm_deletes_a_user_and_takes_an_id_that_went_with_another(home: Path) -> None:
    assert run("rm", "--user", "ada", "new-run", "--yes", "--home", home).status == 0
    assert ids_of(home) == ["old-run", "old-step"]
    result = run("rm", "--user", "nobody", "--yes", "--home", home)
    assert (result.status, "there is no thread or step of user 'nobody'" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name what to delete: ids of threads or runs, or --user NAME"),
        (["missing"], "there is no step or thread 'missing'"),
    ],
)
def test_rm_needs_something_that_is_there(home: Path, arguments: list[str], message: str) -> None:
    result = run("rm", *arguments, "--yes", "--home", home)
    assert (result.status, message in result.err) == (2, True)


def test_rm_deletes_nothing_where_nobody_can_be_asked(home: Path) -> None:
    command = [sys.executable, "-m", "stepwell", "rm", "old-run", "--home", str(home)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "pass --yes to delete this" in done.stderr) == (2, True)
    assert "old-run" in ids_of(home)


@pytest.mark.parametrize(("answer", "status"), [(b"y\n", 0), (b"n\n", 1)])
def test_rm_asks_on_a_terminal(home: Path, answer: bytes, status: int) -> None:
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "stepwell", "rm", "old-run", "--home", str(home)]
    try:
        os.write(leader, answer)
        done = subprocess.run(command, stdin=follower, capture_output=True, text=True, timeout=60, check=False)
    finally:
        os.close(leader)
        os.close(follower)
    assert done.returncode == status
    assert "Delete this for good? [y/N]" in done.stderr
    assert ("old-run" in ids_of(home)) == bool(status)


def test_a_copy_in_a_folder_is_a_home_with_the_blobs_that_are_named(home: Path, tmp_path: Path) -> None:
    BlobStore(home / "blobs").put(b"named by nobody")
    (next(path for path in (home / "blobs").rglob("*") if path.is_file() and path.read_bytes() == b"new-run")).unlink()
    result = run("backup", tmp_path / "copy", "--home", home)
    assert result.out == f"{tmp_path / 'copy'}: the store and 2 blobs; read it with --home {tmp_path / 'copy'}\n"
    assert result.err == "1 blobs that records name are not here, and not in the copy\n"
    assert ids_of(tmp_path / "copy") == ["new-run", "old-run", "old-step"]
    assert blobs_of(tmp_path / "copy") == {b"old-run", b"old-step"}
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    again = run("backup", tmp_path / "copy", "--home", home)
    assert (again.status, "is there already" in again.err) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "home"]


def test_a_copy_in_a_file_is_the_store_alone(home: Path, tmp_path: Path) -> None:
    assert run("backup", tmp_path / "copy.db", "--store", f"sqlite:{home / 'steps.db'}").status == 0
    store = open_store(f"sqlite:{tmp_path / 'copy.db'}", read_only=True)
    assert store.stats().steps == 3
    store.close()
    assert run("backup", tmp_path / "copy.db", "--home", home).status == 2


# blobs


def test_a_blob_that_was_asked_for_lately_stays_until_later(home: Path) -> None:
    store, blobs = open_store(f"sqlite:{home / 'steps.db'}"), BlobStore(home / "blobs")
    (sha256,) = store.delete_run("old-run").blobs
    assert blobs.has(sha256)
    assert remove_unused(store, blobs) == Removed(0, 0, 1)
    idle(home)
    store.add([step("later", attachments=[{"id": "1", "sha256": sha256}])])
    assert remove_unused(store, blobs) == Removed()
    store.delete_run("later")
    assert remove_unused(store, blobs) == Removed(1, 7, 0)
    assert remove_unused(store, blobs) == Removed()
    assert blobs.remove(sha256, idle_s=0) == 0
    store.close()


def test_a_blob_that_the_journal_names_stays(home: Path) -> None:
    sw.configure(export="jsonl:/proc/stepwell/never", home=home, exit_timeout=0.1)
    with sw.tool("paint") as painting:
        painting.attach(b"old-run", name="a.txt")
    sw.shutdown(0.1)
    idle(home)
    store, blobs = open_store(f"sqlite:{home / 'steps.db'}"), BlobStore(home / "blobs")
    store.delete_run("old-run")
    store.delete_run("old-step")
    assert remove_unused(store, blobs) == Removed(1, 8, 1)
    assert blobs_of(home) == {b"old-run", b"new-run"}
    store.close()


def test_blobs_stay_where_another_store_is_beside(home: Path) -> None:
    sqlite3.connect(home / "other.db").close()
    store, blobs = open_store(f"sqlite:{home / 'steps.db'}"), BlobStore(home / "blobs")
    store.delete_run("old-run")
    assert remove_unused(store, blobs) == Removed(0, 0, 1)
    assert len(blobs_of(home)) == 3
    store.close()


# the server


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_jobs_run_when_they_are_due_in_each_open_place_and_an_error_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store("sqlite::memory:")
    places, clock = Places(store, tmp_path), Clock()
    places.of("other")
    ran: list[str] = []

    def fail(_: Place) -> None:
        ran.append("fails")
        raise RuntimeError("secret")

    upkeep = Upkeep(places, [Job("fails", 10, fail), Job("works", 100, lambda _: ran.append("works"))], clock)
    upkeep.start()
    until(lambda: upkeep.counts["works", "done"] == 2)
    assert ran == ["fails", "fails", "works", "works"]
    clock.now = 10
    upkeep.wake()
    until(lambda: upkeep.counts["fails", "failed"] == 4)
    assert upkeep.counts == {("fails", "done"): 0, ("fails", "failed"): 4, ("works", "done"): 2, ("works", "failed"): 0}
    upkeep.close()
    places.close()
    store.close()
    assert "the upkeep's job fails failed; it is tried again in 10 s" in caplog.text


def test_a_deletion_under_way_ends_when_the_server_does(tmp_path: Path) -> None:
    store = open_store(f"sqlite:{tmp_path / 'steps.db'}")
    places, began, closed = Places(store, tmp_path), threading.Event(), threading.Event()

    def delete(place: Place) -> None:
        began.set()
        assert closed.wait(20)
        place.store.expire(before_ns=1)

    upkeep = Upkeep(places, [Job("retention", 1, delete)])
    upkeep.start()
    assert began.wait(20)
    upkeep.close()
    store.close()
    closed.set()
    until(lambda: not any(thread.name == "stepwell-upkeep" for thread in threading.enumerate()))
    assert upkeep.counts["retention", "failed"] == 0


def test_retention_is_by_the_time_of_day(home: Path) -> None:
    store = open_store(f"sqlite:{home / 'steps.db'}")
    place = Place(store, BlobStore(home / "blobs"))
    for job in jobs_of(Retention()):
        job.run(place)
    assert (len(store.steps().items), len(blobs_of(home))) == (3, 3)
    retention, blobs, _ = jobs_of(Retention(keep_ns=30 * DAY_NS), clock=lambda: time.time_ns() - 20 * DAY_NS)
    retention.run(place)
    assert [row.id for row in store.steps().items] == ["new-run"]
    blobs.run(place)
    assert blobs_of(home) == {b"new-run"}
    store.close()


def test_what_is_derived_gives_way_in_every_place_while_records_come(tmp_path: Path) -> None:
    given: list[float] = []

    class Watched(SqliteStore):
        def catch_up(self, deadline_s: float = 10.0) -> bool:
            given.append(deadline_s)
            return super().catch_up(deadline_s)

    stores = [Watched(tmp_path / f"{number}.db") for number in range(2)]
    places = [Place(store, BlobStore(tmp_path / "blobs")) for store in stores]
    records = 0
    *_, derived = jobs_of(Retention(), records=lambda: records)
    for came in (0, 5_000, 0):
        records += came
        for place in places:
            derived.run(place)
    assert given == [2.0, 2.0, 0.05, 0.05, 2.0, 2.0]
    for store in stores:
        store.close()


def test_a_server_keeps_what_it_was_told_to(home: Path) -> None:
    with ServeProcess(home, "--keep", "30d", "--max-bytes", "1GB") as server:
        until(lambda: server.client.get("/v1/blobs/" + "0" * 64).status_code == 404 and ids_of(home) == ["new-run"])
        until(lambda: blobs_of(home) == {b"new-run"})
        text = server.client.get("/metrics").text
        assert 'stepwell_upkeep_jobs_total{job="ready",outcome="done"} 1' in text
        assert 'stepwell_upkeep_jobs_total{job="retention",outcome="done"} 1' in text
    assert server.process.returncode == 0


def test_a_server_that_was_told_nothing_keeps_all(home: Path) -> None:
    with AppServer(home) as server:
        until(lambda: 'job="blobs",outcome="done"} 1' in server.client.get("/metrics").text)
        assert 'job="retention",outcome="done"} 1' in server.client.get("/metrics").text
    assert len(ids_of(home)) == 3
