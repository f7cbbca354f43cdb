"""The command line: what it prints, what it says when something is wrong, and how it behaves as a process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import stepwell as sw
from stepwell import _config, cli
from stepwell._cli_journal import Feed, survey
from stepwell._cli_output import moment
from stepwell._cli_source import Source
from stepwell.errors import RejectedError
from stepwell.exporters import Batch, open_exporter
from stepwell.store import open_store

RECORDER = """
import os, signal, sys
import stepwell as sw
sw.configure(export=sys.argv[1].split(","), home=".stepwell", exit_timeout=0.2)
for line in sys.stdin:
    name = line.strip()
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    with sw.run(name) as step:
        pass
    print(step.id, flush=True)
"""
NEVER = "jsonl:/proc/stepwell/never"  # nothing can be made in there


class Result(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def objects(self) -> list[Any]:
        return [json.loads(line) for line in self.lines]


Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("STEPWELL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    yield tmp_path
    _config.reset()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        status = cli.run(arguments)
        captured = capsys.readouterr()
        return Result(status, captured.out, captured.err)

    return call


class Ids(NamedTuple):
    run: str
    llm: str
    tool: str
    message: str


@pytest.fixture
def recorded(folder: Path) -> Ids:
    """A conversation in `.stepwell`: a message, and a run with a model call and a tool that fails."""
    sw.configure(export="sqlite:", home=folder / ".stepwell", service="shop", environment="test")
    with sw.thread("t-1", name="Chat", user="ada", tags=["vip"]):
        message = sw.user_message("Hello\nthere", attachments=[sw.attach(b"abc", name="a.txt")])
        with sw.run("agent", tags=["web", "slow"], metadata={"k": [1, 2]}) as agent:
            messages = [
                {"role": "user", "content": "Say\nhi"},
                {"role": "user", "content": [{"text": "two"}, {"image": 1}]},
            ]
            with sw.llm("answer", model="m-1", provider="p", messages=messages, temperature=0) as llm:
                llm.record("hi \u202e you")
                llm.usage(input_tokens=5, output_tokens=7)
                llm.score("good", 0.5)
            with pytest.raises(ValueError, match="bad"), sw.tool("look", input={"q": "x"}) as tool:
                raise ValueError("bad \x1b[2J value")
    assert sw.flush(30)
    _config.reset()
    return Ids(agent.id, llm.id, tool.id, message.id)


def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start the command line as a process of its own."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-m", "stepwell", *arguments], text=True, **(pipes | options))


def recorder(export: str) -> subprocess.Popen[str]:
    """Start a process that records a run for each line it is given, and prints its id."""
    return subprocess.Popen(
        [sys.executable, "-c", RECORDER, export], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def say(process: subprocess.Popen[str], line: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def finish(process: subprocess.Popen[str]) -> Result:
    out, err = process.communicate(timeout=30)
    return Result(process.returncode, out, err)


def leave_behind(export: str, *names: str) -> list[str]:
    """Record runs in a process that is then killed; return their ids."""
    process = recorder(export)
    ids = [say(process, name) for name in names]
    say(process, "kill")
    assert finish(process).status == -signal.SIGKILL
    return ids


class TestTheProgram:
    def test_help_names_every_command(self, run: Run) -> None:
        out = run("--help").out
        for command in ("demo", "ls", "show", "tail", "export", "import", "ship", "stats", "doctor"):
            assert re.search(rf"^  {command} ", out, re.MULTILINE)

    def test_without_arguments_it_shows_its_help(self, run: Run) -> None:
        assert run() == run("--help")

    def test_the_version_is_a_line(self, run: Run) -> None:
        assert run("--version") == (0, "0.1.0\n", "")

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (("lss",), "lss"),
            (("ls", "--colour"), "--colour"),
            (("ls", "--limit", "many"), "--limit 'many' is not a whole number of 1 or more"),
            (("tail", "--for", "nan"), "--for 'nan' is not a number of seconds, 0 or more"),
            (("ship", "--timeout", "soon"), "--timeout 'soon' is not"),
            (("show",), "id"),
            (("tail", "--for", "-1"), "-1"),
        ],
    )
    def test_wrong_use_is_one_line_that_names_it(self, run: Run, arguments: tuple[str, ...], named: str) -> None:
        result = run(*arguments)
        assert (result.status, result.out) == (2, "")
        assert result.err.startswith("stepwell: ")
        assert result.err.count("\n") == 1
        assert named in result.err.replace("ID", "id")

    def test_without_typer_it_says_what_to_install(self) -> None:
        program = "import sys; sys.modules['typer'] = None; from stepwell.cli import main; main()"
        process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert process.returncode == 2
        assert process.stderr == "stepwell: the command line needs typer: pip install 'stepwell[cli]'\n"

    def test_another_module_that_is_missing_is_not_mistaken_for_typer(self) -> None:
        program = "import sys; sys.modules['stepwell._cli_output'] = None; from stepwell.cli import main; main()"
        process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "ModuleNotFoundError" in process.stderr

    def test_python_dash_m_runs_it(self) -> None:
        assert finish(start("--version")) == (0, "0.1.0\n", "")

    def test_a_fault_of_ours_is_not_hidden(self, run: Run, monkeypatch: pytest.MonkeyPatch, recorded: Ids) -> None:
        monkeypatch.setattr(Source, "store_url", property(lambda _: 1 / 0))
        with pytest.raises(ZeroDivisionError):
            run("ls")


class TestWhereItReads:
    @pytest.mark.parametrize(
        "command", [("ls",), ("show", "12345678"), ("tail",), ("export",), ("ship",), ("stats",), ("doctor",)]
    )
    def test_a_home_that_is_not_there_is_one_line_and_is_not_made(
        self, run: Run, folder: Path, command: tuple[str, ...]
    ) -> None:
        result = run(*command)
        assert (result.status, result.out) == (2, "")
        assert result.err == (
            "stepwell: there is no home folder '.stepwell': name one with --home, or make one with: stepwell demo\n"
        )
        assert list(folder.iterdir()) == []

    def test_the_home_is_given_by_option_or_environment(
        self, run: Run, recorded: Ids, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Path(".stepwell").rename("elsewhere")
        assert len(run("ls", "--home", "elsewhere", "--json").lines) == 1
        monkeypatch.setenv("STEPWELL_HOME", "elsewhere")
        assert len(run("ls", "--json").lines) == 1

    def test_a_home_that_keeps_nothing_is_named(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STEPWELL_HOME", "none")
        result = run("ls")
        assert (result.status, result.err) == (
            2,
            "stepwell: STEPWELL_HOME=none keeps nothing on disk: name a folder with --home\n",
        )

    def test_a_store_alone_can_be_read(self, run: Run, recorded: Ids) -> None:
        path = Path(".stepwell/steps.db").rename("alone.db")
        assert run("ls", "--store", str(path), "--json").objects[0]["id"] == recorded.run
        assert run("show", recorded.run, "--store", f"sqlite:{path}").status == 0
        assert run("stats", "--store", str(path), "--json").objects[0]["store"]["steps"] == 4
        assert run("doctor", "--store", str(path)).status == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--store", "missing.db"), "there is no store at "),
            (("--store", "mysql:x"), "store URL 'mysql:x': no store for 'mysql'"),
            (("--store", "x.db", "--home", "y"), "--home 'y' and --store 'x.db' exclude each other"),
        ],
    )
    def test_a_store_that_cannot_be_read_is_one_line(self, run: Run, arguments: tuple[str, ...], message: str) -> None:
        result = run("ls", *arguments)
        assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
        assert message in result.err

    def test_a_damaged_store_is_one_line(self, run: Run, recorded: Ids) -> None:
        Path(".stepwell/steps.db").write_bytes(b"no database at all " * 1000)
        result = run("ls")
        assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
        assert "steps.db" in result.err

    def test_what_a_dead_process_left_in_the_journal_is_shown_and_stays_there(self, run: Run, recorded: Ids) -> None:
        (left,) = leave_behind(NEVER, "killed")
        assert [row["id"] for row in run("ls", "--json").objects] == [left, recorded.run]
        assert run("stats", "--json").objects[0]["journal"]["waiting"] == {NEVER: 1}

    def test_without_a_store_the_journal_is_shown_and_no_store_is_made(self, run: Run) -> None:
        (left,) = leave_behind(NEVER, "killed")
        assert [row["id"] for row in run("ls", "--json").objects] == [left]
        assert run("show", left, "--json").objects[0]["name"] == "killed"
        assert not Path(".stepwell/steps.db").exists()

    def test_a_store_that_cannot_be_written_is_shown_with_the_journal(
        self, run: Run, recorded: Ids, folder: Path
    ) -> None:
        (left,) = leave_behind(NEVER, "killed")
        with sqlite3.connect(".stepwell/steps.db") as db:
            db.execute("PRAGMA journal_mode = DELETE")
        db.close()
        before = Path(".stepwell/steps.db").read_bytes()
        run("ls", "--store", ".stepwell/steps.db")  # imports what it needs, which another user may not read
        with Unprivileged(folder):
            assert [row["id"] for row in run("ls", "--json").objects] == [left, recorded.run]
        assert Path(".stepwell/steps.db").read_bytes() == before

    def test_a_store_that_is_locked_is_shown_with_the_journal(
        self, run: Run, recorded: Ids, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (left,) = leave_behind(NEVER, "killed")
        from stepwell.store.sqlite import SqliteStore

        monkeypatch.setitem(SqliteStore.__init__.__kwdefaults__, "busy_deadline_s", 0.1)  # 30 s otherwise
        other = sqlite3.connect(".stepwell/steps.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        assert [row["id"] for row in run("ls", "--json").objects] == [left, recorded.run]
        other.close()


class Unprivileged:
    """Make a folder read-only, and the tests' user one whom that concerns."""

    def __init__(self, folder: Path) -> None:
        self._paths = [folder, *folder.rglob("*")]
        self._parents = [parent for parent in folder.parents if parent.is_dir() and parent.stat().st_uid == os.getuid()]
        self._root = os.geteuid() == 0

    def __enter__(self) -> None:
        self._modes = [(path, path.stat().st_mode) for path in [*self._paths, *self._parents]]
        for path in self._paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        if self._root:
            for path in self._parents:
                path.chmod(path.stat().st_mode | 0o055)
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        if self._root:
            os.seteuid(0)
        for path, mode in self._modes:
            path.chmod(mode)


