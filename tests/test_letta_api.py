"""The Letta API of the server, driven by Letta's own client over a socket; its mapping, by literals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import letta_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from letta_client import Letta
from letta_client.types.steps import MessageListResponse
from pydantic import TypeAdapter
from served import AppServer

from stepwell.model import Score, StepRecord, decode_record
from stepwell.server._keys import KeyRing
from stepwell.server._letta_messages import date_of, letta_messages
from stepwell.server._letta_pages import Window, page_of_steps
from stepwell.server._letta_parts import of_message
from stepwell.server._letta_steps import feedback_of, feedback_records, letta_metrics, letta_step, letta_trace
from stepwell.store import StepFilter, StepRow, open_store

HOUR_NS = 3_600_000_000_000
DAY_NS = 1_735_689_600_000_000_000  # 2025-01-01T00:00:00Z


class Served:
    """A server, and clients of it."""

    def __init__(self, server: AppServer) -> None:
        self.store = server.store
        self.url = server.url
        self.http = server.client
        self.letta = Letta(base_url=server.url, api_key="none", _strict_response_validation=True, max_retries=0)

    def add(self, *records: dict[str, Any]) -> None:
        result = self.store.add([json.dumps({"kind": "step", **record}).encode() for record in records])
        assert result.rejected == ()


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    with AppServer(folder) as server:
        served = Served(server)
        with served.letta:
            yield served


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve 2,400 steps of 3 starts, 800 each, in one run: ids do not follow the order in which they came."""
    with serving(tmp_path_factory.mktemp("crowd")) as served:
        served.add(*(step(number, start_ns=DAY_NS + number // 800, root_run_id=uid(0)) for number in range(2400)))
        yield served


def uid(number: int) -> str:
    return f"01930000-{(number * 7919) % 9973:04x}-7000-8000-{number:012x}"


def step(number: int, **fields: Any) -> dict[str, Any]:
    start = fields.get("start_ns", DAY_NS + number * HOUR_NS)
    return {"id": uid(number), "type": "tool", "name": f"n{number}", "start_ns": start, "status": "success"} | fields


def numbers(steps: Sequence[Any]) -> list[int]:
    return [int(each.id[-12:], 16) for each in steps]


def listed(served: Served, **query: Any) -> list[int]:
    return numbers(served.letta.steps.list(**query).items)


# -- lists and pages


def test_steps_are_listed_newest_first_and_in_the_order_asked_for(served: Served) -> None:
    served.add(*(step(number) for number in range(1, 8)))
    assert listed(served) == [7, 6, 5, 4, 3, 2, 1]
    assert listed(served, order="asc", limit=3) == [1, 2, 3]
    assert listed(served, order="desc", limit=3, order_by="created_at") == [7, 6, 5]


def test_after_and_before_give_the_page_next_to_their_step(served: Served) -> None:
    served.add(*(step(number) for number in range(1, 8)))
    third, sixth = f"step-{uid(3)}", f"step-{uid(6)}"
    assert listed(served, after=third, limit=2, order="asc") == [4, 5]
    assert listed(served, after=sixth, limit=2, order="desc") == [5, 4]
    assert listed(served, before=sixth, limit=2, order="asc") == [4, 5]
    assert listed(served, before=third, limit=2, order="desc") == [5, 4]
    assert listed(served, before=third.removeprefix("step-"), limit=9, order="asc") == [1, 2]


def test_after_and_before_together_give_what_is_between_from_its_end(served: Served) -> None:
    served.add(*(step(number) for number in range(1, 8)))
    assert listed(served, after=uid(1), before=uid(6), order="asc") == [2, 3, 4, 5]
    assert listed(served, after=uid(1), before=uid(6), order="asc", limit=2) == [4, 5]
    assert listed(served, after=uid(6), before=uid(1), order="desc") == [5, 4, 3, 2]
    assert listed(served, after=uid(3), before=uid(3)) == []
    with pytest.raises(letta_client.BadRequestError, match="'before' reference must be later than 'after' reference"):
        served.letta.steps.list(after=uid(6), before=uid(1), order="asc")


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_paging_forwards_meets_every_step_of_thousands_with_equal_times_once(crowd: Served, order: Any) -> None:
    found = numbers(list(crowd.letta.steps.list(limit=170, order=order)))
    assert found == list(range(2400)) if order == "asc" else list(range(2399, -1, -1))


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_paging_backwards_meets_every_step_of_thousands_with_equal_times_once(crowd: Served, order: Any) -> None:
    last = uid(2399) if order == "asc" else uid(0)
    pages = [numbers(page.items) for page in crowd.letta.steps.list(limit=330, order=order, before=last).iter_pages()]
    found = [number for page in reversed(pages) for number in page]
    assert found == (list(range(2399)) if order == "asc" else list(range(2399, 0, -1)))


def test_a_window_among_equal_times_is_exact(crowd: Served) -> None:
    pages = crowd.letta.steps.list(limit=7, order="asc", after=uid(795), before=uid(830)).iter_pages()
    found = [number for page in reversed([numbers(page.items) for page in pages]) for number in page]
    assert found == list(range(796, 830))


def test_a_filter_goes_with_a_cursor_that_it_does_not_keep(served: Served) -> None:
    served.add(*(step(number, start_ns=DAY_NS, tags=["even"] if number % 2 == 0 else []) for number in range(20)))
    assert listed(served, tags=["even"], order="asc", after=uid(7), limit=3) == [8, 10, 12]
    assert listed(served, tags=["even"], order="asc", before=uid(7), limit=2) == [4, 6]
    assert listed(served, tags=["even"], order="desc", after=uid(19), limit=2) == [18, 16]


def test_dates_hold_also_where_a_cursor_is_outside_of_them(served: Served) -> None:
    served.add(*(step(number) for number in range(1, 8)))
    dates = {"start_date": "2025-01-01T03:30", "end_date": "2025-01-01T06:30"}
    assert listed(served, **dates, after=uid(1), order="asc") == [4, 5, 6]
    assert listed(served, **dates, after=uid(7), order="desc") == [6, 5, 4]
    assert listed(served, **dates, before=uid(7), order="asc", limit=2) == [5, 6]
    assert listed(served, **dates, after=uid(7), order="asc") == []


def test_steps_without_a_start_are_paged_too(served: Served) -> None:
    served.add(*({"id": uid(number), "type": "tool", "name": "n"} for number in range(5)), step(5))
    assert numbers(list(served.letta.steps.list(limit=2, order="asc"))) == [0, 1, 2, 3, 4, 5]
    assert numbers(list(served.letta.steps.list(limit=2, order="desc"))) == [5, 4, 3, 2, 1, 0]


def test_a_limit_of_0_gives_nothing_and_one_beyond_1000_gives_1000(crowd: Served) -> None:
    assert listed(crowd, limit=0) == []
    assert len(listed(crowd, limit=5000)) == 1000


def test_a_list_is_found_without_its_slash(served: Served) -> None:
    served.add(step(1))
    answer = served.http.get("/v1/steps")
    assert (answer.status_code, len(answer.json())) == (200, 1)
    assert served.http.get("/v1/runs").status_code == 200


@pytest.mark.usefixtures("untraced")
@given(
    starts=st.lists(st.sampled_from([None, 5, 6, 7]), min_size=1, max_size=25),
    order=st.sampled_from(["asc", "desc"]),
    limit=st.integers(1, 6),
    data=st.data(),
)
@settings(max_examples=75)
def test_any_window_is_the_slice_of_the_list_next_to_its_step(
    starts: list[int | None], order: Any, limit: int, data: st.DataObject
) -> None:
    store = open_store("sqlite::memory:")
    records = [{**step(at), "start_ns": start, "tags": ["odd"] * (at % 2)} for at, start in enumerate(starts)]
    lines = [{name: value for name, value in record.items() if value is not None} for record in records]
    store.add([json.dumps({"kind": "step", **line}).encode() for line in lines])
    whole = sorted(range(len(starts)), key=lambda at: (-1 if starts[at] is None else starts[at], at))
    whole = whole if order == "asc" else whole[::-1]
    first, last = sorted(data.draw(st.tuples(*[st.integers(0, len(whole) - 1)] * 2)))
    after, before = data.draw(st.sampled_from([True, False])), data.draw(st.sampled_from([True, False]))
    odd = data.draw(st.booleans())
    between = whole[first + 1 if after else 0 : last if before else None]
    kept = [at for at in between if not odd or at % 2]
    window = Window(limit, order, uid(whole[first]) if after else None, uid(whole[last]) if before else None)
    page = page_of_steps(store, StepFilter(tag=("odd",) if odd else ()), window)
    assert numbers(page) == (kept[-limit:] if before else kept[:limit])
    store.close()


# -- filters


def generation(**fields: Any) -> dict[str, Any]:
    return {"provider": "openai", "model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]} | fields


FILTERED: list[tuple[dict[str, Any], list[int]]] = [
    ({"model": "gpt-4o"}, [2, 1]),
    ({"agent_id": "agent-1"}, [3, 1]),
    ({"project_id": "shop"}, [4]),
    ({"trace_ids": ["b" * 32]}, [3]),
    ({"trace_ids": ["b" * 32, "a" * 32]}, [3, 1]),
    ({"tags": ["x"]}, [4, 2]),
    ({"tags": ["x", "y, z"]}, [4]),
    ({"feedback": "positive"}, [2]),
    ({"feedback": "negative"}, [3]),
    ({"has_feedback": True}, [3, 2]),
    ({"has_feedback": False}, [4, 1]),
    ({"start_date": "2025-01-01T02:00:00Z"}, [4, 3]),
    ({"end_date": "2025-01-01T02:00:00"}, [1]),
    ({"start_date": "2025-01-01T00:00:00-01:00", "end_date": "2025-01-01T04:00:00+00:00"}, [3, 2]),
    ({"model": "gpt-4o", "agent_id": "agent-1", "has_feedback": False}, [1]),
    ({"model": "none"}, []),
]


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("filtered")) as served:
        served.add(
            step(1, type="llm", generation=generation(), agent_id="agent-1", trace_id="a" * 32),
            step(2, type="llm", generation=generation(), tags=["x"]),
            step(3, agent_id="agent-1", trace_id="b" * 32),
            step(4, service="shop", tags=["x", "y, z"]),
        )
        served.letta.steps.feedback.create(f"step-{uid(2)}", feedback="positive")
        served.letta.steps.feedback.create(f"step-{uid(3)}", feedback="negative")
        yield served


@pytest.mark.parametrize(("query", "expected"), FILTERED, ids=lambda value: str(value)[:60])
def test_a_filter_keeps_what_it_says(filtered: Served, query: dict[str, Any], expected: list[int]) -> None:
    assert listed(filtered, **query) == expected
    assert numbers(list(filtered.letta.steps.list(**query, limit=1))) == expected


# -- errors


REFUSED: list[tuple[Callable[[Letta], object], type[Exception], str]] = [
    (lambda letta: letta.steps.retrieve("step-gone"), letta_client.NotFoundError, "there is no step"),
    (lambda letta: letta.steps.metrics.retrieve("gone"), letta_client.NotFoundError, "there is no step 'gone'"),
    (lambda letta: letta.steps.feedback.create("gone"), letta_client.NotFoundError, "there is no step 'gone'"),
    (lambda letta: letta.runs.retrieve("run-gone"), letta_client.NotFoundError, "there is no step"),
    (lambda letta: letta.runs.steps.list("run-gone"), letta_client.NotFoundError, "there is no step"),
    (lambda letta: letta.runs.usage.retrieve("run-gone"), letta_client.NotFoundError, "there is no step"),
    (lambda letta: letta.steps.list(after="step-gone"), letta_client.NotFoundError, "No Step found with id step-gone"),
    (lambda letta: letta.runs.list(before="run-gone"), letta_client.NotFoundError, "No Run found with id run-gone"),
    (lambda letta: letta.steps.list(start_date="yesterday"), letta_client.BadRequestError, "Invalid isoformat string"),
    (
        lambda letta: letta.steps.list(start_date="2025-02-01", end_date="2025-01-01"),
        letta_client.BadRequestError,
        "start_date must be before end_date",
    ),
    (lambda letta: letta.steps.list(limit=-1), letta_client.UnprocessableEntityError, "query.limit"),
    (lambda letta: letta.steps.list(limit="abc"), letta_client.UnprocessableEntityError, "query.limit"),  # type: ignore[arg-type]
    (lambda letta: letta.steps.list(order="sideways"), letta_client.UnprocessableEntityError, "query.order"),  # type: ignore[arg-type]
    (lambda letta: letta.steps.retrieve("x" * 300), letta_client.UnprocessableEntityError, "path.step_id"),
    (
        lambda letta: letta.steps.feedback.create("gone", feedback="meh"),  # type: ignore[arg-type]
        letta_client.UnprocessableEntityError,
        "body.feedback",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_is_wrong_is_raised_as_the_clients_own_error(
    filtered: Served, call: Callable[[Letta], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        call(filtered.letta)
    body: Any = raised.value.body  # type: ignore[attr-defined]
    assert body["detail"] == body["error"]["message"]


def test_the_schema_says_that_errors_have_a_detail(filtered: Served) -> None:
    schema = filtered.http.get("/openapi.json").json()
    answer = schema["paths"]["/v1/steps/{step_id}"]["get"]["responses"]["default"]
    assert answer["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/LettaError"}
    assert list(schema["components"]["schemas"]["LettaError"]["properties"]) == ["error", "detail"]


def test_a_key_lets_the_client_do_what_its_scopes_say(tmp_path: Path) -> None:
    with AppServer(tmp_path) as server:
        server.store.add([json.dumps({"kind": "step", **step(1)}).encode()])
        secret = KeyRing(tmp_path).add("reader", ["read"])
        with Letta(base_url=server.url, api_key=secret) as letta:
            assert numbers(letta.steps.list().items) == [1]
            with pytest.raises(letta_client.PermissionDeniedError, match="has no scope 'ingest'"):
                letta.steps.feedback.create(uid(1), feedback="positive")
        with Letta(base_url=server.url, api_key="wrong") as letta, pytest.raises(letta_client.AuthenticationError):
            letta.steps.list()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/steps/%ff%00/metrics", None, 404),
        ("GET", "/v1/steps/?limit=99999999999999999999999", None, 200),
        ("GET", "/v1/steps/?" + "&".join(f"trace_ids={at}" for at in range(1001)), None, 422),
        ("GET", "/v1/steps/?start_date=0001-01-01T00:00:00%2B23:59", None, 200),
        ("GET", "/v1/steps/?end_date=9999-12-31T23:59:59-23:59", None, 200),
        ("PATCH", "/v1/steps/x/feedback", b'{"tags": ["\\ud800"]}', 422),
        ("PATCH", "/v1/steps/x/feedback", b"[]", 422),
        ("PATCH", "/v1/steps/x/feedback", b"\xff", 400),
        ("DELETE", "/v1/steps/x", None, 405),
        ("GET", "/v1/runs//steps", None, 422),
    ],
)
def test_odd_requests_are_answered(filtered: Served, method: str, path: str, body: bytes | None, status: int) -> None:
    headers = {"Content-Type": "application/json"}
    answer = filtered.http.request(method, path, content=body, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")


# -- one step


def test_a_step_is_found_with_and_without_its_prefix(served: Served) -> None:
    served.add(step(1), step(2, id="step-from-letta"))
    assert served.letta.steps.retrieve(uid(1)).id == f"step-{uid(1)}"
    assert served.letta.steps.retrieve(f"step-{uid(1)}").id == f"step-{uid(1)}"
    assert served.letta.steps.retrieve("step-from-letta").id == "step-from-letta"


def test_an_id_of_any_characters_is_found(served: Served) -> None:
    served.add(step(1, id="a b?c%2Fd:é/metrics/x"))
    assert served.letta.steps.retrieve("a b?c%2Fd:é/metrics/x").id == "step-a b?c%2Fd:é/metrics/x"
    assert served.letta.steps.metrics.retrieve("a b?c%2Fd:é/metrics/x").id == "step-a b?c%2Fd:é/metrics/x"


LLM = {
    "kind": "step",
    "id": "01930000-0000-7000-8000-000000000001",
    "trace_id": "01930000000070008000000000000009",
    "parent_id": "01930000-0000-7000-8000-000000000009",
    "root_run_id": "01930000-0000-7000-8000-000000000009",
    "thread_id": "t-42",
    "type": "llm",
    "name": "answer",
    "start_ns": 1_735_689_600_000_000_000,
    "end_ns": 1_735_689_602_500_000_000,
    "status": "success",
    "tags": ["web"],
    "agent_id": "agent-7",
    "service": "shop",
    "sdk": "stepwell-python/0.1.0",
    "generation": {
        "provider": "openai",
        "model": "gpt-4o",
        "response_model": "gpt-4o-2024-08-06",
        "messages": [{"role": "user", "content": "Hi"}],
        "message_completion": {"role": "assistant", "content": "Hello"},
        "settings": {"temperature": 0},
        "usage": {"input_tokens": 10, "output_tokens": 5, "cached_input_tokens": 4, "reasoning_tokens": 2},
        "stop_reason": "stop",
        "response_id": "chatcmpl-1",
        "request_id": "req-1",
        "model_endpoint": "https://api.openai.com/v1",
        "context_window_limit": 128000,
    },
}


def record(**fields: Any) -> StepRecord:
    decoded = decode_record(json.dumps({**LLM, **fields}).encode())
    assert isinstance(decoded, StepRecord)
    return decoded


def test_a_step_in_lettas_words() -> None:
    assert letta_step(record()) == {
        "id": "step-01930000-0000-7000-8000-000000000001",
        "origin": "stepwell-python/0.1.0",
        "project_id": "shop",
        "agent_id": "agent-7",
        "run_id": "run-01930000-0000-7000-8000-000000000009",
        "trace_id": "01930000000070008000000000000009",
        "request_id": "req-1",
        "provider_name": "openai",
        "model": "gpt-4o",
        "model_handle": "openai/gpt-4o",
        "model_endpoint": "https://api.openai.com/v1",
        "context_window_limit": 128000,
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "cached_input_tokens": 4,
        "cache_write_tokens": None,
        "reasoning_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
        "status": "success",
        "stop_reason": "end_turn",
        "error_type": None,
        "error_data": None,
        "feedback": None,
        "tags": ["web"],
        "messages": [],
        "type": "llm",
        "name": "answer",
        "parent_id": "step-01930000-0000-7000-8000-000000000009",
        "thread_id": "t-42",
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"status": "pending"}, ("pending", "end_turn", None, None)),
        ({"status": "cancelled"}, ("cancelled", "cancelled", None, None)),
        (
            {"status": "failed", "error": {"type": "openai.RateLimitError", "message": "slow down"}},
            ("failed", "llm_api_error", "openai.RateLimitError", "slow down"),
        ),
        (
            {"status": "failed", "type": "tool", "error": {"type": "KeyError", "message": "'x'"}},
            ("failed", "error", "KeyError", "'x'"),
        ),
        ({"status": "interrupted"}, ("failed", "error", "interrupted", "the process ended before the step did")),
        ({"generation": generation(stop_reason="length")}, ("success", "max_tokens_exceeded", None, None)),
        ({"generation": generation(stop_reason="tool_calls")}, ("success", None, None, None)),
        ({"generation": generation(stop_reason="tool_rule")}, ("success", "tool_rule", None, None)),
        ({"generation": None}, ("success", None, None, None)),
    ],
)
def test_outcomes_are_told_in_lettas_words(fields: dict[str, Any], expected: tuple[Any, ...]) -> None:
    said = letta_step(record(**fields))
    message = (said["error_data"] or {}).get("message")
    assert (said["status"], said["stop_reason"], said["error_type"], message) == expected


def test_the_client_reads_a_step_strictly(served: Served) -> None:
    served.add(LLM)
    found = served.letta.steps.retrieve(LLM["id"])  # type: ignore[arg-type]
    assert found.api_model_handle == "openai/gpt-4o"
    assert found.api_model_endpoint == "https://api.openai.com/v1"
    assert (found.prompt_tokens, found.completion_tokens, found.total_tokens) == (10, 5, 15)


# -- metrics


def rows(*spans: tuple[str, int, int | None]) -> list[StepRow]:
    return [StepRow(str(at), type=type, start_ns=start, end_ns=end) for at, (type, start, end) in enumerate(spans)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], (None, None, None)),
        ([("llm", 5, 25), ("tool", 30, 40), ("tool", 40, 45)], (5, 20, 15)),
        ([("tool", 10, 40), ("tool", 12, 50), ("tool", 13, 14)], (None, None, 40)),
        ([("llm", 50, 60), ("llm", 10, 20), ("llm", 15, 30)], (10, 30, None)),
        ([("llm", 5, None)], (5, None, None)),
    ],
)
def test_metrics_count_the_time_in_which_a_model_or_a_tool_ran(spans: Any, expected: tuple[Any, ...]) -> None:
    told = letta_metrics(record(start_ns=1, end_ns=100), rows(*spans))
    assert (told["llm_request_start_ns"], told["llm_request_ns"], told["tool_execution_ns"]) == expected
    assert (told["step_start_ns"], told["step_ns"]) == (1, 99)


