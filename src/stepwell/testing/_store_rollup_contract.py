"""What the sums of every store must keep, one sentence a test; a part of `StoreContract`."""

from __future__ import annotations

from typing import Any

import pytest

from stepwell.errors import UsageError
from stepwell.store import MAX_ROLLUPS, Histogram, HistogramBin, Rollup, RollupQuery, StepFilter, Store
from stepwell.testing._store_filter_contract import StoreFilterContract
from stepwell.testing._store_reading_contract import finished, line, step

__all__ = ["StoreRollupContract"]

HOUR_NS = 3_600_000_000_000
DAY_NS = 24 * HOUR_NS
MONDAY_NS = 20_000 * DAY_NS
SECOND_NS = 1_000_000_000


def sums(store: Store, **query: Any) -> list[tuple[Any, ...]]:
    """Return what `by` names and how many steps there are, of each rollup."""
    asked = RollupQuery(**query)
    return [(row.start_ns, *(getattr(row, name) for name in asked.by), row.steps) for row in store.rollups(asked)]


def week() -> list[bytes]:
    """Encode a step an hour for three days, in two environments, every fourth of them a model call."""
    return [
        finished(
            f"s-{n}",
            MONDAY_NS + n * HOUR_NS + 5,
            name=f"name-{n % 2}",
            environment="prod" if n % 3 else "test",
            user=f"user-{n % 5}" if n % 7 else None,
            **({} if n % 4 else {"type": "llm", "generation": {"model": "m", "prompt": "p"}}),
        )
        for n in range(72)
    ]


