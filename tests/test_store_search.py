"""How the embedded store keeps its index of words: as the steps are, whatever comes, changes or goes.

What holds of every store is in `stepwell.testing`.
"""

from __future__ import annotations

import sqlite3
import threading
import uuid
from pathlib import Path
from typing import Any, cast

import pytest
from msgspec import json

from stepwell.store import Order, Page, StepFilter, StepRow, open_store
from stepwell.store._texts import words_of
from stepwell.store.sqlite import SqliteStore


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "steps.db"


def step(id: str, **fields: Any) -> bytes:
    return json.encode({"kind": "step", "id": id, **fields})


def ids(page: Page[StepRow]) -> list[str]:
    return [row.id for row in page.items]


def all_of(store: SqliteStore, filter: StepFilter, order: Order) -> list[str]:
    found: list[str] = []
    cursor = None
    while True:
        page = store.steps(filter, limit=700, order=order, cursor=cursor)
        found += ids(page)
        if (cursor := page.next_cursor) is None:
            return found


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_a_word_that_most_steps_have_is_found_in_order_wherever_they_lie(order: Order) -> None:
    store = SqliteStore(None)
    times = [n * 7919 % 12_007 for n in range(12_000)]
    store.add(
        [
            step(f"s-{n}", start_ns=at, name=f"n-{n % 100}", output="common" + " odd" * (n % 2))
            for n, at in enumerate(times)
        ]
    )
    assert store.catch_up(60) is True
    store.add([step(f"late-{n}", start_ns=n * 1000, output="common") for n in range(12)])
    store.add([step("s-0", output="gone"), step("s-11999", name="changed")])
    expected = [*((at, f"s-{n}") for n, at in enumerate(times) if n), *((n * 1000, f"late-{n}") for n in range(12))]
    expected.sort(key=lambda item: (item[0], not item[1].startswith("s-")), reverse=order == "desc")
    assert all_of(store, StepFilter(text="common"), order) == [id for _, id in expected]
    odd = [id for _, id in expected if id.startswith("s-") and int(id[2:]) % 2]
    assert all_of(store, StepFilter(text="odd common"), order) == odd
    assert all_of(store, StepFilter(text="odd", name="n-7"), order) == [id for id in odd if int(id[2:]) % 100 == 7]
    store.close()


def test_words_in_line_are_found_in_order_of_start_without_reading_all_of_them() -> None:
    store = SqliteStore(None)
    store.add([step(f"s-{n}", start_ns=n, output="common" + " odd" * (n % 2)) for n in range(9_000)])
    store.catch_up(60)
    assert ids(store.steps(StepFilter(text="common"), limit=3)) == ["s-8999", "s-8998", "s-8997"]
    page = store.steps(StepFilter(text="common -odd"), limit=2)
    assert ids(page) == ["s-8998", "s-8996"]
    assert ids(store.steps(StepFilter(text="common -odd"), limit=2, cursor=page.next_cursor)) == ["s-8994", "s-8992"]
    assert ids(store.steps(StepFilter(text="common"), limit=2, order="asc")) == ["s-0", "s-1"]
    store.close()


@pytest.mark.parametrize("ids_are_uuids", [True, False])
def test_a_word_that_most_runs_have_finds_them_by_any_of_their_steps_and_counts_what_was_found(
    ids_are_uuids: bool,
) -> None:
    def name(run: int, place: int) -> str:
        return str(uuid.UUID(int=(run + 1 << 64) + place)) if ids_are_uuids else f"{run}-{place}"

    store = SqliteStore(None)
    starts = {name(run, 0): run * 7919 % 1_009 for run in range(1_000)}
    for run in range(1_000):
        tools = [
            step(name(run, n), parent_id=name(run, 0), root_run_id=name(run, 0), type="tool", output="common")
            for n in range(1, 8)
        ]
        said = "common" if run % 10 == 5 else run % 2
        root = step(name(run, 0), root_run_id=name(run, 0), type="run", start_ns=starts[name(run, 0)], output=said)
        store.add([root, *(tools if run % 5 else ())])
    assert store.catch_up(60) is True
    changed = {"root_run_id": name(0, 0), "parent_id": name(0, 0)}
    store.add([step(name(0, 9), output="common", **changed), step(name(1, 1), output="common still")])
    expected = [id for run, id in enumerate(starts) if run == 0 or run % 10]
    expected.sort(key=starts.__getitem__)
    for order, ids_in_order in (("asc", expected), ("desc", expected[::-1])):
        found, cursor = [], None
        while True:
            page = store.runs(StepFilter(text="common"), limit=300, cursor=cursor, order=cast("Order", order))
            found += ids(page)
            if (cursor := page.next_cursor) is None:
                break
        assert found == ids_in_order
    facets = store.facets(StepFilter(text="common", root_only=True))
    assert (facets.values["type"], facets.more) == ([("run", 178)], True)  # among the latest 200
    facets = store.facets(StepFilter(text="common", root_only=True, since_ns=850))
    assert (facets.values["type"], facets.more) == ([("run", 140)], False)
    facets = store.facets(StepFilter(text="common"))
    assert (facets.counted, facets.more) == (100, True)
    store.close()