def test_metrics_are_computed_from_the_tree_below_a_step(served: Served) -> None:
    run = "01930000-0000-7000-8000-000000000009"
    served.add(
        {"id": run, "type": "run", "start_ns": 1000, "end_ns": 9000, "status": "success", "root_run_id": run},
        {**LLM, "start_ns": 2000, "end_ns": 5000},
        {"id": f"{run[:-1]}2", "type": "tool", "start_ns": 5500, "end_ns": 6000, "parent_id": run, "root_run_id": run},
    )
    told = served.letta.steps.metrics.retrieve(f"step-{run}")
    assert told.id == f"step-{run}"
    assert (told.step_start_ns, told.step_ns) == (1000, 8000)
    assert (told.llm_request_start_ns, told.llm_request_ns, told.tool_execution_ns) == (2000, 3000, 500)


# -- provider trace


def test_what_was_sent_and_came_back_is_given_as_recorded(served: Served) -> None:
    request, response = (
        {"model": "gpt-4o", "n": 1.0, "stream": False},
        {"id": "chatcmpl-1", "object": "chat.completion"},
    )
    raw = generation(provider_request=request, provider_response=response)
    served.add({**LLM, "generation": raw})
    trace = served.letta.steps.trace.retrieve(LLM["id"])  # type: ignore[arg-type]
    assert trace is not None
    assert (trace.request_json, trace.response_json) == (request, response)
    assert (trace.step_id, trace.latency_ms) == (f"step-{LLM['id']}", 2500)
    assert str(trace.created_at) == "2025-01-01 00:00:00+00:00"


