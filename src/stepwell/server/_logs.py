"""The server's log: one JSON object a line, on stderr.

What must stay true: an error's message is not logged, since it may quote what a client sent; its type and place are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

__all__ = ["log_as_json"]


class _AsJson(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        told = record.args
        if isinstance(told, Mapping):  # a line of the access log
            line.update(cast("Mapping[str, Any]", told))
        else:
            line["message"] = record.getMessage()
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)


def log_as_json() -> None:
    """Have this process log so: warnings of all, and what the server notes of requests."""
    handler = logging.StreamHandler()
    handler.setFormatter(_AsJson())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("stepwell.server").setLevel(logging.INFO)