class TestTheJournal:
    def test_a_feed_gives_each_frame_once_over_many_segments(self, folder: Path) -> None:
        sw.configure(export=NEVER, home=".stepwell", max_journal_bytes=1 << 20, exit_timeout=0.1)
        feed = Feed(folder / ".stepwell" / "journal")
        assert feed.frames() == []
        told: list[str] = []
        for batch in range(3):
            recorded = []
            for _ in range(700):
                with sw.run("r", metadata={"padding": "x" * 100}) as step:
                    recorded.append(step.id)
            ids = [json.loads(frame)["id"] for frame in feed.frames()]
            assert ids == recorded, batch
            told += ids
        assert len(set(told)) == 2100
        assert feed.frames() == []
        (session,) = survey(folder / ".stepwell" / "journal")
        assert (session.alive, session.frames, session.torn, session.waiting) == (True, 2100, 0, {NEVER: 2100})
        _config.shutdown(0.1)

    def test_a_damaged_place_is_the_beginning_and_a_session_without_its_lock_is_dead(self, folder: Path) -> None:
        leave_behind(NEVER, "one")
        (session,) = (folder / ".stepwell" / "journal").iterdir()
        (cursor,) = session.glob("*.cursor")
        cursor.write_bytes(b"damaged\n" + NEVER.encode() + b"\n")
        (session / "lock").unlink()
        (session / "000009.seg").write_bytes(b"no segment at all")
        (found,) = survey(session.parent)
        assert (found.alive, found.frames, found.waiting) == (False, 1, {NEVER: 1})