def test_what_was_not_recorded_is_built_from_the_generation(served: Served) -> None:
    served.add(LLM)
    trace = served.letta.steps.trace.retrieve(LLM["id"])  # type: ignore[arg-type]
    assert trace is not None
    assert trace.request_json == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0,
    }
    assert trace.response_json == {
        "id": "chatcmpl-1",
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def test_a_step_that_called_no_model_has_no_trace(served: Served) -> None:
    served.add(step(1))
    assert served.letta.steps.trace.retrieve(uid(1)) is None
    assert served.letta.steps.trace.retrieve("gone") is None
    answer = served.http.get(f"/v1/steps/{uid(1)}/trace")
    assert (answer.content, answer.headers["content-type"]) == (b"null", "application/json")


def test_what_is_no_object_is_put_into_one() -> None:
    trace = letta_trace(record(generation=generation(provider_request=["a"], provider_response="text")))
    assert trace is not None
    assert bytes(trace["request_json"]["body"]) == b'["a"]'
    assert bytes(trace["response_json"]["body"]) == b'"text"'


# -- feedback


def test_feedback_is_a_score_of_that_name(served: Served) -> None:
    served.add(step(1))
    assert served.letta.steps.feedback.create(uid(1), feedback="positive", tags=["kind"]).feedback == "positive"
    (score,) = served.store.step(uid(1)).scores or []
    assert (score.name, score.type, score.label, score.value) == ("feedback", "HUMAN", "positive", 1.0)
    assert served.letta.steps.retrieve(uid(1)).tags == ["kind"]
    assert listed(served, tags=["kind"]) == [1]


def test_feedback_may_change_and_be_withdrawn_and_given_again(served: Served) -> None:
    served.add(step(1))
    said = [
        served.letta.steps.feedback.create(uid(1), feedback=feedback).feedback
        for feedback in ("positive", "negative", None, None, "negative", "positive")
    ]
    assert said == ["positive", "negative", None, None, "negative", "positive"]
    scores = [(score.name, score.label) for score in served.store.step(uid(1)).scores or []]
    assert scores == [("feedback", "positive"), ("feedback", "withdrawn")]  # however often it changes
    assert served.letta.steps.feedback.create(uid(1)).feedback is None  # as in Letta: nothing said withdraws
    assert listed(served, has_feedback=False) == [1]


def test_withdrawing_also_withdraws_what_was_recorded_elsewhere(served: Served) -> None:
    given = {"id": "s1", "name": "feedback", "label": "negative", "value": 0.0, "created_ns": 1}
    served.add(step(1, scores=[given]))
    assert served.letta.steps.retrieve(uid(1)).feedback == "negative"
    assert served.letta.steps.feedback.create(uid(1), feedback=None).feedback is None
    assert listed(served, has_feedback=True) == []
    served.add(step(1, scores=[given]))  # delivered again, as records may be
    assert served.letta.steps.retrieve(uid(1)).feedback is None


def test_feedback_recorded_later_is_in_force(served: Served) -> None:
    served.add(step(1))
    served.letta.steps.feedback.create(uid(1), feedback="positive")
    later = {"id": "s2", "name": "feedback", "label": "negative", "created_ns": 4_000_000_000_000_000_000}
    served.add({"id": uid(1), "scores": [later]})
    assert served.letta.steps.retrieve(uid(1)).feedback == "negative"
    assert served.letta.steps.feedback.create(uid(1), feedback="positive").feedback == "positive"
    assert (listed(served, feedback="positive"), listed(served, feedback="negative")) == ([1], [])
    served.add({"id": uid(1), "scores": [later]})  # delivered again
    assert served.letta.steps.retrieve(uid(1)).feedback == "positive"


def test_the_same_feedback_again_writes_nothing() -> None:
    scored = record(scores=[{"id": "s", "name": "feedback", "label": "positive", "created_ns": 5}])
    assert feedback_records(scored, "positive", ["web"], 9) == []
    assert feedback_records(record(), None, [], 9) == []
    assert [json.loads(line)["kind"] for line in feedback_records(scored, "negative", ["new"], 9)] == [
        "score",  # names the verdict before it otherwise
        "score",
        "step",
    ]


def test_only_a_score_with_a_verdict_is_feedback() -> None:
    assert feedback_of([Score("1", name="feedback", label="meh"), Score("2", name="quality", label="positive")]) is None


# -- messages


def told(*messages: Any) -> list[dict[str, Any]]:
    return [each for message in messages for each in of_message(message)]


def call(name: str, arguments: str, id: str) -> dict[str, Any]:
    shape = {"name": name, "arguments": arguments, "tool_call_id": id}
    return {"message_type": "tool_call_message", "tool_call": shape, "tool_calls": [shape]}


def returned(id: str, text: str, status: str = "success", **more: Any) -> dict[str, Any]:
    shape = {"type": "tool", "status": status, "tool_call_id": id, "tool_return": text}
    flag = {"is_err": True} if status == "error" else {}
    return {
        "message_type": "tool_return_message",
        "status": status,
        "tool_call_id": id,
        "tool_return": text,
        "tool_returns": [shape],
        **flag,
        **more,
    }


def test_messages_of_openai() -> None:
    assert told(
        {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind."}]},
        {"role": "user", "content": "Hi", "name": "ada"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "See"},
                {"type": "image_url", "image_url": {"url": "https://host/a.png"}},
                {"type": "image_url", "image_url": {"url": "data:image/gif;base64,R0lG"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "They want weather.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"at":"x"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        {"role": "assistant", "content": None, "refusal": "No."},
    ) == [
        {"message_type": "system_message", "content": "Be\nkind."},
        {"message_type": "user_message", "content": "Hi", "name": "ada"},
        {
            "message_type": "user_message",
            "content": [
                {"type": "text", "text": "See"},
                {"type": "image", "source": {"type": "url", "url": "https://host/a.png"}},
                {"type": "image", "source": {"type": "base64", "data": "R0lG", "media_type": "image/gif"}},
            ],
        },
        {"message_type": "reasoning_message", "reasoning": "They want weather.", "source": "reasoner_model"},
        call("weather", '{"at":"x"}', "c1"),
        returned("c1", "sunny"),
        {"message_type": "assistant_message", "content": "No."},
    ]


def test_messages_of_anthropic() -> None:
    assert told(
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "sig"},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "text", "text": "gone"}],
                    "is_error": True,
                },
                {"type": "text", "text": "And now?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}},
            ],
        },
    ) == [
        {
            "message_type": "reasoning_message",
            "reasoning": "Hm.",
            "source": "reasoner_model",
            "signature": "sig",
        },
        {"message_type": "hidden_reasoning_message", "state": "redacted", "hidden_reasoning": "xyz"},
        {"message_type": "assistant_message", "content": "Let me look."},
        call("look", '{"at":1}', "t1"),
        returned("t1", "gone", "error"),
        {
            "message_type": "user_message",
            "content": [
                {"type": "text", "text": "And now?"},
                {"type": "image", "source": {"type": "base64", "data": "iVBO", "media_type": "image/png"}},
            ],
        },
    ]


