"""OpenTelemetry's own OTLP exporters, and what really became of what they sent.

What must stay true:

1. An official exporter sends a request once. Each retries by itself, with sleeps, logs every attempt, and tells no more
   than that it failed. So what carries its requests answers it that all went well, in any case, and notes down what did
   happen: that is what is returned from here. Nothing of anybody's logging is touched, and nothing is logged.
   It is given no spans, and its empty request is sent with ours in place of it: endpoint, headers, compression,
   certificates and credentials are the exporter's, the message is ours (`_otlp_encoding`).
2. A request, its answer included, takes as long as `OTEL_EXPORTER_OTLP_TIMEOUT` says (10 s), and no longer request than
   the destination is known to take is sent.
3. A channel or connection belongs to the process that made it.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from stepwell.exporters._otlp_spans import Sent
    from stepwell.otel.semconv import LogEvent

__all__ = ["GrpcWire", "HttpWire", "Outcome", "SdkWire", "Wire"]

HTTP_BYTES: Final = 64 * 1024 * 1024  # what the specification recommends a receiver to take
GRPC_BYTES: Final = 4 * 1024 * 1024  # what gRPC takes unless told otherwise
ANSWER_BYTES: Final = 64 * 1024
QUOTED_CHARACTERS: Final = 160
RETRY_AFTER_REFUSED_S: Final = 30.0  # a key or a path is mended by a person

Kind = Literal["taken", "later", "refused", "large", "unsure"]

# By the OTLP specification, 1.11: what may be sent again as it is, or what is wrong with the request itself. The rest
# of 4xx tells of the destination (its key, its path): there the same request is welcome once that is mended.
_LATER: Final = frozenset({408, 425, 429, 502, 503, 504})
_REFUSED: Final = frozenset({400, 415, 422, 431})
_GRPC: Final[dict[str, Kind]] = {
    "INVALID_ARGUMENT": "refused",
    "FAILED_PRECONDITION": "refused",
    "INTERNAL": "unsure",
    "UNKNOWN": "unsure",
}


class Outcome(NamedTuple):
    """What became of a request. A `note` is what a destination that took it had to say."""

    kind: Kind
    why: str = ""
    retry_after_s: float | None = None
    note: str = ""


_UNSENT: Final = Outcome("later", "the official exporter sent nothing")


class Wire(Protocol):
    """Sends spans, and logs where it can. One thread at a time."""

    def send_spans(self, spans: Sequence[Sent]) -> Outcome:
        """Send spans, once."""
        ...

    def send_logs(self, events: Sequence[LogEvent]) -> Outcome:
        """Send events as logs, once."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class SdkWire:
    """Any exporter of spans made for OpenTelemetry's SDK. It has no way for logs, and tells yes or no."""

    def __init__(self, exporter: Any) -> None:
        self._exporter = exporter

    def send_spans(self, spans: Sequence[Sent]) -> Outcome:
        """Send spans. Raises what the exporter raises."""
        from stepwell.exporters._otlp_spans import readable_of

        result = self._exporter.export([readable_of(span) for span in spans])
        if getattr(result, "name", None) == "SUCCESS":
            return Outcome("taken")
        return Outcome("unsure", f"{type(self._exporter).__name__} failed, and logs why")

    def send_logs(self, events: Sequence[LogEvent]) -> Outcome:  # noqa: ARG002 - the protocol's
        """Send nothing."""
        return Outcome("taken")

    def close(self) -> None:
        """Shut the exporter down."""
        self._exporter.shutdown()


