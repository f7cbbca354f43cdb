"""A step keeps the rules of OpenTelemetry's Span: the same calls on one of the SDK's have the same outcome."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import get_current
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import (
    INVALID_SPAN_CONTEXT,
    Link,
    Span,
    SpanContext,
    Status,
    StatusCode,
    Tracer,
    TraceState,
    set_span_in_context,
    use_span,
)

import stepwell as sw
from stepwell.testing import Captured, capture

THERE = SpanContext(trace_id=1, span_id=2, is_remote=False)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(spans: InMemorySpanExporter) -> Iterator[Tracer]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield provider.get_tracer("other")
    provider.shutdown()


def plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [plain(each) for each in value]
    return {key: plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def told_of_span(work: Callable[[Span], object]) -> dict[str, Any]:
    """Return what the SDK keeps of a span."""
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    span = provider.get_tracer("other").start_span("x")
    with suppress(ValueError):
        work(span)
    span.end()
    provider.shutdown()
    (found,) = spans.get_finished_spans()
    events = [(event.name, plain(dict(event.attributes or {}))) for event in found.events]
    for _, attributes in events:
        attributes.pop("exception.stacktrace", None)
    return {
        "name": found.name,
        "attributes": plain(dict(found.attributes or {})),
        "events": events,
        "links": [(each.context.span_id, plain(dict(each.attributes or {}))) for each in found.links],
        "failed": found.status.status_code is StatusCode.ERROR,
        "why": found.status.description,
    }


def told_of_step(work: Callable[[Span], object]) -> dict[str, Any]:
    """Return the same of a step, as it was recorded."""
    with capture() as captured:
        step = sw.start("tool", "x")
        with suppress(ValueError):
            work(step)
        step.end()
        found = captured.fields(captured.steps[0].name or "")
    metadata = found.get("metadata", {})
    events = [(event["name"], event["attributes"]) for event in metadata.pop("events", ())]
    for _, attributes in events:
        attributes.pop("exception.stacktrace", None)
    return {
        "name": found["name"],
        "links": [(int(each["span_id"], 16), each["attributes"]) for each in metadata.pop("links", ())],
        "attributes": metadata,
        "events": events,
        "failed": found["status"] == "failed",
        "why": found.get("error", {}).get("message"),
    }


def later(span: Span, key: str, value: Any) -> None:
    """Set an attribute and change its value afterwards."""
    span.set_attribute(key, value)
    value.append("later")


def raised(span: Span, **options: Any) -> None:
    with use_span(span, **options):
        raise ValueError("bad")


CALLS: dict[str, Callable[[Span], object]] = {
    "attribute": lambda span: span.set_attribute("a", 1),
    "attribute again": lambda span: span.set_attribute("a", "other"),
    "attributes": lambda span: span.set_attributes({"b": [1.5, 2.5], "c": True}),
    "no attributes": lambda span: span.set_attributes({}),
    "a sequence": lambda span: later(span, "d", ["x", "y"]),
    "an empty sequence": lambda span: span.set_attribute("d", []),
    "a mapping": lambda span: span.set_attribute("m", {"k": [1, {"deep": "er"}]}),
    "an empty key": lambda span: span.set_attribute("", 1),
    "a key that is no text": lambda span: span.set_attribute(5, 1),  # type: ignore[arg-type]
    "text with anything in it": lambda span: span.set_attribute("t", 'é\n\u2028\U0001f600"\\'),
    "a large number": lambda span: span.set_attribute("n", 2**63 - 1),
    "event": lambda span: span.add_event("e"),
    "event with attributes": lambda span: span.add_event("f", {"k": 1, "l": [1, 2]}),
    "event with a time": lambda span: span.add_event("g", timestamp=5),
    "link": lambda span: span.add_link(THERE, {"why": "batch"}),
    "link to nothing": lambda span: span.add_link(INVALID_SPAN_CONTEXT),
    "link to nothing that says something": lambda span: span.add_link(INVALID_SPAN_CONTEXT, {"why": "lost"}),
    "name": lambda span: span.update_name("y"),
    "ok": lambda span: span.set_status(StatusCode.OK),
    "ok as a status": lambda span: span.set_status(Status(StatusCode.OK)),
    "unset": lambda span: span.set_status(StatusCode.UNSET),
    "unset as a status": lambda span: span.set_status(Status()),
    "error": lambda span: span.set_status(StatusCode.ERROR, "no tea"),
    "another error": lambda span: span.set_status(Status(StatusCode.ERROR, "no cups")),
    "exception": lambda span: span.record_exception(ValueError("bad")),
    "exception with attributes": lambda span: span.record_exception(
        KeyError("k"), {"exception.type": "mine", "x": 1}, escaped=True
    ),
    "exception of a module": lambda span: span.record_exception(threading.BrokenBarrierError("b")),
    "raised": raised,
    "raised and not recorded": lambda span: raised(span, record_exception=False),
    "raised and no error": lambda span: raised(span, set_status_on_exception=False),
    "the end": lambda span: span.end(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_does_to_a_step_what_it_does_to_a_span(name: str) -> None:
    assert told_of_step(CALLS[name]) == told_of_span(CALLS[name])


@pytest.mark.usefixtures("untraced")
@given(st.lists(st.sampled_from(sorted(CALLS)), max_size=8))
def test_calls_in_any_order_do_to_a_step_what_they_do_to_a_span(names: list[str]) -> None:
    def work(span: Span) -> None:
        for name in names:
            with suppress(ValueError):
                CALLS[name](span)

    assert told_of_step(work) == told_of_span(work)


# -- what is not the SDK's to say


def test_an_error_that_says_nothing_leaves_the_reason_standing(captured: Captured) -> None:
    with sw.tool("x") as step:
        step.fail("no tea")
        step.set_status(StatusCode.ERROR)
    assert captured.fields("x")["error"] == {"message": "no tea"}


def test_a_description_that_is_no_text_is_none(captured: Captured) -> None:
    wrong: Any = ["no tea"]
    with sw.tool("x") as step:
        step.set_status(StatusCode.ERROR, wrong)
    assert captured.step("x").status == "failed"
    assert captured.step("x").error is None


def test_nothing_counts_after_the_end_and_strictness_does_not_make_it_raise() -> None:
    with capture(strict=True) as captured:
        with sw.tool("x") as step:
            pass
        step.set_attribute("a", 1)
        step.set_attributes({"a": 1})
        step.add_event("e")
        step.add_link(THERE)
        step.update_name("y")
        step.set_status(StatusCode.ERROR, "late")
        step.record_exception(ValueError("late"))
        step.end()
        step.end(5)
    assert [frame for frame in captured.steps if frame.status == "success"] == captured.steps
    assert {"metadata", "error"} & captured.fields("x").keys() == set()
    assert not step.is_recording()
    assert step.get_span_context().is_valid


def test_an_end_time_is_the_end(captured: Captured) -> None:
    step = sw.start("tool", "x")
    step.end(step.now_ns() + 10**9)
    found = captured.step("x")
    assert 10**9 <= (found.end_ns or 0) - (found.start_ns or 0) < 2 * 10**9


@pytest.mark.parametrize("timestamp", [-1, 1 << 63, "now", 1.5, True])
def test_an_event_at_no_time_is_now(timestamp: Any, captured: Captured) -> None:
    with sw.tool("x") as step:
        step.add_event("e", timestamp=timestamp)
    (event,) = captured.fields("x")["metadata"]["events"]
    found = captured.step("x")
    assert (found.start_ns or 0) <= event["time_ns"] <= (found.end_ns or 0)


def test_events_and_attributes_pass_the_redaction_rules(captured: Captured) -> None:
    secret = "sk-" + "a1B2" * 12
    with sw.tool("x") as step:
        step.set_attribute("list", [secret])
        step.add_event("e", {"text": secret, "password": "hunter2"})
        step.record_exception(ValueError(secret))
    assert secret not in str(captured.fields("x"))
    assert "hunter2" not in str(captured.fields("x"))


def test_a_link_to_nothing_with_a_trace_state_is_kept(captured: Captured) -> None:
    nothing = SpanContext(0, 0, is_remote=False, trace_state=TraceState([("a", "b")]))
    with sw.tool("x") as step:
        step.add_link(nothing)
    assert len(captured.fields("x")["metadata"]["links"]) == 1


def test_a_step_made_current_in_another_thread_is_the_current_step(captured: Captured) -> None:
    seen: list[object] = []

    def work() -> None:
        with use_span(step):
            seen.append(sw.current_step())
            seen.append(sw.current_thread())
            with sw.tool("below"):
                pass
        seen.append(sw.current_step())

    with sw.thread("t") as thread, sw.run("r") as step:
        other = threading.Thread(target=work)
        other.start()
        other.join()
    assert seen == [step, thread, None]
    assert captured.step("below").parent_id == step.id


def test_an_outer_step_made_current_again_is_the_current_step(captured: Captured) -> None:
    with sw.run("outer") as outer, sw.tool("inner") as inner:
        with use_span(outer):
            assert sw.current_step() is outer
            with sw.tool("below"):
                pass
        assert sw.current_step() is inner
    assert captured.step("below").parent_id == outer.id


def test_a_span_can_be_started_below_a_step_that_is_not_current(
    tracer: Tracer, spans: InMemorySpanExporter, captured: Captured
) -> None:
    step = sw.start("tool", "x")
    step.end()
    assert trace.get_current_span() is not step
    span = tracer.start_span("late", context=set_span_in_context(step, get_current()), links=[Link(THERE)])
    span.end()
    (found,) = spans.get_finished_spans()
    assert found.parent is not None
    assert found.parent.span_id == step.get_span_context().span_id


def test_a_span_below_a_step_that_is_not_kept_is_not_kept(tracer: Tracer, spans: InMemorySpanExporter) -> None:
    with capture(sample=0), sw.run("r"), tracer.start_as_current_span("below"):
        pass
    assert spans.get_finished_spans() == ()
