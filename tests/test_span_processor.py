"""Spans of other libraries are steps: those that tell of LLM applications, at their place, and no others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from opentelemetry import trace
from opentelemetry.context import attach, detach, set_value
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import Link, SpanContext, SpanKind, StatusCode, TraceFlags

import stepwell as sw
from stepwell.errors import UsageError
from stepwell.otel import LLM_SCOPES, StepwellSpanProcessor
from stepwell.otel import processor as module
from stepwell.otel.semconv import step_id_of
from stepwell.testing import Captured, capture

LLM = "openinference.instrumentation.openai"
HTTP = "opentelemetry.instrumentation.httpx"
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Yes."}}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
}


@pytest.fixture
def provider() -> Iterator[TracerProvider]:
    made = TracerProvider(shutdown_on_exit=False)
    made.add_span_processor(StepwellSpanProcessor())
    yield made
    made.shutdown()


def tracers(provider: TracerProvider) -> tuple[trace.Tracer, trace.Tracer]:
    return provider.get_tracer(LLM, "1.2"), provider.get_tracer(HTTP)


def places(captured: Captured) -> dict[str, str | None]:
    """Return the name of each step's parent, by the name of the step."""
    sw.flush()
    names = {step.id: step.name for step in captured.steps}
    return {step.name or "": names.get(step.parent_id or "", step.parent_id) for step in captured.steps}


# -- where they stand


def test_a_span_in_a_step_is_a_step_below_it(provider: TracerProvider, captured: Captured) -> None:
    llm, _ = tracers(provider)
    with (
        sw.thread("t", user="ada"),
        sw.run("agent") as run,
        llm.start_as_current_span("chat", kind=SpanKind.CLIENT) as span,
    ):
        span.set_attributes({"openinference.span.kind": "LLM", "llm.model_name": "gpt-4o", "custom": 7})
        span.set_attribute("llm.input_messages.0.message.role", "user")
        span.set_attribute("llm.input_messages.0.message.content", "Tea?")
        with sw.tool("inside"):
            pass
    assert places(captured) == {"agent": None, "chat": "agent", "inside": "chat"}
    fields = captured.fields("chat")
    assert (fields["type"], fields["trace_id"], fields["root_run_id"]) == ("llm", run.trace_id, run.id)
    assert (fields["thread_id"], fields["user"]) == ("t", "ada")
    assert fields["generation"]["messages"] == [{"role": "user", "content": "Tea?"}]
    assert (fields["metadata"]["custom"], fields["sdk"]) == (7, f"{LLM}/1.2")
    assert captured.fields("agent")["child_count"] == 1


def test_spans_that_are_not_recorded_are_bridged(provider: TracerProvider, captured: Captured) -> None:
    llm, http = tracers(provider)
    with (
        sw.run("agent"),
        http.start_as_current_span("POST"),
        http.start_as_current_span("connect"),
        llm.start_as_current_span("chat"),
        http.start_as_current_span("GET"),
        llm.start_as_current_span("deep"),
    ):
        pass
    assert places(captured) == {"agent": None, "chat": "agent", "deep": "chat"}


def test_steps_below_spans_that_are_not_recorded_are_bridged(provider: TracerProvider, captured: Captured) -> None:
    llm, http = tracers(provider)
    with sw.run("agent"), http.start_as_current_span("POST"), http.start_as_current_span("connect"):
        with sw.tool("below a step"):
            pass
        with llm.start_as_current_span("chat"), http.start_as_current_span("GET"), sw.tool("below a span"):
            pass
    with http.start_as_current_span("alone") as alone, sw.tool("below none"):
        pass
    found = places(captured)
    assert (found["below a step"], found["below a span"]) == ("agent", "chat")
    assert captured.fields("agent")["child_count"] == 2
    told = alone.get_span_context()
    assert found["below none"] == step_id_of(told.trace_id, told.span_id)  # there is no other
    provider.shutdown()
    with sw.run("later"), http.start_as_current_span("POST") as post, sw.tool("not bridged"):
        pass
    told = post.get_span_context()
    assert captured.fields("not bridged")["parent_id"] == step_id_of(told.trace_id, told.span_id)


