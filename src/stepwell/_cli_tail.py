"""`stepwell tail`: steps as they begin and end, of the store and of what live processes have only in the journal."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from contextlib import closing, suppress
from typing import Final

from stepwell._cli_journal import Feed
from stepwell._cli_output import Output, moment
from stepwell._cli_source import Source, add_all
from stepwell._render import Line, clean, node_of_record, step_pieces
from stepwell.errors import StoreError
from stepwell.model import StepRecord, encode_record
from stepwell.store import MAX_PAGE, Store, open_store

__all__ = ["Follower", "tail"]

POLL_S: Final = 0.2
MAX_REMEMBERED: Final = 50_000


class Follower:
    """Reads the steps that are new since it was made, or have ended since.

    A home without a store is followed in memory until its first store appears.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._feed = None if source.url else Feed(source.folder / "journal")
        self._position = 0
        self._told: OrderedDict[str, str | None] = OrderedDict()  # step id -> the status last told
        self._in_memory = not source.url and not source.store_path.exists()
        self._store = open_store("sqlite::memory:") if self._in_memory else self._open()
        self._take_in()
        if self._in_memory:
            self.poll()  # what is old will be found again in the store that is yet to be made
        else:
            _, self._position = self._store.changes(None)

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def poll(self) -> list[StepRecord]:
        """Return the steps that began or ended since the last call."""
        if self._in_memory and self._source.store_path.exists():
            self._move()
        self._take_in()
        found: list[StepRecord] = []
        while True:
            rows, self._position = self._store.changes(self._position, MAX_PAGE)
            found += self._store.steps_in_full([row.id for row in rows if self._is_news(row.id, row.status)])
            if len(rows) < MAX_PAGE:
                return found

    def _open(self) -> Store:
        return open_store(self._source.store_url, read_only=bool(self._source.url))

    def _move(self) -> None:
        """Go on in the store that is there now, from its beginning; what was told is known."""
        with suppress(StoreError):  # it is just being made: the next poll sees it whole
            store = self._open()
            self._store.close()
            self._store, self._position, self._in_memory = store, 0, False

    def _take_in(self) -> None:
        if self._feed is not None:
            add_all(self._store, self._feed.frames())

    def _is_news(self, id: str, status: str | None) -> bool:
        known = id in self._told and self._told[id] == status
        self._told[id] = status
        self._told.move_to_end(id)
        if len(self._told) > MAX_REMEMBERED:
            self._told.popitem(last=False)
        return not known


def tail(source: Source, out: Output, *, for_s: float | None, until_idle_s: float | None) -> None:
    """Print steps as they come, until Ctrl-C, or for so long, or until none came for so long."""
    with suppress(KeyboardInterrupt), closing(Follower(source)) as follower:
        out.note(f"following {source.store_url}, Ctrl-C ends")
        began = last = time.monotonic()
        pause = threading.Event()
        while True:
            steps = follower.poll()
            _tell(steps, out)
            now = time.monotonic()
            last = now if steps else last
            if (for_s is not None and now - began >= for_s) or (
                until_idle_s is not None and now - last >= until_idle_s
            ):
                return
            pause.wait(POLL_S)


def _tell(steps: list[StepRecord], out: Output) -> None:
    if out.as_json:
        out.json_lines(map(encode_record, steps))
    elif steps:
        out.lines(map(_line, steps))


def _line(step: StepRecord) -> Line:
    at = step.start_ns if step.end_ns is None else step.end_ns
    return [(f"{moment(at, '%H:%M:%S')}  {clean(step.id, 64)}  ", "dim"), *step_pieces(node_of_record(step))]
