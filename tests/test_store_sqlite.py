"""The embedded store keeps the contract of stores, and what is its own: one file, many processes."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw, json

from stepwell.errors import CorruptStoreError, StoreError, UsageError
from stepwell.model import StepRecord, decode_record
from stepwell.store import AddResult, StepFilter, Store, ThreadFilter, _connections, _schema, open_store
from stepwell.store._query import Keyset, select_steps, select_threads
from stepwell.store.sqlite import SqliteStore
from stepwell.testing._store_contract import StoreContract


class TestSqliteStoreInAFile(StoreContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder, self.made = tmp_path, 0

    def make_store(self) -> Store:
        self.made += 1
        return open_store(f"sqlite:{self.folder / f'{self.made}.db'}")


class TestSqliteStoreInMemory(StoreContract):
    def make_store(self) -> Store:
        return open_store("sqlite::memory:")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "steps.db"


def step(id: str, **fields: Any) -> bytes:
    return json.encode({"kind": "step", "id": id, **fields})


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that runs a script and talks by lines."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ))


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return outputs


# opening


def test_a_file_is_made_for_its_owner_only_with_the_folders_above_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "steps.db"
    store = open_store(str(path))
    store.add([step("a")])
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700
    store.close()
    assert [file.name for file in path.parent.iterdir()] == ["steps.db"]


def test_a_store_outlives_its_process_and_a_change_of_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    store = open_store("steps.db")
    monkeypatch.chdir("/")
    store.add([step("a", name="n")])
    assert store.step("a").name == "n"
    store.close()
    again = open_store(f"sqlite:{path}")
    assert again.step("a").name == "n"
    assert again.stats().bytes_on_disk >= path.stat().st_size > 0
    assert again.stats().schema_version == 3
    assert repr(again) == f"SqliteStore({str(path)!r})"
    again.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mongodb:x", "store URL 'mongodb:x': no store for 'mongodb', there are sqlite"),
        ("sqlite:", "store URL 'sqlite:' names no file: expected sqlite:PATH"),
        ("", "store URL 'sqlite:' names no file"),
    ],
)
def test_a_url_that_names_no_store_is_refused(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        open_store(url)


def test_a_store_in_memory_cannot_be_read_only() -> None:
    with pytest.raises(UsageError, match="can't be read-only"):
        open_store("sqlite::memory:", read_only=True)


def test_a_read_only_store_reads_and_refuses_to_write(path: Path) -> None:
    store = open_store(str(path))
    store.add([step("a")])
    reader = open_store(str(path), read_only=True)
    store.add([step("b")])
    assert [row.id for row in reader.steps(order="asc").items] == ["a", "b"]
    assert reader.check() == []
    with pytest.raises(StoreError, match=r"steps.db is open for reading only"):
        reader.add([step("c")])
    reader.close()
    store.close()
    alone = open_store(str(path), read_only=True)
    assert alone.step("b").id == "b"
    alone.close()


def test_opening_a_missing_file_for_reading_fails_and_makes_none(path: Path) -> None:
    with pytest.raises(StoreError, match=r"^there is no store at .*steps.db$"):
        open_store(str(path), read_only=True)
    assert not path.exists()


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize("content", [b"not a database at all\n" * 100, b"short"])
def test_a_file_of_something_else_is_not_a_store(path: Path, content: bytes, read_only: bool) -> None:
    path.write_bytes(content)
    with pytest.raises(CorruptStoreError, match=r"steps.db: file is not a database"):
        open_store(str(path), read_only=read_only)
    assert path.read_bytes() == content


@pytest.mark.parametrize("read_only", [True, False])
def test_a_database_of_another_application_is_left_alone(path: Path, read_only: bool) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE notes (text)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(CorruptStoreError, match="is an SQLite database, but not a stepwell store"):
        open_store(str(path), read_only=read_only)
    assert path.read_bytes() == before


def test_an_empty_file_is_no_store_to_read(path: Path) -> None:
    path.touch()
    with pytest.raises(CorruptStoreError, match="not a stepwell store, or an older one"):
        open_store(str(path), read_only=True)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_newer_schema_is_refused_by_its_number(path: Path, read_only: bool) -> None:
    open_store(str(path)).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(CorruptStoreError, match="has schema version 99, this stepwell knows 3"):
        open_store(str(path), read_only=read_only)


@pytest.fixture
def filled(path: Path) -> Path:
    store = open_store(str(path))
    store.add([step(f"s-{n}", input="x" * 200) for n in range(2000)])
    store.close()
    return path


@pytest.mark.parametrize("read_only", [True, False])
def test_a_truncated_file_is_refused(filled: Path, read_only: bool) -> None:
    os.truncate(filled, filled.stat().st_size // 2)
    with pytest.raises(CorruptStoreError, match=r"steps.db: database disk image is malformed"):
        open_store(str(filled), read_only=read_only)


def test_a_damaged_file_says_so_when_it_is_read_and_when_it_is_checked(filled: Path) -> None:
    with filled.open("r+b") as file:
        file.seek(4096 * 70)  # the first pages hold the schema and the roots of the tables
        file.write(b"\xff" * 4096 * 40)
    store = open_store(str(filled))
    with pytest.raises(CorruptStoreError, match=r"steps.db: database disk image is malformed"):
        list(store.records())
    assert store.check() != []
    with pytest.raises(CorruptStoreError, match=r"steps.db: database disk image is malformed"):
        store.add([step(f"s-{n}", name="n") for n in range(2000)])
    store.close()


def test_check_finds_payloads_without_a_step(path: Path) -> None:
    store = open_store(str(path))
    db = sqlite3.connect(path)
    db.execute("INSERT INTO payload (number) VALUES (7)")
    db.commit()
    db.close()
    assert store.check() == ["1 payloads belong to no step"]
    store.close()


def test_a_folder_in_the_files_place_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"can't be opened: Is a directory$"):
        open_store(str(tmp_path))


def test_a_full_disk_keeps_what_was_there(path: Path) -> None:
    store = SqliteStore(path)
    store.add([step("a")])
    with store._connections.writing() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="database or disk is full"):
        store.add([step("b", input="x" * 100_000)])
    assert [row.id for row in store.steps().items] == ["a"]
    store.close()


# several at once


def test_a_file_locked_for_too_long_is_an_error(path: Path) -> None:
    store = SqliteStore(path, busy_deadline_s=0.02)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"steps.db: database is locked"):
        store.add([step("a")])
    other.execute("ROLLBACK")
    other.close()
    assert store.add([step("a")]) == AddResult(1, 0)
    store.close()


def test_a_thread_does_not_wait_forever_for_another(path: Path) -> None:
    store = SqliteStore(path, busy_deadline_s=0.02)
    with store._connections.writing(), pytest.raises(StoreError, match=r"written to by another thread for 0.02 s"):
        store.add([step("a")])
    store.close()


def test_reading_does_not_wait_for_a_batch_being_written(path: Path) -> None:
    store = SqliteStore(path)
    store.add([step("a")])
    with store._connections.writing() as db:
        db.execute("DELETE FROM steps")
        assert store.step("a").id == "a"
    store.close()


def test_a_store_closed_while_it_is_read_closes_when_the_reader_is_done(path: Path) -> None:
    store = SqliteStore(path)
    with store._connections.reading() as db:
        store.close()
        assert db.execute("SELECT count(*) FROM steps").fetchone() == (0,)
    with pytest.raises(sqlite3.ProgrammingError):
        db.execute("SELECT 1")


def test_the_write_ahead_log_is_emptied_when_it_has_grown_and_no_reader_is_in_the_way(path: Path) -> None:
    store = SqliteStore(path)
    store._connections._wal_limit_bytes = 10_000
    wal = path.with_name("steps.db-wal")
    with store._connections.reading() as db:
        db.execute("SELECT count(*) FROM steps").fetchone()
        store.add([step("a", input="x" * 50_000)])
        store.add([step("b", input="x" * 50_000)])
        assert wal.stat().st_size > 50_000
    store.add([step("c")])
    assert wal.stat().st_size == 0
    store.close()


def test_threads_share_a_store(path: Path) -> None:
    store = open_store(str(path))
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for n in range(20):
                store.add([step(f"{name}-{n}-{k}", start_ns=n) for k in range(10)])
                store.steps(limit=10)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.stats().steps == 800
    store.close()


WRITER = """
import sys
from stepwell.store import open_store
path, name, batches = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
store = open_store(path)
for batch in range(batches):
    ids = [f"{name}-{batch}-{n}" for n in range(20)] + ["shared"]
    frames = [b'{"kind":"step","id":"%s","thread_id":"t","start_ns":%d}' % (id.encode(), batch) for id in ids]
    result = store.add(frames)
    assert result.rejected == () and result.accepted >= 20, result
    print(batch, flush=True)
