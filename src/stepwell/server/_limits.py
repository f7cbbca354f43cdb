"""How much a client may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What is beyond these is answered with 413, or 422 for depth; a reached `waiting_bytes` with 503.

    The recorder sends at most 1 MiB and 2,000 records at once, unless one record alone is larger.
    """

    body_bytes: int = 32 * 1024 * 1024  # of records, as sent and as decompressed
    lines: int = 10_000
    line_bytes: int = 24 * 1024 * 1024
    depth: int = 300  # of JSON in JSON; a value captured by the recorder has at most 250
    json_bytes: int = 1024 * 1024  # any body but records and blobs
    blob_bytes: int = 256 * 1024 * 1024
    body_s: float = 120.0  # for a whole body to arrive
    waiting_bytes: int = 64 * 1024 * 1024  # bodies of records in memory, of all requests together
