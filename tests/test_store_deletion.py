"""Deleting from the embedded store: beside other processes, through crashes, in old files, out of the file's bytes."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import json

from stepwell.errors import StoreError
from stepwell.model import decode_record, encode_record
from stepwell.store import AddResult, Deleted, open_store
from stepwell.store._migrations import MIGRATIONS
from stepwell.store._spans import united, without
from stepwell.store._write import Intake
from stepwell.store.sqlite import SqliteStore

CANARY = "canary-5f3a"


def message(name: str) -> dict[str, str]:
    return {"role": "user", "content": f"{name}: " + "says something of some length " * 4}


def call(id: str, names: list[str], start_ns: int = 1, **fields: Any) -> bytes:
    generation = {"model": "m", "messages": [message(name) for name in names]}
    return json.encode({"kind": "step", "id": id, "start_ns": start_ns, "generation": generation, **fields})


def conversation(thread: str, turns: int, start_ns: int = 1) -> list[bytes]:
    """Encode calls of a growing history, which are packed; its first message is that of every other."""
    names = ["system", *(f"{thread}-{turn}" for turn in range(turns))]
    return [call(f"{thread}-{n}", names[: n + 2], start_ns + n, thread_id=thread, sdk="s") for n in range(turns)]


def exported(frames: list[bytes]) -> list[bytes]:
    return [encode_record(decode_record(frame)) for frame in frames]


def rows(path: Path, query: str) -> list[Any]:
    db = sqlite3.connect(path)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


def content_of(path: Path) -> bytes:
    """Return all bytes of a store's files, and of its packs also what they hold."""
    found = b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
    return found + b"".join(zlib.decompress(body) for (body,) in rows(path, "SELECT body FROM packs"))


