"""configure, flush, shutdown, stats: the one place that wires recorder, journal, shippers and exporters together.

What must stay true:

1. Nothing starts, no thread, no file, before the first step. With it all does, not with the first record: a step that
   takes long must be on disk before its process can die.
2. Configuring again flushes and closes the old exporters; no record falls between the two.
3. Exit takes no longer than `exit_timeout`; what is not delivered by then stays in the journal, and what is recorded
   later still goes there.
4. A forked child starts over with a journal of its own; what its parent recorded stays the parent's. A child of
   `multiprocessing` delivers at its end too.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from stepwell._capture import Capture, Redactor
from stepwell._recorder import RECORDER, log
from stepwell._settings import UNSET, Settings, packed, resolve, unpacked
from stepwell._vocabulary import SDK
from stepwell.blobs import BlobStore

if TYPE_CHECKING:  # loaded with the first record
    from stepwell._pipeline import Pipeline
    from stepwell._shipper import ExporterStats
    from stepwell.exporters import Exporter, SpanExporterLike

__all__ = ["Stats", "configure", "flush", "reset", "shutdown", "stats"]

FORK_WAIT_S: Final = 1.0
LOAD_WAIT_S: Final = 5.0  # that a fork waits for an exporter's imports
EARLY_BYTES: Final = 1024 * 1024  # kept in memory while the pipeline can't be made


class Stats(NamedTuple):
    """What became of what was recorded.

    `recorded` counts the records of this process since it was configured, `exporters` has a ledger for each, `faults`
    counts internal failures by where they happened, `dropped` what was recorded after `shutdown`. `journal` is the
    session's folder, None while nothing was recorded or where it is kept in memory.
    """

    recorded: int
    exporters: dict[str, ExporterStats]
    faults: dict[str, int]
    dropped: dict[str, int]
    torn: int
    journal: str | None


class _State:
    """All that is global, in one place."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.settings: Settings | None = None
        self.exporters: list[Exporter] | None = None
        self.pipeline: Pipeline | None = None
        self.loaded: type[Pipeline] | None = None
        self.late: Pipeline | None = None  # of which only the journal is used, once the exporters are closed at exit
        self.after_shutdown = 0
        self.registered = False
        self.registered_pid = 0  # the child of `multiprocessing` that calls us at its end
        self.given: tuple[Settings, bytes] | None = None  # what children are given, and the settings it was made of
        self.starting = False
        self.early: list[bytes] = []  # recorded while the pipeline is being made, or when it could not be
        self.forking: set[int] = set()  # threads that hold the lock while they fork
        self.closing = 0  # pipelines that still deliver: the next one journals meanwhile, and ships after them


_state = _State()


def configure(
    *,
    export: str | Exporter | SpanExporterLike | Sequence[str | Exporter | SpanExporterLike] = UNSET,
    home: str | Path | None = UNSET,
    service: str | None = UNSET,
    environment: str | None = UNSET,
    release: str | None = UNSET,
    sample: float = UNSET,
    strict: bool = UNSET,
    capture_input: bool = UNSET,
    capture_output: bool = UNSET,
    redact: Sequence[Redactor] = UNSET,
    max_field_bytes: int = UNSET,
    max_journal_bytes: int = UNSET,
    exit_timeout: float = UNSET,
    flush_on_root_end: bool = UNSET,
    enabled: bool = UNSET,
) -> None:
    """Say where steps go and what is captured; every setting is also an environment variable, `STEPWELL_` + its name.

    May be called again: what is recorded by then goes to the old exporters, which are flushed and closed, then the new
    ones stand. Raises `UsageError` that names the setting and the value; the old configuration then stays.
    """
    arguments = dict(locals())
    settings = resolve(arguments, os.environ)
    with _state.lock:
        exporters = _open_exporters(settings, somebody_asked=True)
        old, _state.pipeline = _state.pipeline, None
        _state.settings, _state.exporters = settings, exporters
        _apply(settings)
        RECORDER.use_append(_first_append)
        _register()
        _state.closing += old is not None
    if old is not None:
        _replace(old, settings.exit_timeout)


def _replace(old: Pipeline, timeout: float) -> None:
    """Close a pipeline without the lock, so that nobody who records waits; only then may its successor ship."""
    try:
        old.close(time.monotonic() + timeout, _forward)
    finally:
        with _state.lock:
            _state.closing -= 1
            if _state.pipeline is not None and not _state.closing:
                _state.pipeline.start()


def _open_exporters(settings: Settings, *, somebody_asked: bool) -> list[Exporter]:
    """Open the exporters. Where nobody asked, nobody can be told of a failure: one that failed gets a stand-in."""
    from stepwell.exporters import UnopenedExporter, adapted, open_exporter  # with the codec of records: rarely needed

    opened: list[Exporter] = []
    for item in settings.export:
        try:
            opened.append(open_exporter(item, settings.home) if isinstance(item, str) else adapted(item))
        except Exception as error:
            if somebody_asked:
                raise
            RECORDER.fault("open an exporter", error)
            opened.append(UnopenedExporter(str(item), settings.home))
    return opened


