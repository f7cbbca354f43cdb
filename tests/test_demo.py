"""The demo: all kinds of steps, real work, and the same again."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwell import _config, _demo, cli
from stepwell.store import StepFilter, Store, open_store


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("demo") / ".stepwell"
    assert _demo.record(home)
    _config.reset()
    return home


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:{home / 'steps.db'}", read_only=True)
    yield store
    store.close()


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    _config.reset()


def names(store: Store, **conditions: Any) -> list[str | None]:
    return sorted({row.name for row in store.steps(StepFilter(**conditions), limit=1000).items}, key=str)


def test_every_type_of_step_but_undefined_is_there(store: Store) -> None:
    assert sorted(store.stats().by_type) == [
        "assistant_message",
        "embedding",
        "llm",
        "rerank",
        "retrieval",
        "run",
        "system_message",
        "tool",
        "user_message",
    ]


def test_it_runs_under_two_threads_of_two_users(store: Store) -> None:
    assert sorted((row.id, row.user) for row in store.threads().items) == [
        ("demo-spelling", "grace"),
        ("demo-statistics", "ada"),
    ]


def test_one_tool_fails_by_itself_and_its_run_goes_on(store: Store) -> None:
    (failed,) = store.steps(StepFilter(status="failed")).items
    assert (failed.type, failed.name, failed.error_type) == ("tool", "look-up-signature", "AttributeError")
    assert names(store, type="run", status="success") == ["answer-question", "explain-function"]


def test_the_answers_are_right(store: Store) -> None:
    said = [bytes(store.step(row.id).output) for row in store.steps(StepFilter(type="assistant_message")).items]  # type: ignore[arg-type]
    answers = sorted(json.loads(output)["content"] for output in said)
    assert answers[0].startswith("heapq.merge: Merge multiple sorted inputs into a single sorted output.")
    assert answers[1].startswith("statistics.mean: Return the sample arithmetic mean of data.")
    assert "(11.5 + 9.0 + 17.5 + 14.0) / 4 = 13." in answers[1]
    assert "there is no statistics.medain, the nearest is statistics.median" in answers[2]


def test_scores_feedback_and_an_attachment_are_recorded(store: Store) -> None:
    records = [store.step(row.id) for row in store.steps(limit=1000).items]
    assert {score.name for record in records for score in record.scores or ()} == {"grounded", "feedback", "helpful"}
    (attachment,) = [attachment for record in records for attachment in record.attachments or ()]
    assert (attachment.name, attachment.mime, attachment.size) == ("readings.csv", "text/csv", 42)


def test_every_model_call_has_tokens(store: Store) -> None:
    rows = store.steps(StepFilter(type=["llm", "embedding"]), limit=1000).items
    assert len(rows) == 8
    assert all(row.model and row.total_tokens for row in rows)


def test_running_it_again_says_the_same(store: Store, home: Path, tmp_path: Path) -> None:
    assert _demo.record(tmp_path / ".stepwell")
    again = open_store(f"sqlite:{tmp_path / '.stepwell' / 'steps.db'}", read_only=True)
    for thread in _demo.THREADS:
        first, second = (
            [(row.type, row.name, row.total_tokens) for row in each.thread_steps(thread)] for each in (store, again)
        )
        assert sorted(first, key=str) == sorted(second, key=str)
    again.close()


def test_the_calculator_computes_and_nothing_else() -> None:
    assert asyncio.run(_demo.calculate("-(2 + 3) * 4 / 2 - 1")) == -11.0
    with pytest.raises(ValueError, match=r"can't do .__import__\('os'\)"):
        asyncio.run(_demo.calculate("__import__('os')"))
    with pytest.raises(ValueError, match="can't do '2 \\*\\* 9'"):
        asyncio.run(_demo.calculate("2 ** 9"))


def test_a_signature_that_python_does_not_know_is_not_made_up() -> None:
    assert asyncio.run(_demo.look_up_signature("builtins.dict")) == "builtins.dict(...)"


def test_an_answer_without_documents_says_that_there_are_none() -> None:
    answer = asyncio.run(_demo.answer_question(_demo.Index([]), "What is xyzzy?"))
    assert answer == "The documentation at hand says nothing about that. "


def test_an_unknown_function_takes_a_known_one_where_nothing_is_indexed() -> None:
    answer = asyncio.run(_demo.explain_function(_demo.Index([]), "statistics.xyzzy"))
    assert "the nearest is statistics.median" in answer


def test_a_function_spelt_right_is_explained_at_once() -> None:
    answer = asyncio.run(_demo.explain_function(_demo.read_corpus(), "heapq.merge"))
    assert answer.startswith("heapq.merge: Merge multiple sorted inputs")


def test_the_command_draws_both_threads_and_its_hints_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # however long a duration reads on a slow machine, the line is whole
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STEPWELL_HOME", raising=False)
    assert cli.run(["demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("thread  demo-statistics  Readings of a day  user ada  #demo  (18 steps, ")
    assert "✗ failed AttributeError: module 'statistics' has no attribute 'medain'" in "\n".join(lines)
    hints = [line.split()[1:] for line in lines if line.startswith("  stepwell ")]
    assert [hint[0] for hint in hints] == ["ls", "show", "show", "export", "serve"]
    for hint in hints[:3]:
        assert cli.run(hint) == 0


def test_another_home_is_in_the_hints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["demo", "--home", str(tmp_path / "h")]) == 0
    assert f"  stepwell ls runs --home {tmp_path / 'h'}" in capsys.readouterr().out


def test_a_store_of_its_own_is_filled_and_in_the_hints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:{tmp_path / 'other.db'}"
    assert cli.run(["demo", "--store", url]) == 0
    assert f"stepwell ls runs --store {url}\n" in capsys.readouterr().out
    assert not (tmp_path / ".stepwell" / "steps.db").exists()
    assert cli.run(["demo", "--store", "nope:x"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_home_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.run(["demo", "--home", str(tmp_path / "file" / "h")]) == 2
    assert capsys.readouterr().err == f"stepwell: home folder '{tmp_path}/file/h' can't be made: Not a directory\n"


def test_it_runs_where_python_has_no_docstrings(tmp_path: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-OO", "-m", "stepwell", "demo"],
        cwd=tmp_path,
        env={**os.environ, "STEPWELL_HOME": "h"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