def test_items_of_openais_responses_and_parts_of_opentelemetry() -> None:
    assert told(
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Look it up."}]},
        {"type": "reasoning", "encrypted_content": "..."},
        {"type": "function_call", "call_id": "f1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "f1", "output": "42"},
        {"role": "user", "parts": [{"type": "text", "content": "Hi"}]},
        {"role": "assistant", "parts": [{"type": "tool_call", "id": "g1", "name": "look", "arguments": {"a": 1}}]},
        {"role": "tool", "parts": [{"type": "tool_call_response", "id": "g1", "response": {"found": 2}}]},
    ) == [
        {"message_type": "reasoning_message", "reasoning": "Look it up.", "source": "reasoner_model"},
        {"message_type": "hidden_reasoning_message", "state": "omitted"},
        call("look", "{}", "f1"),
        returned("f1", "42"),
        {"message_type": "user_message", "content": "Hi"},
        call("look", '{"a":1}', "g1"),
        returned("g1", '{"found":2}'),
    ]


def test_messages_of_letta_itself() -> None:
    event = {"message_type": "event_message", "event_type": "compaction", "event_data": {"n": 1}}
    asked = {"name": "pay", "arguments": "{}", "tool_call_id": "p1"}
    assert told(
        event,
        {"role": "summary", "content": "They greeted."},
        {"role": "approval", "tool_calls": [{"id": "p1", "function": {"name": "pay", "arguments": "{}"}}]},
        {"role": "approval", "approve": False, "approval_request_id": "message-1", "denial_reason": "too much"},
        {"role": "tool", "tool_call_id": "p1", "content": '{"status": "Failed", "message": "no", "time": "now"}'},
        {"role": "tool", "tool_call_id": "p2", "content": '{"status": "OK", "message": "done"}'},
        {"message_type": "event_message", "event_type": "other", "event_data": {}},
        {"message_type": "tool_call_message", "tool_call": {"name": "a", "arguments": {"b": 1}, "tool_call_id": "q"}},
        {"message_type": "assistant_message", "content": ["x", {"type": "text", "text": "y"}]},
    ) == [
        event,
        {"message_type": "summary_message", "summary": "They greeted."},
        {"message_type": "approval_request_message", "tool_call": asked, "tool_calls": [asked]},
        {
            "message_type": "approval_response_message",
            "approve": False,
            "approval_request_id": "message-1",
            "reason": "too much",
        },
        returned("p1", "no", "error"),
        returned("p2", "done"),
        {
            "message_type": "user_message",
            "content": '{"message_type":"event_message","event_type":"other","event_data":{}}',
        },
        call("a", '{"b":1}', "q"),
        {"message_type": "assistant_message", "content": [{"type": "text", "text": t} for t in ("x", "y")]},
    ]


WORDS = st.sampled_from(
    [
        *("role", "content", "type", "text", "parts", "tool_calls", "function", "arguments", "id", "name", "status"),
        *("message_type", "tool_call", "tool_call_id", "tool_return", "state", "reasoning", "source", "data", "url"),
        *("image_url", "approve", "summary", "event_data", "event_type", "message", "is_error", "output"),
    ]
)
VALUES = st.sampled_from(
    [
        *("user", "assistant", "tool", "system", "approval", "summary", "text", "image", "image_url", "tool_use"),
        *(
            "tool_result",
            "thinking",
            "function_call",
            "redacted_thinking",
            "base64",
            "success",
            "redacted",
            "compaction",
        ),
        *(f"{kind}_message" for kind in ("system", "user", "assistant", "reasoning", "hidden_reasoning", "tool_call")),
        *(f"{kind}_message" for kind in ("tool_return", "approval_request", "approval_response", "summary", "event")),
        '{"status": "OK", "message": "m"}',
    ]
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(0, 1) | VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=6),
    max_leaves=25,
)


