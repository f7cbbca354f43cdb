"""What users can import is this and no more, told in docstrings, and cheap to import."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

import stepwell as sw
from stepwell import testing

PUBLIC = [
    "AsyncClient",
    "Client",
    "Stats",
    "Step",
    "Thread",
    "assistant_message",
    "attach",
    "bind",
    "configure",
    "current_run",
    "current_step",
    "current_thread",
    "embedding",
    "extract",
    "feedback",
    "flush",
    "inject",
    "instrument",
    "llm",
    "rerank",
    "retrieval",
    "run",
    "score",
    "shutdown",
    "start",
    "stats",
    "step",
    "system_message",
    "thread",
    "tool",
    "uninstrument",
    "user_message",
]
TESTING = ["Captured", "ExporterContract", "FakeClock", "FakeIds", "Node", "StoreContract", "capture"]
HEAVY = ["pydantic", "httpx", "opentelemetry.sdk", "fastapi", "rich", "typer", "sqlite3", "asyncio"]


def in_a_new_interpreter(code: str, folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def members_of(kind: type) -> list[tuple[str, object]]:
    return [(f"{kind.__name__}.{name}", value) for name, value in inspect.getmembers(kind) if not name.startswith("_")]


def test_the_public_names_are_these() -> None:
    assert sw.__all__ == PUBLIC == sorted(PUBLIC)
    exported = {name for name, value in vars(sw).items() if name[0] != "_" and not isinstance(value, ModuleType)}
    assert exported - {"TYPE_CHECKING", "Any", "import_module"} == set(PUBLIC) - {"AsyncClient", "Client"}


def test_the_names_for_tests_are_these() -> None:
    assert testing.__all__ == TESTING == sorted(TESTING)
    for name in TESTING:
        assert getattr(testing, name) is not None


def test_a_name_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'stepwell' has no attribute 'missing'"):
        _ = sw.missing
    with pytest.raises(AttributeError, match=r"module 'stepwell\.testing' has no attribute 'missing'"):
        _ = testing.missing


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_is_for(name: str) -> None:
    assert (getattr(sw, name).__doc__ or "").strip()


@pytest.mark.parametrize(
    "kind", [sw.Step, sw.Thread, sw.Client, sw.AsyncClient, testing.Captured, testing.FakeClock, testing.FakeIds]
)
def test_every_member_of_a_public_class_says_what_it_is_for(kind: type) -> None:
    silent = [
        name
        for name, value in members_of(kind)
        if (callable(value) or isinstance(value, property)) and not (inspect.getdoc(value) or "").strip()
    ]
    assert silent == []


def test_importing_loads_nothing_heavy(tmp_path: Path) -> None:
    loaded = in_a_new_interpreter("import sys, stepwell; print(*sys.modules)", tmp_path)
    assert [name for name in HEAVY if name in loaded] == []


def test_few_modules_are_loaded(tmp_path: Path) -> None:
    ours = in_a_new_interpreter("import sys, stepwell; print(*sys.modules)", tmp_path)
    bare = in_a_new_interpreter("import sys, opentelemetry.trace; print(*sys.modules)", tmp_path)
    assert len(ours) < 300  # the leanest of eleven tracing libraries loads 447
    assert len(set(ours) - set(bare)) < 80


def test_few_distributions_are_installed() -> None:
    needed = requirements_of("stepwell")
    assert len(needed) <= 16, sorted(needed)  # of eleven tracing libraries, the leanest brings 30


def requirements_of(distribution: str) -> set[str]:
    """Return all that an installation without extras brings, by name."""
    found: set[str] = set()
    waiting = [distribution]
    while waiting:
        name = waiting.pop()
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.name not in found and (requirement.marker is None or requirement.marker.evaluate()):
                found.add(requirement.name)
                waiting.append(requirement.name)
    return found


def test_importing_starts_no_thread_and_makes_no_file(tmp_path: Path) -> None:
    code = "import threading, stepwell; print(threading.active_count())"
    assert in_a_new_interpreter(code, tmp_path) == ["1"]
    assert list(tmp_path.iterdir()) == []


def test_configuring_and_decorating_start_no_thread_and_make_no_file(tmp_path: Path) -> None:
    code = (
        "import threading, stepwell as sw\nsw.configure(service='bot')\n"
        "sw.tool(len), sw.thread('t')(len), sw.run('x')\nprint(threading.active_count())"
    )
    assert in_a_new_interpreter(code, tmp_path) == ["1"]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_recording_loads_neither_terminal_nor_http_libraries(tmp_path: Path) -> None:
    code = (
        "import sys, stepwell as sw\nwith sw.thread('t'), sw.run('x'): sw.user_message('hi')\n"
        "sw.flush()\nprint(*sys.modules)"
    )
    loaded = in_a_new_interpreter(code, tmp_path)
    assert [name for name in ("rich", "typer", "httpx", "opentelemetry.sdk", "pydantic") if name in loaded] == []


def test_a_module_says_what_it_is_for() -> None:
    for path in Path(sw.__file__).parent.rglob("*.py"):
        assert path.read_text().lstrip("r").startswith('"""'), path
