"""What can be said of an open step: by the program, and by other libraries, to which it is an OpenTelemetry span.

What must stay true:

1. What is set is JSON bytes from that moment on; only metadata and tags stay live until the step ends.
2. What is set after the end is refused with a hint; scores and attachments then become records of their own.
3. What another library sets on the current span lands on the step by the rules of the OpenTelemetry specification.
4. Nothing here raises, but `UsageError` for a mistake in the call itself.
"""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import orjson
from opentelemetry.trace import Span, SpanContext, Status, StatusCode, TraceFlags

from stepwell._checks import MAX_TAGS, shown
from stepwell._details import (
    Attachment,
    attachment_json,
    describe_error,
    generation_fields,
    score_json,
    usage_fields,
)
from stepwell._place import Place
from stepwell._recorder import RECORDER
from stepwell._stream import StepStream
from stepwell._thread import Thread
from stepwell._values import first_items, first_pairs, is_text
from stepwell.errors import UsageError
from stepwell.responses import Parsed, merge_chunks, parse_response

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes, AttributeValue


__all__ = ["Rest", "StepSpan"]

T = TypeVar("T")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_NOT_SAMPLED: Final = TraceFlags(TraceFlags.DEFAULT)
MAX_EVENTS: Final = 1000
_FIXED: Final = frozenset({str, int, float, bool, type(None)})
_EXCEPTION: Final = {  # by OpenTelemetry's semantic conventions for exceptions
    "type": "exception.type",
    "message": "exception.message",
    "traceback": "exception.stacktrace",
}


class Rest:
    """What few steps have, made when it is needed."""

    __slots__ = (
        "active_ns",
        "attachments",
        "downgraded",
        "error",
        "metadata",
        "outcome",
        "scores",
        "streams",
        "tags",
        "usage",
    )

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}
        self.tags: list[str] = []
        self.attachments: list[bytes] = []
        self.scores: list[bytes] = []
        self.streams: list[weakref.ref[StepStream[Any]]] = []
        self.usage: dict[str, int] = {}
        self.error: bytes | None = None
        self.outcome: str | None = None
        self.downgraded = False
        self.active_ns: int | None = None