@given(ANY_JSON, ANY_JSON, ANY_JSON)
@settings(max_examples=60)
def test_no_shape_is_refused_and_all_are_what_the_client_reads(messages: Any, completion: Any, output: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(MessageListResponse)
    steps = [
        record(id="a", generation={"messages": messages, "message_completion": completion}),
        record(id="b", type="tool", input=messages, output=output),
        record(id="c", type="user_message", output={"content": completion}),
        record(id="d", type="assistant_message", output=output),
    ]
    for message in letta_messages(steps):
        read = adapter.validate_json(json.dumps(message))
        assert read.message_type == message["message_type"]


RUN = "01930000-0000-7000-8000-0000000000ff"


def turn() -> list[dict[str, Any]]:
    """Return a run that asks a model, calls a tool twice, once without luck, asks again and answers."""
    system, user = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Weather?"}
    calls = [
        {"id": f"c{at}", "type": "function", "function": {"name": "weather", "arguments": f'{{"at":{at}}}'}}
        for at in (1, 2)
    ]
    asks = {"role": "assistant", "content": "", "tool_calls": calls}
    results = [
        {"role": "tool", "tool_call_id": "c1", "content": "sun"},
        {"role": "tool", "tool_call_id": "c2", "content": "-"},
    ]
    first = {"messages": [system, user], "message_completion": asks, "usage": {"input_tokens": 9, "output_tokens": 3}}
    second = {
        "messages": [system, user, asks, *results],
        "message_completion": {"role": "assistant", "content": "Sun."},
        "usage": {"input_tokens": 20, "output_tokens": 2, "cached_input_tokens": 8},
        "ttft_ns": 7,
    }
    inside = {"parent_id": RUN, "root_run_id": RUN, "status": "success"}
    return [
        {
            "id": RUN,
            "root_run_id": RUN,
            "type": "run",
            "name": "agent",
            "start_ns": DAY_NS,
            "thread_id": "t-1",
            "end_ns": DAY_NS + 100,
            "status": "success",
            "tags": ["x"],
            "metadata": {"k": 1},
            "agent_id": "agent-1",
        },
        step(1, **inside, type="user_message", start_ns=DAY_NS, output={"content": "Weather?"}),
        step(2, **inside, type="llm", start_ns=DAY_NS + 10, end_ns=DAY_NS + 20, generation={**first, "ttft_ns": 5}),
        step(3, **inside, name="weather", start_ns=DAY_NS + 21, end_ns=DAY_NS + 30, input={"at": 1}, output="sun"),
        step(
            4,
            **{**inside, "status": "failed", "error": {"type": "OSError", "message": "down"}},
            name="weather",
            start_ns=DAY_NS + 31,
            end_ns=DAY_NS + 40,
            input={"at": 2},
        ),
        step(5, **inside, type="llm", start_ns=DAY_NS + 50, end_ns=DAY_NS + 60, generation=second),
        step(6, **inside, name="log", start_ns=DAY_NS + 70, end_ns=DAY_NS + 80, input={"text": "x"}, output=None),
    ]


def in_short(message: Any) -> str:
    kind = message.message_type.removesuffix("_message")
    if kind == "tool_call":
        return f"{kind} {message.tool_call.name}{message.tool_call.arguments}"
    return f"{kind} {message.status} {message.tool_return}" if kind == "tool_return" else f"{kind} {message.content}"


def test_the_messages_of_a_run_are_told_once_each(served: Served) -> None:
    served.add(*turn())
    messages = list(served.letta.runs.messages.list(f"run-{RUN}"))
    assert [in_short(message) for message in messages] == [
        "user Weather?",
        "system Be kind.",
        'tool_call weather{"at":1}',
        'tool_call weather{"at":2}',
        "tool_return success sun",
        "tool_return error down",
        "assistant Sun.",
        'tool_call log{"text":"x"}',
        "tool_return success ",
    ]
    assert {message.run_id for message in messages} == {f"run-{RUN}"}
    assert len({message.id for message in messages}) == 9


def test_messages_are_paged_both_ways(served: Served) -> None:
    served.add(*turn())
    steps = served.letta.steps.messages
    whole = [message.id for message in steps.list(RUN).items]
    assert [message.id for message in steps.list(RUN, limit=2)] == whole
    assert [message.id for message in steps.list(RUN, limit=2, order="desc")] == whole[::-1]
    assert [message.id for message in steps.list(RUN, limit=2, before=whole[6]).items] == whole[4:6]
    assert [message.id for message in steps.list(RUN, after=whole[1], before=whole[6], limit=2).items] == whole[4:6]
    with pytest.raises(letta_client.NotFoundError, match="No Message found with id message-gone"):
        steps.list(RUN, after="message-gone")


def test_the_messages_of_one_step(served: Served) -> None:
    served.add(*turn())
    messages = served.letta.steps.messages.list(f"step-{uid(5)}").items
    assert [in_short(message) for message in messages][-3:] == [
        "tool_return success sun",
        "tool_return success -",
        "assistant Sun.",
    ]
    assert messages[-1].date.isoformat() == "2025-01-01T00:00:00+00:00"
    assert served.letta.steps.messages.list("gone").items == []


def test_messages_that_say_the_same_are_told_as_often_as_they_were_said() -> None:
    yes = {"role": "user", "content": "yes"}
    once = {"messages": [yes], "message_completion": {"role": "assistant", "content": "ok"}}
    twice = {"messages": [yes, {"role": "assistant", "content": "ok"}, yes], "completion": "ok"}
    steps = [record(id="a", generation=once), record(id="b", generation=twice), record(id="c", generation=once)]
    said = [message["content"] for message in letta_messages(steps)]
    assert said == ["yes", "ok", "yes", "ok", "ok"]


def test_a_message_step_shows_its_images() -> None:
    image = {"id": "i", "mime": "image/png", "url": "https://host/a.png"}
    (message,) = letta_messages([record(type="user_message", output={"content": "See"}, attachments=[image])])
    assert message["content"] == [
        {"type": "text", "text": "See"},
        {"type": "image", "source": {"type": "url", "url": "https://host/a.png"}},
    ]


def test_every_type_of_message_passes_the_clients_strict_reading(served: Served) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "t"}, {"type": "image_url", "image_url": {"url": "u"}}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "h"}, {"type": "redacted_thinking"}]},
        {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "r"},
        {"role": "approval", "tool_calls": [{"id": "d", "function": {"name": "g", "arguments": "{}"}}]},
        {"role": "approval", "approve": True},
        {"role": "summary", "content": "sum"},
        {"message_type": "event_message", "event_type": "compaction", "event_data": {}},
    ]
    served.add({**LLM, "generation": {"messages": messages}})
    kinds = [message.message_type for message in served.letta.steps.messages.list(LLM["id"])]  # type: ignore[arg-type]
    assert kinds == [
        "system_message",
        "user_message",
        "assistant_message",
        "reasoning_message",
        "hidden_reasoning_message",
        "tool_call_message",
        "tool_return_message",
        "approval_request_message",
        "approval_response_message",
        "summary_message",
        "event_message",
    ]


