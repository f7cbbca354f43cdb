"""What every store must do when something is deleted from it, when it is packed together, and when it is copied.

`StoreContract`, which users subclass, includes this.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from msgspec import json

from stepwell.errors import NotFoundError, UsageError
from stepwell.model import decode_record
from stepwell.store import AddResult, Deleted, StepFilter, Store, open_store
from stepwell.testing._store_reading_contract import (
    CHILD,
    GRANDCHILD,
    OTHER,
    ROOT,
    StoreReadingContract,
    family,
    finished,
    line,
    step,
)

__all__ = ["StoreDeletionContract"]

BLOB = "ab" * 32
HISTORY = [{"role": "user", "content": f"message {number}: " + "a text of some length " * 10} for number in range(40)]


def call(id: str, messages: int, start_ns: int = 1, **fields: object) -> bytes:
    """Encode a model call that sends the first messages of one history."""
    generation = json.encode({"model": "m", "messages": HISTORY[:messages]})
    return finished(id, start_ns, **{"type": "llm", "generation": generation, **fields})


class StoreDeletionContract(StoreReadingContract):
    """The part of the conformance suite that is about deleting, retention and copies."""

    def test_a_deleted_thread_is_gone_with_its_steps_and_their_scores(self, store: Store) -> None:
        store.add([line("thread", "t-1", name="n"), *family(), finished(OTHER, 40, thread_id="t-2", tags=["x"])])
        store.add([line("score", "s-1", step_id=CHILD, value=1), line("score", "s-2", step_id=OTHER, value=2)])
        assert store.delete_thread("t-1") == Deleted(3, 1, 0, ())
        with pytest.raises(NotFoundError):
            store.thread("t-1")
        with pytest.raises(NotFoundError):
            store.step(CHILD)
        assert store.thread_steps("t-1") == []
        assert [row.id for row in store.steps(StepFilter(tag="x")).items] == [OTHER]
        assert (store.stats().steps, store.stats().threads, store.stats().scores) == (1, 1, 1)
        assert store.check() == []

    @pytest.mark.parametrize("id", [ROOT, GRANDCHILD])
    def test_any_step_of_a_run_names_the_run_that_is_deleted(self, store: Store, id: str) -> None:
        store.add([*family(), finished(OTHER, 40, thread_id="t-1", trace_id=OTHER.replace("-", ""))])
        assert store.delete_run(id) == Deleted(3, 0, 0, ())
        assert [row.id for row in store.steps().items] == [OTHER]
        assert [row.last_step_ns for row in store.threads().items] == [40]
        assert store.delete_run(OTHER) == Deleted(1, 1, 0, ())  # a thread that only its steps made known
        assert store.threads().items == []
        assert store.check() == []

    def test_a_run_of_links_of_another_making_is_deleted_whole(self, store: Store) -> None:
        store.add(
            [
                finished("root", 1),
                finished("child", 2, parent_id="root", root_run_id="root"),
                finished("leaf", 3, parent_id="child"),
                finished("other", 4, trace_id="t"),
                finished("same trace", 5, trace_id="t", parent_id="missing"),
            ]
        )
        assert store.delete_run("child").steps == 3
        assert store.delete_run("other").steps == 2
        assert store.steps().items == []

    def test_what_is_not_there_can_not_be_deleted(self, store: Store) -> None:
        for delete in (store.delete_thread, store.delete_run, store.delete_user):
            with pytest.raises(NotFoundError, match="'x'"):
                delete("x")

    def test_a_user_is_deleted_with_threads_and_runs(self, store: Store) -> None:
        store.add(
            [
                line("thread", "by id", user={"id": "ada"}),
                line("thread", "by name", user={"id": "7", "identifier": "ada"}),
                line("thread", "bob", user={"identifier": "bob"}),
                finished("a", 1, thread_id="by id"),
                finished("b", 2, thread_id="bob"),
                finished(ROOT, 3),
                finished(CHILD, 4, parent_id=ROOT, root_run_id=ROOT, user="ada"),
            ]
        )
        assert store.delete_user("ada") == Deleted(3, 2, 0, ())
        assert [row.id for row in store.threads().items] == ["bob"]
        assert [row.id for row in store.steps().items] == ["b"]
        assert store.check() == []

    def test_a_step_that_arrives_late_makes_its_thread_again(self, store: Store) -> None:
        store.add(family())
        store.delete_thread("t-1")
        assert store.add(family()[2:]) == AddResult(1, 0)
        assert [row.id for row in store.thread_steps("t-1")] == [GRANDCHILD]
        assert store.thread("t-1").created_ns == 30

    def test_positions_and_cursors_go_on_where_they_were(self, store: Store) -> None:
        store.add([finished(f"s-{n}", n) for n in range(1, 6)])
        position = store.changes()[1]
        page = store.steps(limit=2)
        assert [row.id for row in page.items] == ["s-5", "s-4"]
        store.delete_run("s-5")
        store.delete_run("s-4")
        store.add([finished("new", 9)])
        assert store.changes()[1] > position
        assert [row.id for row in store.changes(position)[0]] == ["new"]
        assert [row.id for row in store.steps(limit=2, cursor=page.next_cursor).items] == ["s-3", "s-2"]

    def test_messages_go_with_the_last_call_that_sent_them(self, store: Store) -> None:
        calls = [call(f"a-{n}", n, n, thread_id="a") for n in range(2, 40)]
        store.add([*calls, call("b", 3, 50, thread_id="b")])
        before = store.step("b")
        assert store.delete_thread("a").steps == 38
        assert store.step("b") == before
        assert store.add(calls) == AddResult(38, 0)
        assert store.step("a-39") == decode_record(calls[-1])
        store.delete_thread("b")
        assert store.step("a-39") == decode_record(calls[-1])
        assert store.check() == []

    def test_a_blob_is_told_of_when_the_last_step_that_names_it_is_deleted(self, store: Store) -> None:
        marker = {"$stepwell": "blob", "sha256": BLOB, "size": 9}
        store.add(
            [
                finished("a", 1, attachments=[{"id": "1", "sha256": BLOB}]),
                finished("b", 2, output={"image": marker}),
                call("c", 30, 3, input={"messages": [{"role": "user", "content": [marker]}] * 9}),
            ]
        )
        assert store.delete_run("a").blobs == ()
        assert store.delete_run("b").blobs == ()
        assert store.loose_blobs() == []
        assert store.delete_run("c").blobs == (BLOB,)
        assert store.loose_blobs() == [BLOB]
        store.add([finished("d", 2, output={"image": marker})])
        assert store.loose_blobs() == []
        assert store.delete_run("d").blobs == (BLOB,)
        store.forget_blobs([BLOB])
        assert store.loose_blobs() == []

    def test_a_blob_that_an_update_brings_is_kept_too(self, store: Store) -> None:
        store.add([finished("a", 1), finished("b", 1, attachments=[{"id": "1", "sha256": BLOB}])])
        store.add([step("a", metadata={"file": {"sha256": BLOB}})])
        assert store.delete_run("b").blobs == ()
        assert store.delete_run("a").blobs == (BLOB,)

    def test_a_blob_that_a_thread_names_is_kept(self, store: Store) -> None:
        store.add([finished("a", 1, attachments=[{"id": "1", "sha256": BLOB}])])
        store.add([line("thread", "t", metadata={"photo": {"sha256": BLOB}})])
        store.delete_run("a")
        assert store.loose_blobs() == []
        store.delete_thread("t")
        assert store.loose_blobs() == [BLOB]

    # retention

    def test_what_had_no_activity_since_a_time_expires_whole(self, store: Store) -> None:
        store.add(
            [
                line("thread", "empty", created_ns=50),
                line("thread", "new", created_ns=150),
                finished("old-1", 10, thread_id="old"),
                finished("old-2", 90, thread_id="old"),
                finished("kept-1", 10, thread_id="kept"),
                finished("kept-2", 100, thread_id="kept"),
                finished(ROOT, 10, root_run_id=ROOT),
                finished(CHILD, 20, parent_id=ROOT, root_run_id=ROOT),
                finished("late", 10),
                finished("late child", 99, parent_id="late", root_run_id="late"),
                finished("lost", 10, parent_id="missing"),
                step("timeless"),
            ]
        )
        deleted = store.expire(before_ns=100)
        assert (deleted.steps, deleted.threads) == (5, 2)
        assert sorted(row.id for row in store.steps().items) == ["kept-1", "kept-2", "late", "late child", "timeless"]
        assert sorted(row.id for row in store.threads().items) == ["kept", "new"]
        assert store.expire(before_ns=100) == Deleted()
        assert store.check() == []

    def test_what_may_still_be_running_does_not_expire(self, store: Store) -> None:
        now = time.time_ns()
        day = 24 * 3600 * 1_000_000_000
        store.add(
            [
                step("running", start_ns=now - day // 2, status="pending"),
                finished("running child", now - day // 2, parent_id="running", root_run_id="running"),
                step("given up", start_ns=now - 2 * day, status="pending"),
                step("in a thread", start_ns=now - day // 2, status="pending", thread_id="t"),
            ]
        )
        assert store.expire(before_ns=now).steps == 1
        assert store.expire(max_bytes=0).steps == 0
        assert sorted(row.id for row in store.steps().items) == ["in a thread", "running", "running child"]

    def test_the_oldest_expire_until_the_rest_fits(self, store: Store) -> None:
        content = "x" * 2000
        frames = [
            finished(f"s-{n}", n + 1, input=f"{n} {content}", thread_id=None if n % 2 else f"t-{n // 100}")
            for n in range(1000)
        ]
        store.add(frames)
        deleted = store.expire(max_bytes=1_500_000)
        assert 250 < deleted.steps < 750
        kept = [row.id for row in store.steps(limit=1000, order="asc").items]
        assert kept[-1] == "s-999"
        assert store.expire(max_bytes=1_500_000) == Deleted()
        odd = [int(id[2:]) for id in kept if int(id[2:]) % 2]
        assert odd == list(range(odd[0], 1000, 2))
        assert store.expire(max_bytes=0).steps == len(kept)
        assert store.check() == []

    def test_a_bound_below_nothing_is_refused(self, store: Store) -> None:
        with pytest.raises(UsageError, match="max_bytes must be >= 0, got -1"):
            store.expire(max_bytes=-1)

    # space and copies

    def test_what_is_packed_together_reads_the_same(self, store: Store) -> None:
        store.add([*family(), *(call(f"a-{n}", n, n, thread_id="a", sdk="s", active_ns=3) for n in range(2, 40))])
        store.add([step("a-9", output={"later": True}), call("a-10", 2), finished("plain", 1, input="x" * 9000)])
        before, position = list(store.records()), store.changes()[1]
        store.vacuum()
        assert list(store.records()) == before
        assert store.changes()[1] == position
        assert store.check() == []
        assert store.add(before) == AddResult(0, len(before))
        store.vacuum()
        assert list(store.records()) == before

    def test_a_copy_is_an_equal_store_of_its_owner_alone(self, store: Store, tmp_path: Path) -> None:
        store.add([*family(), line("thread", "t-1", name="n"), line("score", "s-1", step_id=ROOT, value=1)])
        target = tmp_path / "copy.db"
        store.backup(target)
        assert target.stat().st_mode & 0o777 == 0o600
        copy = open_store(str(target), read_only=True)
        try:
            assert list(copy.records()) == list(store.records())
            assert copy.check() == []
        finally:
            copy.close()
        with pytest.raises(UsageError, match=r"copy.db' is there already"):
            store.backup(target)
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith((".copy", "copy"))] == ["copy.db"]