class TestLs:
    def test_runs_are_a_table(self, run: Run, recorded: Ids) -> None:
        heading, row = run("ls", "runs").lines
        assert heading.split() == ["RUN", "START", "NAME", "STATUS", "TOOK", "STEPS", "TOKENS", "FAILED", "THREAD"]
        fields = row.split()
        assert (fields[0], fields[3], fields[4], fields[-4:]) == (
            recorded.run,
            "agent",
            "success",
            ["3", "12", "1", "t-1"],
        )

    def test_runs_are_what_is_listed_by_default(self, run: Run, recorded: Ids) -> None:
        assert run("ls") == run("ls", "runs")

    def test_threads_are_a_table(self, run: Run, recorded: Ids) -> None:
        row = run("ls", "threads").lines[1].split()
        assert (row[:3], row[5:]) == (["t-1", "Chat", "ada"], ["4", "12", "1", "vip"])

    def test_steps_are_a_table(self, run: Run, recorded: Ids) -> None:
        rows = [re.split(r"  +", line) for line in run("ls", "steps").lines[1:]]
        assert [(row[0], row[2], row[3], row[4]) for row in rows] == [
            (recorded.tool, "tool", "look", "failed ValueError"),
            (recorded.llm, "llm", "answer", "success"),
            (recorded.run, "run", "agent", "success"),
            (recorded.message, "user_message", "user_message", "success"),
        ]

    @pytest.mark.parametrize(
        ("filters", "names"),
        [
            (("--type", "tool", "--type", "llm"), ["look", "answer"]),
            (("--name", "look"), ["look"]),
            (("--tag", "web", "--tag", "slow"), ["agent"]),
            (("--tag", "web", "--tag", "fast"), []),
            (("--status", "failed"), ["look"]),
            (("--model", "m-1"), ["answer"]),
            (("--search", "hello"), ["user_message"]),
            (("--search", "bad -hello", "--type", "tool"), ["look"]),
            (("--thread", "t-2"), []),
            (("--since", "1h", "--type", "run"), ["agent"]),
            (("--since", "2999-01-01"), []),
            (("--since", "2020-01-01T10:00:00+02:00", "--type", "run"), ["agent"]),
        ],
    )
    def test_filters_keep_what_they_say(
        self, run: Run, recorded: Ids, filters: tuple[str, ...], names: list[str]
    ) -> None:
        assert [row["name"] for row in run("ls", "steps", "--json", *filters).objects] == names

    @pytest.mark.parametrize(
        ("query", "filters", "names"),
        [
            ("type:tool,llm -name:look", (), ["answer"]),
            ("tag:web is:top type:run", ("--tag", "slow"), ["agent"]),
            ("type:tool,run status:failed", ("--type", "tool"), ["look"]),
            ("bad -hello type:tool", (), ["look"]),
            ("error:any -hello", ("--search", "bad"), ["look"]),
            ("since:1h type:run", ("--since", "2999-01-01"), []),
            ("until:2020-01-01", (), []),
        ],
    )
    def test_a_query_is_the_one_of_the_viewer(
        self, run: Run, recorded: Ids, query: str, filters: tuple[str, ...], names: list[str]
    ) -> None:
        assert [row["name"] for row in run("ls", "steps", query, "--json", *filters).objects] == names
        exported = run("export", "--query", query, *filters).objects
        assert sorted(record["name"] for record in exported if record["kind"] == "step") == sorted(names)

    def test_runs_and_threads_are_listed_by_a_query(self, run: Run, recorded: Ids) -> None:
        assert [row["name"] for row in run("ls", "runs", "is:top -status:failed", "--json").objects] == ["agent"]
        assert run("ls", "runs", "name:look", "--json").objects == []
        assert len(run("ls", "threads", "tag:vip since:1d", "--name", "Chat", "--json").lines) == 1
        for query in ("status:failed", "error:none"):
            assert run("ls", "threads", query).err.startswith("stepwell: threads are found by name, user, tag, env, ")

    def test_threads_have_filters_of_their_own(self, run: Run, recorded: Ids) -> None:
        assert len(run("ls", "threads", "--tag", "vip", "--name", "Chat", "--since", "1d", "--json").lines) == 1
        assert run("ls", "threads", "--tag", "web").out == "nothing found\n"
        assert run("ls", "threads", "--status", "failed").err == (
            "stepwell: --status 'failed' is of steps; threads have --name, --tag and --since\n"
        )

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("models",), "can't list 'models', only runs, steps, threads"),
            (("--type", "tol"), "--type 'tol' is not one of assistant_message, embedding, llm, rerank, "),
            (("--status", "ok"), "--status 'ok' is not one of cancelled, failed, interrupted, pending, success"),
            (("--since", "yesterday"), "--since 'yesterday' is neither like 30m, 2h or 7d nor an ISO date or time"),
            (("--since", "999999w"), "--since '999999w' is neither"),
            (("--limit", "0"), "--limit '0' is not a whole number of 1 or more"),
            (("--limit", "1001"), "limit must be 1 to 1000, got 1001"),
            (("steps", "type:llm tol:x"), "there is no field 'tol', only type, "),
            (("steps", "cost:>x"), "expected a number, such as 0.8 (at character 7)"),
            (("steps", "model:a", "--model", "b"), "model is one thing in the query and another beside it"),
            (("steps", "type:llm", "--type", "tool"), "type is one thing in the query and another beside it"),
            (("--search", "!"), "text '!' has no word to look for"),
            (("--cursor", "x"), "cursor 'x' is not one that a page gave"),
        ],
    )
    def test_a_wrong_value_is_named(self, run: Run, recorded: Ids, arguments: tuple[str, ...], message: str) -> None:
        result = run("ls", *arguments)
        assert (result.status, result.out, result.err.count("\n")) == (2, "", 1)
        assert result.err.startswith(f"stepwell: {message}")

    def test_a_page_names_the_cursor_of_the_next_beside_the_output(self, run: Run, recorded: Ids) -> None:
        names: list[str] = []
        arguments = ["ls", "steps", "--limit", "3", "--json"]
        first = run(*arguments)
        names += [row["name"] for row in first.objects]
        cursor = first.err.removeprefix("more follow: --cursor ").strip()
        second = run(*arguments, "--cursor", cursor)
        assert second.err == ""
        assert names + [row["name"] for row in second.objects] == ["look", "answer", "agent", "user_message"]


