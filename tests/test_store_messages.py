"""Messages that agents send again with every call are kept once, and come back byte for byte."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw, json

from stepwell.errors import CorruptStoreError, StoreError
from stepwell.model import StepRecord, decode_record
from stepwell.store import AddResult, StepFilter, ThreadFilter, open_store
from stepwell.store._messages import Numbers
from stepwell.store._migrations import MIGRATIONS
from stepwell.store.sqlite import SqliteStore


def message(number: int, role: str = "user") -> dict[str, str]:
    return {
        "role": role,
        "content": f"message {number} \u00e9 \u20ac \U0001f600 " + "says something of some length " * 4,
    }


HISTORY = [message(number) for number in range(6)]


def call(id: str, messages: object, **fields: Any) -> bytes:
    """Encode a model call; bytes are taken as JSON that is written already."""
    raw = Raw(messages) if isinstance(messages, bytes) else messages
    return json.encode(
        {"kind": "step", "id": id, "thread_id": "t", "generation": {"model": "m", "messages": raw}, **fields}
    )


def rows(path: Path, query: str) -> list[Any]:
    db = sqlite3.connect(path)
    try:
        return db.execute(query).fetchall()
    finally:
        db.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "steps.db"


def test_a_message_that_many_calls_send_is_stored_once(path: Path) -> None:
    store = open_store(str(path))
    calls = [call(f"c-{n}", HISTORY[: n + 1]) for n in range(2, 6)]
    store.add(calls[:2])
    store.add(calls[2:])
    assert rows(path, "SELECT count(*), count(DISTINCT hash) FROM messages") == [(6, 6)]
    assert rows(path, "SELECT generation, refs FROM payload WHERE number = 4") == [
        ('{"model":"m","messages":[]}', '[["g",25,1,6]]')
    ]
    assert [bytes(record) for record in store.records(StepFilter())][1:] == calls
    assert store.check() == []
    store.close()


def test_sql_reads_the_messages_of_a_call_from_a_view(path: Path) -> None:
    store = open_store(str(path))
    store.add([call("a", HISTORY), call("b", [HISTORY[4], *HISTORY[1:3], HISTORY[0]])])
    query = "SELECT body FROM step_messages WHERE step = 2 AND letter IN ('g', 'G') ORDER BY place, run, message"
    assert [json.decode(body) for (body,) in rows(path, query)] == [HISTORY[4], *HISTORY[1:3], HISTORY[0]]
    store.close()


def test_tools_requests_and_arguments_are_kept_once_too(path: Path) -> None:
    store = open_store(str(path))
    body = {"model": "m", "messages": HISTORY, "tools": HISTORY[:3]}
    record = json.encode(
        {
            "kind": "step",
            "id": "a",
            "input": body,
            "output": {"messages": HISTORY[1:]},
            "generation": {**body, "provider_request": body},
        }
    )
    store.add([record])
    assert rows(path, "SELECT count(*) FROM messages") == [(6,)]
    ((given, answered, generation),) = rows(path, "SELECT input, output, generation FROM payload")
    assert given == '{"model":"m","messages":[],"tools":[]}'
    assert answered == '{"messages":[]}'
    assert generation == '{"model":"m","messages":[],"tools":[],"provider_request":' + given + "}"
    assert store.step("a") == decode_record(record)
    store.close()


@pytest.mark.parametrize(
    "written",
    [
        b"[{}]",
        b"[%b]" % b",".join(b"1000" for _ in range(100)),
        b"[{},%b]" % b",".join(b"0.5" for _ in range(500)),
        b"[{}, {},%b]" % json.encode(message(1)),
        b"[ %b ]" % json.encode(message(1)),
        b"[%b\n,%b]" % (json.encode(message(1)), json.encode(message(2))),
    ],
)
def test_an_array_that_is_short_or_of_numbers_or_written_unevenly_stays_where_it_is(path: Path, written: bytes) -> None:
    store = open_store(str(path))
    record = call("a", written)
    store.add([record])
    assert rows(path, "SELECT refs FROM payload") == [(None,)]
    assert store.step("a") == decode_record(record)
    store.close()


def test_an_array_with_a_space_after_its_commas_is_kept_once_and_keeps_its_spaces(path: Path) -> None:
    store = open_store(str(path))
    spaced = b"[%b]" % b", ".join(json.encode(item) for item in HISTORY)
    longer = spaced[:-1] + b", " + json.encode(message(7)) + b"]"
    records = [call("a", spaced), call("b", longer), call("c", HISTORY)]
    store.add(records)
    assert rows(path, "SELECT refs FROM payload") == [('[["G",25,1,6]]',), ('[["G",25,1,7]]',), ('[["g",25,1,6]]',)]
    assert [store.step(id) for id in "abc"] == [decode_record(record) for record in records]
    store.close()


def test_a_history_that_goes_on_otherwise_is_not_taken_for_the_one_before(path: Path) -> None:
    store = open_store(str(path))
    first = json.encode(HISTORY[:4])
    records = [
        call("a", first),
        call("b", first[:-1] + b"," + json.encode(message(9)) + b"]"),
        call("c", first[:-1] + b", " + json.encode(message(9)) + b"]"),
        call("d", HISTORY[:2]),
        call("e", HISTORY[1:]),
    ]
    store.add(records)
    assert [store.step(id) for id in "abcde"] == [decode_record(record) for record in records]
    store.close()


# adding again, merging


def test_calls_delivered_again_are_duplicates_also_to_another_process(path: Path) -> None:
    batch = [call(f"c-{n}", HISTORY[: n + 1], input={"messages": HISTORY}) for n in range(2, 6)]
    for accepted in (4, 0):
        store = open_store(str(path))
        assert store.add(batch) == AddResult(accepted, 4 - accepted)
        assert store.add(batch) == AddResult(0, 4)
        assert store.changes()[1] == 4
        store.close()


def test_an_array_that_is_truly_empty_is_news_to_a_step_that_has_messages(path: Path) -> None:
    store = open_store(str(path))
    store.add([call("a", HISTORY, input={"messages": HISTORY})])
    assert store.add([call("a", []), b'{"kind":"step","id":"a","input":{"messages":[]}}']) == AddResult(2, 0)
    assert store.step("a").input == Raw(b'{"messages":[]}')
    assert json.decode(store.step("a").generation) == {"model": "m", "messages": []}  # type: ignore[arg-type]
    store.close()


def test_an_update_of_something_else_leaves_the_messages(path: Path) -> None:
    store = open_store(str(path))
    pending = call("a", HISTORY, status="pending", type="llm")
    store.add([pending])
    done = b'{"kind":"step","id":"a","status":"success","end_ns":5,"output":{"messages":[]},"generation":{"ttft_ns":3}}'
    store.add([done])
    found = store.step("a")
    assert (found.type, found.output) == ("llm", Raw(b'{"messages":[]}'))
    assert json.decode(found.generation) == {"model": "m", "messages": HISTORY, "ttft_ns": 3}  # type: ignore[arg-type]
    assert store.add([done, pending]) == AddResult(0, 2)
    assert rows(path, "SELECT count(*) FROM messages") == [(6,)]
    store.close()


def test_a_batch_that_failed_leaves_no_numbers_behind(path: Path) -> None:
    store = SqliteStore(path)
    store.add([call("a", HISTORY[:2])])
    with store._connections.writing() as db:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="database or disk is full"):
        store.add([call("b", HISTORY), b'{"kind":"step","id":"c","input":"%b"}' % (b"x" * 200_000)])
    with store._connections.writing() as db:
        db.execute("PRAGMA max_page_count = 1000000")
    store.add([call("d", [message(8), *HISTORY])])
    assert store.step("d") == decode_record(call("d", [message(8), *HISTORY]))
    assert store.check() == []
    store.close()


def test_of_too_many_numbers_the_older_are_forgotten() -> None:
    numbers = Numbers()
    numbers.of(1)
    numbers.remember({b"old": 1}, 1)
    numbers.remember({b"%d" % number: number for number in range(65_536)}, 1)
    assert [numbers.of(1).get(digest) for digest in (b"old", b"65535")] == [1, 65_535]
    numbers.remember({b"new": 2}, 1)
    assert [numbers.of(1).get(digest) for digest in (b"old", b"0", b"65535", b"new")] == [None, None, 65_535, 2]


def test_numbers_of_before_a_sweep_are_forgotten_whenever_they_come() -> None:
    numbers = Numbers()
    numbers.of(1)
    numbers.remember({b"a": 1}, 1)
    assert dict(numbers.of(1)) == {b"a": 1}
    assert dict(numbers.of(2)) == {}
    numbers.remember({b"b": 2}, 1)
    assert dict(numbers.of(2)) == {}


# packs


def packed_calls() -> list[bytes]:
    """Encode a conversation whose history makes it worth packing; its texts are the same in every place."""
    histories = [[message(number) for number in range(n + 2)] for n in range(30)]
    return [
        call(
            f"c-{n}",
            history,
            output=message(n),
            metadata={"n": n},
            error={"message": "m"},
            attachments=[{"id": "1"}],
            active_ns=n,
            sdk="s",
        )
        for n, history in enumerate(histories)
    ]


def test_a_batch_that_is_mostly_known_messages_is_packed_but_for_its_metadata(path: Path) -> None:
    store = open_store(str(path))
    calls = packed_calls()
    store.add([*calls, b'{"kind":"step","id":"bare"}', b'{"kind":"step","id":"only","metadata":1}'])
    assert rows(path, "SELECT count(*), count(DISTINCT hash), count(body) FROM messages") == [(31, 31, 0)]
    query = "SELECT count(*), count(pack), count(metadata), count(output), count(refs), count(sdk) FROM payload"
    assert rows(path, query) == [(31, 30, 31, 0, 0, 0)]
    exported = [decode_record(record) for record in store.records() if b'"c-' in record]
    assert exported == [decode_record(record) for record in calls]
    assert store.step("c-7") == decode_record(calls[7])
    assert [row.id for row in store.steps(StepFilter(metadata={"n": 7})).items] == ["c-7"]
    assert store.check() == []
    store.close()


def test_packs_are_json_that_anyone_can_unpack(path: Path) -> None:
    store = open_store(str(path))
    store.add(packed_calls())
    ((body,),) = rows(path, "SELECT body FROM packs WHERE number = 1")
    items = json.decode(zlib.decompress(body))
    assert items[0] == {"message": 1, "body": message(0)}
    assert items[2] == {
        "step": 1,
        "output": message(0),
        "generation": {"model": "m", "messages": []},
        "error": {"message": "m"},
        "attachments": [{"id": "1"}],
        "refs": [["g", 25, 1, 2]],
        "active_ns": 0,
        "sdk": "s",
    }
    store.close()


def test_what_is_packed_is_known_again_and_can_be_updated(path: Path) -> None:
    calls = packed_calls()
    store = open_store(str(path))
    assert store.add(calls) == AddResult(30, 0)
    assert store.add(calls) == AddResult(0, 30)
    assert store.add([call("c-3", []), b'{"kind":"step","id":"c-4","sdk":"t"}', *calls[5:]]) == AddResult(2, 25)
    assert json.decode(store.step("c-3").generation) == {"model": "m", "messages": []}  # type: ignore[arg-type]
    assert (store.step("c-4").sdk, store.step("c-4").output) == ("t", Raw(json.encode(message(4))))
    assert store.step("c-5") == decode_record(calls[5])
    assert store.add([b'{"kind":"step","id":"c-6","output":{}}']) == AddResult(1, 0)
    assert store.step("c-6").output == Raw(b"{}")
    later = [call(f"d-{n}", [message(number) for number in range(n + 2)]) for n in range(40)]
    assert store.add(later) == AddResult(40, 0)
    assert store.step("d-39") == decode_record(later[39])
    assert store.check() == []
    store.close()


@pytest.mark.parametrize(
    ("damage", "problem", "error"),
    [
        ("DELETE FROM packs", "30 payloads refer to what is not there", "pack 1 is not there"),
        ("UPDATE packs SET body = x'00'", "pack 1 can't be read", "pack 1 can't be read"),
        ("UPDATE payload SET pack = 1, number = 999 WHERE number = 2", "1 payloads belong to no step", ""),
    ],
)
def test_a_damaged_pack_is_found_by_check_and_named_by_reading(
    path: Path, damage: str, problem: str, error: str
) -> None:
    store = open_store(str(path))
    store.add(packed_calls())
    db = sqlite3.connect(path)
    db.execute(damage)
    db.commit()
    db.close()
    assert problem in "; ".join(store.check())
    if error:
        with pytest.raises(CorruptStoreError, match=error):
            store.step("c-5")
    store.close()


# damage, older files, several processes


def test_a_message_that_is_gone_is_found_by_check_and_named_by_reading(path: Path) -> None:
    store = open_store(str(path))
    store.add([call("a", HISTORY), call("b", HISTORY[:2])])
    db = sqlite3.connect(path)
    db.execute("DELETE FROM messages WHERE number = 4")
    db.commit()
    db.close()
    assert store.check() == ["1 payloads refer to what is not there"]
    with pytest.raises(CorruptStoreError, match="refers to message 4, which is not there"):
        store.step("a")
    assert store.step("b") == decode_record(call("b", HISTORY[:2]))
    store.close()


def test_a_file_of_version_1_is_brought_up_to_date_and_keeps_what_it_holds(path: Path) -> None:
    record = call("a", HISTORY, agent_id="agent", error={"type": "E", "message": "bad"})
    with sqlite3.connect(path) as db:
        for statement in MIGRATIONS[0]:
            db.execute(statement)
        db.execute("PRAGMA user_version = 1")
        generation = json.encode({"model": "m", "messages": HISTORY}).decode()
        db.execute(
            "INSERT INTO steps (number, id, thread_id, start_ns, error_type, model) VALUES (1, 'a', 't', -1, 'E', 'm')"
        )
        db.execute(
            "INSERT INTO payload (number, generation, error, agent_id) VALUES (1, ?, ?, 'agent')",
            (generation, '{"type":"E","message":"bad"}'),
        )
        for id, label in (("a", "negative"), ("a2", "positive")):
            db.execute(
                "INSERT INTO scores (step_id, id, name, label, named_step) VALUES (?, 's', 'feedback', ?, 0)",
                (id, label),
            )
        db.execute("INSERT INTO threads (id) VALUES ('t')")
        for number, id in ((2, "b"), (3, "c"), (4, "d")):
            db.execute(
                "INSERT INTO steps (number, id, thread_id, start_ns, status, total_tokens)"
                " VALUES (?, ?, 't', ?, 'failed', ?)",
                (number, id, number, (1 << 62) + number),
            )
        for score, label, created_ns in (("x", "withdrawn", 9), ("y", "positive", 5)):
            db.execute(
                "INSERT INTO scores (step_id, id, name, label, created_ns, named_step)"
                " VALUES ('b', ?, 'feedback', ?, ?, 0)",
                (score, label, created_ns),
            )
    db.close()
    store = open_store(str(path))
    expected = decode_record(record)
    found = store.step("a")
    found.scores = None
    assert found == expected
    assert store.add([record]).accepted == 0
    assert store.add([call("a2", HISTORY, agent_id="agent")]).accepted == 1
    assert rows(path, "SELECT id, feedback FROM steps WHERE id <> 'c' AND id <> 'd' ORDER BY number") == [
        ("a", "negative"),
        ("b", None),  # version 2 said positive, of the score that came last
        ("a2", "positive"),
    ]
    (thread,) = store.threads(ThreadFilter(id="t")).items
    assert (thread.steps, thread.errors, thread.tokens) == (5, 3, 3 << 62)  # 9 tokens more than that, rounded
    assert store.stats().schema_version == 3
    assert store.check() == []
    store.close()


WRITER = """
import sys
from msgspec import json
from stepwell.store import open_store
path, name = sys.argv[1], sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
store = open_store(path)
history = [{"role": "user", "content": f"message {n} " + "x" * 200} for n in range(30)]
for n in range(30):
    step = {"kind": "step", "id": f"{name}-{n}", "generation": {"messages": history[: n + 1]}}
    assert store.add([json.encode(step)]).accepted == 1
