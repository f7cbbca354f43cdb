"""Pages by type, name or environment read only the hours that may have such steps, and are the same pages."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import json

from stepwell.errors import NotFoundError
from stepwell.store import Order, StepFilter
from stepwell.store._query import Keyset, select_steps
from stepwell.store._rare import MAX_UNCOUNTED, select_by_hours
from stepwell.store._summaries import DAY_NS, HOUR_NS
from stepwell.store.sqlite import SqliteStore

words = st.sampled_from(["a", "b"])
hours = st.sampled_from([0, 1, 2, 3, 25, 60]).map(lambda hour: hour * HOUR_NS)
starts = st.one_of(
    st.none(), hours, hours.map(lambda start_ns: max(start_ns - 1, 0)), st.sampled_from([9 * DAY_NS + 1, (1 << 63) - 1])
)
types = st.sampled_from(["run", "tool"])
steps = st.fixed_dictionaries(
    {"id": st.integers(0, 11).map(lambda n: f"s-{n}")},
    optional={
        "type": types,
        "name": words,
        "environment": words,
        "start_ns": starts,
        "parent_id": st.just("p"),
        "thread_id": words,
        "status": st.sampled_from(["success", "failed"]),
    },
)
changes = st.one_of(st.lists(steps, min_size=1, max_size=12), st.just("count"), words)  # a word: that thread is deleted
filters = st.fixed_dictionaries(
    {},
    optional={
        "type": st.one_of(types, st.just(("run", "tool", "llm"))),
        "name": words,
        "environment": words,
        "root_only": st.booleans(),
        "since_ns": hours,
        "until_ns": st.one_of(hours, st.just(1 << 64)),
    },
).filter(lambda fields: {"type", "name", "environment"} & fields.keys())


def rows_of(store: SqliteStore, filter: StepFilter, order: Order, limit: int) -> list[list[Any]]:
    """Return the pages, each checked against what is read without hours."""
    pages: list[list[Any]] = []
    cursor = None
    with store._connections.reading() as db:
        while True:
            plain = db.execute(*select_steps("s.id", filter, Keyset("s", limit, cursor, order))).fetchall()
            page = Keyset("s", limit, cursor, order)
            assert select_by_hours(db, "s.id", filter, page) == plain
            pages.append(plain[:limit])
            if len(plain) <= limit:
                return pages
            number, start_ns, _ = plain[limit - 1]
            cursor = page.next(start_ns, number)


@pytest.mark.usefixtures("untraced")
@settings(max_examples=150, deadline=None)
@given(st.lists(changes, max_size=5), st.lists(filters, min_size=1, max_size=3), st.integers(1, 4))
def test_pages_are_those_of_all_steps(changes: list[Any], conditions: list[dict[str, Any]], limit: int) -> None:
    store = SqliteStore(None)
    for change in changes:
        if change == "count":
            store.catch_up()
        elif isinstance(change, str):
            with suppress(NotFoundError):
                store.delete_thread(change)
        else:
            store.add([json.encode({"kind": "step", **step}) for step in change])
    for fields in conditions:
        rows_of(store, StepFilter(**fields), "desc", limit)
        rows_of(store, StepFilter(**fields), "asc", limit)
    store.close()


@pytest.fixture
def counted() -> SqliteStore:
    """A store with twenty steps an hour over twenty days, two of which are rare."""
    store = SqliteStore(None)
    made = [{"id": f"s-{n}", "name": "often", "start_ns": n * HOUR_NS // 20} for n in range(20 * 24 * 20)]
    made[50] |= {"name": "rare"}
    made[4_000] |= {"name": "rare", "status": "failed"}
    for first in range(0, len(made), 5000):
        store.add([json.encode({"kind": "step", "type": "tool", **step}) for step in made[first : first + 5000]])
    store.catch_up()
    return store


def test_what_is_rare_or_never_was_costs_the_hours_in_which_it_was(counted: SqliteStore) -> None:
    def cost(filter: StepFilter) -> tuple[list[str], int]:
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        with counted._connections.reading() as db:
            db.set_progress_handler(count, 100)
            try:
                rows = select_by_hours(db, "s.id", filter, Keyset("s", 50, None, "desc"))
            finally:
                db.set_progress_handler(None, 0)
        assert rows is not None
        return [id for *_, id in rows], steps

    never, never_cost = cost(StepFilter(name="never"))
    rare, rare_cost = cost(StepFilter(name="rare"))
    _, often_cost = cost(StepFilter(name="often"))
    assert (never, rare) == ([], ["s-4000", "s-50"])
    assert never_cost < 20  # thousands of instructions, where all steps would be a hundred thousand
    assert rare_cost < 40
    assert often_cost < 40


def test_what_was_not_counted_yet_is_found_too(counted: SqliteStore) -> None:
    counted.add([b'{"kind":"step","id":"new","type":"tool","name":"rare","start_ns":7}'])
    counted.add([b'{"kind":"step","id":"s-9","environment":"test"}'])
    assert [row.id for row in counted.steps(StepFilter(name="rare")).items] == ["s-4000", "s-50", "new"]
    assert [row.id for row in counted.steps(StepFilter(environment="test")).items] == ["s-9"]
    facets = counted.facets(StepFilter(name="rare"))
    assert (facets.counted, dict(facets.values["status"])) == (3, {"failed": 1})


def test_where_much_is_not_counted_all_is_read(counted: SqliteStore) -> None:
    counted.add([b'{"kind":"step","id":"x-%d","type":"rerank","name":"new"}' % n for n in range(MAX_UNCOUNTED)])
    with counted._connections.reading() as db:
        page = Keyset("s", 50, None, "desc")
        assert select_by_hours(db, "s.id", StepFilter(name="new"), page) is None
    assert len(counted.steps(StepFilter(name="new"), limit=1000).items) == 1000
