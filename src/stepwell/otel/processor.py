"""Spans of other libraries as steps: a processor for the program's own OpenTelemetry provider.

What must stay true:

1. Nothing global is touched, and nothing raises into the program. Its thread notes where a span stands when it starts
   and puts it into a queue when it ends; all else is done on a thread of ours.
2. Only spans of known instrumentations of LLM libraries are recorded, unless the program names others. The parent of a
   step is the next span or step above it that is recorded; those in between are bridged, for steps below them as well.
3. What a span says passes the rules of capture and redaction as what steps say does, before it is written anywhere.
4. What waits is bounded, is written before a flush ends, and is the parent process's alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.trace import INVALID_SPAN

from stepwell._bell import Bell
from stepwell._config import flush
from stepwell._context import RUN_KEY, SPAN_KEY, STEP_KEY, SUPPRESS_KEY, THREAD_KEY, Context, get_current, step_types
from stepwell._recorder import RECORDER
from stepwell.errors import UsageError
from stepwell.otel._scopes import LLM_SCOPES, Scopes
from stepwell.otel._spans import step_id_of

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

    from stepwell._thread import Thread
else:
    SpanProcessor = object  # the SDK asks for no more than the methods, and is not needed to import this

__all__ = ["StepwellSpanProcessor"]

MAX_WAITING: Final = 4096  # spans that have ended and are not written
MAX_PLACES: Final = 10_000  # remembered spans that have started, of which twice as many at most are kept
WRITE_EVERY_S: Final = 0.1


class _Above(NamedTuple):
    """Where a span stands: `id` is its own step's if it is recorded, else that of the next one above."""

    id: str | None
    parent_id: str | None
    thread: Thread | None
    run_id: str | None
    sampled: bool


