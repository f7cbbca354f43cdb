"""The README can't lie: its blocks run, and it names every setting, command and option."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import stepwell as sw
from stepwell import _config

README = (Path(__file__).parent.parent / "README.md").read_text()
ROOT = Path(__file__).parent.parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def toured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all Python blocks have run, one after the other, as one program."""
    folder = tmp_path_factory.mktemp("tour")
    program = folder / "tour.py"
    program.write_text("\n".join(blocks("python")))
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)], cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_every_python_block_runs_in_one_program(toured: Path) -> None:
    assert len(blocks("python")) >= 8
    assert (toured / ".stepwell" / "steps.db").is_file()


def test_every_shell_block_runs_after_it(toured: Path) -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines() if line]
    assert lines
    for line in lines:
        command = [sys.executable, "-m", *shlex.split(line)]
        done = subprocess.run(command, cwd=toured, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), line
        assert done.stdout, line


def test_both_commands_of_the_first_section_are_there() -> None:
    commands = re.findall(r"^    (python3 .*)$", README, re.MULTILINE)
    assert commands == ["python3 dev.py demo", "python3 dev.py test"]
    help_text = subprocess.run(
        [sys.executable, str(ROOT / "dev.py"), "--help"], capture_output=True, text=True, check=True
    )
    assert "{demo,test}" in help_text.stdout


def test_every_setting_is_named() -> None:
    settings = inspect.signature(_config.configure).parameters
    missing = [name for name in settings if f"`{name}`" not in README]
    assert missing == []


def test_every_public_name_is_named() -> None:
    missing = [name for name in sw.__all__ if not re.search(rf"\b{name}\b", README)]
    assert missing == ["Stats", "Step", "Thread"]


def test_every_command_and_option_is_named() -> None:
    import typer.main

    from stepwell._cli_app import app

    group = typer.main.get_command(app)
    commands = group.commands  # type: ignore[attr-defined]
    assert [name for name in commands if f"`stepwell {name}" not in README] == []
    options = {option for command in commands.values() for each in command.params for option in each.opts}
    missing = sorted(option for option in options if option.startswith("--") and option not in README)
    assert missing == ["--help"] or missing == []


def test_the_examples_are_named_by_no_path_of_a_machine() -> None:
    assert str(ROOT.parent) + os.sep not in README


def test_every_behaviour_of_the_table_has_its_test() -> None:
    table = README[README.index("## How it behaves") : README.index("## What it costs")]
    rows = [row for row in table.splitlines() if row.startswith("| ") and not row.startswith(("| **", "| what"))]
    assert len(rows) >= 45
    for row in rows:
        links = re.findall(r"\[([a-z0-9 _]+)\]\((tests/test_\w+\.py)\)", row)
        assert links, row
        for name, path in links:
            assert f"def test_{name.replace(' ', '_')}(" in (ROOT / path).read_text(), (name, path)
