"""What the filters of every store must keep, one sentence a test; a part of `StoreContract`."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell.errors import UsageError
from stepwell.model import Score
from stepwell.store import Judgements, ScoreFilter, ScoreQuery, StepFilter, Store, ThreadFilter
from stepwell.testing._store_reading_contract import (
    CHILD,
    GRANDCHILD,
    OTHER,
    ROOT,
    TRACE,
    StoreReadingContract,
    family,
    finished,
    line,
    step,
)

__all__ = ["StoreFilterContract"]


def kept(store: Store, **conditions: Any) -> list[str]:
    """Return the ids of the steps that a filter keeps, oldest first."""
    return [row.id for row in store.steps(StepFilter(**conditions), order="asc").items]


class StoreFilterContract(StoreReadingContract):
    """The part of the conformance suite that is about what `StepFilter` keeps."""

    def test_steps_are_kept_that_have_any_of_several_tags(self, store: Store) -> None:
        tags = [["x"], ["y", "x"], ["z"], []]
        store.add([finished(f"s-{n}", n, tags=some) for n, some in enumerate(tags)])
        assert kept(store, tag_any=["x", "z"]) == ["s-0", "s-1", "s-2"]
        assert kept(store, tag_any=["x", "z"], tag="y") == ["s-1"]
        assert kept(store, tag_any=()) == ["s-0", "s-1", "s-2", "s-3"]

    def test_steps_are_left_out_that_another_filter_keeps(self, store: Store) -> None:
        store.add(
            [
                finished("a", 1, type="tool", tags=["x"]),
                finished("b", 2, type="run", tags=["x", "y"]),
                finished("c", 3, type="run", metadata={"n": 1}),
                step("bare", start_ns=4),
            ]
        )
        assert kept(store, none_of=[StepFilter(tag="y")]) == ["a", "c", "bare"]
        assert kept(store, none_of=[StepFilter(type="run"), StepFilter(tag="x")]) == ["bare"]
        assert kept(store, none_of=[StepFilter(since_ns=2, until_ns=4)], tag="x") == ["a"]
        assert kept(store, none_of=[StepFilter(metadata={"n": 1})]) == ["a", "b", "bare"]
        assert kept(store, none_of=[StepFilter()]) == []

    def test_an_outline_has_what_is_on_top_and_messages(self, store: Store) -> None:
        inside = {"parent_id": ROOT, "root_run_id": ROOT}
        store.add([*family(), finished("m", 50, type="user_message", **inside), finished("alone", 60, type="tool")])
        assert kept(store, outline_only=True) == [ROOT, "m", "alone"]

    def test_facets_count_the_values_of_a_list(self, store: Store) -> None:
        store.add(
            [
                finished("a", 1, type="tool", user="ada", tags=["x", "y"], environment="prod"),
                finished("b", 2, type="tool", tags=["x"]),
                finished("c", 3, type="llm", generation={"model": "m", "messages": []}),
            ]
        )
        facets = store.facets()
        assert (facets.counted, facets.more) == (3, False)
        assert list(facets.values["type"]) == [("tool", 2), ("llm", 1)]
        assert list(facets.values["tag"]) == [("x", 2), ("y", 1)]
        assert list(facets.values["model"]) == [("m", 1)]
        assert list(facets.values["user"]) == [("ada", 1)]
        assert list(facets.values["environment"]) == [("prod", 1)]
        assert list(store.facets(StepFilter(type="llm")).values["tag"]) == []
        assert list(facets.times) == [(3, False), (2, False), (1, False)]

    def test_facets_count_the_values_of_threads(self, store: Store) -> None:
        store.add(
            [
                line("thread", "t-1", user={"identifier": "ada"}, tags=["x"], environment="prod"),
                line("thread", "t-2", user={"identifier": "ada"}),
                finished("a", 5, thread_id="t-1", status="failed"),
                finished("b", 7, thread_id="t-2"),
            ]
        )
        facets = store.facets(ThreadFilter(user="ada"))
        assert (facets.counted, facets.more, list(facets.times)) == (2, False, [(7, False), (5, True)])
        assert dict(facets.values) == {"user": [("ada", 2)], "environment": [("prod", 1)], "tag": [("x", 1)]}

    def test_steps_are_kept_by_provider_agent_and_release(self, store: Store) -> None:
        store.add(
            [
                finished("a", 1, generation={"provider": "openai"}, agent_id="one", release="1"),
                finished("b", 2, generation={"provider": "anthropic"}, agent_id="one", release="2"),
                finished("c", 3),
            ]
        )
        assert kept(store, provider="openai") == ["a"]
        assert kept(store, agent_id="one") == ["a", "b"]
        assert kept(store, agent_id="one", release="2") == ["b"]
        assert kept(store, agent_id=("one", "two"), release="2") == ["b"]
        assert kept(store, agent_id=["two"]) == []

    def test_steps_are_kept_by_id_and_by_trace(self, store: Store) -> None:
        store.add(
            [*family(), finished(OTHER, 40, trace_id="abc"), finished("text", 50, trace_id=TRACE), finished("z", 60)]
        )
        assert kept(store, ids=[GRANDCHILD, "text", "unknown", ROOT]) == [ROOT, GRANDCHILD, "text"]
        assert kept(store, ids=[]) == []
        assert kept(store, trace_ids=[TRACE]) == [ROOT, CHILD, GRANDCHILD, "text"]
        assert kept(store, trace_ids=["abc", "unknown"]) == [OTHER]
        assert kept(store, trace_ids=["abc", TRACE], type="run") == [ROOT, OTHER, "text"]
        assert kept(store, trace_ids=[]) == []
        assert kept(store, ids=[f"no-{n}" for n in range(999)] + ["z"]) == ["z"]
        assert kept(store, trace_ids=[f"{n:032x}" for n in range(999)] + [TRACE]) == [ROOT, CHILD, GRANDCHILD, "text"]
        for name in ("ids", "trace_ids"):
            with pytest.raises(UsageError, match=f"{name} may be 1000 at most, got 1001"):
                kept(store, **{name: ["x"] * 1001})

    def test_steps_are_kept_by_bounds_that_are_inclusive_and_know_no_unknown(self, store: Store) -> None:
        def generation(tokens: int, cost: float) -> dict[str, Any]:
            return {"usage": {"total_tokens": tokens}, "cost": {"input": 9, "total": cost}}

        store.add(
            [
                step("a", start_ns=1, end_ns=11, generation=generation(5, 0.5)),
                step("b", start_ns=2, end_ns=22, generation=generation(10, 0.25)),
                step("c", start_ns=3),
                step("d", end_ns=4),
            ]
        )
        assert kept(store, min_tokens=10) == ["b"]
        assert kept(store, max_tokens=5) == ["a"]
        assert kept(store, min_cost=0.25, max_cost=0.25) == ["b"]
        assert kept(store, min_cost=0.3) == ["a"]
        assert kept(store, min_duration_ns=11) == ["b"]
        assert kept(store, max_duration_ns=10) == ["a"]
        assert kept(store, max_duration_ns=1 << 80) == ["a", "b"]
        assert kept(store, min_tokens=1 << 80) == []

    @pytest.mark.parametrize(
        ("cost", "expected"),
        [
            (0.5, 0.5),
            (2, 2.0),
            ({"total": 0.5, "input": 4}, 0.5),
            ({"input": 0.25, "output": 0.5, "currency": "USD"}, 0.75),
            ({"total": None}, None),
            ({"total": True}, None),
            ({"currency": "USD"}, None),
            ([1], None),
            ("1", None),
            (None, None),
        ],
    )
    def test_a_cost_is_a_number_a_total_or_a_sum(self, store: Store, cost: object, expected: float | None) -> None:
        store.add([step("a", generation={"cost": cost})])
        assert store.steps().items[0].cost == expected

    def test_rows_carry_what_the_generation_counted(self, store: Store) -> None:
        usage = {"input_tokens": 9, "cached_input_tokens": 4, "cache_write_tokens": 2, "reasoning_tokens": 3}
        store.add([step("a", generation={"usage": usage, "ttft_ns": 7, "request_id": "r"})])
        row = store.steps().items[0]
        assert (row.cached_input_tokens, row.cache_write_tokens, row.reasoning_tokens) == (4, 2, 3)
        assert (row.ttft_ns, row.request_id, row.cost, row.total_tokens) == (7, "r", None, None)
        store.add([step("a", generation={"cost": 1, "ttft_ns": 8})])
        row = store.steps().items[0]
        assert (row.cached_input_tokens, row.ttft_ns, row.request_id, row.cost) == (4, 8, "r", 1.0)

    def test_steps_are_kept_by_their_error(self, store: Store) -> None:
        store.add(
            [
                finished("a", 1),
                finished("b", 2, status="failed"),
                finished("c", 3, status="failed", error={"type": "KeyError", "message": "x" * 1000}),
                finished("d", 4, status="cancelled", error={"message": "late"}),
                step("e", start_ns=5),
            ]
        )
        assert kept(store, error_type="KeyError") == ["c"]
        assert kept(store, has_error=True) == ["b", "c", "d"]
        assert kept(store, has_error=False) == ["a", "e"]
        assert [row.error_message for row in store.steps(order="asc").items] == [None, None, "x" * 200, "late", None]

    def test_feedback_is_the_latest_score_of_that_name_whenever_its_step_came(self, store: Store) -> None:
        def feedback(id: str, step_id: str, label: str) -> bytes:
            return line("score", id, step_id=step_id, name="feedback", label=label)

        store.add([feedback("s", "early", "negative"), feedback("s", "never", "negative")])
        assert store.steps().items == []
        store.add(
            [
                *(finished(id, n) for n, id in enumerate(["none", "early", "later", "changed", "other"])),
                finished("inside", 9, scores=[{"id": "s", "name": "feedback", "label": "positive"}]),
                line("score", "t", step_id="other", name="quality", label="positive"),
                feedback("s", "changed", "positive"),
            ]
        )
        store.add([feedback("s", "later", "positive"), feedback("t", "changed", "negative")])
        store.add([feedback("u", "none", "maybe"), step("later", name="n")])
        assert [(row.id, row.feedback) for row in store.steps(order="asc").items] == [
            ("none", None),
            ("early", "negative"),
            ("later", "positive"),
            ("changed", "negative"),
            ("other", None),
            ("inside", "positive"),
        ]
        assert kept(store, feedback="positive") == ["later", "inside"]
        assert kept(store, has_feedback=True) == ["early", "later", "changed", "inside"]
        assert kept(store, has_feedback=False) == ["none", "other"]

    def test_feedback_is_what_was_said_last_and_not_what_came_last(self, store: Store) -> None:
        def feedback(id: str, **fields: Any) -> bytes:
            return line("score", id, step_id="a", name="feedback", **fields)

        def said() -> str | None:
            return store.steps().items[0].feedback

        store.add([finished("a"), feedback("s", label="negative", created_ns=5)])
        store.add([feedback("t", label="positive", created_ns=3)])
        assert said() == "negative"
        store.add([feedback("u", label="positive")])  # nobody knows when: before all others
        assert said() == "negative"
        store.add([feedback("v", label="positive", created_ns=5)])
        assert said() == "positive"
        store.add([feedback("w", label="withdrawn", created_ns=6)])
        assert said() is None
        store.add([line("score", "w", step_id="a", name="other")])
        assert said() == "positive"
        store.add([line("score", id, step_id="a", name="other") for id in ("s", "t", "u", "v")])
        assert said() is None

    def test_of_each_name_the_latest_score_is_the_judgement(self, store: Store) -> None:
        def judged(id: str, name: str | None, at: int | None = None, **fields: Any) -> bytes:
            return line("score", id, step_id=ROOT, name=name, created_ns=at, **fields)

        assert store.judgements([]) == store.judgements([ROOT]) == {}
        store.add(
            [finished(ROOT), finished("a"), judged("1", "tone", 9, value=0.5), judged("2", "tone", 8, value=0.25)]
        )
        store.add([judged("3", "correct", label="yes", comment="long"), judged("4", None, value=1)])
        assert store.judgements(["a", ROOT, "none"]) == {
            ROOT: Judgements(
                (
                    Score("3", name="correct", label="yes"),
                    Score("1", name="tone", value=0.5, created_ns=9),
                    Score("4", value=1.0),
                )
            )
        }
        store.add([judged(f"m-{n}", "many", n, value=n) for n in range(100)])
        found = store.judgements([ROOT])[ROOT]
        assert found == Judgements((Score("m-99", name="many", value=99.0, created_ns=99),), more=True)
        with pytest.raises(UsageError, match="ids may be 1000 at most, got 1001"):
            store.judgements(["a"] * 1001)

    def test_steps_are_kept_by_a_score(self, store: Store) -> None:
        scores: list[list[Any]] = [
            [("q", 0.5, "good")],
            [("q", 1.0, None), ("r", 0.0, None)],
            [("q", None, "good")],
            [],
        ]
        for n, some in enumerate(scores):
            items: list[Any] = [
                {"id": f"{n}", "name": name, "value": value, "label": label} for name, value, label in some[:1]
            ]
            items += [{"id": "r", "name": name, "value": value} for name, value, _ in some[1:]]
            store.add([finished(f"s-{n}", n, scores=items or None)])
        assert kept(store, score=ScoreFilter("q")) == ["s-0", "s-1", "s-2"]
        assert kept(store, score=ScoreFilter("q", min=0.75)) == ["s-1"]
        assert kept(store, score=ScoreFilter("q", max=0.5)) == ["s-0"]
        assert kept(store, score=ScoreFilter("q", min=0.5, max=1, label="good")) == ["s-0"]
        assert kept(store, score=ScoreFilter("none")) == []

    def test_steps_are_kept_by_a_path_of_their_metadata(self, store: Store) -> None:
        values: list[Any] = [1, 1.5, "1", True, False, None, {"d": 1}, [1]]
        store.add([finished(f"s-{n}", n, metadata={"a": {"b c": value}, "n": n}) for n, value in enumerate(values)])
        store.add([finished("bare", 20), finished("null", 21, metadata=None)])
        found = {repr(value): kept(store, metadata={"a.b c": value}) for value in [1, 1.0, 1.5, "1", True, False, None]}
        assert found == {
            "1": ["s-0"],
            "1.0": ["s-0"],
            "1.5": ["s-1"],
            "'1'": ["s-2"],
            "True": ["s-3"],
            "False": ["s-4"],
            "None": ["s-5"],
        }
        assert kept(store, metadata={"a.b c.d": 1}) == ["s-6"]
        assert kept(store, metadata={"a.b c": 1, "n": 0}) == ["s-0"]
        assert kept(store, metadata={"a.b c": 1, "n": 1}) == []

    @pytest.mark.parametrize("path", ["", ".", "a..b", 'a"b', '$") OR 1', "a\\"])
    def test_a_metadata_path_that_cannot_be_written_is_refused(self, store: Store, path: str) -> None:
        with pytest.raises(UsageError, match="metadata path"):
            kept(store, metadata={path: 1})

    @pytest.mark.parametrize("path", ["a' OR 1=1 --", "a[0]", "$", "#", "a b", "*", "\u00e9"])
    def test_a_metadata_path_is_nothing_but_keys(self, store: Store, path: str) -> None:
        store.add([finished("a", 1, metadata={"a": [1]}), finished("b", 2, metadata={path: 1})])
        assert kept(store, metadata={path: 1}) == ["b"]

    @pytest.mark.parametrize("order", ["asc", "desc"])
    @pytest.mark.parametrize(
        "conditions",
        [
            {"tag_any": ("x", "y")},
            {"trace_ids": (TRACE, "t")},
            {"ids": tuple(f"s-{n}" for n in range(40))},
            {"has_error": True},
            {"feedback": "positive"},
            {"has_feedback": True},
            {"agent_id": "one"},
            {"score": ScoreFilter("feedback")},
            {"metadata": {"k": "v"}},
            {"min_tokens": 5, "max_cost": 2, "min_duration_ns": 1},
            {"tag": "x", "tag_any": ("y",), "has_error": True},
        ],
    )
    def test_pages_of_every_filter_lose_and_repeat_nothing(
        self, store: Store, conditions: dict[str, Any], order: Any
    ) -> None:
        fields: dict[str, Any] = {
            "tags": ["x", "y"],
            "status": "failed",
            "agent_id": "one",
            "metadata": {"k": "v"},
            "generation": {"usage": {"total_tokens": 5}, "cost": 1},
            "scores": [{"id": "s", "name": "feedback", "label": "positive"}],
        }
        traces = ("t", TRACE)
        store.add([finished(f"s-{n}", n // 4, trace_id=traces[n % 2], **fields) for n in range(20)])
        store.add([finished(f"z-{n}", n // 4) for n in range(20)])
        cursor, seen = None, list[str]()
        while True:
            page = store.steps(StepFilter(**conditions), limit=3, cursor=cursor, order=order)
            seen += [row.id for row in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        expected = [f"s-{n}" for n in range(20)]
        assert seen == (expected if order == "asc" else expected[::-1])

    def test_scores_of_several_steps_are_listed_by_their_creation(self, store: Store) -> None:
        store.add(
            [
                finished(ROOT, scores=[{"id": "s-1", "created_ns": 3}]),
                *(line("score", f"s-{n}", step_id=id, created_ns=n) for n, id in ((2, "b"), (4, "c"), (5, ROOT))),
            ]
        )
        found = store.scores(ScoreQuery(step_ids=[ROOT, "b", "none"]), order="asc").items
        assert [(score.id, score.step_id) for score in found] == [("s-2", "b"), ("s-1", ROOT), ("s-5", ROOT)]
        assert store.scores(ScoreQuery(step_ids=[])).items == []
        with pytest.raises(UsageError, match="step_ids may be 1000 at most"):
            store.scores(ScoreQuery(step_ids=["x"] * 1001))