class StepwellSpanProcessor(SpanProcessor):
    """Records the spans of instrumentations as steps: `provider.add_span_processor(StepwellSpanProcessor())`.

    `scopes` are the names of the instrumentation scopes to record, by default those of known LLM libraries
    (`stepwell.otel.LLM_SCOPES`); `["*"]` is all of them. Steps belong to the thread and user of the step they are in,
    else to those that their attributes name. Raises `UsageError` where `scopes` is no list of names.
    """

    def __init__(self, scopes: Sequence[str] = LLM_SCOPES) -> None:
        if isinstance(scopes, str) or not all(isinstance(name, str) for name in scopes):
            raise UsageError(f"scopes must be a list of names of instrumentation scopes, got {scopes!r:.100}")
        self._scopes = Scopes(scopes)
        self._wake = Bell()
        self._start_over()
        RECORDER.sources.append(self.drain)
        RECORDER.bridges.append(self._bridge)

    def _start_over(self) -> None:
        """Begin with nothing: in a forked child what waits is the parent's."""
        self._process = os.getpid()
        self._places: dict[int, _Above] = {}
        self._older: dict[int, _Above] = {}
        self._waiting: deque[tuple[ReadableSpan, _Above]] = deque()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopping = False

    # -- on the program's threads

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Note where a span stands."""
        try:
            if not RECORDER.is_on():
                return
            if self._process != os.getpid():
                self._start_over()
            context = get_current() if parent_context is None else parent_context
            if len(self._places) >= MAX_PLACES:
                self._older, self._places = self._places, {}
            scope = span.instrumentation_scope
            recorded = scope is not None and scope.name in self._scopes and not context.get(SUPPRESS_KEY)
            own: Any = span.get_span_context()
            self._places[own.span_id] = self._place(own, context, recorded=recorded)
        except Exception as error:  # noqa: BLE001 - the containment door
            RECORDER.fault("record a span", error)

    def _place(self, own: Any, context: Context, *, recorded: bool) -> _Above:
        parent: Any = context.get(SPAN_KEY, INVALID_SPAN)
        around: Any = context.get(STEP_KEY)
        above: Any = parent.get_span_context()
        thread: Any = context.get(THREAD_KEY)
        run_id: Any = context.get(RUN_KEY)
        parent_id: str | None = None
        sampled = True
        if around is not None:
            thread, run_id = around.thread or thread, around.root_run_id or run_id
            sampled = around._place.sampled
        if above.is_valid and above.trace_id == own.trace_id:
            known = self._known(above.span_id)
            if type(parent) in step_types:
                parent_id = parent.id
                if recorded:
                    parent._children.append(None)
            elif known is not None:
                parent_id, thread, run_id, sampled = known.id, thread or known.thread, known.run_id, known.sampled
                if recorded and around is not None and around.id == parent_id:
                    around._children.append(None)
            else:  # of another process, or from before this was added to the provider
                parent_id = step_id_of(above.trace_id, above.span_id)
                sampled = above.trace_flags.sampled
        elif around is None:
            sampled = RECORDER.sampled(f"{own.trace_id:032x}")
        id = step_id_of(own.trace_id, own.span_id) if recorded else parent_id
        return _Above(id, parent_id, thread, run_id, sampled)

    def _known(self, span_id: int) -> _Above | None:
        found = self._places.get(span_id)
        return self._older.get(span_id) if found is None else found

    def _bridge(self, span_id: int) -> str | None:
        """Return the id of a span's step, or of the next one above it; None where there is none, or none known."""
        known = self._known(span_id)
        return None if known is None else known.id

    def _on_ending(self, span: Span) -> None:
        """Do nothing: the SDK asks every processor."""

    def on_end(self, span: ReadableSpan) -> None:
        """Put a span into the queue."""
        try:
            scope = span.instrumentation_scope
            own: Any = span.get_span_context()
            if scope is None or scope.name not in self._scopes or not RECORDER.enabled or self._stopping:
                return
            if self._process != os.getpid():
                self._start_over()
            above = self._known(own.span_id)
            if above is None or not above.sampled or not own.trace_flags.sampled or above.id == above.parent_id:
                return
            if len(self._waiting) >= MAX_WAITING:
                RECORDER.fault("record a span", OverflowError("spans end faster than they can be written"))
                return
            self._waiting.append((span, above))
            if self._thread is None:
                self._start()
        except Exception as error:  # noqa: BLE001 - the containment door
            RECORDER.fault("record a span", error)

    def _start(self) -> None:
        """Start the thread. Raises `RuntimeError` where none can be had: a flush will write then."""
        thread = threading.Thread(target=self._run, name="stepwell-spans", daemon=True)
        self._thread = thread
        thread.start()

    def drain(self, deadline: float) -> bool:
        """Write what has ended, at most until `deadline` (monotonic seconds); say whether nothing is left."""
        if self._process != os.getpid():
            self._start_over()
        if not self._writing.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return False
        try:
            while self._waiting:
                if time.monotonic() > deadline:
                    return False
                self._write(*self._waiting.popleft())
        finally:
            self._writing.release()
        return True

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Write what has ended, and wait until it is delivered."""
        return flush(timeout_millis / 1000)

    def shutdown(self) -> None:
        """Write what has ended and record no more; the recorder goes on."""
        self._stopping = True
        self.drain(time.monotonic() + 5.0)
        if self.drain in RECORDER.sources:
            RECORDER.sources.remove(self.drain)
            RECORDER.bridges.remove(self._bridge)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._wake.ring()
            thread.join(5.0)

    # -- on the processor's thread

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait(WRITE_EVERY_S)
            self.drain(time.monotonic() + 60.0)

    def _write(self, span: ReadableSpan, above: _Above) -> None:
        try:
            from stepwell.otel._taking import frame_of  # with the codec of records: only who takes spans needs it

            RECORDER.append(frame_of(span, above.parent_id, above.thread, above.run_id))
        except Exception as error:  # noqa: BLE001 - the containment door
            RECORDER.fault("record a span", error)