def test_spans_without_any_step_around_are_a_trace_of_their_own(provider: TracerProvider, captured: Captured) -> None:
    llm, http = tracers(provider)
    with http.start_as_current_span("GET /ask") as request, sw.thread("t"), llm.start_as_current_span("chain") as chain:
        chain.set_attribute("openinference.span.kind", "CHAIN")
        with llm.start_as_current_span("chat"):
            pass
    assert places(captured) == {"chain": None, "chat": "chain"}
    fields = captured.fields("chain")
    assert fields["trace_id"] == f"{request.get_span_context().trace_id:032x}"
    assert (fields["thread_id"], captured.fields("chat")["thread_id"]) == ("t", "t")


def test_a_child_that_starts_when_its_parent_has_ended_finds_it(provider: TracerProvider, captured: Captured) -> None:
    llm, http = tracers(provider)
    with sw.run("agent"), llm.start_as_current_span("chat"), http.start_as_current_span("POST") as post:
        context = trace.set_span_in_context(post)
    sw.flush()
    llm.start_span("late", context=context).end()
    assert places(captured)["late"] == "chat"


def test_a_parent_in_another_process_is_the_one_its_ids_say(provider: TracerProvider, captured: Captured) -> None:
    llm, _ = tracers(provider)
    remote = SpanContext(5 << 64 | 5, 6, is_remote=True, trace_flags=TraceFlags(1))
    llm.start_span("chat", context=trace.set_span_in_context(trace.NonRecordingSpan(remote))).end()
    assert places(captured) == {"chat": "00000000-0000-0005-0000-000000000006"}


def test_a_span_in_a_thread_of_its_own_attributes_keeps_it(provider: TracerProvider, captured: Captured) -> None:
    llm, _ = tracers(provider)
    attributes = {"session.id": "s-1", "user.id": "ada"}
    llm.start_span("alone", attributes=attributes).end()
    with sw.thread("t", user="bob"):
        llm.start_span("inside", attributes=attributes).end()
    sw.flush()
    found = {step.name: (step.thread_id, step.user) for step in captured.steps}
    assert found == {"alone": ("s-1", "ada"), "inside": ("t", "bob")}


def test_places_are_remembered_for_so_many_spans(
    provider: TracerProvider, captured: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PLACES", 10)
    llm, http = tracers(provider)
    with sw.run("agent"), http.start_as_current_span("POST"):
        for _ in range(9):
            http.start_span("x").end()
        llm.start_span("known").end()
        for _ in range(20):
            http.start_span("x").end()
        llm.start_span("unknown").end()
    assert places(captured)["known"] == "agent"
    assert places(captured)["unknown"] not in ("agent", None)  # the parent is the one that its ids say


# -- which


def test_only_known_scopes_are_recorded(provider: TracerProvider, captured: Captured) -> None:
    for scope in (
        "openinference.instrumentation.langchain",
        "opentelemetry.instrumentation.openai.v1",
        "opentelemetry.instrumentation.openai_v2",
        "opentelemetry.util.genai.handler",
        "langfuse-sdk",
        "traceloop.tracer",
        "logfire.openai",
        "pydantic-ai",
        # and these not
        "opentelemetry.instrumentation.asgi",
        "opentelemetry.instrumentation.openaix",
        "openinference.instrumentationx",
        "logfire",
        "x",
        "",
    ):
        provider.get_tracer(scope).start_span(scope or "none").end()
    sw.flush()
    assert len(captured.steps) == 8
    assert {step.name for step in captured.steps} & {"logfire", "x", "none"} == set()


@pytest.mark.parametrize(
    ("scopes", "found"),
    [(["*"], ["a", "a.b", "ab"]), (["a"], ["a", "a.b"]), (["a*"], ["a", "a.b", "ab"]), ([], []), (["a.b"], ["a.b"])],
)
def test_scopes_may_be_named(scopes: list[str], found: list[str], captured: Captured) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(StepwellSpanProcessor(scopes))
    for scope in ("a", "a.b", "ab"):
        provider.get_tracer(scope).start_span(scope).end()
    sw.flush()
    provider.shutdown()
    assert sorted(step.name or "" for step in captured.steps) == found


def test_more_scopes_than_can_be_remembered_are_told_apart_all_the_same() -> None:
    from stepwell.otel._scopes import Scopes

    scopes = Scopes(LLM_SCOPES)
    assert [f"x{n}" in scopes for n in range(2000)] == [False] * 2000
    assert "langfuse-sdk" in scopes
    assert len(scopes._known) == 1000


@pytest.mark.parametrize("wrong", ["*", [5]])
def test_scopes_that_are_no_list_of_names_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="scopes must be a list of names"):
        StepwellSpanProcessor(wrong)


