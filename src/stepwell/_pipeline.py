"""The pipeline behind one configuration: a journal, a shipper an exporter, and the keeper that tends them.

What must stay true:

1. Nothing here runs on the program's threads but `start`, `flush` and `close`, and those two return by their deadline
   whatever an exporter does.
2. The journal is sealed before the shippers are asked to stop, so what was appended is delivered or journaled, and
   what comes later goes to the successor.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from stepwell._announcing import Announcer
from stepwell._journal import Journal
from stepwell._recorder import Recorder
from stepwell._recovery import Orphan, adopt, trim
from stepwell._settings import Settings
from stepwell._shipper import DeadLetters, Shipper
from stepwell.exporters import Exporter

__all__ = ["Pipeline", "exporter_key", "prepare_home"]

HEARTBEAT_S: Final = 0.25
ADOPT_EVERY_S: Final = 30.0
_MAIN: Final = threading.main_thread()


class Pipeline:
    """Made with the first record. `journal.append` takes frames from then on; `start` sets the threads going."""

    def __init__(self, settings: Settings, exporters: Sequence[Exporter], recorder: Recorder) -> None:
        self._settings = settings
        self._recorder = recorder
        self._home = prepare_home(settings.home, recorder.fault)
        self._folder = None if self._home is None else self._home / "journal"
        self.journal = Journal(self._folder, max_bytes=settings.max_journal_bytes, report=recorder.fault)
        self._torn = 0
        self._orphans: list[Orphan] = []
        self._stopping = False
        self._announcer = Announcer(recorder)
        self.shippers = [self._shipper(exporter, name) for name, exporter in _named(exporters)]
        self._keeper = threading.Thread(target=self._keep, name="stepwell-keeper", daemon=True)

    def _shipper(self, exporter: Exporter, name: str) -> Shipper:
        rejected = None if self._home is None else self._home / "rejected"
        letters = DeadLetters(rejected, re.sub(r"[^A-Za-z0-9.-]+", "_", name)[-80:], self._recorder.fault)
        cursor = self.journal.cursor(exporter_key(exporter))
        return Shipper(exporter, name, cursor, letters, self._recorder.fault)

    def start(self) -> None:
        """Start the threads; where none can be had (the interpreter is going down) the journal keeps the records."""
        try:
            for shipper in self.shippers:
                shipper.start()
            self._keeper.start()
        except RuntimeError as error:
            self._recorder.fault("start a thread", error)

    @property
    def torn(self) -> int:
        """Places in adopted journals that held no whole record."""
        return self._torn + sum(orphan.torn for orphan in list(self._orphans))

    def flush(self, deadline: float, *, adopted: bool = False) -> bool:
        """Wait for all shippers, at most until `deadline` (monotonic seconds); see `Shipper.flush`."""
        done = [shipper.flush(deadline, adopted=adopted) for shipper in self.shippers]
        return all(done)

    def close(self, deadline: float, then: Callable[[bytes], None]) -> bool:
        """Deliver, stop the threads, close the exporters and the journal; say whether all was delivered.

        A thread that is just about to append is sent on to `then`.
        """
        self.journal.seal(then)
        self._stopping = True
        self.journal.wake()
        if self._keeper.ident is not None and self._keeper is not threading.current_thread():
            # It may hand over an orphan until it ends, so the shippers go on until then.
            self._keeper.join(max(0.0, deadline - time.monotonic()))
        for shipper in self.shippers:
            shipper.ask_to_stop(deadline)
        done = [shipper.join(deadline) for shipper in self.shippers]
        self.journal.close()
        for orphan in self._orphans:
            orphan.close()
        return all(done)

    def interrupt(self) -> None:
        """Write long steps that are open as interrupted: this is the end of the process, or of its recording."""
        try:
            self._announcer.interrupt(self.journal.session, self.journal.append)
        except Exception as error:  # noqa: BLE001 - the containment door
            self._recorder.fault("write down what is interrupted", error)

    def wait_loaded(self, deadline: float) -> None:
        """Wait, before a fork, for imports under way; see `Shipper.wait_loaded`."""
        for shipper in self.shippers:
            shipper.wait_loaded(deadline)

    def abandon(self) -> None:
        """Let go of everything in a forked child: journal and orphans stay the parent's."""
        self.journal.abandon()
        for orphan in self._orphans:
            orphan.abandon()

    def adopt_orphans(self) -> int:
        """Hand what dead processes left to the shippers it is for; return how many sessions were found."""
        if self._folder is None:
            return 0
        by_key = {shipper.cursor.key: shipper for shipper in self.shippers if shipper.cursor.key is not None}
        keys = [key for key in by_key if key]
        for key, lost in trim(self._folder, self._settings.max_journal_bytes, keys).items():
            by_key[key].count_trimmed(lost)
        found = 0
        for orphan in adopt(self._folder, keys):
            found += 1
            self._orphans.append(orphan)
            for key, source in orphan.sources.items():
                by_key[key].adopt(source)
        return found

    def _keep(self) -> None:
        """Prepare segments, announce long steps, adopt orphans, until closed."""
        recorder, adopted_at = self._recorder, float("-inf")
        while True:
            try:
                self.journal.tend()
                self._announcer.announce(self.journal.session)
                if time.monotonic() - adopted_at >= ADOPT_EVERY_S:
                    adopted_at = time.monotonic()
                    self._forget_finished()
                    self.adopt_orphans()
            except Exception as error:  # noqa: BLE001 - the thread must live
                recorder.fault("keep the journal", error)
            if self._stopping:
                return
            if _program_has_ended():
                self.close(time.monotonic() + self._settings.exit_timeout, lambda _: None)
                return
            self.journal.wait(HEARTBEAT_S)

    def _forget_finished(self) -> None:
        for orphan in [orphan for orphan in self._orphans if orphan.closed]:
            self._orphans.remove(orphan)
            self._torn += orphan.torn


def _program_has_ended() -> bool:
    """Tell, in a child forked by a thread, whether that thread has ended: only our threads keep it from exiting then.

    Python runs no exit handlers there. Elsewhere the main thread stays that of the import, and may end before others.
    """
    main = threading.main_thread()
    return main is not _MAIN and not main.is_alive()


def exporter_key(exporter: Exporter) -> str | None:
    """Return the name by which another process knows the exporter's destination, None when it has none."""
    key = getattr(exporter, "key", None)
    return key if isinstance(key, str) and key else None


def _named(exporters: Sequence[Exporter]) -> list[tuple[str, Exporter]]:
    """Give every exporter a name of its own, for statistics, threads and dead letters."""
    names: dict[str, Exporter] = {}
    for exporter in exporters:
        base = exporter_key(exporter) or type(exporter).__name__
        name, count = base, 1
        while name in names:
            count += 1
            name = f"{base}#{count}"
        names[name] = exporter
    return list(names.items())


def prepare_home(home: Path | None, report: Callable[[str, BaseException], None]) -> Path | None:
    """Make the home folder, private and ignored by git; None where that can't be done."""
    if home is None:
        return None
    home = home.absolute()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not any(home.iterdir()):  # never into a folder that holds something of the user's
            (home / ".gitignore").write_text("*\n")
    except OSError as error:
        report("use its home folder; records wait in memory", error)
        return None
    return home