# -- runs


def test_a_run_in_lettas_words(served: Served) -> None:
    served.add(*turn())
    run = served.letta.runs.retrieve(f"run-{RUN}")
    assert (run.id, run.agent_id, run.status, run.stop_reason) == (f"run-{RUN}", "agent-1", "completed", "end_turn")
    assert (run.conversation_id, run.metadata, run.total_duration_ns, run.ttft_ns) == ("t-1", {"k": 1}, 100, 15)
    assert str(run.created_at) == "2025-01-01 00:00:00+00:00"


def test_the_steps_of_a_run(served: Served) -> None:
    served.add(*turn(), step(9))
    steps = served.letta.runs.steps.list(f"run-{RUN}", order="asc").items
    assert numbers(steps) == [0xFF, 1, 2, 3, 4, 5, 6]
    assert {each.run_id for each in steps} == {f"run-{RUN}"}
    assert numbers(list(served.letta.runs.steps.list(RUN, limit=2))) == [6, 5, 4, 3, 2, 1, 0xFF]


def test_thousands_of_steps_of_a_run_are_paged(crowd: Served) -> None:
    assert numbers(list(crowd.letta.runs.steps.list(f"run-{uid(0)}", limit=500, order="asc"))) == list(range(2400))


def test_the_steps_of_a_run_that_is_not_there_yet_are_listed(served: Served) -> None:
    served.add(*turn()[1:])
    assert len(served.letta.runs.steps.list(f"run-{RUN}").items) == 6


