"""A step is an OpenTelemetry span: it nests with the spans of others, and traces go on across processes."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.context import attach, get_current
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    ProxyTracerProvider,
    SpanContext,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
    use_span,
)

import stepwell as sw
from stepwell.testing import Captured, FakeClock, capture

CHILD = """
import json, sys
import stepwell as sw
from stepwell.testing import capture

with capture() as captured, sw.extract(json.loads(sys.argv[1])), sw.tool("remote"):
    with sw.run("below"):
        pass
print(json.dumps([captured.fields(step.name) for step in captured.steps]))
"""


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> Iterator[Tracer]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield provider.get_tracer("other")
    provider.shutdown()


def hex_id(context: Any) -> str:
    return f"{context.trace_id:032x}"


def as_step_id(context: Any) -> str:
    digits = f"{context.trace_id:032x}"[:16] + f"{context.span_id:016x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def in_another_process(headers: dict[str, str], **environment: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(headers)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), **environment},
    )
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


# -- nesting


def test_a_span_in_a_step_has_the_step_as_its_parent(
    tracer: Tracer, spans: InMemorySpanExporter, captured: Captured
) -> None:
    with sw.run("r") as step, tracer.start_as_current_span("http"):
        pass
    (span,) = spans.get_finished_spans()
    assert span.parent is not None
    assert as_step_id(span.parent) == step.id
    assert hex_id(span.context) == step.trace_id


def test_a_step_in_a_span_has_the_span_as_its_parent(
    tracer: Tracer, spans: InMemorySpanExporter, captured: Captured
) -> None:
    with tracer.start_as_current_span("http") as span, sw.run("r") as step:
        assert trace.get_current_span() is step
    assert trace.get_current_span() is INVALID_SPAN
    context = span.get_span_context()
    assert step.trace_id == hex_id(context)
    assert step.parent_id == as_step_id(context)
    assert step.id[:19] == step.parent_id[:19]
    assert captured.fields("r")["root_run_id"] == step.id


def test_a_step_in_a_span_in_a_step_keeps_thread_and_root_run(
    tracer: Tracer, spans: InMemorySpanExporter, captured: Captured
) -> None:
    with (
        sw.thread("t", user="ada"),
        sw.run("outer") as outer,
        tracer.start_as_current_span("a") as a,
        tracer.start_as_current_span("b") as b,
        sw.run("inner") as inner,
        tracer.start_as_current_span("c"),
        sw.tool("deep") as deep,
    ):
        assert sw.current_run() is outer
    assert (inner.thread_id, deep.thread_id) == ("t", "t")
    assert inner.root_run_id == deep.root_run_id == outer.id
    assert inner.trace_id == deep.trace_id == outer.trace_id
    assert inner.parent_id == as_step_id(b.get_span_context())
    assert a.get_span_context().trace_id == int(outer.trace_id, 16)
    assert captured.fields("inner")["user"] == "ada"
    assert [step.name for step in captured.steps] == ["outer", "inner", "deep"]


def test_a_thread_opened_in_a_span_in_a_run_is_the_steps(tracer: Tracer, captured: Captured) -> None:
    with sw.run("r") as run, tracer.start_as_current_span("a"), sw.thread("t"), sw.tool("x") as step:
        pass
    assert (step.thread_id, step.root_run_id, run.thread_id) == ("t", run.id, None)


def test_times_of_steps_under_a_span_go_with_those_of_the_step_above(tracer: Tracer, captured: Captured) -> None:
    with FakeClock(start_ns=10**18) as clock, sw.run("r"), tracer.start_as_current_span("a"):
        clock.set_wall(5)
        clock.advance(7)
        with sw.tool("x"):
            pass
    assert captured.step("x").start_ns == 10**18 + 7


def test_a_span_of_another_trace_in_a_step_leads_its_steps_there(tracer: Tracer, captured: Captured) -> None:
    nowhere = trace.set_span_in_context(INVALID_SPAN)
    with (
        sw.thread("t"),
        sw.run("r") as run,
        tracer.start_as_current_span("elsewhere", context=nowhere) as span,
        sw.tool("x") as step,
    ):
        pass
    assert step.trace_id == hex_id(span.get_span_context()) != run.trace_id
    assert (step.thread_id, step.root_run_id) == ("t", run.id)


def test_an_invalid_span_in_between_hides_nothing(captured: Captured) -> None:
    with sw.run("r") as run:
        previous = get_current()
        attach(set_span_in_context(INVALID_SPAN))
        with sw.tool("x") as step:
            pass
        attach(previous)
    assert step.parent_id == run.id
    assert captured.tree() == [("run", "r", "success", [("tool", "x", "success", [])])]


def test_use_span_makes_a_step_current(captured: Captured) -> None:
    step = sw.start("tool", "x")
    with pytest.raises(ValueError, match="bad"), use_span(step, end_on_exit=True):
        raise ValueError("bad")
    fields = captured.fields("x")
    assert fields["status"] == "failed"
    assert fields["error"]["message"] == "ValueError: bad"
    assert fields["metadata"]["events"][0]["attributes"]["exception.type"] == "ValueError"


def test_no_global_tracer_provider_is_set_by_us() -> None:
    code = (
        "import stepwell as sw\nfrom stepwell.testing import capture\n"
        "with capture(), sw.run('x'): pass\n"
        "from opentelemetry import trace\nprint(type(trace.get_tracer_provider()).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.strip() == ProxyTracerProvider.__name__


def test_no_context_token_error_is_logged_however_steps_and_spans_end(
    tracer: Tracer, captured: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    async def numbers() -> Any:
        with sw.run("r"), sw.thread("t"):
            async with sw.tool("x"):
                yield 1

    async def main() -> None:
        for _ in range(3):
            async for _ in numbers():
                break
        generator = numbers()
        await asyncio.create_task(anext(generator))
        await asyncio.create_task(generator.aclose())

    asyncio.run(main())
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


# -- the Span API


def test_attributes_land_in_the_metadata(captured: Captured) -> None:
    with sw.tool("x") as step:
        step.set_attribute("a", 1)
        step.set_attributes({"b": [1.5], "c": "text"})
    assert captured.fields("x")["metadata"] == {"a": 1, "b": [1.5], "c": "text"}


def test_events_and_links_land_in_the_metadata(captured: Captured) -> None:
    with FakeClock(start_ns=5), sw.tool("x") as step:
        step.add_event("e", {"k": 1})
        step.add_event("f", timestamp=9)
        step.add_link(SpanContext(trace_id=1, span_id=2, is_remote=False), {"why": "batch"})
    assert captured.fields("x")["metadata"] == {
        "events": [
            {"name": "e", "time_ns": 5, "attributes": {"k": 1}},
            {"name": "f", "time_ns": 9, "attributes": {}},
        ],
        "links": [{"trace_id": f"{1:032x}", "span_id": f"{2:016x}", "attributes": {"why": "batch"}}],
    }


def test_events_are_bounded_and_do_not_replace_what_the_program_put_there(captured: Captured) -> None:
    with sw.tool("x") as step:
        for _ in range(1500):
            step.add_event("e")
        step.metadata["links"] = "mine"
        step.add_link(SpanContext(1, 2, is_remote=False))
    assert len(captured.fields("x")["metadata"]["events"]) == 1000
    assert captured.fields("x")["metadata"]["links"] == "mine"


def test_update_name_renames_the_step(captured: Captured) -> None:
    with sw.tool("x") as step:
        step.update_name("y")
    assert captured.step("y").type == "tool"


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ([Status(StatusCode.OK)], "success"),
        ([StatusCode.OK], "success"),
        ([Status(StatusCode.ERROR, "bad")], "failed"),
        ([StatusCode.ERROR], "failed"),
        ([StatusCode.UNSET], "success"),
        ([StatusCode.ERROR, StatusCode.UNSET], "failed"),
        ([StatusCode.ERROR, StatusCode.OK], "success"),
        ([StatusCode.OK, StatusCode.ERROR], "success"),
    ],
)
def test_the_status_follows_the_rules_of_opentelemetry(status: list[Any], found: str, captured: Captured) -> None:
    with sw.tool("x") as step:
        for each in status:
            step.set_status(each)
    assert captured.step("x").status == found


def test_the_description_of_a_status_is_the_error(captured: Captured) -> None:
    with sw.tool("x") as step:
        step.set_status(StatusCode.ERROR, "no tea")
    assert captured.fields("x")["error"] == {"message": "no tea"}


def test_an_error_status_without_description_leaves_the_reason_to_what_is_raised(captured: Captured) -> None:
    with pytest.raises(ValueError, match="why"), sw.tool("x") as step:
        step.set_status(StatusCode.ERROR)
        raise ValueError("why")
    assert captured.fields("x")["error"]["message"] == "why"


def test_ok_is_final_even_when_the_block_raises(captured: Captured) -> None:
    with pytest.raises(ValueError, match="later"), sw.tool("x") as step:
        step.set_status(StatusCode.OK)
        raise ValueError("later")
    assert captured.step("x").status == "success"
    assert captured.step("x").error is None


def test_a_recorded_exception_is_an_event_and_no_failure(captured: Captured) -> None:
    with sw.tool("x") as step:
        step.record_exception(ValueError("bad"), {"k": 1}, timestamp=3, escaped=True)
    (event,) = captured.fields("x")["metadata"]["events"]
    assert (event["name"], event["time_ns"], captured.step("x").status) == ("exception", 3, "success")
    attributes = event["attributes"]
    assert "ValueError: bad" in attributes.pop("exception.stacktrace")
    assert attributes == {
        "exception.type": "ValueError",
        "exception.message": "bad",
        "exception.escaped": "True",
        "k": 1,
    }


def test_wrong_calls_of_the_span_api_do_not_raise(captured: Captured) -> None:
    wrong: Any
    with sw.tool("x") as wrong:
        wrong.set_attributes(None)
        wrong.set_attributes(5)
        wrong.set_attribute([], 1)
        wrong.set_attribute(5, object())
        wrong.add_event("e", 5)
        wrong.add_event(object(), {"k": object()})
        wrong.record_exception(ValueError("bad"), 5)
        wrong.update_name(5)
        wrong.update_name([])
        wrong.set_status("bad")
    assert captured.step("[]").status == "success"


def test_is_recording_says_whether_the_step_is_open_and_kept(captured: Captured) -> None:
    with sw.tool("x") as step:
        assert step.is_recording()
    assert not step.is_recording()
    with capture(sample=0), sw.tool("x") as step:
        assert not step.is_recording()


def test_the_span_context_of_a_step_that_is_off_is_invalid() -> None:
    with capture(enabled=False), sw.tool("x") as step:
        assert not step.get_span_context().is_valid
        assert trace.get_current_span() is INVALID_SPAN


# -- across processes


def test_a_trace_goes_on_in_another_process(captured: Captured) -> None:
    headers: dict[str, str] = {}
    with sw.thread("t & ü", user="ada"), sw.run("r"), sw.tool("call") as call:
        sw.inject(headers)
    assert headers["traceparent"] == f"00-{call.trace_id}-{call.get_span_context().span_id:016x}-01"
    remote, below = in_another_process(headers)
    assert (remote["trace_id"], remote["parent_id"]) == (call.trace_id, call.id)
    assert (remote["thread_id"], remote["user"]) == ("t & ü", "ada")
    assert (below["parent_id"], below["thread_id"]) == (remote["id"], "t & ü")


def test_the_root_run_goes_on_in_another_process(captured: Captured) -> None:
    headers: dict[str, str] = {}
    with sw.run("r") as run:
        sw.inject(headers)
    remote, below = in_another_process(headers)
    assert remote.get("root_run_id") == below["root_run_id"] == run.id


def test_what_the_root_decided_not_to_keep_is_not_kept_in_another_process() -> None:
    headers: dict[str, str] = {}
    with capture(sample=0), sw.run("r"):
        sw.inject(headers)
    assert headers["traceparent"].endswith("-00")
    assert in_another_process(headers) == []


def test_inject_writes_nothing_where_nothing_is_open(captured: Captured) -> None:
    headers: dict[str, str] = {}
    sw.inject(headers)
    assert headers == {}


def test_inject_continues_the_trace_of_a_span_of_another_library(tracer: Tracer, captured: Captured) -> None:
    headers: dict[str, str] = {}
    with sw.thread("t"), sw.run("r"), tracer.start_as_current_span("http") as span:
        sw.inject(headers)
    assert headers["traceparent"].split("-")[2] == f"{span.get_span_context().span_id:016x}"
    assert "stepwell.thread_id=t" in headers["baggage"]


def test_extract_reads_headers_of_any_case_and_ends_with_its_block(captured: Captured) -> None:
    headers = {"Traceparent": f"00-{5:032x}-{6:016x}-01", "BAGGAGE": "stepwell.thread_id=t"}
    before = get_current()
    with sw.extract(headers), sw.run("r") as step:
        assert step.trace_id == f"{5:032x}"
    assert step.thread_id == "t"
    assert get_current() == before


def test_extract_leads_away_from_the_step_around_it(captured: Captured) -> None:
    headers = {"traceparent": f"00-{5:032x}-{6:016x}-01"}
    with sw.run("server"), sw.extract(headers):
        assert sw.current_step() is None
        with sw.run("request") as step:
            pass
    assert (step.trace_id, step.root_run_id) == (f"{5:032x}", step.id)


ODD_HEADERS: list[Any] = [
    {},
    {"traceparent": "nonsense"},
    {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
    {"traceparent": 5},
    {"baggage": "stepwell.thread_id=" + "x" * 300},
    {"baggage": "stepwell.thread_id="},
    {"baggage": ";;;==,,"},
    {5: 6},
    None,
]


@pytest.mark.parametrize("headers", ODD_HEADERS)
def test_headers_that_say_nothing_leave_the_step_where_it_is(headers: Any, captured: Captured) -> None:
    with sw.thread("t"), sw.run("r") as run, sw.extract(headers), sw.tool("x") as step:
        pass
    assert (step.parent_id, step.thread_id) == (run.id, "t")


def test_headers_that_can_not_be_written_do_not_disturb_the_program(captured: Captured) -> None:
    wrong: Any = 5
    with sw.thread("\ud800"), sw.run("r"):
        sw.inject({})
        sw.inject(wrong)
    assert sw.stats().faults == {"inject into headers": 2}


def test_a_remote_parent_that_others_extracted_is_the_parent(captured: Captured) -> None:
    remote = SpanContext(5, 6, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    with use_span(NonRecordingSpan(remote)), sw.run("r") as step:
        pass
    assert step.parent_id == as_step_id(remote)


# -- across threads


def test_a_bound_function_runs_where_it_was_bound(captured: Captured) -> None:
    from concurrent.futures import ThreadPoolExecutor

    @sw.tool
    def work(n: int) -> int:
        return n

    with ThreadPoolExecutor(2) as pool:
        with sw.thread("t"), sw.run("r") as run:
            assert list(pool.map(sw.bind(work), range(3))) == [0, 1, 2]
        assert pool.submit(sw.current_step).result() is None
    assert [(step.parent_id, step.thread_id) for step in captured.steps[1:]] == [(run.id, "t")] * 3


def test_a_bound_coroutine_function_runs_where_it_was_bound(captured: Captured) -> None:
    @sw.tool
    async def work() -> None:
        await asyncio.sleep(0)

    with sw.run("r") as run:
        bound = sw.bind(work)
    asyncio.run(bound())
    assert captured.step("work").parent_id == run.id


@pytest.mark.parametrize("is_async", [False, True])
def test_a_bound_function_raises_what_it_raises(is_async: bool, captured: Captured) -> None:
    import traceback

    def fails() -> None:
        raise ValueError("bad")

    async def fails_later() -> None:
        fails()

    with pytest.raises(ValueError, match="bad") as raised:
        asyncio.run(sw.bind(fails_later)()) if is_async else sw.bind(fails)()
    names = [frame.filename for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert [name for name in names if "stepwell" in name and "tests" not in name] == []


def test_only_a_function_can_be_bound() -> None:
    from stepwell.errors import UsageError

    wrong: Any = 5
    with pytest.raises(UsageError, match="only a function can be bound, got 5"):
        sw.bind(wrong)


def test_what_runs_with_instrumentation_suppressed_is_not_recorded(captured: Captured) -> None:
    from opentelemetry.context import attach, detach, set_value

    token = attach(set_value("suppress_instrumentation", True))
    with sw.run("exporting") as hidden, sw.tool("below"):
        assert not hidden.is_recording()
    detach(token)
    with sw.run("seen"):
        pass
    assert [step.name for step in captured.steps] == ["seen"]
    assert captured.step("seen").trace_id != hidden.trace_id
