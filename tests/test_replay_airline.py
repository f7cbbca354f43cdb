"""The replay of real conversations runs whole, and its check finds what is not as it went in."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec import UNSET

import stepwell
from stepwell.model import StepRecord, decode_payload
from stepwell.store import open_store

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "airline_agent.jsonl"

pytestmark = pytest.mark.skipif(not DATA.is_file(), reason=f"the conversations are not here: {DATA}")


def replay(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("STEPWELL_")}
    environment["PYTHONPATH"] = str(Path(stepwell.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-W", "error", ROOT / "benchmarks" / "replay_airline.py", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def counts_of(output: str) -> dict[str, str]:
    pairs = (line.rsplit("  ", 1) for line in output.splitlines() if "  " in line)
    return {name.strip(): value for name, value in pairs}


@pytest.mark.usefixtures("untraced")
def test_all_conversations_come_back_from_the_store_as_they_went_in() -> None:
    done = replay()
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "equal to the input"), done.stdout + done.stderr
    assert done.stderr.splitlines() == ["recording: 150 conversations", "reading back: 150 conversations"]
    counts = counts_of(done.stdout)
    assert counts["threads"] == "150"
    assert {kind: counts[f"{kind} steps"] for kind in ("run", "llm", "tool")} == {
        "run": "1,096",
        "llm": "1,808",
        "tool": "862",
    }
    assert {kind: counts[f"{kind}_message steps"] for kind in ("system", "user", "assistant")} == {
        "system": "150",
        "user": "1,096",
        "assistant": "946",
    }
    assert counts["steps"] == "5,958"
    assert counts["messages the llm steps carried"] == "29,198"
    assert float(counts["store, to the lines"].removeprefix("1/")) >= 6.0  # 8.9; less where batches come out small


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("replay") / "home"
    done = replay("--limit", "3", "--home", home)
    assert done.returncode == 0, done.stdout + done.stderr
    return home


@pytest.fixture
def home(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "home"))


def number_of(db: sqlite3.Connection, type_: str, place: int) -> int:
    """Return the row number of the n-th step of a type in the first conversation."""
    query = "SELECT number FROM steps WHERE thread_id = 'airline-0-0' AND type = ? ORDER BY start_ns"
    return int(db.execute(query, (type_,)).fetchall()[place][0])


def write_plainly(db: sqlite3.Connection, number: int) -> StepRecord:
    """Take a step's payload out of its pack, with its messages, and return the step."""
    (id,) = db.execute("SELECT id FROM steps WHERE number = ?", (number,)).fetchone()
    store = open_store(db.execute("PRAGMA database_list").fetchone()[2])
    step = store.step(str(uuid.UUID(bytes=id)))
    store.close()
    payloads = [None if value is UNSET else str(value, "utf-8") for value in (step.input, step.output, step.generation)]
    query = "UPDATE payload SET pack = NULL, refs = NULL, input = ?, output = ?, generation = ? WHERE number = ?"
    db.execute(query, (*payloads, number))
    return step


def change_a_prompt(db: sqlite3.Connection) -> None:
    number = number_of(db, "llm", 2)
    generation = decode_payload(write_plainly(db, number).generation)
    generation["messages"][1]["content"] += "!"
    db.execute("UPDATE payload SET generation = ? WHERE number = ?", (json.dumps(generation), number))


def change_what_the_user_said(db: sqlite3.Connection) -> None:
    number = number_of(db, "user_message", 1)
    write_plainly(db, number)
    db.execute("""UPDATE payload SET output = '{"content":"No."}' WHERE number = ?""", (number,))


def swap_arguments(db: sqlite3.Connection) -> None:
    number = number_of(db, "tool", 0)
    write_plainly(db, number)
    db.execute("UPDATE payload SET input = '{}' WHERE number = ?", (number,))


def lose_a_tool_step(db: sqlite3.Connection) -> None:
    number = number_of(db, "tool", 0)
    db.execute("DELETE FROM payload WHERE number = ?", (number,))
    db.execute("DELETE FROM steps WHERE number = ?", (number,))


def move_a_step_to_another_parent(db: sqlite3.Connection) -> None:
    other = db.execute("SELECT id FROM steps WHERE number = ?", (number_of(db, "run", 1),)).fetchone()
    db.execute("UPDATE steps SET parent_id = ? WHERE number = ?", (*other, number_of(db, "user_message", 0)))


def forget_the_user(db: sqlite3.Connection) -> None:
    db.execute("UPDATE threads SET user = NULL WHERE id = 'airline-0-0'")


@pytest.mark.parametrize(
    ("damage", "place", "difference"),
    [
        (change_a_prompt, "airline-0-0, message 6 (assistant), ", "messages[1].content"),
        (change_what_the_user_said, "airline-0-0, message 3 (user), ", "output.content: 'No.' is not "),
        (swap_arguments, "airline-0-0, message 7 (tool), ", "input."),
        (lose_a_tool_step, "airline-0-0: steps of the thread: tool: ", " is not "),
        (move_a_step_to_another_parent, "airline-0-0, message 1 (user), ", "parent_id: "),
        (forget_the_user, "airline-0-0: thread: user: ", "None is not "),
    ],
)
def test_a_changed_store_is_reported(
    damage: Callable[[sqlite3.Connection], None], place: str, difference: str, home: Path
) -> None:
    with sqlite3.connect(home / "steps.db") as db:
        damage(db)
    db.close()
    done = replay("--limit", "3", "--home", home, "--check-only")
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("DIFFERENT: ")]
    assert lines
    assert lines[0].startswith(f"DIFFERENT: {place}")
    assert difference in lines[0]
    assert done.stdout.splitlines()[-1] == "different from the input"


def test_an_unchanged_store_passes_the_same_check(home: Path) -> None:
    done = replay("--limit", "3", "--home", home, "--check-only")
    assert done.returncode == 0, done.stdout + done.stderr


def test_conversations_that_were_not_recorded_are_reported(home: Path) -> None:
    done = replay("--limit", "4", "--home", home, "--check-only")
    assert done.returncode == 1
    assert "DIFFERENT: store: 3 threads are not 4" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "absent.jsonl"), "there is no file absent.jsonl"),
        (("--check-only",), "--check-only needs the --home of an earlier replay"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[str, ...], message: str) -> None:
    done = replay(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_folder_with_a_store_is_not_recorded_into_again(home: Path) -> None:
    done = replay("--limit", "3", "--home", home)
    assert done.returncode == 2
    assert "holds a store" in done.stderr
