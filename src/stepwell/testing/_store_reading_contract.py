"""What every store must do when it is read: lists, trees, export, changes, statistics; and the records of both suites.

`StoreContract`, which users subclass, adds what a store must do when it is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from msgspec import Raw, json

from stepwell.errors import ClosedError, NotFoundError, UsageError
from stepwell.model import decode_record
from stepwell.store import Found, StepFilter, Store

__all__ = ["StoreReadingContract"]

TRACE = "0197f0c2a4b07abc9000000000000001"
ROOT = "0197f0c2-a4b0-7abc-9000-000000000001"
CHILD = "0197f0c2-a4b0-7abc-9000-000000000002"
GRANDCHILD = "0197f0c2-a4b0-7abc-9000-000000000003"
OTHER = "0197f0c2-a4b1-7abc-9000-000000000001"
MESSAGES = b'[{"role": "user", "content": "Hi"}]'


def line(kind: str, id: str, **fields: Any) -> bytes:
    """Encode a record line; bytes are taken as JSON that is written already."""
    values = {name: Raw(value) if isinstance(value, bytes) else value for name, value in fields.items()}
    return json.encode({"kind": kind, "id": id, **values})


def step(id: str, **fields: Any) -> bytes:
    """Encode a step."""
    return line("step", id, **fields)


def finished(id: str, start_ns: int = 1, **fields: Any) -> bytes:
    """Encode a step that succeeded."""
    return step(id, **{"type": "run", "start_ns": start_ns, "end_ns": start_ns + 1, "status": "success", **fields})


def family() -> list[bytes]:
    """Encode a run with a tool below it and a model call below that."""
    return [
        finished(ROOT, 10, trace_id=TRACE, root_run_id=ROOT, thread_id="t-1"),
        finished(
            CHILD, 20, trace_id=TRACE, parent_id=ROOT, root_run_id=ROOT, thread_id="t-1", type="tool", status="failed"
        ),
        finished(
            GRANDCHILD,
            30,
            trace_id=TRACE,
            parent_id=CHILD,
            root_run_id=ROOT,
            thread_id="t-1",
            type="llm",
            generation=b'{"model": "m-1", "provider": "p", "messages": %b,'
            b' "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}}' % MESSAGES,
        ),
    ]


FULL_STEP = (
    b'{"kind":"step","id":"%b","trace_id":"%b","parent_id":"%b","thread_id":"t-1","root_run_id":"%b","type":"llm",'
    b'"name":"answer \\u0000 \xc3\xa9","start_ns":5,"end_ns":9,"status":"failed",'
    b'"error":{"type":"ValueError","message":"bad","traceback":"..."},"input":{ "q" : 1.0 },"output":null,'
    b'"generation":{"model":"m-1","messages":[],"unknown":1e2},"metadata":{"k":"\xe2\x82\xac"},"tags":["b","a"],'
    b'"attachments":[{"id":"a1","name":"x.png","size":3,"metadata":{"w": 1}}],'
    b'"scores":[{"id":"s1","name":"n","value":0.5}],'
    b'"child_count":0,"active_ns":3,"agent_id":"agent","user":"ada","environment":"prod","release":"1.2","service":"bot",'
    b'"sdk":"stepwell/0.1"}'
) % (GRANDCHILD.encode(), TRACE.encode(), CHILD.encode(), ROOT.encode())


class StoreReadingContract:
    """The half of the conformance suite that is about reading."""

    def make_store(self) -> Store:
        """Return a new, empty store."""
        raise NotImplementedError

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        """Lend a new store for one test."""
        store = self.make_store()
        yield store
        store.close()

    # lists

    def test_steps_filter_by_every_condition_and_all_at_once(self, store: Store) -> None:
        store.add([*family(), finished(OTHER, 40, tags=["x"], name="n", user="ada", environment="prod", service="bot")])
        keeps = {
            StepFilter(type="llm"): [GRANDCHILD],
            StepFilter(type=("llm", "tool")): [GRANDCHILD, CHILD],
            StepFilter(name="n"): [OTHER],
            StepFilter(tag="x"): [OTHER],
            StepFilter(tag=("x", "y")): [],
            StepFilter(status="failed"): [CHILD],
            StepFilter(status="success", type="run"): [OTHER, ROOT],
            StepFilter(status=("failed", "cancelled")): [CHILD],
            StepFilter(model="m-1"): [GRANDCHILD],
            StepFilter(thread_id="t-1"): [GRANDCHILD, CHILD, ROOT],
            StepFilter(thread_id="t-1", tag="x"): [],
            StepFilter(trace_id=TRACE): [GRANDCHILD, CHILD, ROOT],
            StepFilter(root_run_id=ROOT): [GRANDCHILD, CHILD, ROOT],
            StepFilter(parent_id=ROOT): [CHILD],
            StepFilter(user="ada", environment="prod", service="bot"): [OTHER],
            StepFilter(since_ns=20, until_ns=40): [GRANDCHILD, CHILD],
            StepFilter(tag="x", since_ns=40): [OTHER],
            StepFilter(root_only=True): [OTHER, ROOT],
        }
        assert {kept: [row.id for row in store.steps(kept).items] for kept in keeps} == keeps

    def test_links_of_records_made_elsewhere_are_found_too(self, store: Store) -> None:
        stray = finished("x-1", 5, trace_id=TRACE, parent_id=ROOT, root_run_id=ROOT)
        store.add([*family(), stray, finished("x-2", 6, trace_id="abc", parent_id="x-1", root_run_id="x-0")])
        assert [row.id for row in store.steps(StepFilter(trace_id=TRACE), order="asc").items] == [
            "x-1",
            ROOT,
            CHILD,
            GRANDCHILD,
        ]
        assert [row.id for row in store.steps(StepFilter(parent_id=ROOT)).items] == [CHILD, "x-1"]
        assert [row.id for row in store.steps(StepFilter(parent_id="x-1")).items] == ["x-2"]
        assert [row.id for row in store.steps(StepFilter(root_run_id="x-0", trace_id="abc")).items] == ["x-2"]
        assert [row.id for row in store.tree(ROOT)] == ["x-1", "x-2", ROOT, CHILD, GRANDCHILD]

    @pytest.mark.parametrize(
        "kept", [StepFilter(), StepFilter(tag="x"), StepFilter(thread_id="t"), StepFilter(type="run")]
    )
    @pytest.mark.parametrize("order", ["asc", "desc"])
    def test_pages_lose_and_repeat_nothing_where_times_are_equal(
        self, store: Store, kept: StepFilter, order: Any
    ) -> None:
        starts = [5, 5, 5, 7, 7, 1, 5, None, None, 7]
        store.add([step(f"s-{n}", type="run", start_ns=at, tags=["x"], thread_id="t") for n, at in enumerate(starts)])
        cursor, seen = None, list[str]()
        while True:
            page = store.steps(kept, limit=3, cursor=cursor, order=order)
            seen += [row.id for row in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        ascending = ["s-7", "s-8", "s-5", "s-0", "s-1", "s-2", "s-6", "s-3", "s-4", "s-9"]
        assert seen == (ascending if order == "asc" else ascending[::-1])

    def test_the_last_page_says_so_also_when_it_is_full(self, store: Store) -> None:
        store.add([step("a"), step("b")])
        assert store.steps(limit=2).next_cursor is None
        assert store.steps(limit=1).next_cursor is not None

    @pytest.mark.parametrize("cursor", ["", "nonsense", "AAAA", "\u00e9", "c2QAAA=="])
    def test_a_wrong_cursor_is_named(self, store: Store, cursor: str) -> None:
        with pytest.raises(UsageError, match="cursor '"):
            store.steps(cursor=cursor)

    def test_a_cursor_of_another_list_or_order_is_refused(self, store: Store) -> None:
        store.add([step("a"), step("b")])
        cursor = store.steps(limit=1).next_cursor
        for read in (store.runs, store.threads):
            with pytest.raises(UsageError, match="another list or order"):
                read(cursor=cursor)
        with pytest.raises(UsageError, match="another list or order"):
            store.steps(cursor=cursor, order="asc")

    @pytest.mark.parametrize("order", ["asc", "desc"])
    def test_a_cursor_after_any_step_is_good_under_any_filter(self, store: Store, order: Any) -> None:
        starts = [5, 5, None, 7, 5, 1]
        store.add([step(f"s-{n}", start_ns=at, tags=["x"] * (n % 2)) for n, at in enumerate(starts)])
        every = [row.id for row in store.steps(order=order).items]
        for kept in (StepFilter(), StepFilter(tag="x"), StepFilter(ids=["s-1", "s-5"]), StepFilter(since_ns=5)):
            listed = [row.id for row in store.steps(kept, order=order).items]
            for place, id in enumerate(every):
                cursor = store.cursor(id, order)
                after = [row.id for row in store.steps(kept, cursor=cursor, order=order).items]
                assert after == [other for other in listed if every.index(other) > place]
        with pytest.raises(NotFoundError, match="there is no step 'gone'"):
            store.cursor("gone", order)

    def test_a_wrong_limit_or_order_is_refused(self, store: Store) -> None:
        with pytest.raises(UsageError, match="limit must be 1 to 1000, got 0"):
            store.steps(limit=0)
        with pytest.raises(UsageError, match="limit must be 1 to 1000, got 1001"):
            store.changes(0, limit=1001)
        with pytest.raises(UsageError, match="order must be 'asc' or 'desc', got 'up'"):
            store.threads(order="up")  # type: ignore[arg-type]

    def test_a_row_shows_the_step_without_its_payloads(self, store: Store) -> None:
        store.add([FULL_STEP])
        (row,) = store.steps().items
        assert json.decode(json.encode(row)) == {
            "id": GRANDCHILD,
            "trace_id": TRACE,
            "parent_id": CHILD,
            "thread_id": "t-1",
            "root_run_id": ROOT,
            "type": "llm",
            "name": "answer \u0000 \u00e9",
            "start_ns": 5,
            "end_ns": 9,
            "status": "failed",
            "error_type": "ValueError",
            "model": "m-1",
            "tags": ["b", "a"],
            "child_count": 0,
            "user": "ada",
            "environment": "prod",
            "service": "bot",
            "release": "1.2",
            "error_message": "bad",
            "agent_id": "agent",
        }

    def test_tokens_are_summed_where_the_total_was_not_given(self, store: Store) -> None:
        store.add([step("a", generation={"usage": {"input_tokens": 2, "output_tokens": 3}})])
        assert store.steps().items[0].total_tokens == 5

    # trees

    def test_runs_are_listed_with_the_sums_of_what_is_below_them(self, store: Store) -> None:
        store.add(
            [
                *family(),
                finished(OTHER, 40, parent_id="elsewhere", root_run_id=OTHER),
                step("message", type="user_message"),
            ]
        )
        assert [(row.id, row.steps, row.errors, row.tokens) for row in store.runs().items] == [
            (OTHER, 1, 0, 0),
            (ROOT, 3, 1, 7),
            ("message", 1, 0, 0),
        ]
        assert [row.id for row in store.runs(StepFilter(thread_id="t-1"), limit=1).items] == [ROOT]

    def test_a_tree_holds_the_step_and_all_below_it_by_start(self, store: Store) -> None:
        store.add(family()[::-1])
        assert [row.id for row in store.tree(ROOT)] == [ROOT, CHILD, GRANDCHILD]
        assert [row.id for row in store.tree(CHILD)] == [CHILD, GRANDCHILD]
        assert [row.id for row in store.tree(GRANDCHILD)] == [GRANDCHILD]

    def test_a_step_whose_parent_never_arrived_is_below_its_root_run(self, store: Store) -> None:
        store.add([family()[0], family()[2]])
        assert [row.id for row in store.tree(ROOT)] == [ROOT, GRANDCHILD]

    def test_a_circle_of_parents_ends(self, store: Store) -> None:
        store.add([step("a", parent_id="b"), step("b", parent_id="a"), step("c", parent_id="c")])
        assert [row.id for row in store.tree("a")] == ["a", "b"]
        assert [row.id for row in store.tree("c")] == ["c"]

    def test_the_steps_of_a_thread_are_listed_by_start(self, store: Store) -> None:
        store.add(family()[::-1])
        assert [row.id for row in store.thread_steps("t-1")] == [ROOT, CHILD, GRANDCHILD]
        assert store.thread_steps("none") == []

    # finding

    def test_find_says_what_an_id_names(self, store: Store) -> None:
        store.add([*family(), finished(OTHER), step("a-long-step-id")])
        assert store.find("t-1") == Found("thread", "t-1")
        assert store.find(CHILD) == Found("step", CHILD)
        assert store.find("a-long-s") == Found("step", "a-long-step-id")
        assert store.find(OTHER[:13]) == Found("step", OTHER)
        with pytest.raises(UsageError, match=rf"^'{ROOT[:20]}' is the beginning of several step ids"):
            store.find(ROOT[:20])
        for nothing in ("a-long-", "unknown-id", ROOT[:9] + "x", ROOT[:8] + ROOT[9:13], ROOT.upper()):
            with pytest.raises(NotFoundError):
                store.find(nothing)

    def test_what_is_not_there_is_not_found(self, store: Store) -> None:
        for read in (store.step, store.thread, store.tree):
            with pytest.raises(NotFoundError, match=r"there is no (step|thread) 'none'"):
                read("none")

    def test_many_steps_are_read_whole_in_the_order_asked_for(self, store: Store) -> None:
        store.add([*family()[:2], FULL_STEP, finished("text", 4), line("score", "s", step_id=CHILD, value=1)])
        ids = ["text", GRANDCHILD, "unknown", CHILD, ROOT, CHILD]
        found = store.steps_in_full(ids)
        assert [step.id for step in found] == ["text", GRANDCHILD, CHILD, ROOT, CHILD]
        assert found == [store.step(id) for id in ids if id != "unknown"]
        assert store.steps_in_full([]) == []
        with pytest.raises(UsageError, match="ids may be 1000 at most, got 1001"):
            store.steps_in_full(["x"] * 1001)

    # everything

    def test_an_export_makes_an_equal_store(self, store: Store) -> None:
        store.add([*family(), FULL_STEP, line("thread", "t-2", name="n", created_ns=1), step("bare", thread_id="t-3")])
        store.add(
            [
                line("score", "s-1", step_id="unknown", value=2),
                line("score", "s-2", step_id=ROOT),
                line("score", "s-3", step_id=OTHER),
            ]
        )
        exported = list(store.records())
        assert [json.decode(record)["kind"] for record in exported] == ["thread"] * 3 + ["step"] * 4 + ["score"] * 2
        copy = self.make_store()
        assert copy.add(exported).rejected == ()
        assert sorted(copy.records()) == sorted(exported)
        assert copy.step(ROOT) == store.step(ROOT)
        assert copy.runs().items == store.runs().items
        copy.close()

    def test_runs_have_the_beginnings_of_what_was_asked_and_answered(self, store: Store) -> None:
        talk = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"text": "hi\nthere"}]}]
        long = {"question": "word " * 100_000}
        store.add(
            [
                finished("a", 1, input={"question": "why?"}, output={"content": "because"}),
                finished("b", 2, input={"a": 1, "b": [2]}, output="x" * 200),
                finished("c", 3, input=talk, output=None),
                finished("d", 4, input=long, output={"answer": "\u4e2d" * 20_000}),
                finished("e", 5, parent_id="a", input="not on top", output="nor this"),
            ]
        )
        shown = {row.id: (row.input_preview, row.output_preview) for row in store.steps().items}
        assert shown["a"] == ("why?", "because")
        assert shown["b"] == ('{"a":1,"b":[2]}', "x" * 79 + "…")
        assert shown["c"] == ("hi there", None)
        assert shown["d"] == (("word " * 15 + "word")[:79] + "…", "\u4e2d" * 79 + "…")
        assert shown["e"] == (None, None)
        store.add([step("a", output="rather not")])
        assert store.runs(StepFilter(ids=["a"])).items[0].output_preview == "rather not"

    def test_the_sums_of_a_long_run_follow_its_steps(self, store: Store) -> None:
        inside = {"parent_id": ROOT, "root_run_id": ROOT}
        ids = [f"{ROOT[:-3]}{n:03x}" for n in range(1000, 1150)]
        store.add([finished(ROOT, 1), *(finished(id, n + 2, **inside) for n, id in enumerate(ids))])
        assert [row.steps for row in store.runs().items] == [151]
        assert [(row.steps, row.errors) for row in store.runs().items] == [(151, 0)]
        store.add([finished("late", 500, **inside), step(ids[7], status="failed")])
        assert [(row.steps, row.errors) for row in store.runs().items] == [(152, 1)]

    def test_threads_have_their_first_question_and_last_answer(self, store: Store) -> None:
        store.add(
            [
                finished("q1", 1, thread_id="t", type="user_message", output={"content": "first?"}),
                finished("r", 2, thread_id="t", type="run", input="given", output="returned"),
                finished("a1", 3, thread_id="t", type="assistant_message", output={"content": "last."}),
                finished("u", 4, thread_id="plain", type="run", input="given", output="returned"),
            ]
        )
        assert {row.id: (row.asked, row.answered) for row in store.threads().items} == {
            "t": ("first?", "last."),
            "plain": ("given", "returned"),
        }

    def test_a_page_leads_back_to_what_is_before_it(self, store: Store) -> None:
        store.add([finished(f"s-{n}", n) for n in range(1, 8)])
        first = store.steps(limit=3)
        second = store.steps(limit=3, cursor=first.next_cursor)
        assert [row.id for row in second.items] == ["s-4", "s-3", "s-2"]
        back = store.steps(limit=3, cursor=second.previous_cursor, order="asc")
        assert [row.id for row in back.items] == ["s-5", "s-6", "s-7"]
        assert store.steps(limit=3, cursor=first.previous_cursor, order="asc").items == []
        with pytest.raises(UsageError, match="another list or order"):
            store.steps(cursor=second.previous_cursor)

    def test_an_export_may_be_of_some_steps_and_their_threads(self, store: Store) -> None:
        store.add([*family(), finished(OTHER, thread_id="t-2", tags=["x"]), line("score", "s", step_id="unknown")])
        ids = [decode_record(record).id for record in store.records(StepFilter(tag="x"))]
        assert ids == ["t-2", OTHER]
        ids = [decode_record(record).id for record in store.records(StepFilter(type="tool"))]
        assert ids == ["t-1", CHILD]

    def test_an_export_streams_more_than_a_batch(self, store: Store) -> None:
        store.add([step(f"s-{n}", start_ns=n // 10, thread_id=f"t-{n}") for n in range(1200)])
        store.add([line("score", f"c-{n}", step_id="unknown") for n in range(1000)])
        ids = [decode_record(record).id for record in store.records()]
        assert ids == [f"t-{n}" for n in range(1200)] + [f"s-{n}" for n in range(1200)] + [
            f"c-{n}" for n in range(1000)
        ]

    # changes

    def test_changes_follow_what_was_added_and_updated(self, store: Store) -> None:
        assert store.changes() == ([], 0)
        store.add([step("a"), step("b"), step("c")])
        rows, position = store.changes(0)
        assert [row.id for row in rows] == ["a", "b", "c"]
        assert store.changes() == ([], position)
        assert store.changes(position) == ([], position)
        store.add([step("a", name="n"), step("d")])
        store.add([line("score", "s", step_id="b")])
        rows, later = store.changes(position)
        assert sorted(row.id for row in rows[:2]) == ["a", "d"]
        assert [row.id for row in rows[2:]] == ["b"]
        assert later > position
        assert [row.id for row in store.changes(0, limit=1)[0]] == ["c"]

    def test_changes_come_in_parts_that_lose_nothing(self, store: Store) -> None:
        for n in range(10):
            store.add([step(f"s-{n}"), step(f"s-{n // 2}", name=f"n-{n}")])
        position, seen = 0, dict[str, str | None]()
        while True:
            rows, after = store.changes(position, limit=3)
            if after == position:
                break
            position = after
            seen |= {row.id: row.name for row in rows}
        assert seen == {row.id: row.name for row in store.steps().items}

    # what was asked the same

    def test_threads_and_runs_of_one_question_are_found_by_each_other(self, store: Store) -> None:
        said = [
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": [{"type": "text", "text": "why?"}]},
        ]
        store.add(
            [
                finished("a", 10, thread_id="t-1", input="why?"),
                finished("a2", 30, thread_id="t-1", input="how?"),
                finished("b", 20, input={"question": " why? "}),
                finished("c", 30, input={"question": "why?", "city": "Rome"}),
                step("d-1", type="system_message", start_ns=40, thread_id="t-2", output={"content": "be kind"}),
                finished("d-2", 41, thread_id="t-2"),
                finished("d-3", 42, thread_id="t-2", type="llm", parent_id="d-2", generation={"messages": said}),
                finished("e", 50, thread_id="t-3", input="how?"),
            ]
        )
        same = [Found("thread", "t-1"), Found("step", "b"), Found("thread", "t-2")]
        assert store.alike(Found("step", "a")) == same
        assert store.alike(Found("step", "a2")) == store.alike(Found("step", "b")) == same
        assert store.alike(Found("step", "d-3")) == store.alike(Found("thread", "t-2")) == same
        assert store.alike(Found("thread", "t-1"), limit=2) == same[1:]
        assert store.alike(Found("thread", "t-3")) == [Found("thread", "t-3")]
        assert store.alike(Found("thread", "unknown")) == []
        with pytest.raises(NotFoundError):
            store.alike(Found("step", "unknown"))
        with pytest.raises(UsageError):
            store.alike(Found("step", "a"), limit=0)

    def test_a_dataset_item_tells_what_was_asked_whatever_was_said(self, store: Store) -> None:
        store.add(
            [
                line("thread", "t-1", metadata={"task_id": 7, "trial": 1}),
                finished("a", 10, thread_id="t-1", input="hello"),
                finished("b", 20, thread_id="t-2", input="good day"),
                finished("c", 30, thread_id="t-3", input="hello", metadata={"task_id": 7, "dataset": "other"}),
                finished("d", 40, thread_id="t-3", input="hello", metadata={"task_id": 7, "dataset": "other"}),
            ]
        )
        assert store.alike(Found("thread", "t-2")) == [Found("thread", "t-2")]
        store.add([line("thread", "t-2", metadata={"task_id": 7})])
        assert store.alike(Found("thread", "t-2")) == [Found("thread", "t-1"), Found("thread", "t-2")]
        assert store.alike(Found("step", "d")) == [Found("step", "c"), Found("step", "d")]
        assert store.alike(Found("thread", "t-3")) == [Found("thread", "t-3")]

    def test_what_was_asked_follows_its_step_when_that_changes_or_goes(self, store: Store) -> None:
        store.add([finished("a", 10, input="why?"), finished("b", 20, thread_id="t-1", input="why?")])
        store.add([finished("c", 30, thread_id="t-1", input="how?"), step("d", type="run", start_ns=40)])
        store.add([step("d", input="why?", status="success")])
        assert store.alike(Found("step", "d")) == [Found("step", "a"), Found("thread", "t-1"), Found("step", "d")]
        store.add([step("a", input="how?"), step("b", input="when?")])
        assert store.alike(Found("step", "d")) == [Found("step", "d")]
        store.add([step("a", input="why?", thread_id="t-2"), step("b", input="why?")])
        assert store.alike(Found("step", "d")) == [Found("thread", "t-2"), Found("thread", "t-1"), Found("step", "d")]
        store.delete_run("b")
        store.delete_run("d")
        assert store.alike(Found("step", "a")) == [Found("thread", "t-2")]

    # care

    def test_stats_count_what_is_there(self, store: Store) -> None:
        empty = store.stats()
        assert (empty.steps, empty.threads, empty.scores, empty.oldest_ns, empty.newest_ns) == (0, 0, 0, None, None)
        store.add([*family(), step("bare"), line("score", "s", step_id=ROOT)])
        stats = store.stats()
        assert (stats.steps, stats.threads, stats.scores, stats.oldest_ns, stats.newest_ns) == (4, 1, 1, 10, 30)
        assert stats.by_type == {"run": 1, "tool": 1, "llm": 1, "unknown": 1}
        assert stats.by_status == {"success": 2, "failed": 1, "unknown": 1}

    def test_a_store_is_healthy(self, store: Store) -> None:
        store.add(family())
        assert store.check() == []

    def test_close_may_be_called_again_and_use_after_it_raises(self, store: Store) -> None:
        store.close()
        store.close()
        with pytest.raises(ClosedError):
            store.add([step("a")])
        with pytest.raises(ClosedError):
            store.step("a")
