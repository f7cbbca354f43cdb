"""Every example runs as a user would run it, and records what it says it records."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec import Raw
from msgspec.json import decode

import stepwell
from stepwell.model import Generation, StepRecord, decode_generation
from stepwell.store import Store, open_store

FOLDER = Path(__file__).resolve().parents[1] / "examples"


class Ran(NamedTuple):
    lines: list[str]
    home: Path
    store: Store

    @property
    def steps(self) -> list[StepRecord]:
        """All steps, by start."""
        return [self.store.step(row.id) for row in self.store.steps(limit=1000, order="asc").items]

    @property
    def outline(self) -> list[str]:
        depths: dict[str | None, int] = {None: -1}
        lines: list[str] = []
        for step in self.steps:
            depths[step.id] = depths[step.parent_id] + 1
            lines.append(f"{'  ' * depths[step.id]}{step.type} {step.name} {step.status}")
        return lines

    def named(self, name: str) -> StepRecord:
        (step,) = (step for step in self.steps if step.name == name)
        return step


def value_of(payload: object) -> object:
    assert isinstance(payload, Raw)
    return decode(payload)


def generation_of(step: StepRecord) -> Generation:
    assert isinstance(step.generation, Raw)
    return decode_generation(step.generation)


def run(example: Path, cwd: Path, **environment: str) -> list[str]:
    scrubbed = {key: value for key, value in os.environ.items() if not key.startswith(("STEPWELL_", "OTEL_"))}
    scrubbed["PYTHONPATH"] = str(Path(stepwell.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", example],
        cwd=cwd,
        env=scrubbed | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.splitlines()


def across_services(ran: Ran) -> None:
    assert ran.lines == ["both got the same: True", "delivered: True"]
    assert ran.outline == [
        "run guide success",
        "  tool ask_with_httpx success",
        "    retrieval depth_of success",
        "    retrieval depth_of success",
        "  tool ask_with_urllib success",
        "    retrieval depth_of success",
        "    retrieval depth_of success",
    ]
    assert {(step.thread_id, step.user) for step in ran.steps} == {("stepwells", "ada")}


def quickstart(ran: Ran) -> None:
    assert ran.lines[0] == "Rani ki Vav is about 28 metres deep."
    assert ran.outline == [
        "user_message user_message success",
        "run guide success",
        "  tool depth_of success",
        "  llm answer success",
        "assistant_message assistant_message success",
    ]
    (thread,) = ran.store.threads().items
    assert (thread.name, thread.user, thread.steps) == ("Stepwells", "ada", 5)
    assert ran.lines[1] == f"thread {thread.id} delivered: True"
    assert value_of(ran.named("depth_of").input) == {"place": "Rani ki Vav"}
    assert value_of(ran.named("depth_of").output) == 28
    assert len((FOLDER / "quickstart.py").read_text().splitlines()) <= 30


def rag_agent(ran: Ran) -> None:
    assert ran.lines[0].startswith("shutil.copytree: Recursively copy a directory tree")
    assert ran.outline == [
        "user_message user_message success",
        "run agent success",
        "  embedding embed success",
        "  retrieval retrieve success",
        "  rerank rerank success",
        "  llm answer success",
        "assistant_message assistant_message success",
    ]
    found = value_of(ran.named("retrieve").output)
    assert isinstance(found, list)
    assert len(found) == 8
    embedding, answer = generation_of(ran.named("embed")), generation_of(ran.named("answer"))
    assert embedding.usage is not None
    assert (embedding.model, embedding.usage.input_tokens) == ("tf-idf", 5)
    assert (answer.provider, answer.model, answer.response_model) == ("local", "extractive-1", "extractive-1")
    assert (answer.stop_reason, answer.response_id, value_of(answer.settings)) == (
        "stop",
        "chatcmpl-local",
        {"temperature": 0},
    )
    assert value_of(answer.message_completion) == {"role": "assistant", "content": ran.lines[0]}
    assert answer.usage is not None
    assert answer.usage.output_tokens == len(ran.lines[0].split())
    assert answer.usage.total_tokens == (answer.usage.input_tokens or 0) + (answer.usage.output_tokens or 0)
    assert [score.name for score in ran.named("answer").scores or ()] == ["grounding"]


def async_agents(ran: Ran) -> None:
    assert ran.outline == [
        "run planner success",
        "  run report success",
        "    tool temperature success",
        "  run report success",
        "    tool temperature success",
        "  run report success",
        "    tool temperature success",
        "  run outlook success",
        "    tool forecast cancelled",
        "    tool alerts failed",
    ]
    reports = [step for step in ran.steps if step.name == "report"]
    assert max(step.start_ns or 0 for step in reports) < min(step.end_ns or 0 for step in reports)
    error = ran.named("alerts").error
    assert error is not None
    assert (error.type, error.message) == ("ConnectionError", "no alerts for Jaipur")
    assert "async_agents.py" in (error.traceback or "")
    assert {step.root_run_id for step in ran.steps} == {ran.named("planner").id}
    assert value_of(ran.named("outlook").metadata) == {"gave up": "no alerts for Jaipur"}
    assert "    alerts: failed no alerts for Jaipur" in ran.lines


def chat_with_attachments(ran: Ran) -> None:
    assert ran.lines[0] == "Rani ki Vav is the deepest, 28 metres."
    assert ran.outline == [
        "system_message system_message success",
        "user_message user_message success",
        "run analyst success",
        "  llm answer success",
        "  assistant_message assistant_message success",
    ]
    thread = ran.store.thread("stepwells-of-india")
    assert (thread.name, thread.tags, value_of(thread.metadata)) == ("Stepwells", ["demo"], {"channel": "web"})
    path, table, url = ran.named("user_message").attachments or []
    assert (path.name, path.mime) == ("chat_with_attachments.py", "text/x-python")
    assert (table.name, table.mime, table.size) == ("depths.csv", "text/csv", 63)
    assert (url.name, url.mime, url.url, url.sha256) == (
        "chand-baori.jpg",
        "image/jpeg",
        "https://example.org/chand-baori.jpg",
        None,
    )
    contents = {file.read_bytes() for file in (ran.home / "blobs").rglob("*") if file.is_file()}
    assert (FOLDER / "chat_with_attachments.py").read_bytes() in contents
    assert len(contents) == 3
    answer = ran.named("assistant_message")
    assert [attachment.name for attachment in answer.attachments or ()] == ["answer.txt"]
    assert [(score.name, score.value, score.label, score.type) for score in answer.scores or ()] == [
        ("feedback", 1.0, "positive", "HUMAN"),
        ("helpfulness", 0.9, None, "AI"),
    ]
    assert [(score.name, score.value) for score in ran.named("answer").scores or ()] == [("mentions a number", 1.0)]


def custom_exporter(ran: Ran) -> None:
    assert ran.lines == [
        "delivered while the folder is missing: False",
        "waiting: 2",
        "delivered once it is there: True",
        "rejected: {'longer than 1000 bytes': 1}",
        "lines in the log: 1",
    ]
    assert ran.outline == ["tool pay success", "tool pay success"]
    (line,) = (ran.home / "audit" / "tools.jsonl").read_bytes().splitlines()
    assert decode(line)["input"] == {"account": "ada", "amount": 12.5}
    (letters,) = (ran.home / "rejected").iterdir()
    (letter,) = letters.read_bytes().splitlines()
    assert decode(letter)["reason"] == "longer than 1000 bytes"
    assert decode(letter)["record"]["input"]["account"] == "x" * 2000


def opentelemetry_together(ran: Ran) -> None:
    assert ran.lines == [
        "Lamps in stock? 3",
        "SELECT stock is below stock",
        "GET /ask is below nothing",
        "stock is below shop_assistant",
        "shop_assistant is below handle",
        "handle is below GET /ask",
        "one trace: True delivered: True",
    ]
    assert value_of(ran.named("shop_assistant").metadata) == {"shop.branch": "Patan"}
    assert ran.named("handle").parent_id is not None


def nested_and_manual(ran: Ran) -> None:
    assert ran.lines == [
        "nightly: success, summary: success ['short'], check: failed",
        "nested: True",
        "recording: False",
        "strict: a user_message was recorded outside of any thread or step, and got a thread of its own",
        "delivered: True",
    ]
    assert ran.outline == ["run nightly success", "  llm summary success", "  tool check failed"]
    job, call, check = ran.steps
    assert (job.tags, value_of(job.metadata)) == (["batch"], {"host": "worker-1", "lines": 1})
    generation = generation_of(call)
    assert generation.usage is not None
    assert generation.usage.total_tokens == 8
    assert check.error is not None
    assert check.error.message == "the log has no date"


EXPECTED: dict[str, Callable[[Ran], None]] = {
    expectation.__name__: expectation
    for expectation in (
        across_services,
        async_agents,
        chat_with_attachments,
        custom_exporter,
        nested_and_manual,
        opentelemetry_together,
        quickstart,
        rag_agent,
    )
}
EXAMPLES = sorted(FOLDER.glob("*.py"))


def test_every_example_has_an_expectation_and_every_expectation_an_example() -> None:
    assert [example.stem for example in EXAMPLES] == sorted(EXPECTED)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_records_what_it_shows_and_writes_nowhere_else(example: Path, tmp_path: Path) -> None:
    lines = run(example, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".stepwell"]
    home = tmp_path / ".stepwell"
    with closing(open_store(f"sqlite:{home / 'steps.db'}", read_only=True)) as store:
        assert store.check() == []
        EXPECTED[example.stem](Ran(lines, home, store))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_can_be_run_again_and_writes_where_the_environment_says(example: Path, tmp_path: Path) -> None:
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    cwd.mkdir()
    first = run(example, cwd, STEPWELL_HOME=str(home))
    second = run(example, cwd, STEPWELL_HOME=str(home))
    assert len(first) == len(second) > 0
    assert list(cwd.iterdir()) == []
    assert (home / "steps.db").is_file()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_says_what_it_shows_and_how_to_run_it(example: Path) -> None:
    text = ast.get_docstring(ast.parse(example.read_text())) or ""
    assert len(text.splitlines()[0]) > 20
    assert f"`python examples/{example.name}" in text