def _apply(settings: Settings) -> None:
    """Set the recorder up."""
    recorder = RECORDER
    recorder.blobs = blobs = None if settings.home is None else BlobStore(settings.home.absolute() / "blobs")
    limit = settings.max_field_bytes
    recorder.use_capture(Capture(max_field_bytes=limit, redact=settings.redact, blobs=blobs, fault=recorder.fault))
    recorder.enabled, recorder.strict, recorder.ready = settings.enabled, settings.strict, False
    recorder.capture_input, recorder.capture_output = settings.capture_input, settings.capture_output
    recorder.after_root = partial(flush, settings.exit_timeout) if settings.flush_on_root_end else None
    recorder.sample_bound = round(settings.sample * (1 << 56))
    given = {"environment": settings.environment, "release": settings.release, "service": settings.service, "sdk": SDK}
    texts = [b',"%b":%b' % (name.encode(), recorder.text(value)) for name, value in given.items() if value is not None]
    recorder.tail = b"".join(texts) + b"}"
    place = b"" if settings.environment is None else b',"environment":' + recorder.text(settings.environment)
    recorder.thread_tail = place + b"}"


def _first_append(frame: bytes) -> None:
    """Start journal and shippers, where a record comes before any step, or where the first step could not."""
    with _state.lock:
        if _state.starting:
            _state.early.append(frame)
            return
        if RECORDER.append is _first_append:
            try:
                _start()
            except BaseException:  # no descriptor or no memory is to be had: the next record tries again
                if sum(map(len, _state.early)) < EARLY_BYTES:
                    _state.early.append(frame)
                raise
    RECORDER.append(frame)


def _first_step() -> None:
    """Settle the settings, and start what the first step will need when it ends, or does not."""
    with _state.lock:
        RECORDER.ready = True
        try:
            settings = _settle()
            if settings.enabled and settings.sample and RECORDER.append is _first_append and not _state.starting:
                _start()
        except Exception as error:  # noqa: BLE001 - the containment door
            RECORDER.fault("start recording", error)


def _settle() -> Settings:
    """Take the settings of the environment, where nobody has configured anything by the first step."""
    with _state.lock:
        if _state.settings is None:
            _state.settings = resolve(
                {}, os.environ, forgive=lambda error: log.error("stepwell ignores a setting: %s", error)
            )
            _apply(_state.settings)
            RECORDER.ready = True
            _register()
        return _state.settings


def _register() -> None:
    if not _state.registered:
        _state.registered = True
        atexit.register(_at_exit)


def _give_settings() -> bytes:
    """Return the settings for a child process, nothing where there are none yet: it has the same environment."""
    with _state.lock:
        settings, given = _state.settings, _state.given
        if settings is None:
            return b""
        if given is None or given[0] is not settings:
            given = _state.given = settings, packed(settings)
        return given[1]


def _take_settings(data: bytes) -> None:
    """Take the parent's settings, where nobody has configured anything here."""
    with _state.lock:
        if data and _state.settings is None:
            _state.settings = unpacked(data)
            _apply(_state.settings)
            _register()


def _start() -> None:
    _state.starting = True
    try:
        settings = _settle()
        _state.pipeline = _make_pipeline(settings, _exporters(settings))
        journal = _state.pipeline.journal
        RECORDER.use_append(journal.append, journal.append_parts)
        if not _state.closing:
            _state.pipeline.start()
        _register_in_child()
    finally:
        _state.starting = False
    while _state.early:
        RECORDER.append(_state.early.pop(0))