def test_the_tokens_of_a_run(served: Served) -> None:
    served.add(*turn())
    usage = served.letta.runs.usage.retrieve(f"run-{RUN}")
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (29, 5, 34)
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 8


def test_the_trace_of_a_run(served: Served) -> None:
    served.add(*turn())
    spans: Any = served.letta.runs.trace.retrieve(f"run-{RUN}", limit=4)
    assert [(span["span_name"], span["status_code"]) for span in spans] == [
        ("agent", "OK"),
        ("n1", "OK"),
        ("n2", "OK"),
        ("weather", "OK"),
    ]
    assert (spans[0]["span_id"], spans[1]["parent_span_id"]) == ("80000000000000ff", "80000000000000ff")
    assert spans[2]["duration_ns"] == 10


def test_runs_are_listed_filtered_and_paged(served: Served) -> None:
    runs = [
        {"type": "run", "agent_id": "agent-1", "status": "success", "thread_id": "t-1"},
        {"type": "run", "agent_id": "agent-2", "status": "failed"},
        {"type": "run", "status": "interrupted"},
        {"type": "run", "status": "pending"},
    ]
    served.add(*(step(number, **run, root_run_id=uid(number)) for number, run in enumerate(runs)))
    served.add(step(9, parent_id=uid(0), root_run_id=uid(0)))
    list_runs = served.letta.runs.list
    assert numbers(list(list_runs(limit=1))) == [3, 2, 1, 0]
    assert numbers(list_runs(order="asc", after=f"run-{uid(1)}").items) == [2, 3]
    assert numbers(list_runs(ascending=True).items) == [0, 1, 2, 3]
    assert numbers(list_runs(agent_id="agent-1").items) == [0]
    assert numbers(list_runs(agent_ids=["agent-1", "agent-2"]).items) == [1, 0]
    assert numbers(list_runs(conversation_id="t-1").items) == [0]
    assert numbers(list_runs(statuses=["failed", "running"]).items) == [3, 2, 1]
    assert numbers(list_runs(stop_reason="end_turn").items) == [0]
    assert numbers(list_runs(active=True).items) == [3]
    assert numbers(list_runs(background=True).items) == []