class TestShow:
    def test_a_thread_is_a_tree_with_its_messages(self, run: Run, recorded: Ids) -> None:
        lines = run("show", "t-1").lines
        assert lines[0] == "thread  t-1  Chat  user ada  #vip  (4 steps, 12 tokens, 1 failed)"
        assert lines[1] == "├─ user_message  Hello there"
        assert (
            re.sub(r"[\d.]+ (?:ns|µs|ms)", "1 ms", lines[2])
            == "└─ run  agent  1 ms  #web #slow  (3 steps, 12 tokens, 1 failed)"
        )
        assert re.sub(r"[\d.]+ (?:ns|µs|ms)", "1 ms", lines[3]) == "   ├─ llm  answer  1 ms  5 in, 7 out  m-1  good=0.5"
        assert (
            re.sub(r"[\d.]+ (?:ns|µs|ms)", "1 ms", lines[4]) == "   └─ tool  look  1 ms  ✗ failed ValueError: bad value"
        )

    def test_a_run_is_a_tree(self, run: Run, recorded: Ids) -> None:
        assert [line.split("  ")[0] for line in run("show", recorded.run).lines] == ["run", "├─ llm", "└─ tool"]

    def test_a_beginning_of_an_id_is_enough(self, run: Run, recorded: Ids) -> None:
        assert run("show", recorded.llm[:27]).lines == run("show", recorded.llm).lines
        result = run("show", recorded.run[:9])
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert "is the beginning of several step ids" in result.err

    def test_a_model_call_is_shown_in_full(self, run: Run, recorded: Ids) -> None:
        out = run("show", recorded.llm).out
        assert f"\nid              {recorded.llm}\n" in out
        assert "\nservice         shop\n" in out
        assert "\nthread_id       t-1\n" in out
        assert "\noutput\n  hi \\u202e you\n" in out
        assert "\n  model             m-1\n  provider          p\n" in out
        assert '\n  settings\n    {\n      "temperature": 0\n    }\n' in out
        assert '\n  user\n    Say\n    hi\n  user\n    two\n    {\n      "image": 1\n    }\n' in out
        assert "\n  assistant (answer)\n    hi \\u202e you\n" in out
        assert "\nscore\n  {\n" in out
        assert "\u202e" not in out

    def test_a_failed_step_is_shown_with_its_traceback(self, run: Run, recorded: Ids) -> None:
        out = run("show", recorded.tool).out
        assert "\nerror\n  ValueError: bad \\u001b[2J value\n" in out
        assert '\ninput\n  {\n    "q": "x"\n  }\n' in out
        assert 'raise ValueError("bad' in out
        assert "\x1b" not in out

    def test_a_message_is_shown_with_its_attachment(self, run: Run, recorded: Ids) -> None:
        out = run("show", recorded.message).out
        assert out.startswith("user_message  Hello there\n")
        assert "\nattachment\n  {\n" in out
        assert '"name": "a.txt"' in out

    def test_full_and_tree_choose(self, run: Run, recorded: Ids) -> None:
        assert '\nmetadata\n  {\n    "k": [\n' in run("show", recorded.run, "--full").out
        assert len(run("show", recorded.llm, "--tree").lines) == 1

    def test_json_is_the_record_with_its_payloads(self, run: Run, recorded: Ids) -> None:
        (step,) = run("show", recorded.tool, "--json").objects
        assert (step["input"], step["error"]["message"]) == ({"q": "x"}, "bad \x1b[2J value")
        assert [record["name"] for record in run("show", recorded.run, "--json").objects] == ["agent", "answer", "look"]
        kinds = [record["kind"] for record in run("show", "t-1", "--json").objects]
        assert kinds == ["thread", "step", "step", "step", "step"]

    def test_a_long_tree_says_what_it_leaves_out(self, run: Run, recorded: Ids) -> None:
        assert run("show", recorded.run, "--limit", "2").lines[2] == "… 1 more steps are not drawn"

    def test_an_unknown_id_is_named(self, run: Run, recorded: Ids) -> None:
        assert run("show", "nothing-has-this") == (2, "", "stepwell: there is no step or thread 'nothing-has-this'\n")

    def test_foreign_records_of_every_shape_are_shown(self, run: Run) -> None:
        lines = [
            {
                "kind": "step",
                "id": "odd-step-1",
                "start_ns": 2**62,
                "output": None,
                "input": ["é", 1],
                "generation": {
                    "messages": "not a list",
                    "message_completion": {"role": "assistant", "content": None, "tool_calls": [1]},
                },
            },
            {
                "kind": "step",
                "id": "odd-step-2",
                "type": "tool",
                "name": "n",
                "error": {"message": "only text"},
                "generation": {"model": "m"},
                "attachments": [{"id": "a", "metadata": {"x": 1}}],
            },
        ]
        Path("in.jsonl").write_text("\n".join(map(json.dumps, lines)))
        assert run("import", "in.jsonl").status == 0
        first, second = run("show", "odd-step-1").out, run("show", "odd-step-2").out
        assert "\noutput\n  null\n" in first
        assert "\n  message\n    not a list\n" in first
        assert '\n  assistant (answer)\n    {\n      "tool_calls": [\n' in first
        assert "\nerror\n  only text\n" in second
        assert '"metadata": {' in second


