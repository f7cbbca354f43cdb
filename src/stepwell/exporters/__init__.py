"""Where batches go: the exporter protocol, and the registry that opens exporters from URLs.

An exporter is any object with `export(batch)`; `close` and `key` are optional. Third parties add URL schemes
with an entry point in the group `stepwell.exporters`: its name is the scheme, its value a callable
`factory(url: str, home: Path | None) -> Exporter`.

What must stay true: an exporter is called by one thread at a time, sends a batch once, and raises when it did not.
Retry, splitting and dead letters are the shipper's. Credentials in a URL are in no `key` and in no message.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast, runtime_checkable

from stepwell._checks import without_credentials
from stepwell.errors import ExportError, UsageError
from stepwell.model import Record, decode_record

if TYPE_CHECKING:  # slow to import
    from importlib.metadata import EntryPoints

__all__ = ["Batch", "Exporter", "SpanExporterLike", "UnopenedExporter", "adapted", "open_exporter"]


class Batch:
    """Some finished records in the order they were recorded.

    `frames` are the records' JSON bytes, one object each, no line end; `records` decodes them on first use (payloads
    stay bytes).
    """

    def __init__(self, frames: Sequence[bytes]) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def records(self) -> list[Record]:
        """The frames, decoded. Raises `UsageError` where one is no record."""
        return [decode_record(frame) for frame in self.frames]


@runtime_checkable
class Exporter(Protocol):
    """Takes batches to one destination.

    `export` returns when the batch is delivered. It raises `ExportError` (or any `OSError`) to be called again with the
    same batch, `RejectedError` for records that will never be taken; any other exception is put down to the content of
    the batch, which is then split to isolate the record to blame.

    Optional attributes: `key: str` names the destination, without secrets, so that what a dead process left can be
    delivered to it (without `key` nothing outlives the process); `close() -> None` frees what it holds;
    `load() -> None` imports what `export` will need: it is called once, first, on the exporter's thread, and a fork
    waits for it, since a child that is forked while a module is imported can never import that module.
    """

    def export(self, batch: Batch) -> None:
        """Deliver a batch."""
        ...


class SpanExporterLike(Protocol):
    """An exporter of spans made for OpenTelemetry's SDK: `configure` takes it too, and gives it steps as spans."""

    def export(self, spans: Any, /) -> Any:
        """Send spans of the SDK."""
        ...

    def shutdown(self) -> Any:
        """Let go of what it holds."""
        ...


class UnopenedExporter:
    """Stands for a URL that could not be opened when nobody could be told: each batch tries again, records wait."""

    def __init__(self, url: str, home: Path | None) -> None:
        self.key = without_credentials(url)
        self._url = url
        self._home = home
        self._opened: Exporter | None = None

    def export(self, batch: Batch) -> None:
        """Export to what the URL names now; raises `ExportError` while it names nothing."""
        if self._opened is None:
            try:
                self._opened = open_exporter(self._url, self._home)
            except Exception as error:
                raise ExportError(str(error)) from error
        self._opened.export(batch)

    def close(self) -> None:
        """Close what the URL named in the end."""
        close = getattr(self._opened, "close", None)
        if close is not None:
            close()


ExporterFactory = Callable[[str, "Path | None"], Exporter]

_BUILT_IN: Final = {
    "memory": "stepwell.exporters.memory:MemoryExporter.from_url",
    "console": "stepwell.exporters.console:ConsoleExporter.from_url",
    "http": "stepwell.exporters.http:HttpExporter.from_url",
    "https": "stepwell.exporters.http:HttpExporter.from_url",
    "jsonl": "stepwell.exporters.jsonl:JsonLinesExporter.from_url",
    "otlp": "stepwell.exporters.otlp:OtlpExporter.from_url",
    "otlp+grpc": "stepwell.exporters.otlp:OtlpExporter.from_url",
    "otlp+grpcs": "stepwell.exporters.otlp:OtlpExporter.from_url",
    "otlp+http": "stepwell.exporters.otlp:OtlpExporter.from_url",
    "otlp+https": "stepwell.exporters.otlp:OtlpExporter.from_url",
    "sqlite": "stepwell.exporters.sqlite:StoreExporter.from_url",
}


def open_exporter(url: str, home: Path | None) -> Exporter:
    """Open the exporter of a URL: `memory:` `console:` `jsonl:PATH` `sqlite:PATH` `http(s)://HOST`
    `otlp+http(s)://HOST` `otlp+grpc(s)://HOST` `otlp:` or a plug-in's.

    `home` is the recorder's folder, None when it keeps nothing on disk; `sqlite:` alone means `<home>/steps.db`.
    Raises `UsageError` for an unknown scheme or a URL the exporter can't use.
    """
    scheme, colon, _ = url.partition(":")
    if not colon:
        named = without_credentials(url)
        raise UsageError(f"export={named!r} is not a URL: expected SCHEME:..., with one of {', '.join(_schemes())}")
    return _factory(scheme, url)(url, home)


def adapted(exporter: Exporter | SpanExporterLike) -> Exporter:
    """Return an exporter as it is, and one made for OpenTelemetry's SDK in an adapter."""
    sdk = sys.modules.get("opentelemetry.sdk.trace.export")  # who has made one has loaded it
    if sdk is not None and isinstance(exporter, sdk.SpanExporter):
        adapter: Callable[[object], Exporter] = import_module("stepwell.exporters.otlp").SpanExporterAdapter
        return adapter(exporter)
    return cast("Exporter", exporter)


def _factory(scheme: str, url: str) -> ExporterFactory:
    named = without_credentials(url)
    try:
        if scheme in _BUILT_IN:
            module, _, path = _BUILT_IN[scheme].partition(":")
            target: object = import_module(module)
            for name in path.split("."):
                target = getattr(target, name)
            return cast("ExporterFactory", target)
        for entry in _entry_points():
            if entry.name == scheme:
                return cast("ExporterFactory", entry.load())
    except (ImportError, AttributeError) as error:
        raise UsageError(f"export={named!r}: its exporter can't be loaded: {error}") from error
    raise UsageError(f"export={named!r}: no exporter for {scheme!r}, there are {', '.join(_schemes())}")


def _entry_points() -> EntryPoints:
    from importlib.metadata import entry_points  # slow to import, and needed for plug-ins only

    return entry_points(group="stepwell.exporters")


def _schemes() -> list[str]:
    return sorted({*_BUILT_IN, *(entry.name for entry in _entry_points())})
