"""`stepwell export RUN`: one run as a page, as Markdown, or as its records.

What must stay true: the size of a page is told before anything is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from stepwell._answers import Place
from stepwell._cli_output import Output
from stepwell._cli_source import Source
from stepwell._render import size
from stepwell.blobs import BlobStore
from stepwell.errors import UsageError

__all__ = ["Form", "save_run"]

Form = Literal["html", "markdown", "jsonl"]


def save_run(source: Source, id: str, form: Form, target: Path | None, out: Output) -> None:
    """Write a run to a file or stdout. Raises `NotFoundError`, `UsageError` where the server's packages are missing."""
    try:
        from stepwell.server.pages._rows import family_of
        from stepwell.server.pages._saving import saved_page
        from stepwell.server.pages._sharing import lines_of_run, markdown_of
    except ModuleNotFoundError as error:
        raise UsageError(f"a run's page needs {error.name}: pip install 'stepwell[server]'") from error
    with source.reading() as store:
        found = store.find(id)
        if found.kind == "thread":
            raise UsageError(f"{id!r} is a thread: export --thread {id} writes its records")
        family = family_of(found.id, store.tree(found.id))
        if form == "html":
            page = saved_page(Place(store, BlobStore(_folder(source) / "blobs")), family)
            steps = f"{len(family.rows):,} step{'' if len(family.rows) == 1 else 's'}"
            out.note(f"a page of {size(len(page))}, {steps}")
            _write([page], target, out)
        elif form == "markdown":
            _write((part.encode("utf-8", "replace") for part in markdown_of(store, family)), target, out)
        else:
            _write(lines_of_run(store, family), target, out)


def _folder(source: Source) -> Path:
    return source.folder if source.url is None else Path(source.url.removeprefix("sqlite:")).absolute().parent


def _write(pieces: Iterable[bytes], target: Path | None, out: Output) -> None:
    if target is None:
        out.pieces(pieces)
        return
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:  # noqa: PTH123 - a path can't be opened with a mode
        file.writelines(pieces)
    out.note(f"written to {target}")