def test_values_are_counted_of_a_part_of_what_a_text_finds_where_finding_more_takes_long() -> None:
    def name(run: int, place: int = 0) -> str:
        return str(uuid.UUID(int=(run + 1 << 64) + place))

    store = SqliteStore(None)
    for run in range(300):
        links = {"root_run_id": name(run), "parent_id": name(run)}
        inner = [step(name(run, n), output="often" if run % 2 else "other", **links) for n in range(1, 61)]
        store.add([step(name(run), root_run_id=name(run), type="run", start_ns=run, output="outer"), *inner])
    assert store.catch_up(60) is True
    facets = store.facets(StepFilter(text="often", root_only=True))
    assert (facets.values["type"], facets.more) == ([("run", 100)], True)  # of the latest 200 runs
    facets = store.facets(StepFilter(text="often", root_only=True, until_ns=150))
    assert (facets.values["type"], facets.more) == ([("run", 75)], False)
    assert len(store.runs(StepFilter(text="often"), limit=1000).items) == 150
    store.close()


def test_steps_that_are_gone_are_not_found(path: Path) -> None:
    store = open_store(str(path))
    store.add([step(f"s-{n}", start_ns=n, output="word") for n in range(4)])
    store.catch_up()
    db = sqlite3.connect(path)
    db.execute("DELETE FROM steps WHERE id = 's-2'")
    db.commit()
    assert ids(store.steps(StepFilter(text="word"))) == ["s-3", "s-1", "s-0"]
    db.close()
    store.close()


def test_an_index_that_was_dropped_or_holds_mostly_old_states_is_made_anew(path: Path) -> None:
    store = open_store(str(path))
    store.add([step(f"s-{n}", start_ns=n, output="word") for n in range(4)])
    store.catch_up()
    db = sqlite3.connect(path)
    for change in ("DROP TABLE step_texts", "UPDATE indexed SET texts = 10009"):
        db.execute(change)
        db.commit()
        assert ids(store.steps(StepFilter(text="word"))) == ["s-3", "s-2", "s-1", "s-0"]
        assert store.catch_up() is True
        assert db.execute("SELECT texts FROM indexed").fetchone() == (4,)
        assert ids(store.steps(StepFilter(text="word"))) == ["s-3", "s-2", "s-1", "s-0"]
    db.close()
    store.close()


def test_only_the_newest_of_what_is_not_indexed_is_searched(path: Path) -> None:
    store = open_store(str(path))
    store.add([step(f"s-{n}", start_ns=n, output="word") for n in range(2_100)])
    store.close()
    reader = open_store(str(path), read_only=True)
    assert ids(reader.steps(StepFilter(text="word"), limit=1, order="asc")) == ["s-100"]
    assert ids(reader.steps(StepFilter(text="word"), limit=1)) == ["s-2099"]
    reader.close()


def test_messages_in_packs_are_found(path: Path) -> None:
    store = open_store(str(path))
    history: list[dict[str, str]] = []
    for n in range(30):
        history += [{"role": "user", "content": f"question{n} " + "about the flight " * 20}]
        frames = [
            step(
                f"s-{n}-{m}",
                type="llm",
                start_ns=n * 10 + m,
                thread_id="t",
                generation={"messages": history, "completion": f"a{m}"},
            )
            for m in range(3)
        ]
        store.add(frames)
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM packs").fetchone()[0] > 0
    for _ in range(2):
        assert ids(store.steps(StepFilter(text="question29"))) == ["s-29-0"]
        assert ids(store.steps(StepFilter(text="question3"))) == ["s-3-0"]
        assert len(ids(store.steps(StepFilter(text="question*")))) == 30
        store.catch_up()
    db.execute("DELETE FROM packs")
    db.execute("DROP TABLE step_texts")
    db.commit()
    assert store.catch_up() is True
    assert ids(store.steps(StepFilter(text="question29"))) == []
    db.close()
    store.close()


def test_stores_that_index_at_the_same_time_index_nothing_twice(path: Path) -> None:
    stores = [open_store(str(path)) for _ in range(3)]
    stores[0].add([step(f"s-{n}", start_ns=n, output="word") for n in range(3_000)])
    threads = [threading.Thread(target=store.catch_up, args=(60,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM step_texts WHERE step_texts MATCH 'word'").fetchone() == (3_000,)
    assert db.execute("SELECT texts FROM indexed").fetchone() == (3_000,)
    db.close()
    for store in stores:
        store.close()


def test_the_words_of_a_payload_are_its_strings_in_their_order() -> None:
    value = {"a": ["one", {"b": "two"}, 3, None], "c": "Zm9v" * 20, "d": "three"}
    assert list(words_of(value)) == ["one", "two", "three"]
    assert list(words_of(value, keys=True)) == ["a", "one", "b", "two", "3", "c", "d", "three"]
    deep: Any = "end"
    for _ in range(5_000):
        deep = [deep]
    assert list(words_of(deep)) == ["end"]
