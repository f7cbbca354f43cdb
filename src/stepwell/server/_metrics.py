"""What the server counts, and how Prometheus reads it (text format 0.0.4).

What must stay true: the number of label values is bounded by routes and statuses, never by what clients send. Only the
event loop's thread counts, but for the upkeep's own counts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Final

__all__ = ["Metrics"]

BUCKETS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class Metrics:
    """Counts requests and records since the start of this process."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.records: Counter[str] = Counter()
        self.upkeep: Counter[tuple[str, str]] = Counter()  # by job and outcome; `Upkeep` counts, and makes no new key
        self.writers: Callable[[], int] = lambda: 0
        self.received_bytes = 0
        self.sent_bytes = 0
        self._seconds: dict[str, float] = {}
        self._buckets: dict[str, list[int]] = {}

    def add_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that is through; `route` is a template."""
        self.requests[method if method in _METHODS else "other", route, status] += 1
        buckets = self._buckets.setdefault(route, [0] * (len(BUCKETS_S) + 1))
        buckets[bisect_left(BUCKETS_S, seconds)] += 1
        self._seconds[route] = self._seconds.get(route, 0.0) + seconds

    def text(self) -> str:
        """Return all of it in Prometheus's form."""
        return "\n".join([*self._requests(), *self._records(), *self._upkeep(), *self._durations(), ""])

    def _requests(self) -> Iterator[str]:
        yield from _head("stepwell_http_requests_total", "counter", "Requests answered.")
        for (method, route, status), count in sorted(self.requests.items()):
            yield _line("stepwell_http_requests_total", count, method=method, route=route, status=status)
        yield from _head("stepwell_http_received_bytes_total", "counter", "Bytes of bodies received, as sent.")
        yield _line("stepwell_http_received_bytes_total", self.received_bytes)
        yield from _head("stepwell_http_sent_bytes_total", "counter", "Bytes of bodies sent.")
        yield _line("stepwell_http_sent_bytes_total", self.sent_bytes)

    def _records(self) -> Iterator[str]:
        yield from _head("stepwell_ingest_records_total", "counter", "Records received, by what became of them.")
        for outcome in ("accepted", "duplicate", "rejected"):
            yield _line("stepwell_ingest_records_total", self.records[outcome], outcome=outcome)
        yield from _head("stepwell_ingest_writers", "gauge", "Processes that write records besides this one.")
        yield _line("stepwell_ingest_writers", self.writers())

    def _upkeep(self) -> Iterator[str]:
        yield from _head(
            "stepwell_upkeep_jobs_total", "counter", "Periodic jobs, a project each, by what became of them."
        )
        for (job, outcome), count in sorted(self.upkeep.items()):
            yield _line("stepwell_upkeep_jobs_total", count, job=job, outcome=outcome)

    def _durations(self) -> Iterator[str]:
        name = "stepwell_http_request_duration_seconds"
        yield from _head(name, "histogram", "From the head of a request to the end of its answer.")
        for route, buckets in sorted(self._buckets.items()):
            total = 0
            for bound, count in zip((*BUCKETS_S, "+Inf"), buckets, strict=True):
                total += count
                yield _line(f"{name}_bucket", total, route=route, le=bound)
            yield _line(f"{name}_sum", self._seconds[route], route=route)
            yield _line(f"{name}_count", total, route=route)


def _head(name: str, kind: str, help: str) -> Iterator[str]:
    yield f"# HELP {name} {help}"
    yield f"# TYPE {name} {kind}"


def _line(name: str, value: float, **labels: object) -> str:
    return f"{name}{_labels(labels)} {value:g}" if isinstance(value, float) else f"{name}{_labels(labels)} {value}"


def _labels(labels: Mapping[str, object]) -> str:
    told = ",".join(f'{name}="{_escaped(str(value))}"' for name, value in labels.items())
    return f"{{{told}}}" if told else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