class StepSpan(Span):
    """The fields of a step; `Step` adds its beginning and its end."""

    __slots__ = (
        "_generation",
        "_input",
        "_live",
        "_output",
        "_place",
        "_rest",
        "_start",
        "_status",
        "id",
        "name",
        "parent_id",
        "type",
    )

    id: str
    parent_id: str | None
    type: str
    name: str
    _place: Place
    _start: int  # nanoseconds of the monotonic clock
    _status: str
    _live: bool  # whether what is set on the step counts: it is recorded, and open
    _input: bytes | None
    _output: bytes | None
    _generation: dict[str, bytes] | None
    _rest: Rest | None

    @property
    def trace_id(self) -> str:
        """The trace's id, 32 hex digits."""
        return self._place.trace

    @property
    def thread(self) -> Thread | None:
        """The thread the step belongs to."""
        return self._place.thread

    @property
    def thread_id(self) -> str | None:
        """The id of the thread the step belongs to."""
        return self._place.thread.id if self._place.thread is not None else None

    @property
    def root_run_id(self) -> str | None:
        """The id of the outermost run above, the step's own if it is that run."""
        return self._place.run_id

    @property
    def status(self) -> str:
        """`pending` while open, then `success`, `failed` or `cancelled`."""
        return self._status

    @property
    def input(self) -> Any:
        """What went in, as it was captured; set it to any value."""
        return None if self._input is None else orjson.loads(self._input)

    @input.setter
    def input(self, value: object) -> None:
        if self._live or self._late("input"):
            self._input = RECORDER.encode(value)

    @property
    def output(self) -> Any:
        """What came out, as it was captured; set it to any value."""
        return None if self._output is None else orjson.loads(self._output)

    @output.setter
    def output(self, value: object) -> None:
        if self._live or self._late("output"):
            self._output = RECORDER.encode(value)

    @property
    def metadata(self) -> dict[str, Any]:
        """Anything worth keeping; captured when the step ends."""
        return self._more().metadata

    @metadata.setter
    def metadata(self, value: Mapping[str, Any]) -> None:
        if not self._live:
            self._late("metadata")
        try:
            self._more().metadata = first_pairs(value)
        except Exception:  # noqa: BLE001 - it is no mapping, or one that raises
            RECORDER.misuse(f"the metadata of a step must be a dict, got {shown(value)}")

    @property
    def tags(self) -> list[str]:
        """Words to find the step by."""
        return self._more().tags

    @tags.setter
    def tags(self, value: Sequence[str]) -> None:
        if not self._live:
            self._late("tags")
        try:
            self._more().tags = [value] if is_text(value) else first_items(value, MAX_TAGS)
        except Exception:  # noqa: BLE001 - it can't be iterated, or raises
            RECORDER.misuse(f"tags must be a list of strings, got {shown(value)}")

    @property
    def generation(self) -> dict[str, Any]:
        """The model call: fields of `stepwell.model.Generation`. Setting it adds to what is there."""
        return {name: orjson.loads(value) for name, value in (self._generation or {}).items()}

    @generation.setter
    def generation(self, fields: Mapping[str, Any]) -> None:
        if self._live or self._late("generation"):
            found = generation_fields(RECORDER, fields)
            if self._generation is None:
                self._generation = found
            else:
                self._generation.update(found)

    def _more(self) -> Rest:
        rest = self._rest
        if rest is None:
            self._rest = rest = Rest()
        return rest

    def _late(self, what: str) -> bool:
        """Hint that something was set on a step that had ended; on one that is not recorded it is no mistake."""
        if self._place.sampled:
            RECORDER.misuse(f"{what} was set on step {shown(self.name)} after its end")
        return False

    def usage(self, **tokens: int | None) -> None:
        """Record the tokens of a model call.

        `input_tokens` (those from a cache included), `output_tokens`, `cached_input_tokens`, `cache_write_tokens`,
        `reasoning_tokens`, `total_tokens` (the sum of the first two where absent).
        """
        if self._live or self._late("usage"):
            found, usage = usage_fields(RECORDER, tokens), self._more().usage
            usage.update(found)
            if "total_tokens" not in found and {"input_tokens", "output_tokens"} <= usage.keys():
                usage["total_tokens"] = usage["input_tokens"] + usage["output_tokens"]

    def record(self, response: object) -> None:
        """Take output, completion, usage, stop reason and response model from a provider's response.

        A string is a completion; a dict is read as an OpenAI or Anthropic response, and kept as `provider_response`.
        """
        if self._live or self._late("response"):
            self._take(parse_response, response)

    def record_stream(self, chunks: Sequence[object]) -> None:
        """Take what the chunks of a stream say together. `stream` calls it."""
        if self._live:
            self._take(merge_chunks, chunks)

    def _take(self, read: Callable[[Any], Parsed], response: object) -> None:
        try:
            parsed = read(response)
            if parsed.usage:
                self.usage(**parsed.usage)
            self.generation = parsed.generation
            if self._output is None:
                self._output = RECORDER.encode(parsed.output)
        except Exception as error:  # noqa: BLE001 - the containment door
            RECORDER.fault("read a response", error)
            if self._output is None:
                self._output = RECORDER.encode(response)

    def stream(self, chunks: Iterable[T] | AsyncIterable[T]) -> StepStream[T]:
        """Pass chunks through, `for` or `async for`, recording time to first token, output and usage on the way."""
        stream = StepStream(self, chunks)
        if self._live:
            self._more().streams.append(weakref.ref(stream))
        return stream

    def finish_streams(self) -> None:
        """Take what came so far of streams the program still holds: the step ends. Internal."""
        for reference in self._more().streams:
            stream = reference()
            if stream is not None:
                stream.finish()

    def first_token(self) -> None:
        """Note that the first chunk of the answer is here. `stream` calls it."""
        if self._live:
            self.generation = {"ttft_ns": RECORDER.monotonic_ns() - self._start}

    def attach(self, content: str | Path | bytes, *, name: str | None = None, mime: str | None = None) -> None:
        """Attach a file (a path), bytes, or an `http(s):` or `data:` URL. Contents are copied to the blobs folder."""
        self.add_attachment(Attachment(content, name=name, mime=mime))

    def add_attachment(self, attachment: Attachment) -> None:
        """Attach what `stepwell.attach` made."""
        if self._place.sampled:
            try:
                encoded = attachment_json(RECORDER, attachment)
                if self._live:
                    self._more().attachments.append(encoded)
                else:
                    RECORDER.append(b'{"kind":"step","id":"%b","attachments":[%b]}' % (self.id.encode(), encoded))
            except UsageError:
                raise
            except Exception as error:  # noqa: BLE001 - the containment door
                RECORDER.fault("attach", error)

    def score(
        self,
        name: str,
        value: float | None = None,
        *,
        label: str | None = None,
        comment: str | None = None,
        type: Literal["HUMAN", "CODE", "AI"] = "CODE",
        tags: Sequence[str] = (),
    ) -> None:
        """Judge the step: a number, a label, or both. Works on an ended step too."""
        if self._place.sampled:
            try:
                encoded = score_json(RECORDER, name, value, label=label, comment=comment, type_=type, tags=tags)
                if self._live:
                    self._more().scores.append(encoded)
                else:
                    RECORDER.append(b'{"kind":"score","step_id":"%b",%b' % (self.id.encode(), encoded[1:]))
            except UsageError:
                raise
            except Exception as error:  # noqa: BLE001 - the containment door
                RECORDER.fault("record a score", error)

    def fail(self, error: BaseException | str) -> None:
        """Mark the step as failed, without ending it."""
        if (self._live or self._late("error")) and self._more().outcome != "success":
            rest = self._more()
            rest.outcome, rest.error = "failed", describe_error(RECORDER, error)

    def succeed(self) -> None:
        """Mark the step as successful, whatever is said or raised later."""
        if self._live:
            rest = self._more()
            rest.outcome, rest.error = "success", None

    def is_recording(self) -> bool:
        """Say whether what is set on the step counts: it is sampled and open."""
        return self._live

    def now_ns(self) -> int:
        """Return the time on the step's clock, in nanoseconds since the epoch."""
        return self._place.offset + RECORDER.monotonic_ns()

    # -- OpenTelemetry's Span

    def get_span_context(self) -> SpanContext:
        """Return the identity other tracers and other processes continue from."""
        span_id = int(self.id[19:].replace("-", ""), 16)
        flags = _SAMPLED if self._place.sampled else _NOT_SAMPLED
        return SpanContext(int(self.trace_id, 16), span_id, is_remote=False, trace_flags=flags)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Put an attribute into the metadata, as it is now; a key that is no text, or empty, is passed over."""
        if self._live:
            try:
                if is_text(key) and str.__len__(key):
                    self.metadata[str.__str__(key)] = _as_now(value)
            except Exception as error:  # noqa: BLE001 - the containment door
                RECORDER.fault("set attributes", error)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Put attributes into the metadata."""
        if self._live:
            try:
                self.metadata.update(_attributes(attributes))
            except Exception as error:  # noqa: BLE001 - the containment door
                RECORDER.fault("set attributes", error)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        """Keep an event in the metadata, under `events`. `timestamp` is in nanoseconds since the epoch."""
        if self._live:
            known = type(timestamp) is int and 0 <= timestamp < 1 << 63
            at = timestamp if known else self.now_ns()
            self._add(
                "events", {"name": str.__str__(name) if is_text(name) else shown(name), "time_ns": at}, attributes
            )

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        """Keep a link to another span in the metadata, under `links`; to no span, only where something is said."""
        if self._live:
            try:
                if not context.is_valid and not attributes and not context.trace_state:
                    return
                link = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
            except Exception:  # noqa: BLE001 - it is no such context
                RECORDER.misuse(f"a link needs a span context, got {shown(context)}")
            else:
                self._add("links", link, attributes)

    def _add(self, key: str, entry: dict[str, Any], attributes: Attributes) -> None:
        try:
            entries: list[Any] = self.metadata.setdefault(key, [])
            if type(entries) is list and len(entries) < MAX_EVENTS:  # else the program has put something else there
                entries.append({**entry, "attributes": {} if attributes is None else _attributes(attributes)})
        except Exception as error:  # noqa: BLE001 - the containment door
            RECORDER.fault("set attributes", error)

    def update_name(self, name: str) -> None:
        """Rename the step."""
        if self._live:
            self.name = str.__str__(name) if is_text(name) else shown(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the outcome by OpenTelemetry's rules: OK is final, UNSET does nothing, the last ERROR counts.

        An ERROR that says nothing leaves standing what was said before.
        """
        if not self._live:
            return
        given: Any = status
        if issubclass(type(given), Status):
            given, description = given.status_code, given.description
        if given is StatusCode.OK:
            self.succeed()
        elif given is StatusCode.ERROR and is_text(description) and str.__len__(description):
            self.fail(description)
        elif given is StatusCode.ERROR and self._more().outcome is None:
            self._more().outcome = "failed"  # what is raised later may still say why

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Keep an exception as an event; by OpenTelemetry's rules that alone is no failure."""
        if self._live:
            try:
                described = orjson.loads(describe_error(RECORDER, exception))
                event = {_EXCEPTION[key]: value for key, value in described.items()}
                event["exception.escaped"] = "True" if escaped is True else "False"
            except Exception as error:  # noqa: BLE001 - the containment door
                RECORDER.fault("set attributes", error)
                return
            try:
                event.update({} if attributes is None else _attributes(attributes))
            except Exception as error:  # noqa: BLE001 - the containment door
                RECORDER.fault("set attributes", error)
            self.add_event("exception", event, timestamp)


def _as_now(value: Any) -> Any:
    """Return an attribute's value as it is now: what may change later is read back from its JSON."""
    return value if type(value) in _FIXED else orjson.loads(RECORDER.encode(value))


def _attributes(given: Any) -> dict[str, Any]:
    """Return attributes with those keys that OpenTelemetry allows; raises what the mapping raises."""
    pairs = first_pairs(given).items()
    return {str.__str__(key): _as_now(value) for key, value in pairs if is_text(key) and str.__len__(key)}
