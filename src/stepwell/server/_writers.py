"""Who writes what comes: this process, and when much comes, processes of their own, which share the work of decoding.

Python runs on one core at a time, and a batch takes as much of it as all else that a server does. So beyond some
thousand records a second batches are given to other processes, and taken back when it has become quiet.

What must stay true:

1. At any time there is somebody who writes: the processes, or this one where there are none. Here only one thread
   writes at a time: two would fight for the interpreter, a third less of steps a second.
2. A process that ends, for whatever reason, costs nothing but time: its batch is added again, as stores allow.
3. The processes that write to one file do it in turn, told here: left to themselves they would find it locked, and
   wait too long.
4. No process is left when the server ends, also when it is killed: they end with their pipes.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from multiprocessing.connection import Pipe
from typing import Final, cast

from msgspec import msgpack

from stepwell.errors import StoreError
from stepwell.store import AddResult, Store
from stepwell.store._writer_process import READY, TURN, Batch, Outcome
from stepwell.store.sqlite import SqliteStore

__all__ = ["DEFAULT_WRITERS", "Writer", "Writers"]

DEFAULT_WRITERS: Final = 2 if len(os.sched_getaffinity(0)) > 1 else 0
MANY_RECORDS: Final = 10_000  # within `BURST_S`, and processes are started
BURST_S: Final = 5.0
QUIET_S: Final = 60.0  # with fewer than these, and they are ended
MAX_BYTES: Final = 8 * 1024 * 1024  # of a batch that is sent on: larger ones would be in memory once more
_START_S: Final = 20.0
_END_S: Final = 5.0

log: Final = logging.getLogger("stepwell.server")
_outcome: Final = msgpack.Decoder(Outcome).decode


class Writer:
    """Adds batches to stores, on one thread at a time."""

    def add(self, store: Store, frames: Sequence[bytes]) -> AddResult:
        """Add records to a store, in one transaction that is committed on return. Raises `StoreError`."""
        return store.add(frames)


class _Process(Writer):
    """A process that writes; this one where that can't or should not."""

    def __init__(self, turn_of: Callable[[str], AbstractContextManager[object]]) -> None:
        self._turn_of = turn_of
        self._pipe, theirs = Pipe()
        with theirs:
            fd = theirs.fileno()
            command = (sys.executable, "-P", "-m", "stepwell.store._writer_process", str(fd))
            self._process = subprocess.Popen(  # noqa: S603 (the interpreter and its own module)
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[fd]
            )
        self.pid: Final = self._process.pid
        self.is_gone = False

    def is_ready(self) -> bool:
        """Wait until it is; False where it does not become so."""
        try:
            return self._pipe.poll(_START_S) and self._pipe.recv_bytes() == READY
        except (EOFError, OSError):
            return False

    def add(self, store: Store, frames: Sequence[bytes]) -> AddResult:
        if type(store) is SqliteStore and store.path is not None and sum(map(len, frames)) <= MAX_BYTES:
            try:
                outcome = self._ask(Batch(str(store.path), list(frames)))
            except (EOFError, OSError):
                self.is_gone = True
                log.warning("process %d, which wrote records, has ended: its batch is added again", self.pid)
                self.end()
            else:
                if outcome.result is not None:
                    return outcome.result
                if outcome.problem is not None:
                    raise StoreError(outcome.problem)
        return store.add(frames)

    def _ask(self, batch: Batch) -> Outcome:
        self._pipe.send_bytes(msgpack.encode(batch))
        answer = self._pipe.recv_bytes()
        if answer == TURN:
            with self._turn_of(batch.path):
                self._pipe.send_bytes(TURN)
                answer = self._pipe.recv_bytes()
        return _outcome(answer)

    def end(self) -> None:
        """Let it end, and wait for that."""
        self._pipe.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Writers:
    """Lends writers to threads, as many at once as there are."""

    def __init__(self, most: int = DEFAULT_WRITERS, clock: Callable[[], float] = time.monotonic) -> None:
        self.most: Final = most
        self._clock = clock
        self._here = Writer()
        self._here_is_lent = False
        self._processes: list[_Process] = []
        self._idle: list[_Process] = []
        self._turns: dict[str, threading.Lock] = {}
        self._came, self._since = 0, clock()
        self._thread: threading.Thread | None = None
        self._closing = False
        lock = threading.Lock()
        self._returned = threading.Condition(lock)
        self._over = threading.Condition(lock)  # perhaps

    @property
    def pids(self) -> list[int]:
        """Return which processes write; none where this one does."""
        with self._returned:
            return [process.pid for process in self._processes]

    @contextmanager
    def lend(self) -> Generator[Writer]:
        """Lend a writer, when one is idle."""
        with self._returned:
            writer = self._returned.wait_for(self._next_idle)
        try:
            yield cast("Writer", writer)
        finally:
            with self._returned:
                if not isinstance(writer, _Process):
                    self._here_is_lent = False
                elif writer.is_gone:
                    self._processes.remove(writer)
                    self._over.notify()
                else:
                    self._idle.append(writer)
                self._returned.notify_all()

    def _next_idle(self) -> Writer | None:
        if self._processes:
            return self._idle.pop() if self._idle else None
        if self._here_is_lent:
            return None
        self._here_is_lent = True
        return self._here

    def note(self, records: int) -> None:
        """Count what comes: processes are started when it is much."""
        with self._returned:
            if self._thread is None and self._clock() - self._since > BURST_S:
                self._count_anew()
            self._came += records
            if self._came >= MANY_RECORDS and self._thread is None and self.most and not self._closing:
                self._thread = threading.Thread(target=self._keep_processes, name="stepwell-writers", daemon=True)
                self._thread.start()

    def _count_anew(self) -> None:
        self._came, self._since = 0, self._clock()

    def wake(self) -> None:
        """Look again whether it is quiet: the clock has moved."""
        with self._over:
            self._over.notify()

    def close(self) -> None:
        """End the processes when they have written what they have; nothing more may be lent."""
        with self._over:
            self._closing = True
            self._over.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _keep_processes(self) -> None:
        """Run on a thread: have processes until it is quiet; where none can be had, don't try again before."""
        processes = self._start()
        with self._returned:
            self._processes, self._idle = [*processes], [*processes]
            self._count_anew()
            self._returned.notify_all()
            while not self._is_over(had=len(processes)):
                self._over.wait(QUIET_S)
            self._returned.wait_for(lambda: len(self._idle) == len(self._processes))
            self._processes, self._idle = [], []
        for process in processes:
            process.end()
        with self._returned:
            self._thread = None
            self._count_anew()

    def _start(self) -> list[_Process]:
        processes: list[_Process] = []
        try:
            for _ in range(self.most):
                processes.append(_Process(self._turn_of))  # noqa: PERF401 (those before one that fails are needed)
        except OSError:
            log.exception("no process can be started that writes records: this one goes on doing it")
        ready = [process for process in processes if process.is_ready()]
        for process in processes:
            if process not in ready:
                log.error("process %d, which should write records, did not become ready", process.pid)
                process.end()
        return ready

    def _is_over(self, *, had: int) -> bool:
        if self._closing or (had and not self._processes):
            return True
        if self._clock() - self._since < QUIET_S:
            return False
        quiet = self._came < MANY_RECORDS
        self._count_anew()
        return quiet

    def _turn_of(self, path: str) -> threading.Lock:
        return self._turns.setdefault(path, threading.Lock())