def test_what_is_not_sampled_or_suppressed_or_off_is_not_recorded(captured: Captured) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    provider.add_span_processor(StepwellSpanProcessor())
    provider.get_tracer(LLM).start_span("x").end()
    provider.shutdown()
    other = TracerProvider(shutdown_on_exit=False)
    other.add_span_processor(StepwellSpanProcessor())
    token = attach(set_value("suppress_instrumentation", True))
    other.get_tracer(LLM).start_span("x").end()
    detach(token)
    with capture(sample=0) as none:
        other.get_tracer(LLM).start_span("x").end()
    with capture(enabled=False) as off:
        other.get_tracer(LLM).start_span("x").end()
    sw.flush()
    other.shutdown()
    assert [each.steps for each in (captured, none, off)] == [[], [], []]


# -- what they say


def test_an_error_events_and_links_are_kept(provider: TracerProvider, captured: Captured) -> None:
    llm, _ = tracers(provider)
    link = Link(SpanContext(1, 2, is_remote=False), {"why": "batch"})
    with pytest.raises(ValueError, match="no tea"), llm.start_as_current_span("chat", links=[link]) as span:
        span.add_event("e", {"k": 1})
        raise ValueError("no tea")
    span.set_status(StatusCode.OK)  # too late
    sw.flush()
    fields = captured.fields("chat")
    assert fields["status"] == "failed"
    assert (fields["error"]["type"], fields["error"]["message"]) == ("ValueError", "no tea")
    assert fields["metadata"]["events"][0]["name"] == "e"
    assert fields["metadata"]["links"][0]["attributes"] == {"why": "batch"}


def test_secrets_in_spans_are_masked(provider: TracerProvider, captured: Captured) -> None:
    secret = "sk-" + "a1B2" * 12
    llm, _ = tracers(provider)
    with pytest.raises(ValueError, match="sk-"), llm.start_as_current_span(f"chat {secret}") as span:
        span.set_attributes({"openinference.span.kind": "LLM", "input.value": secret, "output.value": f"said {secret}"})
        span.set_attribute("llm.input_messages.0.message.role", "user")
        span.set_attribute("llm.input_messages.0.message.content", secret)
        span.set_attributes({"tag.tags": [secret], "user.id": secret, "x": secret, "password": "hunter2"})
        span.set_attribute("llm.invocation_parameters", json.dumps({"api_key": secret}))
        span.set_attribute("annotations.0.annotation.explanation", secret)
        raise ValueError(secret)
    sw.flush()
    (step,) = captured.steps
    assert secret not in str(captured.fields(step.name or ""))
    assert "hunter2" not in str(captured.fields(step.name or ""))


def test_a_model_call_that_does_not_say_what_was_asked_is_a_run(provider: TracerProvider, captured: Captured) -> None:
    llm, _ = tracers(provider)
    llm.start_span("a", attributes={"gen_ai.operation.name": "chat", "gen_ai.request.model": "m"}).end()
    sw.flush()
    fields = captured.fields("a")
    assert (fields["type"], fields["downgraded_from"]) == ("run", "llm")
    assert fields["generation"]["model"] == "m"


def test_service_and_environment_are_the_programs_where_the_span_names_none(tmp_path: Path) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(StepwellSpanProcessor())
    with capture(service="shop", environment="test", release="7") as captured:
        provider.get_tracer(LLM).start_span("x").end()
        sw.flush()
    provider.shutdown()
    fields = captured.fields("x")
    assert (fields["service"], fields["environment"], fields["release"]) == ("shop", "test", "7")


# -- an instrumentation


