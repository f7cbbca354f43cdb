"""otlp+http://HOST, otlp+grpc://HOST: send steps as spans to whatever takes OpenTelemetry's protocol.

What must stay true:

1. The official exporters send; retry is the shipper's alone (`_otlp_wire` says how).
2. A batch, or a step, that is too large for the destination goes in parts, or as a stub, and holds up no other.
3. A destination that answers "I failed" and no more (500, `INTERNAL`, an SDK exporter's `FAILURE`) is asked again for
   as long as it takes nothing at all; a step that it refuses while it takes others is rejected.
4. Nothing is sent twice but what a failure left open: what of a batch was delivered is not sent with the rest again.

Steps are sent when they have ended, with the attributes of `stepwell.otel.semconv`. Threads and scores that come on
their own are log records (`stepwell.thread`, `gen_ai.evaluation.result`), for whoever takes logs. What comes later for
a step that was sent (an attachment, tags) has no form in OTLP, and is passed over; so is a step that was interrupted
and announced in another process.
"""

from __future__ import annotations

import logging
import os
import time
from base64 import b64encode
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit

from stepwell._checks import without_credentials
from stepwell.errors import ExportError, RejectedError, UsageError
from stepwell.exporters import Batch
from stepwell.exporters._otlp_wire import GrpcWire, HttpWire, Outcome, SdkWire, Wire

if TYPE_CHECKING:  # loaded with the first batch, on the shipper's thread
    from stepwell.exporters._otlp_spans import Held, Sendable, Sent
    from stepwell.otel.semconv import Convention

__all__ = ["OtlpExporter", "SpanExporterAdapter"]

MAX_UNSURE: Final = 20  # failures without a reason, one after the other, before a step on its own is rejected
PROBES: Final = 3  # and so many of these before single spans are tried
MAX_LOGS_FAILED: Final = 5  # before it is taken for one that has no use for logs
LOG_EVERY_S: Final = 60.0
_CONVENTIONS: Final[tuple[Convention, ...]] = ("genai", "openinference")
_TRACES: Final = "/v1/traces"
_log: Final = logging.getLogger("stepwell")

Placed = Sequence[tuple[int, "Sent"]]


class _Attempt:
    """What has become of a batch so far: the places of the records that are settled, and the reasons of those refused.

    The shipper gives the same frames again after a failure.
    """

    def __init__(self, frames: Sequence[bytes]) -> None:
        self.frames = frames
        self.settled: set[int] = set()
        self.rejected: dict[int, str] = {}
        self.blames = False  # whether the destination has taken others meanwhile


