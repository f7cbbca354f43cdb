#!/usr/bin/env python3
"""Set everything up and run it, on any machine with Python 3.11 or later: no other tool, nothing to install first.

python3 dev.py demo     make an environment in .venv, install stepwell there, run `stepwell demo`
python3 dev.py test     the same with the development tools: format, lint, types, tests, benchmarks, wheel
python3 dev.py test -- -k journal      only some tests, with pytest's own options
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
STEPS = [
    ("format", ["ruff", "format", "--check", "."]),
    ("lint", ["ruff", "check", "."]),
    ("types, mypy", ["mypy"]),
    ("types, pyright", ["pyright"]),
    (
        "tests",
        ["coverage", "run", "-m", "pytest", "-p", "no:stepwell", "-n", "4", "--dist", "worksteal", "--durations=25"],
    ),
    ("coverage, joined", ["coverage", "combine", "-q"]),
    ("coverage", ["coverage", "report"]),
    ("benchmark, overhead", ["python", "-W", "error", "benchmarks/overhead.py", "--smoke"]),
    ("benchmark, latency", ["python", "-W", "error", "benchmarks/latency.py", "--smoke"]),
    ("benchmark, soak", ["python", "-W", "error", "benchmarks/soak.py", "--smoke"]),
    ("benchmark, store", ["python", "-W", "error", "benchmarks/store.py", "--smoke"]),
    ("benchmark, server", ["python", "-W", "error", "benchmarks/server.py", "--smoke"]),
    ("benchmark, reading", ["python", "-W", "error", "benchmarks/reading.py", "--smoke"]),
    ("benchmark, rollups", ["python", "-W", "error", "benchmarks/rollups.py", "--smoke"]),
    ("benchmark, search", ["python", "-W", "error", "benchmarks/search.py", "--smoke"]),
    ("benchmark, OTLP in", ["python", "-W", "error", "benchmarks/otlp.py", "--smoke"]),
    ("benchmark, OTLP out", ["python", "-W", "error", "benchmarks/otlp_out.py", "--smoke"]),
    ("benchmark, memory", ["python", "-W", "error", "benchmarks/memory.py", "--smoke"]),
]


def environment(folder: Path) -> dict[str, str]:
    """Make a virtual environment, unless it is there, and return the variables of a shell that has activated it."""
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    variables = {**os.environ, "VIRTUAL_ENV": str(folder), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    variables["PATH"] = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {name: value for name, value in variables.items() if not name.startswith(("STEPWELL_", "OTEL_"))}


def run(command: list[str], variables: dict[str, str], folder: Path = ROOT) -> None:
    """Run a command of the environment; end this program with its status where it fails."""
    program = shutil.which(command[0], path=variables["PATH"]) or command[0]
    status = subprocess.run([program, *command[1:]], env=variables, cwd=folder, check=False).returncode
    if status:
        sys.exit(f"failed ({status}): {' '.join(command)}")


def install(variables: dict[str, str], *what: str) -> None:
    """Install with a pip new enough to know dependency groups."""
    run(["python", "-m", "pip", "install", "--quiet", "--upgrade", "pip"], variables)
    run(["python", "-m", "pip", "install", "--quiet", *what], variables)


def demo() -> None:
    """Install into .venv and run the demo."""
    variables = environment(ENVIRONMENT)
    install(variables, "--editable", ".[cli]")
    run(["stepwell", "demo"], variables)
    sys.stdout.write("To type these commands as they stand, first: . .venv/bin/activate\n")


def test(options: list[str]) -> None:
    """Run every check, or with options only pytest."""
    variables = environment(ENVIRONMENT)
    install(variables, "--editable", ".[cli,otlp,server]", "--group", "dev")
    if options:
        run(["python", "-m", "pytest", *options], variables)
        return
    run(["coverage", "erase"], variables)
    for name, command in STEPS:
        begin = time.monotonic()
        sys.stdout.write(f"== {name}\n")
        sys.stdout.flush()
        run(command, variables)
        sys.stdout.write(f"== {name}: {time.monotonic() - begin:.0f} s\n")
    wheel(variables)
    sys.stdout.write("== all passed\n")


def wheel(variables: dict[str, str]) -> None:
    """Build the wheel, and try it where nothing of the development is installed."""
    sys.stdout.write("== wheel\n")
    sys.stdout.flush()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(["python", "-m", "build", "--outdir", str(folder / "dist")], variables)
        fresh = environment(folder / "environment")
        install(fresh, f"{next((folder / 'dist').glob('*.whl'))}[cli]")
        run(["python", "-W", "error", "-c", "import stepwell; stepwell.run"], fresh, folder)
        run(["stepwell", "demo"], fresh, folder)
        run(["stepwell", "doctor"], fresh, folder)
        run(["python", "-W", "error", str(ROOT / "examples" / "quickstart.py")], fresh, folder)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["demo", "test"])
    parser.add_argument("options", nargs="*", help="after --, for pytest")
    arguments = parser.parse_args()
    if sys.version_info < (3, 11):  # noqa: UP036 - run by whatever python3 there is
        sys.exit("stepwell needs Python 3.11 or later")
    if arguments.command == "demo":
        demo()
    else:
        test(arguments.options)


if __name__ == "__main__":
    main()