store.close()
"""


PASSING = """
import sys
from stepwell.store import open_store
store = open_store("sqlite:" + sys.argv[1])
store.add([b'{"kind":"step","id":"passing"}'])
store.close()
"""


def test_a_second_store_of_a_file_leaves_the_first_its_locks(path: Path) -> None:
    # Without them, the next process that closes the file takes itself for the last, and removes the write-ahead log.
    with_first, with_second = open_store(f"sqlite:{path}"), open_store(f"sqlite:{path}")
    with_first.add([step("a")])
    with_second.add([step("b")])
    finish([start(PASSING, path)])
    with_first.add([step("c")])
    with_second.add([step("d")])
    reader = open_store(f"sqlite:{path}")
    try:
        for store in (with_first, with_second, reader):
            assert sorted(row.id for row in store.steps().items) == ["a", "b", "c", "d", "passing"]
    finally:
        for store in (with_first, with_second, reader):
            store.close()


@pytest.mark.parametrize(("writers", "batches"), [(4, 30), (6, 1)])
def test_processes_write_one_new_file_at_once_and_lose_nothing(path: Path, writers: int, batches: int) -> None:
    processes = [start(WRITER, path, name, batches) for name in range(writers)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    finish(processes)
    store = open_store(str(path))
    assert store.stats().steps == writers * batches * 20 + 1
    assert store.threads().items[0].steps == writers * batches * 20 + 1
    assert store.check() == []
    position, seen = 0, 0
    while rows := store.changes(position, limit=1000):
        if not rows[0]:
            break
        seen, position = seen + len(rows[0]), rows[1]
    assert seen == writers * batches * 20 + 1
    store.close()


def test_what_was_acknowledged_before_kill_9_is_there(path: Path) -> None:
    process = start(WRITER, path, "w", 100_000)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    for _ in range(40):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    store = open_store(str(path))
    assert store.check() == []
    for batch in range(39):  # the first line was "ready"
        assert store.find(f"w-{batch}-19").kind == "step"
    steps = store.stats().steps
    assert steps % 20 == 1, "batches are there as a whole"
    store.close()


def in_a_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child and return its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_parent_and_child_use_the_store_after_a_fork(path: Path) -> None:
    store = SqliteStore(path)
    store.add([step("a")])

    def work() -> None:
        assert store.step("a").id == "a"
        assert store.add([step("b")]) == AddResult(1, 0)
        store.close()

    assert in_a_child(work) == 0
    assert store.add([step("c")]) == AddResult(1, 0)
    assert [row.id for row in store.steps(order="asc").items] == ["a", "b", "c"]
    assert store.check() == []
    store.close()


def test_a_fork_in_the_middle_of_a_read_gives_the_child_connections_of_its_own(path: Path) -> None:
    store = SqliteStore(path)
    with store._connections.reading() as db:
        db.execute("SELECT count(*) FROM steps").fetchone()
        assert in_a_child(lambda: store.add([step("a")]) and None) == 0
    assert store.step("a").id == "a"
    store.close()


def test_a_fork_in_the_middle_of_a_write_does_not_touch_it(path: Path) -> None:
    store = SqliteStore(path)

    def work() -> None:
        assert store._connections._writer is None

    with store._connections.writing() as db:
        db.execute("INSERT INTO steps (id, start_ns) VALUES ('a', 1)")
        assert in_a_child(work) == 0
    assert store.step("a").start_ns == 1
    store.close()


def test_what_could_not_be_closed_before_a_fork_is_left_alone_in_the_child(path: Path) -> None:
    store = SqliteStore(path)
    with store._connections.reading() as held:
        held.execute("SELECT count(*) FROM steps").fetchone()
        writer = store._connections._writer
        store._connections.disown()
        assert store._connections._writer is None
        assert writer in _connections._inherited
        assert store.add([step("a")]) == AddResult(1, 0)
    _connections._inherited.clear()
    store.close()


def test_a_store_in_memory_is_copied_by_a_fork() -> None:
    store = SqliteStore(None)
    store.add([step("a")])

    def work() -> None:
        store.add([step("b")])
        assert store.stats().steps == 2

    assert in_a_child(work) == 0
    assert store.stats().steps == 1
    store.close()


# the file


def test_ids_are_16_bytes_and_payloads_are_text_for_sql(path: Path) -> None:
    store = open_store(str(path))
    id = "0197f0c2-a4b0-7abc-9000-000000000001"
    store.add([step(id, trace_id=id.replace("-", ""), thread_id=id, input={"q": 1}), step("text", parent_id=id)])
    db = sqlite3.connect(path)
    query = "SELECT lower(hex(id)), typeof(trace_id), typeof(thread_id), stray FROM steps ORDER BY number"
    assert db.execute(query).fetchall() == [
        (id.replace("-", ""), "blob", "text", None),
        ("74657874", "null", "null", 1),
    ]
    assert db.execute("SELECT json_extract(input, '$.q') FROM payload").fetchall() == [(1,)]
    db.close()
    store.close()


def test_the_schema_that_is_promised_names_every_table_column_and_index(path: Path) -> None:
    open_store(str(path)).close()
    db = sqlite3.connect(path)
    promised = set(re.findall(r"[a-z_0-9]+", _schema.__doc__ or ""))
    for kind, name in db.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall():
        if not name.startswith("steps_stray_"):
            assert name in promised
        if kind == "table":
            assert {column for _, column, *_ in db.execute(f"PRAGMA table_info({name})")} <= promised
    db.close()


@pytest.mark.parametrize(
    ("kept", "index"),
    [
        (StepFilter(), "steps_start"),
        (StepFilter(service="s", type="run"), "steps_service"),
        (StepFilter(service="s", status="success"), "steps_service"),
        (StepFilter(user="u", service="s", type="run"), "steps_user"),
        (StepFilter(model="m", name="n", type="run"), "steps_model"),
        (StepFilter(status="failed", service="s", name="n"), "steps_unsuccessful"),
        (StepFilter(error_type="e", type="run"), "steps_error_type"),
        (StepFilter(has_error=True, type="run"), "steps_errors"),
        (StepFilter(has_feedback=True, type="run"), "steps_judged"),
        (StepFilter(root_only=True), "steps_top"),
        (StepFilter(root_only=True, type="run"), "steps_top"),
        (StepFilter(root_only=True, status="failed"), "steps_top_unsuccessful"),
        (StepFilter(root_only=True, agent_id="a"), "steps_top_agent_id"),
        (StepFilter(thread_id="t"), "steps_thread"),
        (StepFilter(model="m"), "steps_model"),
        (StepFilter(status="failed"), "steps_unsuccessful"),
        (StepFilter(status="success"), "steps_start"),
        (StepFilter(tag="x"), "USING PRIMARY KEY"),
        (StepFilter(since_ns=1, until_ns=2), "steps_start"),
    ],
)
@pytest.mark.parametrize("cursor", [None, (5, 5)])
def test_a_page_of_steps_is_read_from_an_index_in_its_order(
    kept: StepFilter, index: str, cursor: tuple[int, int] | None
) -> None:
    store = SqliteStore(None)
    page = Keyset("s", 50, None, "desc")
    page.after = cursor
    sql, values = select_steps("s.id", kept, page)
    with store._connections.reading() as db:
        plan = " / ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values))
    assert index in plan
    assert "TEMP B-TREE" not in plan
    store.close()


def test_the_sums_of_a_thread_follow_what_others_delete(path: Path) -> None:
    store = open_store(str(path))
    usage = {"model": "m", "usage": {"total_tokens": 5}}
    store.add([step(f"s-{n}", thread_id="t", start_ns=n, status="failed", generation=usage) for n in range(4)])
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM steps WHERE start_ns IN (0, 1, 3)")
    db.close()
    (thread,) = store.threads().items
    assert (thread.steps, thread.errors, thread.tokens) == (1, 1, 5)
    assert (thread.first_step_ns, thread.last_step_ns) == (2, 2)
    store.close()


def test_the_threads_of_a_user_are_found_by_index() -> None:
    store = SqliteStore(None)
    sql, values = select_threads("t.id", ThreadFilter(user="ada"), Keyset("t", 50, None, "desc"))
    with store._connections.reading() as db:
        plan = " / ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values))
    assert "threads_user_name" in plan
    assert "threads_user_id" in plan
    assert "SCAN t" not in plan
    store.close()


def test_a_page_of_threads_is_read_from_an_index_in_its_order() -> None:
    store = SqliteStore(None)
    sql, values = select_threads("t.id", ThreadFilter(tag="x"), Keyset("t", 50, None, "asc"))
    with store._connections.reading() as db:
        plan = " / ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values))
    assert "threads_active" in plan
    assert "TEMP B-TREE" not in plan
    store.close()


@pytest.mark.parametrize("kept", [StepFilter(trace_id="0" * 31 + "1"), StepFilter(parent_id="x")])
def test_a_link_is_looked_up_in_indexes(kept: StepFilter) -> None:
    store = SqliteStore(None)
    sql, values = select_steps("s.id", kept, Keyset("s", 50, None, "desc"))
    with store._connections.reading() as db:
        plan = " / ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values))
    assert "SCAN steps" not in plan
    assert "steps_stray_" in plan
    store.close()


# merging, in any order and any split


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Merge two steps as the design says it, in the plainest way."""
    late = new.get("status") == "pending" and is_done(old)
    result = {**new, **old} if late else {**old, **new}
    if late and "status" in new and "status" not in old:
        del result["status"]
    for name in ("tags", "attachments", "scores"):
        if name in old and name in new:
            result[name] = united(old[name], new[name])
    if "generation" in old and "generation" in new:
        first, second = (new, old) if late else (old, new)
        result["generation"] = {**first["generation"], **second["generation"]}
    asked, was_asked = is_asked(result), is_asked(old)
    if result.get("type") == "run" and result.get("downgraded_from") == "llm" and asked and not was_asked:
        result["type"] = "llm"
        del result["downgraded_from"]
    return ruled(result)


