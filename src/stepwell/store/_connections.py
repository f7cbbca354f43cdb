"""The connections of one SQLite file: who may use which, and what happens when the file is busy, damaged or inherited.

What must stay true:

1. One connection writes, owned by one lock, in `BEGIN IMMEDIATE` transactions. Readers have connections of their own,
   so reading never waits for a batch that is being written.
2. Every wait for another process ends at a deadline. We retry after random milliseconds ourselves: SQLite's own
   back-off is unfair, a process may wait seconds while others pass (measured: 8 times the p99).
3. No connection crosses a fork. SQLite keeps its locks in the process's memory, so a child that inherits an open
   connection inherits locks that nobody will release. Forking waits for running transactions and closes the
   connections; parent and child open anew.
4. Errors of sqlite3 leave as `StoreError` or `CorruptStoreError`.
"""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from stepwell.errors import ClosedError, CorruptStoreError, StoreError
from stepwell.store._schema import SCHEMA_VERSION, check_current, migrate, read_version

__all__ = ["Connections"]

T = TypeVar("T")

WAL_LIMIT_BYTES: Final = 64 << 20
_FOLD_PAGES: Final = 4096  # 16 MB of log before it is folded into the file, which waits for the disk; SQLite's own is 4
_REST_S: Final = 0.005  # locks are not fair: who asks again at once gets them again
_FORK_WAIT_S: Final = 5.0
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class Connections:
    """Opens, lends and closes the connections of one file; `path=None` is a store in memory, on one connection."""

    def __init__(
        self,
        path: Path | None,
        *,
        read_only: bool = False,
        busy_deadline_s: float = 30.0,
        wal_limit_bytes: int = WAL_LIMIT_BYTES,
    ) -> None:
        self.path = path
        self.name = ":memory:" if path is None else str(path)
        self._read_only = read_only
        self._busy_deadline_s = busy_deadline_s
        self._wal_limit_bytes = wal_limit_bytes
        self._closing = threading.Event()
        self._writer: sqlite3.Connection | None = None
        self._idle: list[sqlite3.Connection] = []
        self._make_locks()
        with _forks.gate:  # nothing begins to open while a fork is prepared, and what has begun is waited for
            self._write_lock.acquire()
            _open.add(self)
        try:
            self._open_first()
        except BaseException:
            _open.discard(self)
            raise
        finally:
            self._write_lock.release()

    def _open_first(self) -> None:
        with self._mapped():
            if self._read_only:
                with self._readers:
                    self._idle.append(self._open_reader())
            else:
                self._writer = self._open_writer()

    def _make_locks(self) -> None:
        self._write_lock = threading.Lock()
        self._readers = threading.Condition(threading.Lock())
        self._lent = 0

    @contextmanager
    def writing(self) -> Generator[sqlite3.Connection]:
        """Lend the writing connection inside a transaction, committed on leaving, rolled back on an error."""
        if self._read_only:
            raise StoreError(f"{self.name} is open for reading only")
        with self._mapped(), self._holding_write_lock():
            db = self._writer = self._writer or self._open_writer()
            self._patiently(lambda: db.execute("BEGIN IMMEDIATE"))
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
            self._bound_wal(db)

    @contextmanager
    def reading(self) -> Generator[sqlite3.Connection]:
        """Lend a connection that sees the store as it is at its first query, until it is given back."""
        if self.path is None:
            with self._mapped(), self._holding_write_lock():
                self._writer = self._writer or self._open_writer()
                yield self._writer
            return
        with self._mapped():
            db = self._borrow()
            try:
                db.execute("BEGIN")
                yield db
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                self._give_back(db)

    def rest(self) -> None:
        """Let other threads and processes have their turn at writing; raises `ClosedError` after `close`."""
        self._closing.wait(_REST_S)
        self._check_open()

    def vacuum(self) -> None:
        """Write the file anew without its gaps, and empty the write-ahead log. Raises `StoreError` where that waits
        longer than the deadline for other processes.
        """
        if self._read_only:
            raise StoreError(f"{self.name} is open for reading only")
        with self._mapped(), self._holding_write_lock():
            db = self._writer = self._writer or self._open_writer()
            self._patiently(lambda: db.execute("VACUUM"))
            self._patiently(lambda: self._empty_wal(db))

    def _empty_wal(self, db: sqlite3.Connection) -> None:
        if self.path is not None and db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            error = sqlite3.OperationalError("another process reads it and holds up what was written: try again")
            error.sqlite_errorcode = sqlite3.SQLITE_BUSY
            raise error

    def copy_to(self, path: Path) -> None:
        """Write the store as it is now into an empty file, without its gaps."""
        if self.path is None:
            with self._mapped(), self._holding_write_lock():
                self._writer = self._writer or self._open_writer()
                self._writer.execute("VACUUM INTO ?", (str(path),))
            return
        with self._mapped():
            db = self._borrow()
            try:
                db.execute("PRAGMA query_only = 0")  # which is about the other file too
                db.execute("VACUUM INTO ?", (str(path),))
            finally:
                db.execute("PRAGMA query_only = 1")
                self._give_back(db)

    def close(self) -> None:
        """Close what is idle now, and what is lent when it comes back."""
        self._closing.set()
        with self._write_lock, self._readers:
            self._close_idle()
        _open.discard(self)

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if self._writer is not None:  # last, because the last to close folds the write-ahead log into the file
            self._writer.close()
            self._writer = None

    @contextmanager
    def _holding_write_lock(self) -> Generator[None]:
        lock = self._write_lock
        if not lock.acquire(timeout=self._busy_deadline_s):
            raise StoreError(f"{self.name} has been written to by another thread for {self._busy_deadline_s:g} s")
        try:
            self._check_open()
            yield
        finally:
            lock.release()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise ClosedError(f"the store {self.name} was closed")

    def _borrow(self) -> sqlite3.Connection:
        with self._readers:
            self._check_open()
            db = self._idle.pop() if self._idle else self._open_reader()
            self._lent += 1
            return db

    def _give_back(self, db: sqlite3.Connection) -> None:
        with self._readers:
            self._lent -= 1
            self._readers.notify_all()
            if self._closing.is_set():
                db.close()
            else:
                self._idle.append(db)

    def _patiently(self, attempt: Callable[[], T]) -> T:
        deadline = time.monotonic() + self._busy_deadline_s
        while True:
            try:
                return attempt()
            except sqlite3.OperationalError as error:
                if _code(error) not in _BUSY or time.monotonic() > deadline:
                    raise
            self._closing.wait(random.uniform(0.0005, 0.005))  # noqa: S311 (spreads processes, guards nothing)
            self._check_open()

    def _open_writer(self) -> sqlite3.Connection:
        if self.path is not None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._make_file(self.path)
        db = self._connect(self.name, timeout_s=0.0)
        try:
            self._patiently(lambda: self._prepare_writer(db))
        except BaseException:
            db.close()
            raise
        return db

    def _make_file(self, path: Path) -> None:
        """Make the file where there is none: sqlite3 would make it 0644.

        Never open one that is there: to close a descriptor of a file drops all locks that this process has on it, those
        of other connections included (POSIX).
        """
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)) from None

    def _prepare_writer(self, db: sqlite3.Connection) -> None:
        version = read_version(db, self.name)
        db.execute("PRAGMA page_size = 4096")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute(f"PRAGMA wal_autocheckpoint = {_FOLD_PAGES}")
        db.execute(f"PRAGMA journal_size_limit = {self._wal_limit_bytes}")
        db.execute("PRAGMA cache_size = -16384")
        if version == SCHEMA_VERSION:
            return
        db.execute("BEGIN IMMEDIATE")
        try:
            migrate(db, self.name)
            db.execute("COMMIT")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")

    def _open_reader(self) -> sqlite3.Connection:
        if self._read_only and self.path is not None:
            if not self.path.is_file():
                raise StoreError(f"there is no store at {self.name}")
            db = self._connect(f"{self.path.as_uri()}?mode=ro", timeout_s=self._busy_deadline_s, uri=True)
        else:
            db = self._connect(self.name, timeout_s=self._busy_deadline_s)
        try:
            check_current(db, self.name)
            db.execute("PRAGMA query_only = 1")
        except BaseException:
            db.close()
            raise
        return db

    def _connect(self, name: str, *, timeout_s: float, uri: bool = False) -> sqlite3.Connection:
        return sqlite3.connect(
            name, timeout=timeout_s, isolation_level=None, check_same_thread=False, cached_statements=256, uri=uri
        )

    def _bound_wal(self, db: sqlite3.Connection) -> None:
        """Empty the write-ahead log when it has grown; a reader in the way only means that it is tried again later."""
        if self.path is None:
            return
        with suppress(OSError, sqlite3.OperationalError):
            if os.stat(f"{self.name}-wal").st_size > self._wal_limit_bytes:  # noqa: PTH116 (every batch: a Path costs more than the call)
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _mapped(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            kind = CorruptStoreError if _code(error) in _CORRUPT else StoreError
            raise kind(f"{self.name}: {error}") from error
        except OSError as error:
            raise StoreError(f"{self.name} can't be opened: {error.strerror or error}") from error

    def pause(self) -> list[threading.Lock | threading.Condition]:
        """Before a fork: wait for what runs, and close the connections; return the locks that are now held.

        A lock may be held by another thread that forks too, and is then that one's to release.
        """
        locks = (self._write_lock, self._readers)
        held = [lock for lock in locks if lock.acquire(timeout=_FORK_WAIT_S)]
        if self._readers in held:
            self._readers.wait_for(lambda: self._lent == 0, timeout=_FORK_WAIT_S)
        if self.path is not None and len(held) == len(locks):
            self._close_idle()
        return held

    def disown(self) -> None:
        """After a fork, in the child: leave alone whatever could not be closed in time."""
        self._make_locks()
        if self.path is not None:
            _inherited.extend(self._idle)
            _inherited.append(self._writer)
            self._idle, self._writer = [], None


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


_open: weakref.WeakSet[Connections] = weakref.WeakSet()
_inherited: list[sqlite3.Connection | None] = []  # closing them would take the parent's locks away


class _Forks:
    """What is locked while a thread forks, by thread, and the gate that is closed meanwhile."""

    def __init__(self) -> None:
        self.gate = threading.Lock()
        self._held: dict[int, list[threading.Lock | threading.Condition]] = {}

    def prepare(self) -> None:
        held = self._held[threading.get_ident()] = []
        if self.gate.acquire(timeout=_FORK_WAIT_S):
            held.append(self.gate)
        for connections in list(_open):
            held += connections.pause()

    def go_on(self) -> None:
        for lock in reversed(self._held.pop(threading.get_ident(), [])):
            lock.release()

    def begin_anew(self) -> None:
        self.gate = threading.Lock()
        self._held.clear()
        for connections in list(_open):
            connections.disown()


_forks: Final = _Forks()
os.register_at_fork(before=_forks.prepare, after_in_parent=_forks.go_on, after_in_child=_forks.begin_anew)
