"""Runs that the server keeps put together: until something of them changes, whoever changes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from viewing import Record, a_run, a_step, add

from stepwell.errors import NotFoundError
from stepwell.server.pages._families import MAX_RUNS, Families
from stepwell.server.pages._rows import Family
from stepwell.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:{tmp_path}/steps.db")
    inner = [a_step(f"tool-{n:02d}", "tool", n, n + 0.5, "agent", thread_id="t-1") for n in range(20)]
    lost = a_step("lost", "tool", 7, 8, "unheard-of")
    add(store, a_run(), a_step("agent", "run", 0, 9), a_step("open", "llm", 1, None), lost, *inner)
    yield store
    store.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    """Another process's view of the same file, as far as SQLite is concerned."""
    other = open_store(f"sqlite:{tmp_path}/steps.db")
    yield other
    other.close()


def shape(family: Family) -> list[tuple[str, int, str | None]]:
    return [(row.step.id, row.depth, row.step.status) for row in family.rows]


def test_steps_of_other_runs_leave_a_kept_run_as_it_is(store: Store, other: Store) -> None:
    families = Families()
    kept = families.of(store, "run")
    add(other, *(a_step(f"other-{n}", "tool", n, n + 1, None, root=f"other-{n}", trace=f"o-{n}") for n in range(11)))
    assert families.of(store, "run") is kept


def test_more_changes_than_half_the_run_has_steps_are_not_looked_through(store: Store, other: Store) -> None:
    families = Families()
    kept = families.of(store, "run")
    add(other, *(a_step(f"other-{n}", "tool", n, n + 1, None, root=f"other-{n}", trace=f"o-{n}") for n in range(13)))
    again = families.of(store, "run")
    assert again is not kept
    assert shape(again) == shape(kept)
    assert families.of(store, "run") is again


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (a_step("new", "tool", 9, 10, "agent"), ("new", 2, "success")),
        (a_step("new", "tool", 9, 10, "nobody"), ("new", 1, "success")),
        (a_step("new", "tool", 9, 10, "tool-00", root="elsewhere"), ("new", 3, "success")),
        (a_step("open", "llm", 1, 2, status="failed"), ("open", 1, "failed")),
        (a_step("unheard-of", "run", 6, 8, "agent"), ("lost", 3, "success")),
    ],
)
def test_a_kept_run_is_read_again_once_a_step_of_it_comes_or_changes(
    store: Store, other: Store, change: Record, expected: tuple[str, int, str]
) -> None:
    families = Families()
    kept = families.of(store, "run")
    assert expected not in shape(kept)
    add(other, change)
    again = families.of(store, "run")
    assert expected in shape(again)
    assert families.of(store, "run") is again


def test_a_parent_that_comes_from_nowhere_takes_its_step_out_of_a_kept_run(store: Store, other: Store) -> None:
    root, lost, parent = (f"0190a1b2-c3d4-7000-8000-00000000000{n}" for n in (1, 2, 3))  # ids of one trace
    trace = root.replace("-", "")
    add(store, a_run(root, trace=trace), a_step(lost, "tool", 7, 8, parent, root=root, trace=trace))
    families = Families()
    assert [row.step.id for row in families.of(store, root).rows] == [root, lost]
    add(other, a_step(parent, "run", 6, 8, None, root="elsewhere", trace=trace))
    assert [row.step.id for row in families.of(store, root).rows] == [root]


def test_a_kept_run_goes_with_what_others_delete_of_it(store: Store, other: Store) -> None:
    families = Families()
    families.of(store, "run")
    other.delete_thread("t-1")
    assert {"run", "agent", "open", "lost"} == families.of(store, "run").by_id.keys()
    other.delete_run("run")
    with pytest.raises(NotFoundError):
        families.of(store, "run")


def test_so_many_runs_are_kept_and_no_more(store: Store) -> None:
    families = Families()
    add(store, *(a_run(f"run-{n}", trace=f"trace-{n}") for n in range(MAX_RUNS)))
    first = families.of(store, "run")
    kept = [families.of(store, f"run-{n}") for n in range(MAX_RUNS)]
    assert [families.of(store, f"run-{n}") for n in range(MAX_RUNS)] == kept
    assert families.of(store, "run") is not first
