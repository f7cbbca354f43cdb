"""`stepwell export`, `import` and `ship`: records out of a store, into one, and out of dead processes' journals."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from msgspec import Struct, json

from stepwell._cli_journal import survey
from stepwell._cli_output import Output
from stepwell._cli_source import Source
from stepwell._pipeline import Pipeline, exporter_key, prepare_home
from stepwell._recorder import Recorder
from stepwell._render import clean
from stepwell._settings import Settings
from stepwell.errors import StepwellError
from stepwell.exporters import Exporter, open_exporter
from stepwell.store import Rejection, StepFilter, Store, open_store

__all__ = ["export_records", "import_records", "ship"]

_BATCH_LINES: Final = 1000
_CLOSE_S: Final = 2.0
_GIVE_UP_S: Final = 0.2


def export_records(store: Store, filter: StepFilter | None, target: Path | None, out: Output) -> None:
    """Write records as JSON lines, to a file or stdout."""
    records = store.records(filter)
    if target is None:
        out.json_lines(records)
        return
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:  # noqa: PTH123 - a path can't be opened with a mode
        count = 0
        for count, record in enumerate(records, start=1):  # noqa: B007 - the count is what is wanted
            file.write(record + b"\n")
    out.note(f"{count:,} records written to {target}")


class Imported(Struct):
    """What became of the lines of a file."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0


def import_records(source: Source, file_name: str, out: Output) -> int:
    """Add a file's lines to the store; return the exit status, 1 where any was refused."""
    total = Imported()
    with _lines_of(file_name) as lines, ExitStack() as stack:
        store = open_store(_writable(source))
        stack.callback(store.close)
        numbered = _numbered(lines)
        while batch := list(islice(numbered, _BATCH_LINES)):
            result = store.add([line for _, line in batch])
            total.accepted += result.accepted
            total.duplicates += result.duplicates
            total.rejected += len(result.rejected)
            for rejection in result.rejected:
                out.note(_blame(file_name, batch[rejection.index][0], rejection))
    if out.as_json:
        out.json(total)
    else:
        out.text(f"{total.accepted:,} accepted, {total.duplicates:,} duplicates, {total.rejected:,} rejected")
    return 1 if total.rejected else 0


def _writable(source: Source) -> str:
    """Return the URL of the store to add to; a home folder is made where there is none."""
    if source.url is None:
        prepare_home(source.home, _raise)
    return source.store_url


def _raise(_: str, error: BaseException) -> None:
    raise error


@contextmanager
def _lines_of(file_name: str) -> Generator[BinaryIO, None, None]:
    if file_name == "-":
        yield sys.stdin.buffer
        return
    with Path(file_name).open("rb") as file:
        yield file


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    """Number the lines that hold something, from 1; a byte order mark is none of their content."""
    for number, line in enumerate(lines, start=1):
        record = (line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).strip()
        if record:
            yield number, record


def _blame(file_name: str, number: int, rejection: Rejection) -> str:
    return f"{file_name}:{number}: {rejection.error}"


# -- ship


class Shipped(Struct):
    """What became of one exporter's part."""

    exporter: str
    delivered: int = 0
    rejected: int = 0
    left: int = 0
    problem: str | None = None


class _Faults(Recorder):
    """Remembers, by where it happened, what went wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, str] = {}

    def fault(self, where: str, error: BaseException) -> None:
        self.last[where] = str(error) or type(error).__name__


def ship(source: Source, urls: Sequence[str], timeout_s: float, out: Output) -> int:
    """Deliver what dead processes left; return the exit status, 1 where something is left or was refused."""
    folder = source.folder
    wanted = _left(folder)
    results = {key: Shipped(key, left=count) for key, count in wanted.items()}
    exporters = _reopened(folder, wanted, urls, results)
    if exporters:
        faults = _Faults()
        _deliver(folder, exporters, timeout_s, faults, results)
        still = _left(folder)
        for key, result in results.items():
            result.left = still.get(key, 0)
            if result.left and result.problem is None:
                result.problem = faults.last.get(f"export to {key}") or "time ran out"
    if out.as_json:
        out.json_lines(map(json.encode, results.values()))
    elif results:
        out.lines([[(_told(result), "")] for result in results.values()], clipped=False)
    else:
        out.text("nothing to ship: no dead process left anything")
    return 1 if any(result.left or result.rejected for result in results.values()) else 0


def _told(result: Shipped) -> str:
    text = f"{result.exporter}: {result.delivered:,} delivered, {result.left:,} left"
    text += f", {result.rejected:,} rejected (see rejected/)" if result.rejected else ""
    return clean(f"{text}: {result.problem}" if result.problem else text)


def _left(folder: Path) -> dict[str, int]:
    """Count, by exporter, the records that dead processes did not deliver."""
    counts: dict[str, int] = {}
    for session in survey(folder / "journal"):
        for key, count in session.waiting.items():
            if not session.alive and count:
                counts[key] = counts.get(key, 0) + count
    return counts


def _reopened(folder: Path, wanted: dict[str, int], urls: Sequence[str], results: dict[str, Shipped]) -> list[Exporter]:
    """Open the exporters that something waits for: those given, and those whose key is a URL."""
    given = [open_exporter(url, folder) for url in urls]
    exporters = [exporter for exporter in given if exporter_key(exporter) in wanted]
    known = {exporter_key(exporter) for exporter in exporters}
    for key in wanted:
        if key in known:
            continue
        try:
            exporter = open_exporter(key, folder)
        except (StepwellError, OSError) as error:
            results[key].problem = f"can't be opened from its key, pass --export URL ({error})"
            continue
        if exporter_key(exporter) == key:
            exporters.append(exporter)
        else:
            results[key].problem = "can't be opened from its key, pass --export URL"
    return exporters


def _deliver(
    folder: Path, exporters: list[Exporter], timeout_s: float, faults: _Faults, results: dict[str, Shipped]
) -> None:
    """Run the shippers over the orphans only: without the keeper, which would go on adopting."""
    settings = Settings(export=tuple(exporters), home=folder, max_journal_bytes=sys.maxsize)  # nothing is trimmed here
    pipeline = Pipeline(settings, exporters, faults)
    for shipper in pipeline.shippers:
        shipper.start()
    pipeline.adopt_orphans()
    done = pipeline.flush(time.monotonic() + timeout_s, adopted=True)
    pipeline.close(time.monotonic() + (_CLOSE_S if done else _GIVE_UP_S), lambda _: None)
    for shipper in pipeline.shippers:
        result, ledger = results.get(shipper.cursor.key or ""), shipper.stats()
        if result is not None:
            result.delivered, result.rejected = ledger.delivered, sum(ledger.rejected.values())