class TestExportAndImport:
    def test_what_is_exported_makes_an_equal_store_elsewhere(self, run: Run, recorded: Ids) -> None:
        exported = run("export")
        Path("all.jsonl").write_text(exported.out)
        assert run("import", "all.jsonl", "--home", "copy") == (0, "5 accepted, 0 duplicates, 0 rejected\n", "")
        assert run("export", "--home", "copy").out == exported.out
        assert run("import", "all.jsonl", "--home", "copy", "--json").objects == [
            {"accepted": 0, "duplicates": 5, "rejected": 0}
        ]
        assert Path("copy/.gitignore").read_text() == "*\n"

    def test_export_filters(self, run: Run, recorded: Ids) -> None:
        assert [(record["kind"], record.get("name")) for record in run("export", "--type", "tool").objects] == [
            ("thread", "Chat"),
            ("step", "look"),
        ]

    def test_export_writes_a_private_file(self, run: Run, recorded: Ids) -> None:
        assert run("export", "--output", "out.jsonl") == (0, "", "5 records written to out.jsonl\n")
        assert Path("out.jsonl").stat().st_mode & 0o777 == 0o600
        assert len(Path("out.jsonl").read_text().splitlines()) == 5

    def test_a_file_that_cannot_be_written_is_named(self, run: Run, recorded: Ids) -> None:
        assert run("export", "--output", "no/such/out.jsonl") == (
            2,
            "",
            "stepwell: no/such/out.jsonl: No such file or directory\n",
        )

    def test_import_names_bad_lines_and_takes_their_neighbours(self, run: Run) -> None:
        good = '{"kind":"step","id":"s-%d","type":"run","name":"n","start_ns":1}'
        Path("in.jsonl").write_bytes(b"\xef\xbb\xbf" + f"{good % 1}\r\n\n{{broken\n{good % 2}\n[]\n{good % 1}".encode())
        result = run("import", "in.jsonl")
        assert (result.status, result.out) == (1, "2 accepted, 1 duplicates, 2 rejected\n")
        assert [line.split(": ")[0] for line in result.err.splitlines()] == ["in.jsonl:3", "in.jsonl:5"]
        assert [row["id"] for row in run("ls", "--json").objects] == ["s-2", "s-1"]

    def test_import_reads_standard_input_into_a_store_alone(self) -> None:
        process = start("import", "-", "--store", "alone.db")
        out, err = process.communicate('{"kind":"thread","id":"t"}\n', timeout=30)
        assert (process.returncode, out, err) == (0, "1 accepted, 0 duplicates, 0 rejected\n", "")
        assert not Path(".stepwell").exists()

    def test_a_file_that_cannot_be_read_is_named(self, run: Run) -> None:
        assert run("import", "missing.jsonl") == (2, "", "stepwell: missing.jsonl: No such file or directory\n")

    def test_a_home_that_cannot_be_made_is_named(self, run: Run) -> None:
        Path("in.jsonl").touch()
        result = run("import", "in.jsonl", "--home", "in.jsonl/home")
        assert (result.status, result.err.count("\n")) == (2, 1)
        assert "in.jsonl/home: Not a directory" in result.err

    def test_a_stream_of_text_takes_the_output_too(self, recorded: Ids) -> None:
        stream = io.StringIO()
        with contextlib.redirect_stdout(stream):
            assert cli.run(["export", "--type", "tool"]) == 0
        assert len(stream.getvalue().splitlines()) == 2

    def test_without_stderr_what_is_said_beside_the_output_is_left_out(
        self, recorded: Ids, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stderr", None)
        assert cli.run(["ls", "steps", "--limit", "1"]) == 0


class TestProcesses:
    def test_a_reader_that_has_enough_ends_an_export_quietly(self, run: Run, folder: Path) -> None:
        step = '{"kind":"step","id":"s-%05d","type":"run","name":"%s","start_ns":%d}'
        Path("in.jsonl").write_text("\n".join(step % (at, "x" * 900, at) for at in range(1000)))
        assert run("import", "in.jsonl").status == 0
        process = start("export")
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith('{"kind":"step","id":"s-00000"')
        process.stdout.close()
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
        process.communicate()

    def test_a_pipe_that_closes_before_the_last_flush_ends_quietly(self, recorded: Ids) -> None:
        outer, inner = os.pipe()
        os.close(outer)
        process = start("ls", stdout=inner)
        os.close(inner)
        result = finish(process)
        assert (result.status, result.err) == (0, "")

    def test_help_into_a_closed_pipe_ends_quietly(self) -> None:
        outer, inner = os.pipe()
        os.close(outer)
        process = start("ls", "--help", stdout=inner)
        os.close(inner)
        assert finish(process).err == ""

    def test_ctrl_c_is_no_traceback(self) -> None:
        process = start("import", "-")
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("bad\n" + '{"kind":"thread","id":"t"}\n' * 999)  # one batch, so it says what it found
        process.stdin.flush()
        assert process.stderr.readline().startswith("-:1: ")
        process.send_signal(signal.SIGINT)
        result = finish(process)
        assert (result.status, result.err) == (130, "")

    def test_closed_standard_streams_are_no_traceback(self, recorded: Ids) -> None:
        program = "import os, sys; os.close(1); os.execv(sys.executable, [sys.executable, '-m', 'stepwell', 'ls'])"
        process = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False)
        assert (process.returncode, process.stderr) == (0, "")
        program = program.replace("os.close(1)", "os.close(2)").replace("'ls'", "'ls', 'x'")
        process = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
        assert (process.returncode, process.stdout) == (2, "")

    def test_tail_shows_what_another_process_records_and_ctrl_c_ends_it(self, recorded: Ids) -> None:
        with start("tail", "--json") as tail, recorder("sqlite:") as live:
            assert tail.stdout is not None
            assert tail.stderr is not None
            assert tail.stderr.readline().startswith("following sqlite:")
            first, second = say(live, "first"), say(live, "second")
            shown = [json.loads(tail.stdout.readline()) for _ in range(2)]
            assert [(step["id"], step["name"], step["status"]) for step in shown] == [
                (first, "first", "success"),
                (second, "second", "success"),
            ]
            tail.send_signal(signal.SIGINT)
            assert tail.wait(30) == 0
            assert tail.stdout.read() == ""
            assert tail.stderr.read() == ""
            live.communicate(timeout=30)

    def test_tail_shows_what_is_only_in_a_live_journal(self) -> None:
        with recorder(NEVER) as live:
            say(live, "before")
            with start("tail") as tail:
                assert tail.stdout is not None
                assert tail.stderr is not None
                tail.stderr.readline()
                id = say(live, "after")
                line = tail.stdout.readline()
                assert re.fullmatch(rf"\d\d:\d\d:\d\d  {id}  run  after  [\d.]+ (?:ns|µs|ms)\n", line)
                tail.send_signal(signal.SIGINT)
                assert tail.wait(30) == 0
            live.communicate(timeout=30)
        assert not Path(".stepwell/steps.db").exists()

    def test_tail_goes_over_to_a_store_that_is_made_meanwhile_and_tells_nothing_twice(self) -> None:
        (old,) = leave_behind(NEVER, "old")
        with start("tail", "--json") as tail, recorder(NEVER) as unlucky:
            assert tail.stdout is not None
            assert tail.stderr is not None
            tail.stderr.readline()
            first = say(unlucky, "first")
            shown = [json.loads(tail.stdout.readline())["id"]]
            with recorder("sqlite:") as lucky:
                second = say(lucky, "second")
                shown.append(json.loads(tail.stdout.readline())["id"])
                lucky.communicate(timeout=30)
            third = say(unlucky, "third")
            shown.append(json.loads(tail.stdout.readline())["id"])
            tail.send_signal(signal.SIGINT)
            assert tail.wait(30) == 0
            unlucky.communicate(timeout=30)
        assert shown == [first, second, third]
        assert old not in shown

    def test_tail_ends_by_itself_when_asked_to(self, run: Run, recorded: Ids) -> None:
        assert run("tail", "--for", "0") == (0, "", f"following sqlite:{Path.cwd()}/.stepwell/steps.db, Ctrl-C ends\n")
        assert run("tail", "--until-idle", "0.3").out == ""

    def test_tail_follows_a_store_alone(self, recorded: Ids) -> None:
        path = str(Path(".stepwell/steps.db").absolute())
        with start("tail", "--store", path, "--json") as tail:
            assert tail.stdout is not None
            assert tail.stderr is not None
            tail.stderr.readline()
            store = open_store(path)
            store.add([b'{"kind":"step","id":"new","type":"run","name":"n","start_ns":1,"status":"pending"}'])
            assert json.loads(tail.stdout.readline())["status"] == "pending"
            store.add(
                [b'{"kind":"step","id":"new","tags":["no news"]}', b'{"kind":"step","id":"new","status":"success"}']
            )
            assert json.loads(tail.stdout.readline())["status"] == "success"
            store.close()
            tail.send_signal(signal.SIGINT)
            assert tail.wait(30) == 0


