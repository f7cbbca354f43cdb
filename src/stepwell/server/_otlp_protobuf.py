"""OTLP's messages in protobuf. Imported with the first request that has one: the library takes a while to load."""

from __future__ import annotations

from typing import Any, Final, Literal

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

__all__ = ["decode", "encode_answer"]

_REQUESTS: Final[dict[str, Any]] = {"spans": ExportTraceServiceRequest, "logs": ExportLogsServiceRequest}


def decode(signal: Literal["spans", "logs"], body: bytes) -> Any:
    """Return the request. Raises `ValueError` for what is none."""
    try:
        return _REQUESTS[signal].FromString(body)
    except DecodeError as error:
        raise ValueError(str(error)) from error


def encode_answer(signal: Literal["spans", "logs"], rejected: int, error: str) -> bytes:
    """Return the answer to a request; to one of which all was taken it is no byte."""
    said: Any = ExportTraceServiceResponse() if signal == "spans" else ExportLogsServiceResponse()
    if rejected or error:
        setattr(said.partial_success, "rejected_spans" if signal == "spans" else "rejected_log_records", rejected)
        said.partial_success.error_message = error
    encoded: bytes = said.SerializeToString()
    return encoded
