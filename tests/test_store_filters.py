"""Any filter over any steps keeps what the plainest filter keeps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import json

from stepwell.store import ScoreFilter, StepFilter
from stepwell.store._query import Keyset, select_steps
from stepwell.store.sqlite import SqliteStore

numbers = st.integers(0, 3)
words = st.sampled_from(["a", "b"])
values = st.sampled_from([0, 1, 1.5, "a", True, False, None])
tags = st.lists(words, max_size=2, unique=True)
generations = st.fixed_dictionaries(
    {}, optional={"provider": words, "cost": numbers, "usage": st.fixed_dictionaries({"total_tokens": numbers})}
)
steps = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["run", "tool"]),
        "trace_id": words,
        "start_ns": numbers,
        "end_ns": numbers,
        "status": st.sampled_from(["pending", "success", "failed"]),
        "error": st.fixed_dictionaries({}, optional={"type": words, "message": words}),
        "agent_id": words,
        "release": words,
        "tags": tags,
        "generation": generations,
        "metadata": st.fixed_dictionaries({}, optional={"k": values, "m": st.fixed_dictionaries({"n": values})}),
        "scores": st.lists(
            st.fixed_dictionaries(
                {"id": words},
                optional={
                    "name": st.sampled_from(["feedback", "q"]),
                    "value": numbers,
                    "label": st.sampled_from(["positive", "negative", "other"]),
                },
            ),
            min_size=1,
            max_size=2,
            unique_by=lambda score: score["id"],
        ),
    },
)
filters = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["run", ("run", "tool")]),
        "provider": words,
        "agent_id": words,
        "release": words,
        "status": st.sampled_from(["pending", "success", "failed"]),
        "tag": tags.map(tuple),
        "tag_any": tags.map(tuple),
        "trace_ids": tags.map(tuple),
        "ids": st.lists(st.sampled_from([f"s-{n}" for n in range(8)]), max_size=4).map(tuple),
        "error_type": words,
        "has_error": st.booleans(),
        "feedback": st.sampled_from(["positive", "negative"]),
        "has_feedback": st.booleans(),
        "score": st.builds(
            ScoreFilter,
            st.sampled_from(["feedback", "q"]),
            st.none() | numbers,
            st.none() | numbers,
            st.none() | st.just("positive"),
        ),
        "metadata": st.dictionaries(st.sampled_from(["k", "m.n"]), values, min_size=1),
        "since_ns": numbers,
        "until_ns": numbers,
        **{f"{end}_{name}": numbers for end in ("min", "max") for name in ("duration_ns", "tokens", "cost")},
    },
)


def same(value: object, wanted: object) -> bool:
    """Compare JSON scalars: true is not 1."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def at_path(metadata: dict[str, Any], path: str) -> object:
    value: Any = metadata
    for key in path.split("."):
        if not isinstance(value, dict) or key not in value:
            return ...
        value = value[key]
    return value


def feedback_of(step: dict[str, Any]) -> str | None:
    labels = [score.get("label") for score in step.get("scores", ()) if score.get("name") == "feedback"]
    return labels[-1] if labels and labels[-1] in {"positive", "negative"} else None


def within(value: Any, kept: StepFilter, name: str) -> bool:
    least, most = getattr(kept, f"min_{name}"), getattr(kept, f"max_{name}")
    if least is None and most is None:
        return True
    return value is not None and (least is None or value >= least) and (most is None or value <= most)


def has_score(step: dict[str, Any], wanted: ScoreFilter) -> bool:
    return any(
        score.get("name") == wanted.name
        and (wanted.label is None or score.get("label") == wanted.label)
        and (wanted.min is None or ("value" in score and score["value"] >= wanted.min))
        and (wanted.max is None or ("value" in score and score["value"] <= wanted.max))
        for score in step.get("scores", ())
    )