class TestShip:
    def test_what_a_dead_process_left_is_delivered_to_the_exporter_its_key_names(self, run: Run) -> None:
        Path("blocked").touch()
        target = Path.cwd() / "blocked" / "out.jsonl"
        ids = leave_behind(f"jsonl:{target}", "one", "two")
        Path("blocked").unlink()
        assert run("ship") == (0, f"jsonl:{target}: 2 delivered, 0 left\n", "")
        assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == ids
        assert run("ship") == (0, "nothing to ship: no dead process left anything\n", "")
        assert list(Path(".stepwell/journal").iterdir()) == []

    def test_what_cannot_be_delivered_is_told_and_stays(self, run: Run) -> None:
        leave_behind(NEVER, "one")
        for _ in range(2):
            result = run("ship", "--timeout", "0.2")
            assert (result.status, result.err) == (1, "")
            assert result.out.startswith(f"{NEVER}: 0 delivered, 1 left: ")
            assert "No such file or directory" in result.out
        assert len(run("ls", "--json").lines) == 1

    def test_a_destination_that_only_its_program_knows_is_told(self, run: Run) -> None:
        for key in ("custom:x", "memory:elsewhere"):
            _leave_behind_for(key, "OSError('down')")
        result = run("ship", "--json")
        assert result.status == 1
        assert [(line["exporter"], line["delivered"], line["left"]) for line in result.objects] == [
            ("custom:x", 0, 1),
            ("memory:elsewhere", 0, 1),
        ]
        assert all("pass --export URL" in line["problem"] for line in result.objects)

    def test_an_exporter_can_be_given(self, run: Run) -> None:
        target = Path.cwd() / "blocked" / "out.jsonl"
        Path("blocked").touch()
        leave_behind(f"jsonl:{target}", "one")
        Path("blocked").unlink()
        assert run("ship", "--export", "jsonl:blocked/out.jsonl", "--export", "memory:").lines == [
            f"jsonl:{target}: 1 delivered, 0 left"
        ]

    def test_records_that_are_refused_are_told(self, run: Run, folder: Path) -> None:
        (folder / ".stepwell").mkdir()
        store = folder / ".stepwell" / "steps.db"
        store.mkdir()  # the exporter can't open it, so the process leaves everything
        program = f"""
import stepwell as sw, os
class Down:
    key = "sqlite:{store}"
    def export(self, batch): raise OSError("down")
sw.configure(export=Down(), home=".stepwell")
with sw.run("good"): pass
from stepwell._recorder import RECORDER
RECORDER.append(b'{{"kind":"step","id":"bad","type":"nonsense"}}')
os._exit(0)
"""
        subprocess.run([sys.executable, "-c", program], check=True)
        store.rmdir()
        result = run("ship")
        assert (result.status, result.out) == (1, f"sqlite:{store}: 1 delivered, 0 left, 1 rejected (see rejected/)\n")
        assert list(run("stats", "--json").objects[0]["rejected"].values()) == [1]

    def test_a_key_cannot_act_on_the_terminal(self, run: Run) -> None:
        _leave_behind_for("custom:\x1b[2Jx", "OSError('down')")
        assert run("ship").out.startswith("custom:x: 0 delivered, 1 left: ")


