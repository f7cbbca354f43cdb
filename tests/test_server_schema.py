"""The schema says what the server does, errors have one shape, and what it counts can be read."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance
from served import AppServer, lines, step

from stepwell.server._keys import Failures, KeyRing
from stepwell.server._metrics import Metrics


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    with AppServer(tmp_path_factory.mktemp("server") / "home") as server:
        yield server


@schemathesis.serializer("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-protobuf")
def as_lines(_: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@pytest.mark.usefixtures("untraced")
def test_whatever_the_schema_allows_or_forbids_is_answered_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All checks of schemathesis, over every operation; its pytest plug-in knows nothing of pytest 9."""
    monkeypatch.setattr(Failures, "MOST", 1_000_000)  # it tries wrong keys, and wants 401 each time
    with AppServer(tmp_path / "home") as server:
        _examine(server, {"Authorization": f"Bearer {KeyRing(server.home).add('all', ['admin'])}"})


EXCLUDED = {  # whatever is sent to these is bytes, so nothing is of a wrong type; and no schema knows a hash
    "POST /v1/ingest": [negative_data_rejection],
    "POST /v1/traces": [negative_data_rejection, positive_data_acceptance],
    "POST /v1/logs": [negative_data_rejection, positive_data_acceptance],
    "PUT /v1/blobs/{sha256}": [negative_data_rejection, positive_data_acceptance],
    # nor what a path to metadata may hold, which text has a word to look for, that one date is before another, which
    # cursors there are, and that a score has a value or a label
    "GET /v1/records": [positive_data_acceptance],
    "GET /v1/records/steps": [positive_data_acceptance],
    "GET /v1/records/runs": [positive_data_acceptance],
    "GET /v1/steps/": [positive_data_acceptance],
    "GET /v1/scores": [positive_data_acceptance],
    "GET /v1/search": [positive_data_acceptance],
    "GET /v1/users": [positive_data_acceptance],
    "GET /v1/threads": [positive_data_acceptance],
    "GET /v1/threads/{thread_id}/steps": [positive_data_acceptance],
    "POST /v1/scores": [positive_data_acceptance],
}


def _excluded(label: str) -> list[Any]:
    """Return the checks that can't be made of an operation: in a query anything is a text, and may be a list of one."""
    return EXCLUDED.get(label, []) + ([negative_data_rejection] if label.startswith("GET ") else [])


def _examine(server: AppServer, headers: dict[str, str]) -> None:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", headers=headers)
    seen: set[str] = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=5,
                phases=(Phase.explicit, Phase.generate),
                suppress_health_check=list(HealthCheck),
                derandomize=True,
                database=None,
            )
            def answers_as_it_says(case: Any) -> None:
                case.call_and_validate(headers=headers, excluded_checks=_excluded(case.operation.label))

            with suppress(Unsatisfiable):  # an operation without parameters can't be asked wrongly
                answers_as_it_says()
        seen.add(operation.label)
    assert {"POST /v1/ingest", "PUT /v1/blobs/{sha256}", "POST /v1/blobs/missing"} <= seen


def test_every_error_has_the_one_shape(server: AppServer) -> None:
    answers = [
        server.client.get("/nothing"),
        server.client.delete("/v1/ingest"),
        server.client.get("/v1/blobs/x"),
        server.client.get("/v1/blobs/" + "0" * 64),
        server.client.post("/v1/blobs/missing", json={"sha256": 7}),
        server.client.post("/v1/blobs/missing", content=b"[", headers={"Content-Type": "application/json"}),
        server.client.post("/v1/ingest", data={"a": "b"}),
    ]
    assert [(answer.status_code, answer.json()["error"]["type"]) for answer in answers] == [
        (404, "not_found"),
        (405, "method_not_allowed"),
        (422, "invalid"),
        (404, "not_found"),
        (422, "invalid"),
        (422, "invalid"),
        (415, "unsupported_media_type"),
    ]
    assert answers[1].headers["allow"] == "POST"
    assert answers[2].json()["error"]["fields"] == [
        {"where": "path.sha256", "message": "String should match pattern '^[0-9a-f]{64}$'"}
    ]


def test_the_schema_names_the_shape_of_errors_for_every_route(server: AppServer) -> None:
    schema = server.client.get("/openapi.json").json()
    operations = [operation for methods in schema["paths"].values() for operation in methods.values()]
    shapes = {
        operation["responses"]["default"]["content"]["application/json"]["schema"]["$ref"] for operation in operations
    }
    assert shapes == {f"#/components/schemas/{name}" for name in ("ErrorBody", "LettaError", "RpcStatus")}
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    assert schema["paths"]["/v1/ingest"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in schema["paths"]["/v1/health/"]["get"]


def test_there_are_no_pages_that_load_from_other_hosts(server: AppServer) -> None:
    assert [server.client.get(path).status_code for path in ("/docs", "/redoc")] == [404, 404]


def test_a_fault_of_the_server_is_answered_and_tells_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with AppServer(tmp_path / "home") as server:

        @server.app.get("/broken")
        async def broken() -> None:
            raise RuntimeError("secret of the request")

        answer = server.client.get("/broken")
    assert (answer.status_code, answer.json()["error"]) == (
        500,
        {"type": "internal", "message": "the server failed at this"},
    )
    assert "secret of the request" not in caplog.text
    assert re.search(r"RuntimeError at test_server_schema.py:\d+ < ", caplog.text)


# -- metrics


def test_metrics_count_requests_records_bytes_and_time(tmp_path: Path) -> None:
    with AppServer(tmp_path / "home") as server:
        body = lines(step("a"), step("b"), b"{")
        server.post(body)
        server.post(body)
        server.client.get("/nothing/of/this")
        server.client.get("/nothing/of/that")
        server.client.request("BREW", "/healthz")
        answer = server.client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    told = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert told['stepwell_ingest_records_total{outcome="accepted"}'] == "2"
    assert told['stepwell_ingest_records_total{outcome="duplicate"}'] == "2"
    assert told['stepwell_ingest_records_total{outcome="rejected"}'] == "2"
    assert told['stepwell_http_requests_total{method="POST",route="/v1/ingest",status="200"}'] == "2"
    assert told['stepwell_http_requests_total{method="GET",route="(none)",status="404"}'] == "2"
    assert told['stepwell_http_requests_total{method="other",route="/healthz",status="405"}'] == "1"
    assert told["stepwell_http_received_bytes_total"] == str(2 * len(body))
    assert told['stepwell_http_request_duration_seconds_count{route="/v1/ingest"}'] == "2"
    assert told['stepwell_http_request_duration_seconds_bucket{route="/v1/ingest",le="+Inf"}'] == "2"


def test_a_histogram_counts_what_is_at_most_its_bounds() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.002, 60.0):
        metrics.add_request("GET", "/x", 200, seconds)
    text = metrics.text()
    name = 'stepwell_http_request_duration_seconds_bucket{route="/x",le='
    assert [line.rsplit(" ", 1)[1] for line in text.splitlines() if line.startswith(name)] == ["1", *["2"] * 12, "3"]
    assert 'stepwell_http_request_duration_seconds_sum{route="/x"} 60.003' in text
    assert text.endswith("\n")