# -- all of it


def test_the_asynchronous_client_pages_too(crowd: Served) -> None:
    import asyncio

    async def walk() -> list[Any]:
        async with letta_client.AsyncLetta(base_url=crowd.url, api_key="none") as letta:
            return [each async for each in letta.steps.list(limit=800, order="asc")]

    assert numbers(asyncio.run(walk())) == list(range(2400))


def test_the_client_finds_the_server_well(served: Served) -> None:
    assert served.letta.health().status == "ok"


def test_answers_are_what_the_openapi_schema_says(served: Served) -> None:
    from stepwell.server import _letta_models as models

    served.add(*turn(), LLM)
    for path, model in [
        ("/v1/steps/", list[models.LettaStep]),
        (f"/v1/steps/{uid(5)}/metrics", models.LettaMetrics),
        (f"/v1/steps/{LLM['id']}/trace", models.LettaTrace),
        (f"/v1/steps/{RUN}/messages", list[models.LettaMessage]),
        ("/v1/runs/", list[models.LettaRun]),
        (f"/v1/runs/{RUN}", models.LettaRun),
        (f"/v1/runs/{RUN}/usage", models.LettaUsage),
    ]:
        answer = served.http.get(path)
        adapter: TypeAdapter[Any] = TypeAdapter(model)
        found = adapter.validate_json(answer.content, strict=True)
        assert adapter.dump_python(found, mode="json") == answer.json(), path


@pytest.mark.parametrize(
    ("ns", "expected"),
    [
        (1_735_689_600_123_456_789, "2025-01-01T00:00:00.123456Z"),
        (0, "1970-01-01T00:00:00Z"),
        (None, None),
        (1 << 68, None),
    ],
)
def test_times_are_dates_in_utc(ns: int | None, expected: str | None) -> None:
    assert date_of(ns) == expected
