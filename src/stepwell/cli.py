"""The command line: `stepwell demo | ls | show | tail | export | import | ship | stats | doctor | vacuum | backup`,
`stepwell rm | serve | keys`.

What must stay true: whatever goes wrong with what was asked is one line on stderr that names it, and status 2; a reader
that has enough (`| head`) ends the program quietly; without the extra `stepwell[cli]` it says what to install.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from stepwell._collector import collect_seldom
from stepwell.errors import StepwellError

__all__ = ["main", "run"]


def main() -> None:
    """Run the program with the arguments it was called with, and exit with its status."""
    collect_seldom()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit status."""
    try:
        from stepwell._cli_app import app  # needs typer, an optional dependency
    except ModuleNotFoundError as error:
        if error.name != "typer":
            raise
        return _fail("the command line needs typer: pip install 'stepwell[cli]'")
    from stepwell._cli_output import ReaderGoneError  # with the above: nothing else needs it

    try:
        status = app(args=list(arguments), prog_name="stepwell", standalone_mode=False)
        _flush()
    except (ReaderGoneError, BrokenPipeError):
        return _quiet()
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        return _fail(message)
    return status if isinstance(status, int) else 0


def _explain(error: Exception) -> str | None:
    """Say in a line what the user can do something about; None for a fault of ours."""
    if isinstance(error, StepwellError):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    tell = getattr(error, "format_message", None)  # typer's usage errors; their base class differs by version
    return f"{tell()} (see stepwell --help)" if tell is not None else None


def _fail(message: str) -> int:
    from stepwell._render import clean  # not needed where all is well

    if sys.stderr is not None:
        with suppress(OSError, ValueError):
            sys.stderr.write(f"stepwell: {clean(message)}\n")
    return 2


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


def _quiet() -> int:
    """Keep the interpreter from complaining at exit that what it still holds can't be written."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