store.close()
"""


def test_processes_that_write_the_same_messages_at_once_keep_them_once(path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in "abc"
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0, 0]
    store = open_store(str(path))
    assert rows(path, "SELECT count(*) FROM messages") == [(30,)]
    history = [{"role": "user", "content": f"message {n} " + "x" * 200} for n in range(30)]
    for name in "abc":
        for n in range(30):
            assert store.step(f"{name}-{n}").generation == Raw(json.encode({"messages": history[: n + 1]}))
    assert store.check() == []
    store.close()


# anything that JSON can say


texts = st.text(max_size=80)
items = st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]), "content": texts | st.none()}) | st.just(
    {"a": {"messages": [{}] * 20}}
)
arrays = st.lists(items, max_size=12)
members = st.fixed_dictionaries({}, optional={"messages": arrays, "tools": arrays, "x": texts | arrays})
styles = st.sampled_from([None, (",", ":"), (", ", ": "), (" ,", ":")])


def styled(value: object, style: tuple[str, str] | None) -> bytes:
    import json as plain

    return json.encode(value) if style is None else plain.dumps(value, separators=style, ensure_ascii=False).encode()


@pytest.mark.usefixtures("untraced")
@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), members, members, members, styles, st.booleans()), min_size=1, max_size=6))
def test_any_payloads_come_back_byte_for_byte(sequence: list[Any]) -> None:
    store, grown, batch = SqliteStore(None), list[Any](), list[bytes]()
    expected: dict[str, StepRecord] = {}
    for number, (thread, given_, answered, generation, style, ends_batch) in enumerate(sequence):
        grown += generation.get("messages", [])
        generation = {**generation, "messages": grown, "provider_request": {**given_, "messages": grown}}
        parts = {"input": given_, "output": answered, "generation": generation}
        record = b'{"kind":"step","id":"%d","thread_id":"%d",' % (number, thread)
        record += b",".join(b'"%b":%b' % (name.encode(), styled(part, style)) for name, part in parts.items()) + b"}"
        decoded = decode_record(record)
        assert isinstance(decoded, StepRecord)
        expected[decoded.id] = decoded
        batch.append(record)
        if ends_batch:
            assert store.add(batch).rejected == ()
            batch = []
    assert store.add(batch).rejected == ()
    assert {id: store.step(id) for id in expected} == expected
    assert [decode_record(record) for record in store.records() if b'"kind":"step"' in record] == list(
        expected.values()
    )
    assert store.check() == []
    store.close()