def keeps(kept: StepFilter, step: dict[str, Any]) -> bool:
    generation, error, tagged = step.get("generation", {}), step.get("error", {}), set(step.get("tags", ()))
    start, end = step.get("start_ns"), step.get("end_ns")
    duration = None if start is None or end is None else end - start
    has_error = step.get("status") == "failed" or bool(error)
    types = {kept.type} if isinstance(kept.type, str) else set(kept.type or ())
    return all(
        [
            not types or step.get("type") in types,
            kept.provider in {None, generation.get("provider")},
            kept.agent_id in {None, step.get("agent_id")},
            kept.release in {None, step.get("release")},
            kept.status in {None, step.get("status")},
            tagged >= set(kept.tag),
            not kept.tag_any or bool(tagged & set(kept.tag_any)),
            kept.trace_ids is None or step.get("trace_id") in kept.trace_ids,
            kept.ids is None or step["id"] in kept.ids,
            kept.error_type in {None, error.get("type")},
            kept.has_error in {None, has_error},
            kept.feedback in {None, feedback_of(step)},
            kept.has_feedback in {None, feedback_of(step) is not None},
            kept.score is None or has_score(step, kept.score),
            all(same(at_path(step.get("metadata", {}), path), value) for path, value in (kept.metadata or {}).items()),
            kept.since_ns is None or (start is not None and start >= kept.since_ns),
            kept.until_ns is None or start is None or start < kept.until_ns,
            within(duration, kept, "duration_ns"),
            within(generation.get("usage", {}).get("total_tokens"), kept, "tokens"),
            within(generation.get("cost"), kept, "cost"),
        ]
    )


@pytest.mark.usefixtures("untraced")
@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=8), st.lists(filters, min_size=1, max_size=4), st.booleans())
def test_any_filter_keeps_what_the_plainest_filter_keeps(
    some: list[dict[str, Any]], conditions: list[dict[str, Any]], scores_first: bool
) -> None:
    store = SqliteStore(None)
    given_steps = [{"kind": "step", "id": f"s-{n}", **fields} for n, fields in enumerate(some)]
    frames = [json.encode(step) for step in given_steps]
    if scores_first:
        frames = [
            json.encode({"kind": "score", "step_id": step["id"], **score})
            for step in given_steps
            for score in step.get("scores", ())
        ] + [json.encode({**step, "scores": None}) for step in given_steps]
        for frame in frames:
            store.add([frame])
    assert store.add(frames).rejected == ()
    for fields in conditions:
        kept = StepFilter(**fields)
        expected = sorted(step["id"] for step in given_steps if keeps(kept, step))
        assert sorted(row.id for row in store.steps(kept).items) == expected, kept
        assert sorted(json.decode(record)["id"] for record in store.records(kept)) == expected
    store.close()


@pytest.mark.parametrize(
    ("kept", "index"),
    [
        (StepFilter(feedback="positive"), "steps_feedback"),
        (StepFilter(agent_id="a"), "steps_agent_id"),
        (StepFilter(ids=["a", "b"]), "sqlite_autoindex_steps_1"),
        (StepFilter(trace_ids=["0" * 32]), "steps_stray_trace_id"),
        (StepFilter(metadata={"a": 1}), "steps_start"),
        (StepFilter(score=ScoreFilter("q")), "sqlite_autoindex_scores_1"),
        (StepFilter(has_soft_error=True, type="tool"), "soft_errors_start"),
        (StepFilter(reaction="same_call", root_only=True), "soft_errors_run"),
    ],
)
def test_a_filter_is_answered_from_an_index(kept: StepFilter, index: str) -> None:
    store = SqliteStore(None)
    sql, given_values = select_steps("s.id", kept, Keyset("s", 50, None, "desc"))
    with store._connections.reading() as db:
        plan = " / ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", given_values))
    assert index in plan
    store.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"thread_id": "t"},
        {"tag": "x"},
        {"model": "m", "user": "u"},
        {"status": ("failed", "pending"), "root_only": True},
        {"agent_id": "a", "since_ns": 5},
        {"has_soft_error": True},
    ],
)
def test_of_a_hundred_ids_nothing_else_is_read_whatever_else_they_are_narrowed_by(fields: dict[str, Any]) -> None:
    store = SqliteStore(None)
    kept = StepFilter(ids=[f"s-{n}" for n in range(100)], **fields)
    sql, given_values = select_steps("s.id", kept, Keyset("s", 50, None, "desc"))
    with store._connections.reading() as db:
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", given_values)]
    assert plan[0] == "SEARCH s USING INDEX sqlite_autoindex_steps_1 (id=?)"
    store.close()