@pytest.fixture
def model() -> Iterator[str]:
    """What answers as OpenAI does."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            body = json.dumps(ANSWER).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
    thread.join(10)


def openinference(provider: TracerProvider) -> Any:
    from openinference.instrumentation.openai import OpenAIInstrumentor

    made = OpenAIInstrumentor()
    made.instrument(tracer_provider=provider)
    return made


def openllmetry(provider: TracerProvider) -> Any:
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    made = OpenAIInstrumentor()
    made.instrument(tracer_provider=provider)
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("instrument", [openinference, openllmetry])
def test_a_call_that_a_library_instruments_is_a_step(
    instrument: Callable[[TracerProvider], Any], provider: TracerProvider, model: str, captured: Captured
) -> None:
    instrumentor = instrument(provider)
    try:
        with sw.thread("t"), sw.run("agent"), openai.OpenAI(base_url=model, api_key="none", max_retries=0) as client:
            client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Tea?"}])
    finally:
        instrumentor.uninstrument()
    sw.flush()
    (call,) = (step for step in captured.steps if step.name != "agent")
    fields = captured.fields(call.name or "")
    assert (fields["type"], fields["thread_id"], fields["status"]) == ("llm", "t", "success")
    assert fields["parent_id"] == captured.step("agent").id
    generation = fields["generation"]
    assert (generation["model"], generation["response_model"]) == ("gpt-4o", "gpt-4o-2024-08-06")
    assert generation["messages"] == [{"role": "user", "content": "Tea?"}]
    assert (generation["usage"]["input_tokens"], generation["usage"]["output_tokens"]) == (9, 2)
    assert "Yes." in json.dumps(generation["message_completion"])


# -- the program's threads, and processes


def test_the_provider_of_the_program_stays_as_it_is(provider: TracerProvider, captured: Captured) -> None:
    before = trace.get_tracer_provider()
    provider.get_tracer(LLM).start_span("x").end()
    assert trace.get_tracer_provider() is before
    assert provider.force_flush()
    assert [step.name for step in captured.steps] == ["x"]


def test_a_flush_writes_what_has_ended_and_nothing_waits_for_it(captured: Captured, provider: TracerProvider) -> None:
    llm, _ = tracers(provider)
    for number in range(500):
        llm.start_span(f"s{number}").end()
    assert sw.flush(30)
    assert len(captured.steps) == 500


def test_spans_are_written_without_a_flush(captured: Captured, provider: TracerProvider) -> None:
    llm, _ = tracers(provider)
    llm.start_span("x").end()
    deadline = time.monotonic() + 20
    while not captured.steps:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_more_than_can_wait_is_dropped_and_counted(
    captured: Captured, provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    (processor,) = provider._active_span_processor._span_processors
    assert isinstance(processor, StepwellSpanProcessor)
    llm, _ = tracers(provider)
    with processor._writing:
        for number in range(8):
            llm.start_span(f"s{number}").end()
    sw.flush()
    assert len(captured.steps) == 5
    assert sw.stats().faults == {"record a span": 3}


def test_a_flush_has_an_end_while_somebody_writes(captured: Captured, provider: TracerProvider) -> None:
    (processor,) = provider._active_span_processor._span_processors
    assert isinstance(processor, StepwellSpanProcessor)
    llm, _ = tracers(provider)
    with processor._writing:
        llm.start_span("x").end()
        assert not sw.flush(0.05)
    assert sw.flush(30)


def test_spans_that_can_not_be_read_do_not_disturb_the_program(provider: TracerProvider, captured: Captured) -> None:
    (processor,) = provider._active_span_processor._span_processors
    wrong: Any = object()
    processor.on_start(wrong)
    processor.on_end(wrong)
    assert sw.stats().faults == {"record a span": 2}


def test_after_its_shutdown_nothing_is_recorded(captured: Captured) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(StepwellSpanProcessor())
    tracer = provider.get_tracer(LLM)
    tracer.start_span("before").end()
    span = tracer.start_span("after")
    provider.shutdown()
    provider.shutdown()
    span.end()
    sw.flush()
    assert [step.name for step in captured.steps] == ["before"]


def test_a_forked_child_and_its_parent_record_their_own_and_exit_delivers(tmp_path: Path) -> None:
    code = f"""
import os
import stepwell as sw
from opentelemetry.sdk.trace import TracerProvider
from stepwell.otel import StepwellSpanProcessor

sw.configure(export="jsonl:{tmp_path}/steps.jsonl", home="{tmp_path}/home")
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(StepwellSpanProcessor())
tracer = provider.get_tracer("{LLM}")
tracer.start_span("before").end()
pid = os.fork()
tracer.start_span("child" if pid == 0 else "parent").end()
if pid:
    os.waitpid(pid, 0)
"""
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["name"] for line in lines) == ["before", "child", "parent"]