class HttpWire:
    """OTLP/HTTP: the official exporter over a session whose requests pass through here."""

    def __init__(self, endpoint: str | None, headers: Mapping[str, str]) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        self._requests = requests = import_module("requests")
        self._session = session = requests.Session()
        self._send, session.request = session.request, self._request
        self._exporter: Any = OTLPSpanExporter(endpoint=endpoint, headers=dict(headers) or None, session=session)
        self._outcome = Outcome("taken")
        self._body = b""
        self._seen: tuple[str, dict[str, Any]] | None = None  # where spans went, and how

    def send_spans(self, spans: Sequence[Sent]) -> Outcome:
        """Send spans."""
        from stepwell.exporters._otlp_encoding import traces_request

        self._body = traces_request(spans)
        self._outcome = _UNSENT
        self._exporter.export(())
        self._body = b""
        return self._outcome

    def send_logs(self, events: Sequence[LogEvent]) -> Outcome:
        """Send logs beside where spans go, with the same headers."""
        from stepwell.exporters._otlp_encoding import logs_request

        if self._seen is None:
            self._exporter.export(())  # tells where, and an empty request is one
        url, options = self._seen or ("", {})
        if not url.endswith("/v1/traces"):
            return Outcome("refused", "there is no place for logs beside that for spans")
        self._body = logs_request(events)
        self._request("POST", f"{url.removesuffix('traces')}logs", **options)
        self._body = b""
        return self._outcome

    def close(self) -> None:
        """Close the connections."""
        self._exporter.shutdown()

    def _request(self, method: str, url: str, **options: Any) -> Any:
        """Do a request in the session's place, note its outcome, and answer that it went well."""
        if self._seen is None:
            self._seen = url, options
        size = len(self._body)
        if size > HTTP_BYTES:
            self._outcome = Outcome("large", f"{size} bytes")
        else:
            given: dict[str, str] = {**self._session.headers, **(options.get("headers") or {})}
            encoding = next((value for name, value in given.items() if name.lower() == "content-encoding"), "")
            self._outcome = self._ask(method, url, {**options, "data": _ENCODERS.get(encoding, bytes)(self._body)})
        answer = self._requests.Response()
        answer.status_code = HTTPStatus.OK
        answer.url = url
        return answer

    def _ask(self, method: str, url: str, options: dict[str, Any]) -> Outcome:
        timeout = options.get("timeout") or 10.0
        deadline = time.monotonic() + (timeout if isinstance(timeout, int | float) else 10.0)
        try:
            with self._send(method, url, **{**options, "allow_redirects": False, "stream": True}) as answer:
                body = b""
                for part in answer.iter_content(8192):
                    body += part
                    if len(body) > ANSWER_BYTES or time.monotonic() > deadline:
                        break
                return _http_outcome(answer.status_code, answer.headers, body)
        except (self._requests.exceptions.InvalidHeader, UnicodeError) as error:
            return Outcome("later", f"a header can't be sent: {type(error).__name__}", RETRY_AFTER_REFUSED_S)
        except (self._requests.RequestException, OSError, ValueError) as error:
            return Outcome("later", f"can't be reached: {_reason(error)}")


