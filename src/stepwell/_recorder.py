"""The recorder: what all steps share, and the one door through which internal failures go.

What must stay true:

1. There is one recorder, `RECORDER`, whose identity never changes: decorators applied before `configure()` use it.
   `_config` fills it and nobody else.
2. Nothing raised inside stepwell reaches the program: it goes to `fault`, which counts it and logs it at most once a
   minute a reason. Only wrong use raises, and where it depends on values at run time, only with `strict`.
3. What is logged passes the redaction rules, as what is recorded does: messages show values.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import orjson

from stepwell._capture import FAILED_TEXT, Capture
from stepwell._checks import shown
from stepwell._values import class_name
from stepwell._vocabulary import STEP_TYPES, is_uuid
from stepwell.errors import UsageError

if TYPE_CHECKING:  # the modules above this one
    from stepwell._step import Step
    from stepwell.blobs import BlobStore

__all__ = ["RECORDER", "Recorder", "log"]

log: Final = logging.getLogger("stepwell")
log.addHandler(logging.NullHandler())  # else Python prints warnings on a program's stderr that set up no logging

CLOCK_SET_NS: Final = 100_000_000  # a jump of the wall clock by more is somebody setting it
LOG_EVERY_S: Final = 60.0
MAX_ANNOUNCED: Final = 10_000  # steps that are known to be open for long; more can only be leaked ones
MAX_LABEL_CHARACTERS: Final = 1000  # of names and words remembered as JSON: 4096 of each are kept
MAX_REASON_CHARACTERS: Final = 1000  # of the text of an error in a line of the log
MAX_CALL_SITES: Final = 1000  # remembered as warned about; beyond that, warnings of new ones are only counted
MAX_LOGGED_CHARACTERS: Final = 32 * 1024
_LAYOUT: Final = logging.Formatter()
_SAMPLE_ALL: Final = 1 << 56
_PACKAGE: Final = str(Path(__file__).parent) + os.sep


def _nothing() -> None:
    pass


class Ids:
    """Random ids (DESIGN section 1, idea 4), of a source of random bits such as `random.Random().getrandbits`."""

    _MANY: Final = 256  # made at once: one by one, an id costs four times as much

    def __init__(self, random_bits: Callable[[int], int]) -> None:
        self.random_bits = random_bits
        self._ready: list[str] = []
        self._stamp = (-1, "")  # a millisecond, and what the ids of it begin with
        ones = (1 << 64 * self._MANY) // 0xFFFFFFFFFFFFFFFF  # a 1 at the foot of every 64 bits
        self._keep, self._set = ones * 0x3FFFFFFFFFFFFFFF, ones << 63

    def span_id(self) -> str:
        """Return a span id as the last two groups of a UUID: the bits 10, then 62 random ones."""
        try:
            return self._ready.pop()
        except IndexError:
            bits = self.random_bits(64 * self._MANY) & self._keep | self._set
            digits = f"{bits:0{16 * self._MANY}x}"
            self._ready += [f"{digits[at : at + 4]}-{digits[at + 4 : at + 16]}" for at in range(0, len(digits), 16)]
            return self.span_id()

    def uuid(self, wall_ns: int) -> str:
        """Return a UUIDv7: 48 bits of milliseconds, the rest random but for version and variant (RFC 9562, 5.7)."""
        millis = wall_ns // 1_000_000
        known, prefix = self._stamp
        if millis != known:
            digits = f"{millis & 0xFFFFFFFFFFFF:012x}"
            prefix = f"{digits[:8]}-{digits[8:]}-7"
            self._stamp = (millis, prefix)
        return f"{prefix}{self.random_bits(12):03x}-{self.span_id()}"


def _random_ids() -> Ids:
    # A generator of our own: a program that seeds the shared one must not get the same ids twice.
    return Ids(random.Random(os.urandom(16)).getrandbits)  # noqa: S311 - ids are no secrets


class Recorder:
    """Settings, capture, clock, ids and journal of all steps. Fields are read on every step: no properties."""

    def __init__(self) -> None:
        self.ready = False  # whether the settings stand and all is started: `settle` does it, with the first step
        self.settle: Callable[[], object] = _nothing
        self.give_settings: Callable[[], bytes] = bytes  # for a child process,
        self.take_settings: Callable[[bytes], object] = len  # which takes them where it has none of its own
        self.enabled = True
        self.strict = False
        self.sample_bound = _SAMPLE_ALL  # a trace is kept when the low 56 bits of its id are below
        self.capture_input = True
        self.capture_output = True
        self.blobs: BlobStore | None = None
        self.tail = self.thread_tail = b"}"  # what every step's, and every thread's, record ends with
        self.use_append(lambda _: None)
        self.wall_ns: Callable[[], int] = time.time_ns
        self.monotonic_ns: Callable[[], int] = time.perf_counter_ns
        self._offset = 0
        self.born_ns = -1 << 63  # monotonic: a step that began earlier is that of the process we forked from
        self.use_ids(_random_ids())
        self.after_root: Callable[[], object] | None = None  # called when a step ends that has none around it
        self.sources: list[Callable[[float], bool]] = []  # asked, until a time, to append what they still hold
        self.bridges: list[Callable[[int], str | None]] = []  # from a span of others to the next above that is recorded
        self.open_steps: dict[str, Step] = {}
        self.announced: dict[str, None] = {}  # ids of those written as pending, which are not in `open_steps` any more
        self.ended: deque[str] = deque(maxlen=MAX_ANNOUNCED)  # of these, the ones that have ended since
        self.unwritten: list[tuple[Step, int | None]] = []  # ended where the stack was full, with the time of that
        self.faults: Counter[str] = Counter()
        self._logged: dict[str, float] = {}
        self._warned: set[tuple[str, int, str]] = set()
        self.use_capture(Capture())

    def use_capture(self, capture: Capture) -> None:
        """Set how values become JSON."""
        self.capture = capture
        self.encode = capture.encode
        self.text = capture.text

        @lru_cache(maxsize=4096)
        def known(text: str) -> bytes:
            told = capture.text(text)
            if told == FAILED_TEXT and text != "[failed]":  # to be tried again where the stack has room
                raise RecursionError("there is no room to encode a name")
            return told

        @lru_cache(maxsize=4096)
        def label(type_: str, name: str) -> str:
            if len(name) > MAX_LABEL_CHARACTERS:  # an error is not remembered
                raise UsageError(f"a name has at most {MAX_LABEL_CHARACTERS} characters, got {len(name)}")
            if type_ not in STEP_TYPES:
                raise UsageError(f"type must be one of {', '.join(sorted(STEP_TYPES))}, got {shown(type_)}")
            return f',"type":"{type_}","name":{known(name).decode()},"start_ns":'

        self.label = label

        def word(text: Any) -> bytes:
            return known(text) if type(text) is str and len(text) <= MAX_LABEL_CHARACTERS else capture.text(text)

        self.word = word  # for names that come again and again

    def use_append(
        self, append: Callable[[bytes], None], append_parts: Callable[[list[bytes]], None] | None = None
    ) -> None:
        """Set where frames go, and where large ones go in parts: what takes none gets them joined."""
        self.append = append
        self.append_parts: Callable[[list[bytes]], None] = append_parts or self._append_joined

    def _append_joined(self, parts: list[bytes]) -> None:
        self.append(b"".join(parts))

    def is_on(self) -> bool:
        """Say whether anything is recorded, settling the settings first."""
        if not self.ready:
            self.settle()
        return self.enabled

    def clock_offset(self, now: int) -> int:
        """Return the wall clock less the monotonic one, read as `now`: the same for all traces until the clock is set.

        Between the two readings the thread may lose the interpreter to others; an offset of its own would shift that
        trace, and order it behind the next one.
        """
        offset = self.wall_ns() - now
        drift = offset - self._offset
        if not -CLOCK_SET_NS < drift < CLOCK_SET_NS and abs(drift) > CLOCK_SET_NS + self.monotonic_ns() - now:
            self._offset = offset
        return self._offset

    def sampled(self, trace_id: str) -> bool:
        """Decide on a trace (32 hex digits), alike in every process that sees its id."""
        return self.sample_bound > _SAMPLE_ALL - 1 or int(trace_id[18:], 16) < self.sample_bound

    def id_json(self, id: str) -> bytes:
        """Return an id as JSON. A UUID is no secret, and what a rule made of it would name nothing any more."""
        return b'"%b"' % id.encode() if is_uuid(id) else self.text(id)

    def mask(self, line: logging.LogRecord) -> bool:
        """Mask a line of the log, its traceback included: its handlers see nothing else."""
        if line.exc_info:
            line.exc_text, line.exc_info = _LAYOUT.formatException(line.exc_info), None
        if line.exc_text:
            line.exc_text = orjson.loads(self.text(line.exc_text, MAX_LOGGED_CHARACTERS, prose=True, tail=True))
        line.msg = orjson.loads(self.text(line.getMessage(), MAX_LOGGED_CHARACTERS, prose=True))
        line.args = None
        return True

    def after_fork(self) -> None:
        """Forget what is the parent's: its open steps, and the state of its random numbers."""
        self.born_ns = self.monotonic_ns()
        self.use_ids(_random_ids())
        self.forget_open()

    def forget_open(self) -> None:
        """Forget the steps that are open, which end without being told apart from others."""
        self.open_steps, self.unwritten = {}, []
        self.announced = {}
        self.ended.clear()

    def new_id(self) -> str:
        """Make an id for what is not a step: a UUIDv7."""
        return self.ids.uuid(self.wall_ns())

    def use_ids(self, ids: Ids) -> None:
        """Set where random ids come from."""
        self.ids = ids
        self.span_id = ids.span_id

    def fault(self, where: str, error: BaseException) -> None:
        """Count an internal failure and log it, at most once a minute a reason."""
        reason = f"{where}: {class_name(type(error))}"
        self.faults[where] += 1
        now = time.monotonic()
        if now - self._logged.get(reason, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._logged[reason] = now
            _warn("stepwell could not %s: %s", where, _describe(error), exc_info=error if where in _BUGS else None)

    def warn(self, message: str) -> None:
        """Log a hint once for each line of user code it concerns."""
        site = call_site()
        if (*site, message) not in self._warned and len(self._warned) < MAX_CALL_SITES:
            self._warned.add((*site, message))
            _warn("%s (%s:%d)", message, *site)

    def misuse(self, message: str) -> None:
        """Raise `UsageError` when strict, else log it once for the call site."""
        if self.strict:
            raise UsageError(message)
        self.faults["misuse"] += 1
        self.warn(message)


_BUGS: Final = frozenset({"record a step", "finish a step", "record a thread"})


def _warn(message: str, *args: object, exc_info: BaseException | None = None) -> None:
    with contextlib.suppress(Exception):  # a filter or handler of the program's: there is nowhere left to say it
        log.warning(message, *args, exc_info=exc_info)


def _describe(error: BaseException) -> str:
    try:
        return f"{class_name(type(error))}: {str(error)[:MAX_REASON_CHARACTERS]}"
    except Exception:  # noqa: BLE001 - an exception of the user's whose __str__ raises
        return class_name(type(error))


def call_site() -> tuple[str, int]:
    """Return file and line of the innermost caller outside this package."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


RECORDER: Final = Recorder()
log.addFilter(RECORDER.mask)