def _leave_behind_for(key: str, error: str) -> None:
    program = f"""
import stepwell as sw, os
class Down:
    key = {key!r}
    def export(self, batch): raise {error}
sw.configure(export=Down(), home=".stepwell")
with sw.run("left"): pass
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


class Refusing:
    """Refuses everything for good."""

    def export(self, batch: Batch) -> None:
        raise RejectedError("no", rejected=dict.fromkeys(range(len(batch)), "not \x1b[2J today"))


class TestHealth:
    def test_stats_count_store_journal_and_refusals(self, run: Run, recorded: Ids) -> None:
        leave_behind(NEVER, "one", "two")
        sw.configure(export=Refusing(), home=".stepwell")
        with sw.run("refused"):
            pass
        assert sw.flush(30)
        _config.reset()
        with Path(next(Path(".stepwell/rejected").iterdir())).open("a") as letters:
            letters.write("torn")
        (facts,) = run("stats", "--json").objects
        assert (facts["store"]["steps"], facts["store"]["threads"], facts["store"]["scores"]) == (4, 1, 1)
        assert facts["store"]["by_status"] == {"success": 3, "failed": 1}
        assert facts["journal"] == {"live_processes": 0, "dead_processes": 1, "waiting": {NEVER: 2}}
        assert facts["rejected"] == {"not \x1b[2J today": 1, "a line that can't be read": 1}
        lines = [re.sub(r"  +", "  ", line) for line in run("stats").lines]
        assert "journal  0 live processes, 1 dead process" in lines
        assert f"  waiting  2 for {NEVER}" in lines
        assert "  1: not today" in lines

    def test_stats_of_a_home_without_a_store(self, run: Run) -> None:
        with recorder(NEVER) as live:
            say(live, "one")
            (facts,) = run("stats", "--json").objects
            assert (facts["store"], facts["journal"]["live_processes"]) == (None, 1)
            assert run("stats").lines[0].split() == ["store", "none", "yet"]
            assert [line[:4] for line in run("doctor").lines] == ["ok  "] * 7
            live.communicate(timeout=30)

    def test_a_healthy_home_is_ok(self, run: Run, recorded: Ids) -> None:
        result = run("doctor", "--json")
        assert result.status == 0
        assert [(line["state"], line["about"]) for line in result.objects] == [
            ("ok", about) for about in ("versions", "home", "permissions", "disk", "journal", "rejected", "store")
        ]
        assert "opentelemetry-api 1." in result.objects[0]["text"]

    def test_what_is_not_well_is_named_with_what_to_do(self, run: Run, recorded: Ids) -> None:
        leave_behind(NEVER, "one", "two", "three")
        (segment,) = [path for path in Path(".stepwell/journal").glob("*/*.seg") if b"three" in path.read_bytes()]
        data = segment.read_bytes()
        second = data.index(b'{"kind"', data.index(b'"two"') - 300)
        segment.write_bytes(data[:second] + b"X" + data[second + 1 :])
        sw.configure(export=Refusing(), home=".stepwell")
        with sw.run("refused"):
            pass
        assert sw.flush(30)
        _config.reset()
        Path(".stepwell").chmod(0o755)
        result = run("doctor")
        assert result.status == 0
        warnings = [line[5:] for line in result.lines if line.startswith("warn ")]
        assert [line.split("  ")[0] for line in warnings] == [
            "permissions others may enter the home folder (mode 755): chmod 700 " + str(Path.cwd() / ".stepwell"),
            "journal",
            "journal",
            "rejected",
        ]
        assert "1 dead process left 2 records: stepwell ship" in result.out
        assert "1 gaps where frames were torn" in result.out
        assert "1 records refused, 1 for: not today" in result.out

    def test_a_damaged_store_fails(self, run: Run, recorded: Ids) -> None:
        Path(".stepwell/steps.db").write_bytes(b"no database at all " * 1000)
        result = run("doctor")
        assert result.status == 1
        assert result.lines[-1].startswith("fail store       ")

    def test_a_home_that_cannot_be_written_fails(self, run: Run, folder: Path) -> None:
        (folder / ".stepwell").mkdir(mode=0o700)
        assert run("doctor").status == 0
        with Unprivileged(folder):
            result = run("doctor")
        assert result.status == 1
        assert result.lines[1].startswith(f"fail home        {folder}/.stepwell can't be written")


def test_a_demo_needs_a_home_that_can_be_written(run: Run, folder: Path) -> None:
    (folder / "home").mkdir()
    (folder / "file").touch()
    assert run("demo", "--home", "file/home").status == 2  # imports what it needs, which another user may not read
    with Unprivileged(folder):
        assert run("demo", "--home", "home") == (
            2,
            "",
            "stepwell: home folder 'home' can't be written: choose another with --home\n",
        )


def test_the_home_store_has_the_key_that_its_exporter_has(folder: Path) -> None:
    (folder / ".stepwell").mkdir()
    exporter = open_exporter("sqlite:", Path(".stepwell"))
    assert Source(Path(".stepwell"), None).store_url == getattr(exporter, "key", None)
    exporter.close()  # type: ignore[attr-defined]


def test_a_time_no_calendar_knows_is_shown_as_it_is() -> None:
    assert moment(2**80) == f"{2**80} ns"
    assert moment(None) == ""