class _SpanSender:
    """Sends batches as spans over a wire that it opens, and opens again where `reopens`, and in a forked child."""

    def __init__(
        self, name: str, open_wire: Callable[[], Wire], conventions: Collection[Convention], *, reopens: bool
    ) -> None:
        self._name = name
        self._open_wire = open_wire
        self._conventions = conventions
        self._reopens = reopens
        self._wire: Wire | None = None if reopens else open_wire()
        self._process = os.getpid()
        self._held: Held | None = None
        self._attempt = _Attempt(())
        self._unsure = 0
        self._logs_failed = 0
        self._noted = -LOG_EVERY_S

    def export(self, batch: Batch) -> None:
        from stepwell.exporters._otlp_spans import Held  # with the SDK

        if self._held is None:
            self._held = Held(self._conventions)
        found = self._held.sort(batch.frames, batch.records)
        if self._attempt.frames is not batch.frames:
            self._attempt = _Attempt(batch.frames)
        attempt = self._attempt
        attempt.blames = False
        self._deliver([each for each in found.spans if each[0] not in attempt.settled], attempt)
        self._tell(found)
        self._held.forget(found.settled)
        self._attempt = _Attempt(())
        if attempt.rejected:
            count = len(attempt.rejected)
            raise RejectedError(f"{self._name} refused {count} of {len(batch)} records", rejected=attempt.rejected)

    def close(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None and self._process == os.getpid():
            wire.close()

    def _send(self, send: Callable[[Wire], Outcome]) -> Outcome:
        if self._wire is None or self._process != os.getpid():
            self._wire, self._process = self._open_wire(), os.getpid()
        outcome = send(self._wire)
        if outcome.note and time.monotonic() - self._noted >= LOG_EVERY_S:
            self._noted = time.monotonic()
            _log.warning("%s took what it was sent, and says: %s", self._name, outcome.note)
        return outcome

    def _send_spans(self, spans: Sequence[Sent]) -> Outcome:
        return self._send(lambda wire: wire.send_spans(spans))

    def _deliver(self, spans: Placed, attempt: _Attempt) -> None:
        """Send spans, in parts where they can't be sent at once. Raises `ExportError`."""
        if not spans:
            return
        outcome = self._send_spans([span for _, span in spans])
        if outcome.kind == "taken":
            self._unsure = 0
            attempt.settled.update(at for at, _ in spans)
        elif outcome.kind == "later" or (outcome.kind == "unsure" and not self._is_to_blame(spans, attempt)):
            if self._reopens:  # a channel of gRPC waits for up to two minutes before it looks again
                self.close()
            raise ExportError(f"{self._name}: {outcome.why}", retry_after_s=outcome.retry_after_s)
        elif len(spans) > 1:
            middle = len(spans) // 2
            self._deliver(spans[:middle], attempt)
            self._deliver(spans[middle:], attempt)
        else:
            ((at, span),) = spans
            attempt.rejected[at] = self._replaced(span, outcome) if outcome.kind == "large" else outcome.why
            attempt.settled.add(at)

    def _is_to_blame(self, spans: Placed, attempt: _Attempt) -> bool:
        """Say whether a failure that has no reason is put down to what was sent: others are taken meanwhile."""
        if attempt.blames:
            return True
        self._unsure += 1
        if len(spans) == 1:
            return self._unsure >= MAX_UNSURE
        if self._unsure > PROBES:
            probes = {0, len(spans) // 2, len(spans) - 1}
            attempt.blames = any(self._send_spans([spans[at][1]]).kind == "taken" for at in probes)
        return attempt.blames

    def _replaced(self, span: Sent, outcome: Outcome) -> str:
        """Send a stub of a span that is too large; return the reason."""
        from stepwell.exporters._otlp_spans import stub_of

        taken = self._send_spans([stub_of(span)]).kind == "taken"
        return f"too large ({outcome.why})" + ("; a stub of it was delivered" if taken else "")

    def _tell(self, found: Sendable) -> None:
        """Send threads and scores, where the destination takes logs: many take spans alone."""
        if not found.events or self._logs_failed >= MAX_LOGS_FAILED:
            return
        outcome = self._send(lambda wire: wire.send_logs(found.events))
        if outcome.kind == "taken":
            self._logs_failed = 0
        elif outcome.kind == "later" and outcome.retry_after_s is None:
            self._logs_failed += 1
            raise ExportError(f"{self._name}: {outcome.why}")
        elif outcome.kind != "large":
            self._logs_failed = MAX_LOGS_FAILED


class SpanExporterAdapter:
    """Gives steps, as spans, to an exporter made for OpenTelemetry's SDK, as `configure(export=...)` does.

    The exporter's retries and logs are its own. It is shut down with the recorder.
    """

    def __init__(self, exporter: Any, *, conventions: Collection[Convention] = _CONVENTIONS) -> None:
        name = type(exporter).__name__
        self._name = name
        self._sender = _SpanSender(name, lambda: SdkWire(exporter), conventions, reopens=False)

    def __repr__(self) -> str:
        return f"SpanExporterAdapter({self._name})"

    def load(self) -> None:
        """Import what sending needs."""
        _load("stepwell.exporters._otlp_spans")

    def export(self, batch: Batch) -> None:
        """Send a batch.

        Raises `RejectedError` that names what is refused, `ExportError` to be called again, and what the exporter
        raises.
        """
        self._sender.export(batch)

    def close(self) -> None:
        """Shut the exporter down."""
        self._sender.close()


class OtlpExporter:
    """Sends spans by OTLP over HTTP (protobuf) or gRPC, to the host of a URL, with the settings `OTEL_EXPORTER_OTLP_*`.

    `otlp+http://HOST[:PORT][/PATH]`, `otlp+https://`, `otlp+grpc://` (no TLS) and `otlp+grpcs://`; `otlp:` alone goes
    where `OTEL_EXPORTER_OTLP_*` says. Spans go to `PATH/v1/traces`. A key in the URL (`KEY@HOST`) is sent as a bearer
    token, `USER:PASSWORD@HOST` as basic authorization. Raises `UsageError`.
    """

    def __init__(self, url: str, *, conventions: Collection[Convention] = _CONVENTIONS) -> None:
        self._target = _parse(url)
        self.key = without_credentials(url) if self._target.endpoint else f"otlp:{_standard_endpoint()}"
        package = "grpc" if self._target.is_grpc else "http"
        self._module = f"opentelemetry.exporter.otlp.proto.{package}"
        if not _is_installed(self._module):
            raise UsageError(f"export={self.key!r} needs the extra otlp: pip install 'stepwell[otlp]'")
        self._sender = _SpanSender(self.key, self._open, conventions, reopens=True)

    @classmethod
    def from_url(cls, url: str, home: Path | None) -> OtlpExporter:  # noqa: ARG003 - the factory's signature
        """Open `otlp:` or `otlp+PROTOCOL://HOST`."""
        return cls(url)

    def __repr__(self) -> str:
        return f"OtlpExporter({self.key!r})"

    def load(self) -> None:
        """Import what sending needs; `encodings.idna` is what looking up a host imports."""
        _load("stepwell.exporters._otlp_encoding", f"{self._module}.trace_exporter", "encodings.idna")
        if self._target.is_grpc:
            _load("opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc", "google.rpc.error_details_pb2")

    def export(self, batch: Batch) -> None:
        """Send a batch. Raises `RejectedError` that names what is refused, `ExportError` to be called again."""
        self._sender.export(batch)

    def close(self) -> None:
        """Close connections; the next batch makes new ones."""
        self._sender.close()

    def _open(self) -> Wire:
        target = self._target
        if target.is_grpc:
            return GrpcWire(target.endpoint, target.headers, insecure=target.insecure)
        return HttpWire(target.endpoint, target.headers)


def _load(*modules: str) -> None:
    """Import modules by name: nothing of them is needed here."""
    for module in modules:
        import_module(module)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _standard(name: str) -> str:
    variables = (f"OTEL_EXPORTER_OTLP_TRACES_{name}", f"OTEL_EXPORTER_OTLP_{name}")
    return next((value for each in variables if (value := os.environ.get(each, "").strip())), "")


def _standard_endpoint() -> str:
    return without_credentials(_standard("ENDPOINT") or "http://localhost:4318")


class _Target(NamedTuple):
    """Where a URL points; without `endpoint`, where the standard variables do."""

    is_grpc: bool
    endpoint: str | None = None
    headers: Mapping[str, str] = {}
    insecure: bool | None = None


def _parse(url: str) -> _Target:
    """Read a URL. Raises `UsageError`."""
    scheme, _, rest = url.partition(":")
    named = without_credentials(url)
    if scheme == "otlp":
        if rest:
            raise UsageError(f"export={named!r}: otlp: takes no more, but otlp+http://HOST does")
        return _Target(_standard("PROTOCOL").lower() == "grpc")
    protocol = scheme.removeprefix("otlp+")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"export={named!r} is not a URL: {without_credentials(str(error))}") from None
    is_grpc, path = protocol.startswith("grpc"), parts.path.rstrip("/")
    if not host or "?" in url or "#" in url or not url.isprintable() or " " in url:
        raise UsageError(f"export={named!r}: expected {scheme}://HOST, with no query, fragment or space")
    if is_grpc and path:
        raise UsageError(f"export={named!r}: gRPC has no paths")
    host = f"[{host}]" if ":" in host else host
    if port is None and protocol != "https":
        port = 4317 if is_grpc else 4318  # OTLP's own
    origin = host if port is None else f"{host}:{port}"
    headers = _authorization(unquote(parts.username or ""), parts.password)
    if is_grpc:
        return _Target(True, f"{'http' if protocol == 'grpc' else 'https'}://{origin}", headers, protocol == "grpc")
    return _Target(False, f"{protocol}://{origin}{path.removesuffix(_TRACES)}{_TRACES}", headers)


def _authorization(user: str, password: str | None) -> dict[str, str]:
    if not user:
        return {}
    if password is None:
        return {"authorization": f"Bearer {user}"}
    return {"authorization": "Basic " + b64encode(f"{user}:{unquote(password)}".encode()).decode()}