def empty_log(path: Path) -> None:
    assert rows(path, "PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "steps.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(path)
    yield store
    assert store.check() == []
    store.close()


# what is left


def test_packs_are_written_again_without_what_is_deleted(path: Path, store: SqliteStore) -> None:
    kept, deleted = conversation("kept", 30), conversation("gone", 30)
    store.add([frame for pair in zip(kept, deleted, strict=True) for frame in pair])
    assert rows(path, "SELECT count(*) FROM packs") == [(1,)]
    assert store.delete_thread("gone") == Deleted(30, 1, 30, ())
    ((body,),) = rows(path, "SELECT body FROM packs")
    items = json.decode(zlib.decompress(body))
    assert b"gone" not in zlib.decompress(body)
    assert (len(items), sum("message" in item for item in items)) == (61, 31)
    assert [bytes(record) for record in store.records()][1:] == exported(kept)
    assert store.delete_thread("kept") == Deleted(30, 1, 31, ())
    tables = ("steps", "payload", "messages", "packs", "pack_contents", "loose_messages", "step_tags", "threads")
    assert [rows(path, f"SELECT count(*) FROM {table}") for table in tables] == [[(0,)]] * 8


def test_numbers_are_not_given_again(path: Path, store: SqliteStore) -> None:
    store.add(conversation("a", 30))
    before = rows(path, "SELECT (SELECT max(number) FROM messages), (SELECT max(number) FROM packs)")
    store.delete_thread("a")
    store.add(conversation("b", 30))
    after = rows(path, "SELECT (SELECT min(number) FROM messages), (SELECT min(number) FROM packs)")
    assert (before, after) == ([(31, 1)], [(32, 2)])
    assert rows(path, "SELECT min(number) FROM steps") == [(32,)]


def test_an_updated_step_is_deleted_from_the_pack_that_has_what_it_was(path: Path, store: SqliteStore) -> None:
    store.add([*conversation("a", 30), json.encode({"kind": "step", "id": "x", "thread_id": "b", "output": CANARY})])
    store.add([json.encode({"kind": "step", "id": "x", "output": "other"})])
    assert CANARY.encode() in content_of(path)
    store.delete_run("x")
    empty_log(path)
    assert CANARY.encode() not in content_of(path)


def test_messages_that_an_update_replaced_go_with_the_next_sweep(path: Path, store: SqliteStore) -> None:
    store.add([call("a", ["one", "two", "three"])])
    store.add([call("a", ["four", "five", "six"])])
    assert rows(path, "SELECT count(*) FROM messages") == [(6,)]
    assert store.check() == []
    assert store.expire() == Deleted(messages=3)
    assert rows(path, "SELECT count(*) FROM messages") == [(3,)]
    assert store.step("a") == decode_record(call("a", ["four", "five", "six"]))


@pytest.mark.parametrize("packed", [True, False])
def test_what_was_deleted_is_not_in_the_file_any_more(path: Path, store: SqliteStore, packed: bool) -> None:
    secret = [
        call(
            f"{CANARY}-{n}",
            [CANARY, *(f"{CANARY} {k}" for k in range(n))],
            2,
            thread_id=f"{CANARY}-thread",
            name=CANARY,
            tags=[CANARY],
            user=CANARY,
            input={"q": CANARY * 50},
            metadata={CANARY: CANARY},
            error={"type": CANARY, "message": CANARY},
            scores=[{"id": "s", "name": CANARY, "comment": CANARY}],
        )
        for n in range(30)
    ]
    other = conversation("other", 30)
    for frames in [[*secret, *other]] if packed else [[frame] for frame in [*secret[:5], *other]]:
        store.add(frames)
    assert rows(path, "SELECT count(*) > 0 FROM packs") == [(packed,)]
    assert CANARY.encode() in content_of(path)
    store.delete_thread(f"{CANARY}-thread")
    empty_log(path)
    assert CANARY.encode() not in content_of(path)  # also before the file is written anew
    store.vacuum()
    assert CANARY.encode() not in content_of(path)
    assert [bytes(record) for record in store.records()][1:] == exported(other)


# beside others


def test_another_process_does_not_refer_to_messages_that_were_deleted(path: Path) -> None:
    one, other = SqliteStore(path), SqliteStore(path)
    one.add(conversation("a", 5))
    other.delete_thread("a")
    again = conversation("b", 5)
    first = call("c", ["system", "a-0", "a-1", "a-2"])
    assert one.add([*again, first]) == AddResult(6, 0)
    assert one.step("c") == decode_record(first)
    assert other.check() == []
    one.close()
    other.close()


def test_a_message_that_is_sent_again_while_it_is_looked_for_stays(path: Path) -> None:
    store, other = SqliteStore(path), SqliteStore(path)
    store.add([call("a", ["one", "two", "three"]), call("b", ["four", "five", "six"])])
    store.add([call("a", ["7", "8", "9"]), call("b", ["10", "11", "12"])])  # six messages have lost their step
    again = [call("b", ["six", "four"]), call("c", ["one", "two"])]
    done: list[Deleted] = []
    thread = threading.Thread(target=lambda: done.append(store.expire()))
    with other._connections.writing() as db:
        thread.start()
        deadline = time.monotonic() + 20
        while not store._connections._write_lock.locked():  # it has looked, and waits to delete
            assert time.monotonic() < deadline
            thread.join(0.002)
        Intake(again).write(db, other._numbers)
    thread.join(20)
    assert done == [Deleted(messages=2)]
    assert store.step("c") == decode_record(again[1])
    assert json.decode(store.step("b").generation) == json.decode(again[0])["generation"]  # type: ignore[arg-type]
    assert store.check() == []
    store.close()
    other.close()


ADDER = """
import sys
from msgspec import json
from stepwell.store import open_store
store = open_store(sys.argv[1])
text = "says something of some length " * 9
print("ready", flush=True)
sys.stdin.readline()
for round in range(40):
    history = [{"role": "user", "content": f"{n} of {round % 4} {text}"} for n in range(12)]
    frames = [
        json.encode({"kind": "step", "id": f"{round}-{n}", "thread_id": f"t-{round}", "start_ns": round + 1,
                     "generation": {"messages": history[: n + 1]}})
        for n in range(12)
    ]
    assert store.add(frames).accepted == 12
    print(round, flush=True)
store.close()
"""


def test_deleting_beside_a_process_that_adds_takes_nothing_of_what_is_new(path: Path) -> None:
    store = SqliteStore(path)
    process = subprocess.Popen(
        [sys.executable, "-c", ADDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.stdin.write("\n")
        process.stdin.flush()
        for told in process.stdout:  # each thread is deleted when the next one is there, and shares its messages
            if (number := int(told)) % 2:
                store.delete_thread(f"t-{number - 1}")
            if number % 8 == 7:
                store.vacuum()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()  # type: ignore[union-attr]
        process.stdin.close()  # type: ignore[union-attr]
    assert store.check() == []
    assert sorted(row.id for row in store.threads().items) == sorted(f"t-{number}" for number in range(1, 40, 2))
    assert len(list(store.records())) == 20 + 240
    store.close()


def test_a_reader_sees_what_was_there_when_it_began(path: Path, store: SqliteStore) -> None:
    calls = conversation("a", 30)
    store.add(calls)
    with store._connections.reading() as db:
        db.execute("SELECT count(*) FROM steps").fetchone()
        thread = threading.Thread(target=store.delete_thread, args=("a",))
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert db.execute("SELECT count(*) FROM packs").fetchone() == (1,)
    assert rows(path, "SELECT count(*) FROM packs") == [(0,)]


def test_vacuum_says_so_when_somebody_is_in_its_way(path: Path) -> None:
    store = SqliteStore(path, busy_deadline_s=0.2)
    store.add(conversation("a", 30))
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="database is locked"):
        store.vacuum()
    db.execute("ROLLBACK")
    db.execute("BEGIN")
    db.execute("SELECT count(*) FROM steps").fetchone()
    with pytest.raises(StoreError, match="another process reads it and holds up what was written: try again"):
        store.vacuum()
    db.close()
    store.vacuum()
    assert store.check() == []
    store.close()


EXPIRER = """
import sys
from stepwell.store import _deleting, _retention, open_store
_deleting.MAX_STEPS = 7
_retention.MAX_STEPS = 50
store = open_store(sys.argv[1])
print("ready", flush=True)
store.expire(before_ns=1 << 60)
"""


def test_a_process_killed_while_it_deletes_leaves_a_whole_store(path: Path) -> None:
    chance = random.Random(5)
    left = 1
    for _ in range(4):
        store = SqliteStore(path)
        for thread in range(12):
            store.add(conversation(f"t-{thread}", 40, 1000 * thread + 1))
        store.close()
        process = subprocess.Popen([sys.executable, "-c", EXPIRER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        with process.stdout:
            try:
                process.wait(chance.uniform(0.02, 0.15))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
            process.wait(30)
        store = SqliteStore(path)
        assert store.check() == []
        left = store.stats().steps
        assert len(list(store.records())) == left + store.stats().threads
        store.close()
    store = SqliteStore(path)
    assert store.expire(before_ns=1 << 60).steps == left
    tables = ("steps", "payload", "messages", "packs", "loose_messages", "threads")
    assert [rows(path, f"SELECT count(*) FROM {table}") for table in tables] == [[(0,)]] * 6
    store.close()


# older files


@pytest.mark.parametrize("version", [1, 2])
def test_what_older_versions_wrote_is_deleted_with_all_that_is_its(path: Path, version: int) -> None:
    blob = {"sha256": "cd" * 32}
    frames = [*conversation("gone", 30), *conversation("kept", 30)]
    frames.append(json.encode({"kind": "step", "id": "b", "thread_id": "gone", "output": blob}))
    db = sqlite3.connect(path, isolation_level=None)
    for statements in MIGRATIONS[:version]:
        for statement in statements:
            db.execute(statement)
    if version == 1:
        for number, frame in enumerate(frames, start=1):
            step = json.decode(frame)
            db.execute(
                "INSERT INTO steps (number, id, thread_id, start_ns) VALUES (?, ?, ?, ?)",
                (number, step["id"], step["thread_id"], step.get("start_ns", -1)),
            )
            db.execute(
                "INSERT INTO payload (number, generation, output, sdk) VALUES (?, ?, ?, ?)",
                (number, *(text_of(step, name) for name in ("generation", "output")), step.get("sdk")),
            )
        db.execute("INSERT INTO threads (id) VALUES ('gone'), ('kept')")
    else:
        newer = path.with_name("newer.db")
        made = SqliteStore(newer)
        made.add(frames)
        made.close()
        db.execute("ATTACH ? AS newer", (str(newer),))
        for table in ("steps", "payload", "messages", "packs", "step_tags", "scores", "threads"):
            names = ", ".join(f'"{name}"' for _, name, *_ in db.execute(f"PRAGMA main.table_info({table})"))
            db.execute(f"INSERT INTO main.{table} ({names}) SELECT {names} FROM newer.{table}")
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    store = SqliteStore(path)
    assert store.check() == []
    deleted = store.delete_thread("gone")
    assert (deleted.steps, deleted.threads, deleted.blobs) == (31, 1, ("cd" * 32,))
    assert deleted.messages == (30 if version == 2 else 0)
    assert [bytes(record) for record in store.records()][1:] == exported(frames[30:60])
    assert store.check() == []
    store.vacuum()
    assert [bytes(record) for record in store.records()][1:] == exported(frames[30:60])
    assert rows(path, "SELECT unlisted_step, unlisted_pack FROM state") == [(0, 0)]
    assert store.check() == []
    store.close()


def text_of(step: dict[str, Any], name: str) -> str | None:
    return json.encode(step[name]).decode() if name in step else None


# damage


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("DELETE FROM payload WHERE number = 1; DELETE FROM steps WHERE number = 1", "1 tags belong to no step"),
        ("INSERT INTO step_blobs VALUES (x'00', 99)", "1 blobs belong to no step"),
        ("UPDATE pack_contents SET refs = '[]'", "pack 1 is listed wrongly"),
        ("DELETE FROM pack_contents", "pack 1 is listed wrongly"),
        ("INSERT INTO messages (number, hash, body) VALUES (99, x'00', '{}')", "1 messages belong to no step"),
    ],
)
def test_check_finds_what_belongs_to_nothing(path: Path, damage: str, problem: str) -> None:
    store = SqliteStore(path)
    store.add([b'{"kind":"step","id":"a","tags":["x"]}', *conversation("a", 30)])
    db = sqlite3.connect(path)
    db.executescript(damage)
    db.close()
    assert store.check() == [problem]
    store.close()


# copies


def test_a_copy_is_made_beside_a_process_that_adds(path: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", ADDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    store = SqliteStore(path)
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        process.stdin.write("\n")
        process.stdin.flush()
        process.stdout.readline()
        for number in range(3):
            store.backup(tmp_path / f"copy-{number}.db")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(30)
        process.stdout.close()  # type: ignore[union-attr]
        process.stdin.close()  # type: ignore[union-attr]
    everything = set(store.records())
    for number in range(3):
        copy = open_store(str(tmp_path / f"copy-{number}.db"))
        assert copy.check() == []
        assert set(copy.records()) <= everything
        copy.close()
    store.close()


def test_a_copy_that_can_not_be_written_leaves_nothing(path: Path, tmp_path: Path, store: SqliteStore) -> None:
    with pytest.raises(StoreError, match=r"missing/copy.db can't be written: No such file or directory"):
        store.backup(tmp_path / "missing" / "copy.db")
    reader = SqliteStore(path, read_only=True)
    reader.backup(tmp_path / "copy.db")
    with pytest.raises(StoreError, match="is open for reading only"):
        reader.vacuum()
    reader.close()


# any sequence of anything, from two processes

names = st.sampled_from(["a", "b", "c"])
operations = st.lists(
    st.tuples(
        st.sampled_from([0, 1]),
        st.one_of(
            st.tuples(st.just("add"), names, st.integers(1, 9), st.integers(0, 12)),
            st.tuples(st.just("update"), names, st.integers(0, 9), st.integers(0, 6)),
            st.tuples(st.just("thread"), names),
            st.tuples(st.just("run"), names, st.integers(0, 9)),
            st.tuples(st.just("vacuum")),
        ),
    ),
    max_size=12,
)


def history(thread: str, first: int, count: int) -> list[str]:
    return ["system"] * (count > 1) + [f"{thread if number % 3 else 'any'} {number}" for number in range(first, count)]


@settings(max_examples=60, deadline=None)
@given(operations)
def test_what_is_left_reads_as_it_was_added_whatever_two_processes_do(
    tmp_path_factory: pytest.TempPathFactory, sequence: list[tuple[int, tuple[Any, ...]]]
) -> None:
    path = tmp_path_factory.mktemp("model") / "steps.db"
    stores = SqliteStore(path), SqliteStore(path)
    expected: dict[str, tuple[str, bytes]] = {}
    for which, (kind, *arguments) in sequence:
        store = stores[which]
        if kind == "add":
            thread, count, length = arguments
            frames = []
            for n in range(count):
                id = f"{thread}-{n}"
                if id not in expected:
                    frame = call(id, history(thread, 0, length + 3 * n), n + 1, thread_id=thread)
                    expected[id] = thread, frame
                    frames.append(frame)
            store.add(frames)
        elif kind == "update":
            thread, n, first = arguments
            if (id := f"{thread}-{n}") in expected:
                frame = call(id, history(thread, first, first + 9), n + 1, thread_id=thread)
                store.add([frame])
                expected[id] = thread, frame
        elif kind == "thread" and any(thread == arguments[0] for thread, _ in expected.values()):
            store.delete_thread(arguments[0])
            expected = {id: found for id, found in expected.items() if found[0] != arguments[0]}
        elif kind == "run" and (id := f"{arguments[0]}-{arguments[1]}") in expected:
            store.delete_run(id)
            del expected[id]
        elif kind == "vacuum":
            store.vacuum()
        assert stores[1 - which].check() == []
    for store in stores:
        assert sorted(row.id for row in store.steps(limit=1000).items) == sorted(expected)
        for id, (_, frame) in expected.items():
            found, wanted = store.step(id), decode_record(frame)
            assert json.decode(found.generation) == json.decode(wanted.generation)  # type: ignore[arg-type,union-attr]
        store.close()


spans = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)).map(lambda it: (it[0], it[0] + it[1])), max_size=8)


@given(spans, spans)
def test_spans_are_sets_of_numbers(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    def numbers(spans: list[tuple[int, int]]) -> set[int]:
        return {number for first, last in spans for number in range(first, last + 1)}

    left = without(united(one), united(other))
    assert numbers(left) == numbers(one) - numbers(other)
    assert left == united(left)
    assert numbers(united(one)) == numbers(one)