def ruled(step: dict[str, Any]) -> dict[str, Any]:
    if step.get("type") == "llm" and is_done(step) and not is_asked(step):
        return {**step, "type": "run", "downgraded_from": "llm"}
    return step


def is_done(step: dict[str, Any]) -> bool:
    return "end_ns" in step or step.get("status", "pending") != "pending"


def is_asked(step: dict[str, Any]) -> bool:
    return "messages" in step.get("generation", {})


def united(old: list[Any], new: list[Any]) -> list[Any]:
    items = {item["id"] if isinstance(item, dict) else item: item for item in old}
    for item in new:
        if isinstance(item, dict):
            items[item["id"]] = {**items.get(item["id"], {}), **item}
        else:
            items[item] = item
    return list(items.values())


numbers = st.integers(0, 3)
words = st.sampled_from(["a", "b", "\u00e9\u0000"])
payloads = st.none() | numbers | st.lists(words, max_size=2) | st.dictionaries(words, numbers, max_size=2)
updates = st.fixed_dictionaries(
    {"id": st.sampled_from(["0197f0c2-a4b0-7abc-9000-000000000001", "s"])},
    optional={
        "type": st.sampled_from(["run", "llm"]),
        "name": words,
        "parent_id": words,
        "thread_id": words,
        "start_ns": numbers,
        "end_ns": numbers,
        "status": st.sampled_from(["pending", "success", "failed"]),
        "error": st.fixed_dictionaries({"message": words}, optional={"type": words}),
        "input": payloads,
        "metadata": payloads,
        "generation": st.fixed_dictionaries(
            {},
            optional={"messages": st.lists(numbers, max_size=1), "model": words, "usage": st.just({"input_tokens": 1})},
        ),
        "tags": st.lists(words, max_size=3, unique=True),
        "scores": st.lists(
            st.fixed_dictionaries({"id": words}, optional={"label": words}),
            min_size=1,
            max_size=2,
            unique_by=lambda s: s["id"],
        ),
        "child_count": numbers,
        "agent_id": words,
        "environment": words,
        "sdk": words,
    },
)


