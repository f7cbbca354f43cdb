"""Step: one open piece of work, and at the same time an OpenTelemetry span.

What must stay true:

1. Ids are computed (DESIGN section 1, idea 4): the step's id is the high half of its trace id with its span id; so is
   its parent's, wherever that ran.
2. What a step was given is JSON bytes from that moment on; finishing it splices bytes and appends one frame.
3. A step ends once. Whatever goes wrong inside stays inside; the context is put back in any case.
4. Times come from the monotonic clock, placed on the wall clock once a trace: a child never starts before its parent.

Opening and ending a step is what users pay for on every call: slots, few objects, few calls, and all that is rare in
`Rest`, made when it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Self

import orjson
from opentelemetry.trace import Span

from stepwell._checks import shown
from stepwell._context import (
    RUN_KEY,
    SPAN_KEY,
    STEP_KEY,
    SUPPRESS_KEY,
    THREAD_KEY,
    Context,
    attach,
    get_current,
    step_types,
)
from stepwell._details import GENERATION_KEYS, describe_error, outcome_of
from stepwell._place import Place, as_uuid
from stepwell._recorder import MAX_LABEL_CHARACTERS, RECORDER
from stepwell._span import Rest, StepSpan
from stepwell._thread import MAX_TAGS
from stepwell._vocabulary import STEP_TYPES
from stepwell.responses import is_response, parse_response

__all__ = ["STEP_OPTIONS", "Step"]

STEP_OPTIONS: Final = frozenset({"tags", "metadata", "input", "capture_input", "capture_output"})
_ASKED: Final = ("model", "messages", "prompt")  # parameters of an llm function that say what the model was asked
LARGE_BYTES: Final = 32 * 1024  # of messages, from where their record is appended in parts
_CHAT: Final = b'"chat"'
_COMPLETION: Final = b'"completion"'
_NO_ID: Final = "00000000-0000-0000-0000-000000000000"


class Step(StepSpan):
    """An open step; see the public functions for how to get one. Also the current OpenTelemetry span.

    `id`, `parent_id`, `trace_id`, `thread_id`, `root_run_id`, `type`, `name` can be read at any time; setting `input`,
    `output`, `metadata` and the rest counts until the step ends.
    """

    __slots__ = ("_children", "_previous")

    def __init__(self, type_: str, name: str) -> None:
        """Open a step under the current span and make it current. Internal: use the public functions."""
        self.type = type_
        self.name = name
        self._previous = previous = get_current()
        self._start = now = RECORDER.monotonic_ns()
        self._children: list[None] = []  # its length counts: appending is atomic, adding to a number is not
        self._input = None
        self._output = None
        self._generation = None
        self._rest = None
        self._status = "pending"
        parent: Any = previous.get(SPAN_KEY)
        if parent.__class__ is Step:
            place: Place = parent._place
            self.parent_id = parent.id
            parent._children.append(None)
            self.id = place.prefix + RECORDER.span_id()
            if (place.run_id is None and type_ == "run") or (place.thread is None and THREAD_KEY in previous):
                place = self._settle(place, previous)
        else:
            place = self._begin(parent, previous, now)
            if previous.get(SUPPRESS_KEY):  # an exporter's own calls, for instance
                place = place.unsampled()
        self._place = place
        self._live = live = place.sampled
        attach(Context({**previous, SPAN_KEY: self, STEP_KEY: self}))  # may find the stack full; what follows does not
        if live:
            RECORDER.open_steps[self.id] = self

    @classmethod
    def begin(cls, type_: str, name: str) -> Step:
        """Open a step, or one that is off where the recorder is, or where a step can't be had. Internal."""
        if not RECORDER.ready:
            RECORDER.settle()
        if RECORDER.enabled:
            try:
                return cls(type_, name)
            except Exception as error:  # noqa: BLE001 - the containment door
                RECORDER.fault("record a step", error)
        return cls.off(type_, name)

    @classmethod
    def off(cls, type_: str, name: str) -> Step:
        """Make a step that records nothing and changes no context. Internal."""
        step = cls.__new__(cls)
        step.type, step.name, step.id, step.parent_id = type_, name, _NO_ID, None
        step._place, step._previous, step._start, step._children = _OFF, get_current(), 0, []
        step._input = step._output = step._generation = step._rest = None
        step._status, step._live = "pending", False
        return step

    def _begin(self, parent: object, previous: Context, now: int) -> Place:
        """Take place at the root of a trace, or below a span that is not ours."""
        foreign = parent.get_span_context() if parent is not None and isinstance(parent, Span) else None
        around: Any = previous.get(STEP_KEY)
        if foreign is not None and foreign.is_valid:
            trace = f"{foreign.trace_id:032x}"
            self.parent_id = _bridged(foreign.span_id) or as_uuid(f"{trace[:16]}{foreign.span_id:016x}")
            if around is not None and self.parent_id == around.id:
                around._children.append(None)
            if around is not None and around._place.trace == trace:
                place = around._place
            else:
                place = Place(as_uuid(trace), RECORDER.clock_offset(now))
                if foreign.is_remote:  # decided where the trace began
                    place.sampled = foreign.trace_flags.sampled
                    run_id: Any = previous.get(RUN_KEY)
                    place.settle(None, run_id)
                if around is not None:
                    place.settle(around._place.thread, around._place.run_id)
            self.id = place.prefix + RECORDER.span_id()
            return self._settle(place, previous)
        if around is not None:  # a span that is no real one hides it
            self.parent_id = around.id
            around._children.append(None)
            self.id = around._place.prefix + RECORDER.span_id()
            return self._settle(around._place, previous)
        offset = RECORDER.clock_offset(now)
        self.parent_id, self.id = None, RECORDER.ids.uuid(offset + now)
        thread: Any = previous.get(THREAD_KEY)
        return Place(self.id, offset, thread, self.id if self.type == "run" else None)

    def _settle(self, place: Place, previous: Context) -> Place:
        """Find thread and root run where they are not simply the parent's."""
        thread: Any = place.thread if place.thread is not None else previous.get(THREAD_KEY)
        return place.within(thread, self.id if place.run_id is None and self.type == "run" else place.run_id)

    @property
    def enclosing(self) -> Step | None:
        """The step around this one in the same process, also where a span of another library stands between."""
        around: Step | None = self._previous.get(STEP_KEY)  # type: ignore[assignment]
        return around

    # -- the end

    def __enter__(self) -> Self:
        """Give the step itself: `with start(...) as step` ends it with the outcome of the block."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, frames: object) -> None:
        self.leave(error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, frames: object) -> None:
        self.leave(error)

    def end(self, end_time: int | None = None) -> None:
        """End the step; `end_time` is in nanoseconds since the epoch, now when absent. Only the first call counts."""
        if self._status == "pending":
            if end_time is not None and (type(end_time) is not int or not 0 <= end_time < 1 << 63):
                RECORDER.misuse(f"end_time must be in nanoseconds since the epoch, got {shown(end_time)}")
                end_time = None
            try:
                self._emit("success", end_time)
            finally:
                self._restore()

    def leave(self, error: BaseException | None) -> None:
        """End the step as its block is left, with what was raised. Internal."""
        outcome = "failed"  # where a Ctrl-C comes while the error is described
        try:
            outcome = "success" if error is None or not self._live else self._outcome(error)
        finally:
            try:
                self._emit(outcome)
            finally:
                self._restore()

    def returned(self, result: object, *, capture: bool) -> None:
        """End the step of a call that returned, on the thread that made it. Internal."""
        if self._live:
            try:
                if capture and self._output is None:
                    self._output = RECORDER.encode(result)
                if self.type == "llm":
                    self._complete(result)
            except RecursionError:  # the door has no room either
                pass
            except Exception as error:  # noqa: BLE001 - the containment door
                RECORDER.fault("capture a result", error)
            except BaseException as error:  # a Ctrl-C while it runs the program's code
                self.leave(error)
                raise
        try:
            self._emit("success")
        finally:
            self._restore()

    def _complete(self, result: object) -> None:
        """Take what an llm function returned as the model's answer, unless there is one already."""
        fields = self._generation or {}
        if "message_completion" not in fields and "completion" not in fields and is_response(result):
            self._take(parse_response, result)

    def ask(self, options: Mapping[str, Any]) -> None:
        """Take what a model is asked from the options of its verb; what is no option is a setting. Internal."""
        if not self._live:
            return
        encode = RECORDER.encode
        found: dict[str, bytes] = {}
        settings: dict[str, Any] = {}
        for name, value in options.items():
            if value is None or name in STEP_OPTIONS:
                continue
            if name in {"model", "provider"}:
                found[name] = RECORDER.word(value)
            elif name in {"messages", "prompt", "tools"}:
                found[name] = encode(value)
            else:
                settings[name] = value
        if settings:
            found["settings"] = encode(settings)
        self._generation = found

    def yielded(self, output: bytes, text: str | None) -> None:
        """Take what a generator yielded as the output, and its text as the model's answer. Internal."""
        if self._output is None:
            self._output = output
        if self.type == "llm" and text is not None:
            self._complete(text)

    def drained(self, error: BaseException | None, active_ns: int) -> None:
        """End the step of a generator, in whatever context that happens. Internal."""
        if self._live:
            self._more().active_ns = active_ns
        self._emit("success" if error is None or not self._live else self._outcome(error))

    def asked(self, arguments: Mapping[str, Any]) -> None:
        """Take what the model is asked from an llm function's parameters that are named so. Internal."""
        fields = self._generation or {}
        self.generation = {name: arguments.get(name) for name in _ASKED if name not in fields}

    def said(self, content: object) -> None:
        """End a message: it has no input, and no duration. Internal."""
        try:
            if self._live:
                self._output = RECORDER.encode({"content": content})
        finally:
            try:
                self._emit("success", self._place.offset + self._start)
            finally:
                self._restore()

    def _outcome(self, error: BaseException) -> str:
        try:
            outcome = outcome_of(error)
            rest = self._more()
            if outcome == "failed" and rest.error is None and rest.outcome != "success":
                rest.error = describe_error(RECORDER, error)
        except RecursionError:  # the door has no room either
            return "failed"
        except Exception as fault:  # noqa: BLE001 - the containment door
            RECORDER.fault("describe an error", fault)
            return "failed"
        return outcome

    def _restore(self) -> None:
        """Put back the context from before the step, where the step (or one below it) is still the current one."""
        current: object = get_current().get(STEP_KEY)
        while current is not self:
            if not isinstance(current, Step):
                return  # the function, or block, has ended a step further out by hand
            current = current._previous.get(STEP_KEY)
        attach(self._previous)

    def _emit(self, outcome: str, end_ns: int | None = None) -> None:
        if self._status != "pending":
            return
        rest = self._rest
        try:
            if rest is not None and rest.streams:
                self.finish_streams()
        finally:
            self._status = outcome if rest is None or rest.outcome is None else rest.outcome
            if self._live:
                self._append(end_ns)

    def _append(self, end_ns: int | None) -> None:  # noqa: C901 - every step pays for each call
        """Write the record of the step that has ended, whatever the program has set on it."""
        end = ""
        try:
            if RECORDER.open_steps.pop(self.id, None) is None and not self._ended_late():
                return
            if end_ns is None:
                end_ns = self._place.offset + RECORDER.monotonic_ns()
            end = f',"end_ns":{end_ns},"status":"{self._status}"'
            try:
                if self.type == "llm":
                    self._check_llm()
                parts = self._parts(end)
            except Exception:  # noqa: BLE001 - the program has changed type or name to what is none
                self._mend()
                parts = self._parts(end)
            self._live = False
            if self._generation is not None and len(self._generation.get("messages", b"")) > LARGE_BYTES:
                RECORDER.append_parts(parts)  # two such buffers at once have the allocator give pages back each time
            else:
                RECORDER.append(b"".join(parts))
            if RECORDER.unwritten:
                self._catch_up()
            if RECORDER.after_root is not None and self.enclosing is None:
                RECORDER.after_root()
        except RecursionError:  # neither this nor the door has room on the stack: a step further out does it
            RECORDER.unwritten.append((self, end_ns))
        except Exception as error:  # noqa: BLE001 - the containment door
            self._live = False
            RECORDER.fault("finish a step", error)
        except BaseException:  # a Ctrl-C while metadata or tags run the program's code: the rest is recorded
            if self._rest is not None:
                self._rest.metadata, self._rest.tags = {}, []
            self._live = False
            RECORDER.append(b"".join(self._parts(end)))
            raise

    def _ended_late(self) -> bool:
        """Note the end of a step that was announced; False for a copy that a fork made: the parent will end it."""
        self._live = self._start >= RECORDER.born_ns
        if self._live:
            RECORDER.ended.append(self.id)
        return self._live

    @staticmethod
    def _catch_up() -> None:
        """Write the steps that ended where the stack was full."""
        waiting, RECORDER.unwritten = RECORDER.unwritten, []
        for step, end_ns in waiting:
            step._append(end_ns)

    def _mend(self) -> None:
        """Make type and name valid, so that the rest of the step is not lost with them."""
        given: tuple[object, object] = (self.type, self.name)
        if type(self.type) is not str or self.type not in STEP_TYPES:
            self.type = "undefined"
        if type(self.name) is not str:
            self.name = orjson.loads(RECORDER.text(self.name))
        if len(self.name) > MAX_LABEL_CHARACTERS:
            self.name = f"{self.name[: MAX_LABEL_CHARACTERS - 40]}... [{len(self.name)} characters]"
        elif self.type is not given[0] or self.name is not given[1]:
            RECORDER.faults["misuse"] += 1  # too late to raise, when strict
            RECORDER.warn(
                f"a step was given type {shown(given[0])} and name {shown(given[1])}, and one of them is none"
            )

    def _check_llm(self) -> None:
        """Apply Literal's rule: an llm step that asked nothing is a run."""
        fields = self._generation
        if fields is None or ("messages" not in fields and "prompt" not in fields):
            self.type, self._more().downgraded = "run", True
            RECORDER.warn("an llm step ended with neither messages nor a prompt and was recorded as a run")

    def _parts(self, end: str) -> list[bytes]:
        place = self._place
        above = "" if self.parent_id is None else f',"parent_id":"{self.parent_id}"'
        parts = [
            (
                f'{{"kind":"step","id":"{self.id}{place.scope}{above}'
                f"{RECORDER.label(self.type, self.name)}{place.offset + self._start}{end}"
            ).encode()
        ]
        if self._input is not None:
            parts += (b',"input":', self._input)
        if self._output is not None:
            parts += (b',"output":', self._output)
        rest = self._rest
        if self._generation is not None or rest is not None:
            self._add_more(parts)
        if self._children:
            parts.append(b',"child_count":%d' % len(self._children))
        parts.append(RECORDER.tail)
        return parts

    def _add_more(self, parts: list[bytes]) -> None:
        rest, fields = self._rest, self._generation
        if fields:
            if "type" not in fields:
                kind = _CHAT if "messages" in fields else _COMPLETION if "prompt" in fields else None
                fields = fields if kind is None else {"type": kind, **fields}
            parts.append(b',"generation":{')
            for name, value in fields.items():
                parts += (GENERATION_KEYS[name], value, b",")
            if rest is not None and rest.usage:
                parts += (b'"usage":', orjson.dumps(rest.usage), b",")
            parts[-1] = b"}"  # the last comma
        elif rest is not None and rest.usage:
            parts += (b',"generation":{"usage":', orjson.dumps(rest.usage), b"}")
        if rest is not None:
            _add_rest(parts, rest)

    def announce(self, older_than_ns: int) -> bool:
        """Write the step as pending if it is open for longer than that. The journal's keeper calls it."""
        if not self._live or RECORDER.monotonic_ns() - self._start < older_than_ns:
            return False
        try:
            frame = b"".join(self._parts(',"status":"pending"'))
        except BaseException as error:  # noqa: BLE001 - the program's code may raise anything; this is not its thread
            RECORDER.fault("announce a step", error)
            return True
        if self._live:  # else it ended meanwhile, on its own thread; where it ends just now, stores know what is late
            RECORDER.append(frame)
        return True


def _bridged(span_id: int) -> str | None:
    """Return the id of what is recorded for a span of others, or above it, where something records spans of others."""
    return next((id for bridge in RECORDER.bridges if (id := bridge(span_id)) is not None), None)


def _add_rest(parts: list[bytes], rest: Rest) -> None:
    if rest.error is not None:
        parts += (b',"error":', rest.error)
    if rest.metadata:
        parts += (b',"metadata":', RECORDER.encode(rest.metadata))
    if rest.tags:
        texts = [RECORDER.text(tag) for tag in rest.tags[:MAX_TAGS]]
        parts += (b',"tags":[', b",".join(texts), b"]")
    if rest.attachments:
        parts += (b',"attachments":[', b",".join(rest.attachments), b"]")
    if rest.scores:
        parts += (b',"scores":[', b",".join(rest.scores), b"]")
    if rest.active_ns is not None:
        parts.append(b',"active_ns":%d' % rest.active_ns)
    if rest.downgraded:
        parts.append(b',"downgraded_from":"llm"')


step_types.add(Step)
_OFF: Final = Place(_NO_ID, 0)
_OFF.sampled = False