def _register_in_child() -> None:
    """See to it that a child of `multiprocessing` calls us: most end without what is registered with `atexit`.

    Last of all, after the program's own finalizers. A child forgets those of its parent before its own code runs.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None and _state.registered_pid != os.getpid():
        from multiprocessing.util import Finalize  # loaded in every such child

        _state.registered_pid = os.getpid()
        Finalize(None, _at_exit, exitpriority=-1000)


def _exporters(settings: Settings) -> list[Exporter]:
    if _state.exporters is None:
        _state.exporters = _open_exporters(settings, somebody_asked=False)
    return _state.exporters


def _make_pipeline(settings: Settings, exporters: Sequence[Exporter]) -> Pipeline:
    return _load_pipeline()(settings, exporters, RECORDER)


def _load_pipeline() -> type[Pipeline]:
    if _state.loaded is None:  # it is asked for again at the very end, when imports fail
        from stepwell._pipeline import Pipeline  # a third of the time of `import stepwell`, and not needed before

        _state.loaded = Pipeline
    return _state.loaded


def _forward(frame: bytes) -> None:
    """Append for a thread that held on to a closed journal."""
    RECORDER.append(frame)


def _drop(_: bytes) -> None:
    _state.after_shutdown += 1


def flush(timeout: float = 5.0) -> bool:
    """Wait until all that was recorded is delivered, refused or dropped, at most `timeout` seconds; say if it is."""
    deadline = time.monotonic() + timeout
    appended = _append_held(deadline)
    pipeline = _state.pipeline
    return appended and (not _state.early if pipeline is None else pipeline.flush(deadline))


def _append_held(deadline: float) -> bool:
    """Have all be appended that is recorded elsewhere first, as spans of other libraries are."""
    done = [source(deadline) for source in list(RECORDER.sources)]
    return all(done)


def shutdown(timeout: float = 5.0) -> bool:
    """Flush, close the exporters, and record nothing more until `configure` is called; say if all was delivered.

    What is not delivered in `timeout` seconds stays in the journal for the next process or `stepwell ship`.
    """
    _append_held(time.monotonic() + timeout)
    with _state.lock:
        pipeline, _state.pipeline = _state.pipeline, None
        if pipeline is not None:
            pipeline.interrupt()
        RECORDER.use_append(_drop)
        RECORDER.enabled = False
    return True if pipeline is None else pipeline.close(time.monotonic() + timeout, _forward)


def stats() -> Stats:
    """Return the ledger: recorded = delivered + waiting + rejected + dropped, for each exporter."""
    pipeline = _state.pipeline
    dropped = {"after_shutdown": _state.after_shutdown} if _state.after_shutdown else {}
    faults = dict(RECORDER.faults)
    if pipeline is None:
        return Stats(0, {}, faults, dropped, 0, None)
    session = pipeline.journal.session
    return Stats(
        pipeline.journal.appended,
        {shipper.name: shipper.stats() for shipper in pipeline.shippers},
        faults,
        dropped,
        pipeline.torn,
        None if session is None else str(session),
    )


def _at_exit() -> None:
    """Deliver; from here on no thread can be started: waiting for one, the interpreter would never end."""
    timeout_s = (_state.settings or Settings()).exit_timeout
    deadline = time.monotonic() + timeout_s
    _append_held(deadline)
    if not _state.lock.acquire(timeout=timeout_s):  # another thread opens an exporter, and that hangs
        return
    try:
        if _state.pipeline is None and RECORDER.append is not _first_append:
            return
        if _state.pipeline is not None:
            _state.pipeline.interrupt()
        pipeline, _state.pipeline = _state.pipeline, None
        RECORDER.use_append(_late_append)
        if pipeline is None and RECORDER.open_steps:  # they end with what holds them, when nothing can be imported
            _load_pipeline()
            _exporters(_settle())
    finally:
        _state.lock.release()
    if pipeline is not None:
        pipeline.close(deadline, _forward)


def _late_append(frame: bytes) -> None:
    """Journal what is recorded while the interpreter goes down; the next process delivers it."""
    # Once the interpreter has ended the other threads, a lock that one of them held is never released.
    if not _state.lock.acquire(blocking=not sys.is_finalizing()):
        return
    try:
        if RECORDER.append is _late_append:
            settings = _settle()
            _state.late = _make_pipeline(settings, _exporters(settings))
            RECORDER.use_append(_state.late.journal.append_or_drop)
    finally:
        _state.lock.release()
    RECORDER.append(frame)


def _before_fork() -> None:
    """Let a start in another thread finish: the child would inherit it half done, and Python's import locks held."""
    if _state.lock.acquire(timeout=FORK_WAIT_S):
        _state.forking.add(threading.get_ident())
    pipeline = _state.pipeline
    if pipeline is not None:
        pipeline.wait_loaded(time.monotonic() + LOAD_WAIT_S)


def _after_fork() -> None:
    thread = threading.get_ident()
    if thread in _state.forking:
        _state.forking.discard(thread)
        _state.lock.release()


def _in_child() -> None:
    """Start over after a fork. The exporters that came from URLs are opened anew, the others are the program's."""
    pipeline, _state.pipeline = _state.pipeline, None
    _state.lock = threading.RLock()
    _state.starting, _state.closing = False, 0
    _state.early.clear()
    _state.forking.clear()
    RECORDER.after_fork()
    if pipeline is not None:
        pipeline.abandon()
        _state.exporters = None
        RECORDER.use_append(_first_append)
        RECORDER.ready = False
    late, _state.late = _state.late, None
    if late is not None:  # forked by an exit handler
        late.abandon()
        RECORDER.use_append(_late_append)


def reset() -> None:
    """Shut down and forget every setting, as in a new process."""
    shutdown()
    with _state.lock:
        _state.settings = _state.exporters = None
        _state.after_shutdown = 0
        _apply(Settings())
        RECORDER.forget_open()
        RECORDER.faults.clear()
        RECORDER.use_append(_first_append)


RECORDER.use_append(_first_append)
RECORDER.settle = _first_step
RECORDER.give_settings, RECORDER.take_settings = _give_settings, _take_settings
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
