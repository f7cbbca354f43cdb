"""What commands print: lines for people, one JSON object a line for programs.

What must stay true: with `--json` nothing but JSON reaches stdout; remarks go to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from datetime import datetime
from typing import TextIO

from msgspec import json

from stepwell._render import Line, Screen, clean

__all__ = ["Output", "ReaderGoneError", "moment"]


class ReaderGoneError(Exception):
    """Says that nobody reads our output any more. Not an `OSError`: typer would end the program by its own rules."""


class Output:
    """The standard streams, for as long as one command runs."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._stdout: TextIO = sys.stdout or _nowhere()
        self._screen: Screen | None = None

    @property
    def screen(self) -> Screen:
        """Where lines go; made when first needed."""
        if self._screen is None:
            self._screen = Screen(self._stdout)
        return self._screen

    def lines(self, lines: Iterable[Line], *, clipped: bool = True) -> None:
        """Print lines for people."""
        with _noticing():
            self.screen.write(lines, clipped=clipped)

    def text(self, text: str) -> None:
        """Print a line of our own words, as wide as it is."""
        self.lines([[(text, "")]], clipped=False)

    def json_lines(self, lines: Iterable[bytes]) -> None:
        """Print encoded JSON objects, a line each, and flush."""
        with _noticing():
            self._stdout.flush()
            for line in lines:
                self._write(line)
            self._stdout.flush()

    def pieces(self, pieces: Iterable[bytes]) -> None:
        """Write bytes as they are, in UTF-8, and flush."""
        with _noticing():
            self._stdout.flush()
            buffer = getattr(self._stdout, "buffer", None)
            for piece in pieces:
                if buffer is None:
                    self._stdout.write(piece.decode())
                else:
                    buffer.write(piece)
            self._stdout.flush()

    def json(self, value: object) -> None:
        """Print one value as a line of JSON."""
        self.json_lines([json.encode(value)])

    def note(self, text: str) -> None:
        """Say something beside the output."""
        if sys.stderr is not None:
            sys.stderr.write(f"{clean(text)}\n")
            sys.stderr.flush()

    def _write(self, line: bytes) -> None:
        buffer = getattr(self._stdout, "buffer", None)
        if buffer is None:
            self._stdout.write(f"{line.decode()}\n")
        else:
            buffer.write(line + b"\n")


@contextmanager
def _noticing() -> Generator[None, None, None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGoneError from error


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - as long as the program, like stdout


def moment(ns: int | None, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Return a time as people here read it; nothing for an unknown one."""
    if ns is None:
        return ""
    try:
        return datetime.fromtimestamp(ns / 1e9).astimezone().strftime(form)
    except (OverflowError, ValueError, OSError):  # recorded by a broken clock
        return f"{ns} ns"
