"""The language of filters: what each term means, where an error points, and that text and filter say the same."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from stepwell.errors import UsageError
from stepwell.model import STATUSES, STEP_TYPES
from stepwell.store import ScoreFilter, StepFilter
from stepwell.store._language import QueryError, format_query, parse_query, split_terms

NOW_NS = 1_790_000_000_000_000_000
HOUR_NS = 3_600_000_000_000


def parse(text: str) -> StepFilter:
    return parse_query(text, now_ns=NOW_NS)


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("", {}),
        ("type:llm", {"type": ("llm",)}),
        ("type:llm,tool", {"type": ("llm", "tool")}),
        ("model:gpt-4o status:failed", {"model": "gpt-4o", "status": "failed"}),
        ("tag:vip tag:new", {"tag": ("vip", "new")}),
        ("tag:a,b", {"tag_any": ("a", "b")}),
        ('tag:"a,b"', {"tag": ("a,b",)}),
        ("tokens:>1000", {"min_tokens": 1001}),
        ("tokens:>=10k tokens:<2M", {"min_tokens": 10_000, "max_tokens": 1_999_999}),
        ("tokens:7", {"min_tokens": 7, "max_tokens": 7}),
        ("cost:>0.1", {"min_cost": math.nextafter(0.1, 1)}),
        ("duration:>2s", {"min_duration_ns": 2_000_000_001}),
        ("duration:<=1.5ms", {"max_duration_ns": 1_500_000}),
        ("since:2h", {"since_ns": NOW_NS - 2 * HOUR_NS}),
        ("until:1970-01-02", {"until_ns": 24 * HOUR_NS}),
        ("until:1970-01-01T01:00:00.000000005", {"until_ns": HOUR_NS + 5}),
        ("until:1970-01-01T01:00+01:00", {"until_ns": 0}),
        ("since:1790000000000000000", {"since_ns": NOW_NS}),
        ("user:ada thread:t-1 env:prod", {"user": "ada", "thread_id": "t-1", "environment": "prod"}),
        (
            "service:s release:1.2 agent:a provider:p",
            {"service": "s", "release": "1.2", "agent_id": "a", "provider": "p"},
        ),
        ('name:"two words"', {"name": "two words"}),
        (r'name:"a \"b\" \\ \n"', {"name": 'a "b" \\ \n'}),
        ("error:ValueError", {"error_type": "ValueError"}),
        ("error:any", {"has_error": True}),
        ("error:none", {"has_error": False}),
        ('error:"any"', {"error_type": "any"}),
        ("feedback:positive", {"feedback": "positive"}),
        ("feedback:none", {"has_feedback": False}),
        ("soft_error:true", {"has_soft_error": True}),
        ("soft_error:false", {"has_soft_error": False}),
        ("soft_error:error reaction:same_call", {"soft_error": "error", "reaction": "same_call"}),
        ("-soft_error:empty", {"none_of": (StepFilter(soft_error="empty"),)}),
        ("score:relevance", {"score": ScoreFilter("relevance")}),
        ("score:relevance>=0.8", {"score": ScoreFilter("relevance", min=0.8)}),
        ("score:a>=0.2 score:a<=0.4", {"score": ScoreFilter("a", min=0.2, max=0.4)}),
        ("score:tone=kind", {"score": ScoreFilter("tone", label="kind")}),
        ("metadata.customer:acme", {"metadata": {"customer": "acme"}}),
        ("metadata.a.b:1 metadata.c:true", {"metadata": {"a.b": 1, "c": True}}),
        ('metadata."a b":"1"', {"metadata": {"a b": "1"}}),
        ("metadata.a:null metadata.b:1.5", {"metadata": {"a": None, "b": 1.5}}),
        ("trace:abc id:x,y", {"trace_id": "abc", "ids": ("x", "y")}),
        ("is:top run:r parent:p", {"root_only": True, "root_run_id": "r", "parent_id": "p"}),
        ("-tag:x type:run", {"type": ("run",), "none_of": (StepFilter(tag=("x",)),)}),
        ("-name:a -name:b", {"none_of": (StepFilter(name="a"), StepFilter(name="b"))}),
    ],
)
def test_a_query_means(text: str, members: dict[str, Any]) -> None:
    assert parse(text) == StepFilter(**members)


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("type:llm colour:red", 9, "no field 'colour'"),
        ("type:tool,llmm", 10, "'llmm' is not one of"),
        ("status:", 7, "expected a value"),
        ("name:a name:b", 12, "given before"),
        ("name:a,b", 6, "one value"),
        ('user:"ada', 5, "not closed"),
        (r'user:"a\x"', 7, "expected"),
        ("tokens:>many", 8, "whole number"),
        ("tokens:1.5", 7, "whole number"),
        ("cost:>nan", 6, "expected a number"),
        ("duration:>2", 10, "its unit"),
        ("since:yesterday", 6, "a time ago"),
        ("since:2026-13-40", 6, "a time ago"),
        ("metadata:x", 8, "expected a path"),
        ("metadata.a", 10, "expected a colon"),
        ("metadata.a..b:1", 9, "joined by dots"),
        ("score:a score:b", 14, "scores of one name"),
        ('tag:"a"b', 7, "expected a space"),
        ("is:hidden", 3, "is not one of"),
        ("feedback:good", 9, "is not one of"),
        ("soft_error:any", 11, "'any' is not one of empty, error, false, true"),
        ("soft_error:true reaction:again", 25, "'again' is not one of answered, none, other_arguments, other_tool,"),
        ("type:llm  -status:lost", 18, "is not one of"),
        ("x" * 4001, 4000, "4,000 characters"),
    ],
)
def test_an_error_points_at_the_character(text: str, position: int, says: str) -> None:
    with pytest.raises(QueryError, match=says) as raised:
        parse(text)
    assert raised.value.position == position
    assert f"(at character {position + 1})" in str(raised.value)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"type": "llm"}, "type:llm"),
        ({"name": "two words"}, 'name:"two words"'),
        ({"name": "-a"}, 'name:"-a"'),
        ({"name": ""}, 'name:""'),
        ({"min_cost": math.nextafter(0.1, 1)}, "cost:>0.1"),
        ({"min_duration_ns": 2_000_000_000, "max_duration_ns": 60_000_000_000}, "duration:>=2s duration:<=1m"),
        (
            {"since_ns": 24 * HOUR_NS, "until_ns": 24 * HOUR_NS + 5},
            "since:1970-01-02 until:1970-01-02T00:00:00.000000005Z",
        ),
        ({"metadata": {"n": 1, "s": "1", "t": "x"}}, 'metadata.n:1 metadata.s:"1" metadata.t:x'),
        ({"none_of": (StepFilter(status="failed"),)}, "-status:failed"),
        ({"score": ScoreFilter("a b", min=0.5, label="x")}, 'score:"a b">=0.5 score:"a b"="x"'),
    ],
)
def test_a_filter_is_written_as(members: dict[str, Any], text: str) -> None:
    assert format_query(StepFilter(**members)) == text


@pytest.mark.parametrize(
    "filter",
    [
        StepFilter(ids=()),
        StepFilter(tag_any=("a",)),
        StepFilter(none_of=(StepFilter(name="a", user="b"),)),
        StepFilter(none_of=(StepFilter(),)),
    ],
)
def test_a_filter_that_the_language_cannot_say_is_refused(filter: StepFilter) -> None:
    with pytest.raises(UsageError):
        format_query(filter)


texts = some.text(some.characters(exclude_categories=["Cs"]), max_size=20)
paths = some.lists(texts.filter(lambda text: text and not set(text) & set('."\\')), min_size=1, max_size=3).map(
    ".".join
)
counts = some.integers(0, 1 << 62)
amounts = some.floats(0, 1e12, allow_nan=False)
scalars = (
    texts | some.integers(-(1 << 60), 1 << 60) | some.booleans() | some.none() | some.floats(-1e9, 1e9, allow_nan=False)
)
MEMBERS: dict[str, some.SearchStrategy[Any]] = {
    "type": some.lists(some.sampled_from(sorted(STEP_TYPES)), min_size=1, max_size=3).map(tuple),
    "status": some.sampled_from(sorted(STATUSES)),
    **dict.fromkeys(("name", "model", "provider", "agent_id", "thread_id", "trace_id", "user", "error_type"), texts),
    **dict.fromkeys(("environment", "service", "release", "root_run_id", "parent_id"), texts),
    "tag": some.lists(texts, min_size=1, max_size=3).map(tuple),
    "tag_any": some.lists(texts, min_size=2, max_size=3).map(tuple),
    "ids": some.lists(texts, min_size=1, max_size=3).map(tuple),
    "has_error": some.booleans(),
    "has_feedback": some.booleans(),
    "feedback": some.sampled_from(["positive", "negative"]),
    "has_soft_error": some.booleans(),
    "soft_error": some.sampled_from(["error", "empty"]),
    "reaction": some.sampled_from(["same_call", "other_arguments", "other_tool", "answered", "none"]),
    "score": some.builds(ScoreFilter, texts, some.none() | amounts, some.none() | amounts, some.none() | texts),
    "metadata": some.dictionaries(paths, scalars, min_size=1, max_size=3),
    **dict.fromkeys(("since_ns", "until_ns"), some.integers(0, (1 << 63) - 1)),
    **dict.fromkeys(("min_tokens", "max_tokens", "min_duration_ns", "max_duration_ns"), counts),
    **dict.fromkeys(("min_cost", "max_cost"), amounts),
    "root_only": some.just(value=True),
}
conditions = some.fixed_dictionaries({}, optional=MEMBERS)
one_condition = some.sampled_from(sorted(set(MEMBERS) - {"score", "metadata", "tag"})).flatmap(
    lambda name: MEMBERS[name].map(lambda value: StepFilter(**{name: value}))
)


@pytest.mark.usefixtures("untraced")
@given(conditions, some.lists(one_condition, max_size=2).map(tuple))
@settings(max_examples=300, deadline=None)
def test_what_is_written_is_read_as_the_same_filter(members: dict[str, Any], none_of: tuple[StepFilter, ...]) -> None:
    filter = StepFilter(**members, none_of=none_of)
    assert parse(format_query(filter)) == filter


hostile = some.text(some.sampled_from('ab:",.\\<>=- \n\t1e9tagscoremetadatasince\u202e\x00"')) | some.text(max_size=60)


@given(hostile)
@settings(max_examples=500, deadline=None)
def test_every_text_is_a_filter_or_an_error_that_names_the_place(text: str) -> None:
    found: StepFilter | int
    try:
        found = parse(text)
    except QueryError as error:
        found = error.position
    if isinstance(found, int):
        assert 0 <= found <= len(text)
    else:
        assert parse(format_query(found)) == found


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        (" a  b ", ["a", "b"]),
        ('name:"two words" x', ['name:"two words"', "x"]),
        (r'tag:"a\" b",c -d:e', [r'tag:"a\" b",c', "-d:e"]),
        ('a "open end', ["a", '"open end']),
    ],
)
def test_a_query_is_split_into_its_terms(text: str, terms: list[str]) -> None:
    assert split_terms(text) == terms