class StoreRollupContract(StoreFilterContract):
    """The part of the conformance suite that is about sums over time, and over users."""

    def test_a_histogram_counts_the_steps_of_a_list_over_time(self, store: Store) -> None:
        store.add([*week(), finished("inside", MONDAY_NS, parent_id="s-0", status="failed"), step("undated")])
        days = [(MONDAY_NS + n * DAY_NS, MONDAY_NS + (n + 1) * DAY_NS) for n in range(3)]
        begun = days[2][0] + 22 * HOUR_NS
        for _ in range(2):
            found = store.histogram(StepFilter(since_ns=begun - 5))
            assert found == Histogram(
                [HistogramBin(begun + n * HOUR_NS, begun + (n + 1) * HOUR_NS, 1, 0) for n in (0, 1)], begun
            )
            found = store.histogram(StepFilter(type="llm", environment="test", until_ns=days[1][0]))
            assert found == Histogram(
                [HistogramBin(MONDAY_NS + n * HOUR_NS, MONDAY_NS + (n + 1) * HOUR_NS, 1, 0) for n in (0, 12)]
            )
            found = store.histogram()
            assert found is not None
            assert [sum(column) for column in zip(*found.bins, strict=True)][2:] == [73, 1]
            assert found.undated == 1
            top = store.histogram(StepFilter(root_only=True))
            assert top is not None
            assert [sum(column) for column in zip(*top.bins, strict=True)][2:] == [72, 0]
            assert store.histogram(StepFilter(root_only=True, status="failed")) == Histogram([])
            assert store.histogram(StepFilter(since_ns=begun + 1, until_ns=begun + HOUR_NS)) is None
            store.catch_up()

    def test_a_rollup_sums_what_its_steps_have(self, store: Store) -> None:
        usage = {"input_tokens": 10, "output_tokens": 2, "cached_input_tokens": 4}
        generation = {"model": "m", "prompt": "p", "usage": usage, "cost": 0.25}
        start_ns = MONDAY_NS + 7
        store.add(
            [
                step("a", type="llm", start_ns=start_ns, end_ns=start_ns, status="success", generation=generation),
                step("b", type="llm", start_ns=start_ns, end_ns=start_ns, status="failed", generation=generation),
                step("c", type="llm", start_ns=start_ns, status="pending", generation=generation),
                step("d", type="llm", start_ns=start_ns, end_ns=start_ns + 9, status="interrupted"),
                step(
                    "e",
                    type="llm",
                    start_ns=start_ns,
                    end_ns=start_ns + 1000,
                    status="cancelled",
                    generation=generation,
                ),
            ]
        )
        expected = Rollup(
            start_ns=MONDAY_NS,
            model="m",
            steps=4,
            errors=1,
            cancelled=1,
            pending=1,
            input_tokens=40,
            output_tokens=8,
            total_tokens=48,
            cached_input_tokens=16,
            cost=1.0,
            timed=3,
            duration_ns=1000,
            p50_ns=0,
            p90_ns=1015,
            p95_ns=1015,
            p99_ns=1015,
        )
        without = Rollup(start_ns=MONDAY_NS, steps=1, interrupted=1)
        query = RollupQuery(by=["model"])
        assert store.rollups(query) == [without, expected]
        assert store.catch_up() is True
        assert store.rollups(query) == [without, expected]

    @pytest.mark.parametrize("counted", [0, 40, 72])
    def test_hours_and_days_are_those_of_the_start_in_utc(self, store: Store, counted: int) -> None:
        store.add(week()[:counted])
        store.catch_up()
        store.add(week()[counted:])
        assert sums(store) == [(MONDAY_NS + day * DAY_NS, 24) for day in range(3)]
        assert sums(store, every="hour") == [(MONDAY_NS + hour * HOUR_NS, 1) for hour in range(72)]
        assert sums(store, every=None) == [(None, 72)]
        assert sums(store, every=None, by=["type", "name"]) == [
            (None, "llm", "name-0", 18),
            (None, "run", "name-0", 18),
            (None, "run", "name-1", 36),
        ]

    @pytest.mark.parametrize("counted", [0, 40, 72])
    @pytest.mark.parametrize(
        ("since_ns", "until_ns", "expected"),
        [
            (0, DAY_NS, [(0, 24)]),
            (5, HOUR_NS + 5, [(0, 1)]),
            (6, HOUR_NS + 6, [(0, 1)]),
            (6, HOUR_NS + 5, []),
            (6, None, [(0, 23), (1, 24), (2, 24)]),
            (None, 2 * DAY_NS + 3 * HOUR_NS + 6, [(0, 24), (1, 24), (2, 4)]),
            (20 * HOUR_NS + 6, 50 * HOUR_NS + 5, [(0, 3), (1, 24), (2, 2)]),
            (23 * HOUR_NS, 25 * HOUR_NS, [(0, 1), (1, 1)]),
            (90 * HOUR_NS, 91 * HOUR_NS, []),
            (9, 8, []),
        ],
    )
    def test_a_range_is_kept_to_the_nanosecond(
        self, store: Store, counted: int, since_ns: int | None, until_ns: int | None, expected: list[tuple[int, int]]
    ) -> None:
        store.add(week()[:counted])
        store.catch_up()
        store.add(week()[counted:])
        bounds = {
            "since_ns": None if since_ns is None else MONDAY_NS + since_ns,
            "until_ns": None if until_ns is None else MONDAY_NS + until_ns,
        }
        assert sums(store, **bounds) == [(MONDAY_NS + day * DAY_NS, count) for day, count in expected]
        assert sum(row[-1] for row in sums(store, every="hour", by=["user"], **bounds)) == sum(n for _, n in expected)
        together = sums(store, every=None, by=["type"], user="user-1", **bounds)
        alone = sums(store, every=None, user="user-1", **bounds)
        assert sum(row[-1] for row in together) == sum(row[-1] for row in alone)

    def test_rollups_are_of_the_steps_whose_fields_are_equal(self, store: Store) -> None:
        store.add(week())
        for _ in range(2):
            assert sums(store, every=None, environment="test") == [(None, 24)]
            assert sums(store, every=None, model="m", environment="test") == [(None, 6)]
            assert sums(store, every=None, by=["environment"], user="user-1") == [(None, "prod", 9), (None, "test", 4)]
            assert sums(store, every=None, by=["type"], user="user-1") == [(None, "llm", 2), (None, "run", 11)]
            assert sums(store, every=None, name="unknown") == []
            assert sums(store, every=None, by=["user"], type="llm")[:2] == [(None, None, 3), (None, "user-0", 3)]
            store.catch_up()

    def test_a_step_without_a_start_counts_where_no_range_is_given(self, store: Store) -> None:
        store.add([step("a"), finished("b", MONDAY_NS)])
        for _ in range(2):
            assert sums(store) == [(None, 1), (MONDAY_NS, 1)]
            assert sums(store, since_ns=0) == [(MONDAY_NS, 1)]
            assert sums(store, until_ns=MONDAY_NS) == []
            store.catch_up()

    def test_a_step_that_changes_is_counted_as_it_is(self, store: Store) -> None:
        store.add([step("a", name="n", type="tool", start_ns=MONDAY_NS, status="pending")])
        store.catch_up()
        store.add([step("a", name="m", end_ns=MONDAY_NS + SECOND_NS, status="failed", start_ns=MONDAY_NS + DAY_NS)])
        for _ in range(2):
            (row,) = store.rollups(RollupQuery(by=["name"]))
            assert (row.start_ns, row.name, row.steps, row.errors, row.pending) == (MONDAY_NS + DAY_NS, "m", 1, 1, 0)
            assert store.stats().by_status == {"failed": 1}
            assert store.catch_up() is True

    def test_percentiles_are_within_two_percent(self, store: Store) -> None:
        lengths = [(n * n * 7919) % 1_000_003 * 1000 for n in range(1, 500)]
        store.add([finished(f"s-{n}", MONDAY_NS, end_ns=MONDAY_NS + length) for n, length in enumerate(lengths)])
        ordered = sorted(lengths)
        for _ in range(2):
            (row,) = store.rollups()
            assert (row.timed, row.duration_ns) == (499, sum(lengths))
            exact = {"p50_ns": ordered[249], "p90_ns": ordered[449], "p95_ns": ordered[474], "p99_ns": ordered[494]}
            assert {name: getattr(row, name) for name in exact} == pytest.approx(exact, rel=0.02)
            store.catch_up()

    def test_percentiles_are_left_out_where_they_are_not_asked_for(self, store: Store) -> None:
        store.add([step("a", start_ns=5, end_ns=105, status="success")])
        for counted in (False, True):
            assert store.catch_up() or not counted
            (row,) = store.rollups(RollupQuery(percentiles=False))
            assert (row.steps, row.timed, row.duration_ns, row.p50_ns, row.p99_ns) == (1, 1, 100, None, None)

    def test_sums_of_hostile_numbers_are_cut_and_break_nothing(self, store: Store) -> None:
        huge = (1 << 63) - 1
        usage = {"input_tokens": huge, "output_tokens": 0, "total_tokens": huge}
        generation = {"prompt": "p", "usage": usage, "cost": 1e300}
        for n in range(6):
            store.add([finished(f"s-{n}", 0, end_ns=huge, type="llm", user="ada", generation=generation)])
            assert store.catch_up() is (n != 6)
        (row,) = store.rollups()
        assert (row.steps, row.total_tokens, row.input_tokens, row.duration_ns) == (6, huge, huge, huge)
        assert store.users().items[0].tokens == huge

    def test_a_query_that_is_none_is_a_usage_error(self, store: Store) -> None:
        with pytest.raises(UsageError, match="by must be of type, name, model, user, environment, got 'status'"):
            store.rollups(RollupQuery(by=["status"]))  # type: ignore[list-item]
        with pytest.raises(UsageError, match="every must be 'hour', 'day' or None, got 'week'"):
            store.rollups(RollupQuery(every="week"))  # type: ignore[arg-type]
        assert MAX_ROLLUPS == 100_000

    # users

    def test_users_are_listed_by_their_latest_step(self, store: Store) -> None:
        usage = {"total_tokens": 5}
        generation = {"prompt": "p", "usage": usage, "cost": 0.5}
        store.add(
            [
                finished("a", 10, user="ada", type="llm", generation=generation),
                finished("b", 40, user="bob", status="failed"),
                finished("c", 30, user="ada"),
                finished("d", 50),
                finished("e", 20, user="eve"),
                step("f", user="fay"),
            ]
        )
        for _ in range(2):
            rows = [(row.user, row.steps, row.errors, row.first_ns, row.last_ns) for row in store.users().items]
            assert rows == [
                ("bob", 1, 1, 40, 40),
                ("ada", 2, 0, 10, 30),
                ("eve", 1, 0, 20, 20),
                ("fay", 1, 0, None, None),
            ]
            ada = store.users().items[1]
            assert (ada.tokens, ada.cost, ada.threads) == (5, 0.5, 0)
            assert [row.user for row in store.users(order="asc").items] == ["fay", "eve", "ada", "bob"]
            store.catch_up()

    def test_a_step_belongs_to_the_user_of_its_thread_where_it_names_none(self, store: Store) -> None:
        store.add([finished("a", 10, thread_id="t"), finished("b", 20, thread_id="t", user="bob")])
        store.catch_up()
        store.add([line("thread", "t", user={"id": "u-1", "identifier": "ada"})])
        for _ in range(2):
            rows = [(row.user, row.steps, row.threads) for row in store.users().items]
            assert rows == [("bob", 1, 0), ("ada", 1, 1)]
            assert sums(store, by=["user"]) == [(0, "ada", 1), (0, "bob", 1)]
            assert sums(store, by=["type"], user="ada") == [(0, "run", 1)]
            store.catch_up()
        store.add([line("thread", "t", user={"identifier": "eve"})])
        for _ in range(2):
            assert sums(store, user="ada") == []
            assert [(row.user, row.steps) for row in store.users().items] == [("bob", 1), ("eve", 1)]
            store.catch_up()

    def test_pages_of_users_neither_lose_nor_repeat_one(self, store: Store) -> None:
        store.add([finished(f"a-{n}", n // 3, user=f"user-{n}") for n in range(20)])
        store.catch_up()
        store.add([finished(f"b-{n}", 3, user=f"user-{n}") for n in range(0, 25, 4)])
        expected = [row.user for row in store.users().items]
        assert len(expected) == 22
        for order in ("desc", "asc"):
            seen: list[str] = []
            cursor = None
            while True:
                page = store.users(limit=4, cursor=cursor, order=order)
                seen += [row.user for row in page.items]
                store.catch_up()
                if (cursor := page.next_cursor) is None:
                    break
            assert seen == (expected if order == "desc" else expected[::-1])
        with pytest.raises(UsageError, match="belongs to another list"):
            store.steps(cursor=store.users(limit=4).next_cursor)

    def test_catching_up_takes_no_longer_than_it_may(self, store: Store) -> None:
        store.add([finished(f"s-{n}", n) for n in range(3000)])
        turns = 1
        while not store.catch_up(0):
            turns += 1
            assert turns < 3000
        assert sums(store) == [(0, 3000)]
        assert store.catch_up(0) is True