@pytest.mark.usefixtures("untraced")
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(updates, st.booleans(), st.integers(1, 2)), min_size=1, max_size=8))
def test_any_updates_in_any_batches_merge_as_the_plainest_merge_does(
    sequence: list[tuple[dict[str, Any], bool, int]],
) -> None:
    store = SqliteStore(None)
    batch: list[bytes] = []
    expected: dict[str, dict[str, Any]] = {}
    for update, ends_batch in [(update, ends) for update, ends, times in sequence for _ in range(times)]:
        id = update["id"]
        expected[id] = merged(expected[id], update) if id in expected else ruled(update)
        batch.append(step(**update))
        if ends_batch:
            assert store.add(batch).rejected == ()
            batch = []
    assert store.add(batch).rejected == ()
    for id, fields in expected.items():
        found, wanted = store.step(id), decode_record(step(**fields))
        assert isinstance(wanted, StepRecord)
        for name in StepRecord.__struct_fields__:
            if name == "generation":  # merged members may come in another order
                assert plain(found.generation) == plain(wanted.generation)
            else:
                assert getattr(found, name) == getattr(wanted, name), name
        (row,) = [row for row in store.steps().items if row.id == id]
        assert (row.type, row.status, row.start_ns, list(row.tags)) == (
            found.type,
            found.status,
            found.start_ns,
            found.tags or [],
        )
        assert all(id in {row.id for row in store.steps(StepFilter(tag=tag)).items} for tag in row.tags)
    copy = SqliteStore(None)
    assert copy.add(list(store.records())).rejected == ()
    assert sorted(copy.records()) == sorted(store.records())
    copy.close()
    store.close()


def plain(payload: object) -> object:
    return json.decode(payload) if isinstance(payload, Raw) else None


def test_a_child_forked_while_stores_are_opened_can_open_them_too(tmp_path: Path) -> None:
    program = """
        import os, signal, sys, threading, time
        # of another library, which takes its time between ours and the fork
        os.register_at_fork(before=lambda: time.sleep(0.01))
        from pathlib import Path
        from stepwell.store.sqlite import SqliteStore
        folder, done = Path(sys.argv[1]), threading.Event()
        opening = folder / "0.db"
        def open_stores():
            global opening
            number = 0
            while not done.is_set():
                number += 1
                opening = folder / f"{number}.db"
                SqliteStore(opening).close()
        thread = threading.Thread(target=open_stores)
        thread.start()
        statuses = []
        for _ in range(40):
            path = opening
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                SqliteStore(path).add([b'{"kind": "step", "id": "a"}'])
                os._exit(0)
            statuses.append(os.waitpid(pid, 0)[1])
        done.set()
        thread.join()
        print(statuses)
    """
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(program)]
    ended = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=110, check=False)
    assert (ended.returncode, ended.stderr, ended.stdout.strip()) == (0, "", str([0] * 40))