def _gzip(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


_ENCODERS: Final[dict[str, Callable[[bytes], bytes]]] = {"gzip": _gzip, "deflate": zlib.compress}


def _http_outcome(status: int, headers: Mapping[str, str], body: bytes) -> Outcome:
    if 200 <= status < 300:
        return Outcome("taken", note=_partial_success(headers.get("content-type", ""), body))
    why = _status(status)
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return Outcome("large", why)
    if status in _REFUSED:
        return Outcome("refused", f"{why}: {_quote(body.decode('utf-8', 'replace'))}".rstrip(": "))
    if status in _LATER:
        return Outcome("later", why, _seconds(headers.get("retry-after", "")))
    if status >= 500:
        return Outcome("unsure", why)
    return Outcome("later", why, RETRY_AFTER_REFUSED_S)


def _partial_success(content_type: str, body: bytes) -> str:
    """Return what a destination says that took a request in part only, or with a warning."""
    if not body or not content_type.startswith("application/x-protobuf"):
        return ""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        return _note(ExportTraceServiceResponse.FromString(body))
    except Exception:  # noqa: BLE001 - it says it took them; what else it says can't be read
        return ""


def _note(answer: Any) -> str:
    """Return the same of an answer; logs have another word for their spans."""
    partial = getattr(answer, "partial_success", None)
    count = getattr(partial, "rejected_spans", 0)
    said = _quote(getattr(partial, "error_message", ""))
    return f"{count} spans were not taken: {said}" if count else said


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _seconds(text: str) -> float | None:
    try:
        return max(float(text), 0.0) or None
    except ValueError:
        return None  # a date; the shipper's own pause will do


def _quote(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text[:QUOTED_CHARACTERS]).strip()


def _reason(error: BaseException) -> str:
    """Return why there was no answer: the innermost cause, which has no URL in it."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {_quote(str(error))}"


class GrpcWire:
    """OTLP/gRPC: the official exporter, whose stub is called through here."""

    def __init__(self, endpoint: str | None, headers: Mapping[str, str], *, insecure: bool | None) -> None:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

        self._grpc = import_module("grpc")
        given = [(name.lower(), value) for name, value in headers.items()]
        exporter: Any = OTLPSpanExporter(endpoint=endpoint, insecure=insecure, headers=given or None)
        self._exporter = exporter
        self._stub: Any = exporter._client
        exporter._client = self
        self._outcome = Outcome("taken")
        self._request: Any = None
        self._options: dict[str, Any] = {"timeout": 10.0}

    def send_spans(self, spans: Sequence[Sent]) -> Outcome:
        """Send spans."""
        from stepwell.exporters._otlp_encoding import traces_request

        self._request = _parsed("trace", "ExportTraceServiceRequest", traces_request(spans))
        self._outcome = _UNSENT
        self._exporter.export(())
        self._request = None
        return self._outcome

    def send_logs(self, events: Sequence[LogEvent]) -> Outcome:
        """Send logs over the same channel."""
        from stepwell.exporters._otlp_encoding import logs_request

        service = import_module("opentelemetry.proto.collector.logs.v1.logs_service_pb2_grpc")  # it has no types
        stub = service.LogsServiceStub(self._exporter._channel)
        request = _parsed("logs", "ExportLogsServiceRequest", logs_request(events))
        return self._ask(stub, request, self._options)

    def close(self) -> None:
        """Close the channel."""
        self._exporter.shutdown()

    def Export(self, request: Any, **options: Any) -> None:  # noqa: N802 - the stub's method, which the exporter calls
        """Do a call in the stub's place, note its outcome, and answer that it went well."""
        self._options = {**options, "timeout": options.get("timeout") or 10.0}
        self._outcome = self._ask(self._stub, request if self._request is None else self._request, options)

    def _ask(self, stub: Any, request: Any, options: dict[str, Any]) -> Outcome:
        size = request.ByteSize()
        if size > GRPC_BYTES:
            return Outcome("large", f"{size} bytes")
        try:
            return Outcome("taken", note=_note(stub.Export(request, **options)))
        except self._grpc.RpcError as error:
            return _grpc_outcome(error)


def _parsed(signal: str, name: str, request: bytes) -> Any:
    """Return a request as the message that a stub asks for."""
    service = import_module(f"opentelemetry.proto.collector.{signal}.v1.{signal}_service_pb2")
    return getattr(service, name).FromString(request)


def _grpc_outcome(error: Any) -> Outcome:
    code, details = error.code().name, _quote(error.details() or "")
    why = f"{code}: {details}"
    if code == "RESOURCE_EXHAUSTED" and "larger than max" in details:
        return Outcome("large", why)
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED", "NOT_FOUND"):
        return Outcome("later", why, RETRY_AFTER_REFUSED_S)
    return Outcome(_GRPC.get(code, "later"), why, _retry_info(error))


def _retry_info(error: Any) -> float | None:
    try:
        told: dict[str, Any] = dict(error.trailing_metadata() or ())
        packed = told.get("google.rpc.retryinfo-bin")
        if packed is None:
            return None
        info = import_module("google.rpc.error_details_pb2").RetryInfo.FromString(packed)
        return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)
    except Exception:  # noqa: BLE001 - a destination's metadata
        return None
