"""Spans of other instrumentations as steps: by what real ones have been seen to emit, and by their conventions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stepwell.model import StepRecord, encode_record
from stepwell.otel.semconv import (
    INTERNAL,
    STATUS_ERROR,
    LogEvent,
    Origin,
    Span,
    SpanEvent,
    SpanLink,
    origin_of,
    records_of_events,
    step_of,
)

CAPTURED = Path(__file__).parents[2] / "shared" / "data" / "otlp"
TRACE = 0x01A2018CC5CD743386C4A5277C5FCCC5
captured = pytest.mark.skipif(not CAPTURED.is_dir(), reason="there are no captured spans in ../shared/data/otlp")

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "w",
        "parameters": {"type": "object", "properties": {"location": {"type": "string"}}},
    },
}
SYSTEM = {"role": "system", "content": "Be terse."}
USER = {"role": "user", "content": "Weather in Paris?"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"location":"Paris"}'}}
    ],
}
HERE = Origin()
RETURN = {"role": "tool", "tool_call_id": "call_1", "content": "rainy, 57F"}
ANSWER = {"role": "assistant", "content": "Rainy, 57F"}


def step(attributes: dict[str, Any], origin: Origin = HERE, **fields: Any) -> dict[str, Any]:
    """Return the step of a span, decoded; without what says the same of all: ids, times."""
    span = Span(
        TRACE,
        1,
        **{"name": "span", "parent_id": 2, "start_ns": 1000, "end_ns": 2000, "attributes": attributes, **fields},
    )
    told: dict[str, Any] = json.loads(encode_record(step_of(span, origin)))
    for name in ("kind", "id", "trace_id", "start_ns", "end_ns"):
        told.pop(name, None)
    if told.get("parent_id") == "01a2018c-c5cd-7433-0000-000000000002":
        del told["parent_id"]
    return told


def of_file(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for each in json.loads((CAPTURED / name).read_text()):
        scope, _, version = each["scope"].partition("@")
        kind = {"INTERNAL": 1, "CLIENT": 3}[each["kind"]]
        found.append(step(each["attributes"], origin_of({}, scope, version), name=each["name"], kind=kind))
    return found


# -- as captured


@captured
def test_openinference_calls_become_llm_steps() -> None:
    first, second, embedding = of_file("openinference_openai.json")
    request = first["generation"].pop("provider_request")
    response = first["generation"].pop("provider_response")
    assert (request["messages"], request["max_tokens"], response["system_fingerprint"]) == ([SYSTEM, USER], 50, "fp_1")
    assert first == {
        "type": "llm",
        "name": "ChatCompletion",
        "status": "success",
        "thread_id": "thread-1",
        "user": "u-1",
        "tags": ["t1", "t2"],
        "metadata": {"a": 1},
        "sdk": "openinference.instrumentation.openai/0.1.66",
        "output": CALL,
        "generation": {
            "type": "chat",
            "provider": "openai",
            "model": "gpt-4o-mini",
            "response_model": "gpt-4o-mini-2024-07-18",
            "messages": [SYSTEM, USER],
            "message_completion": CALL,
            "settings": {"max_tokens": 50, "temperature": 0.3, "top_p": 0.9},
            "tools": [TOOL],
            "usage": {
                "input_tokens": 20,
                "output_tokens": 7,
                "total_tokens": 27,
                "cached_input_tokens": 5,
                "reasoning_tokens": 2,
            },
            "stop_reason": "tool_calls",
            "response_id": "chatcmpl-1",
        },
    }
    assert second["generation"]["messages"] == [SYSTEM, USER, CALL, RETURN]
    assert (second["output"], second["generation"]["stop_reason"]) == (ANSWER, "stop")
    assert (embedding["type"], embedding["input"]["input"]) == ("embedding", "hello")
    assert embedding["output"]["data"][0]["embedding"] == [0.1, 0.2, 0.3]
    assert embedding["generation"] == {
        "provider": "openai",
        "model": "text-embedding-3-small",
        "settings": {"encoding_format": "base64"},
        "usage": {"input_tokens": 4, "total_tokens": 4},
    }


@captured
def test_openllmetry_spans_become_tools_calls_and_runs() -> None:
    tool, first, second, embedding, agent, workflow = of_file("openllmetry_0_62_openai.json")
    common = {"status": "success", "thread_id": "s1", "user": "u1", "sdk": "traceloop.tracer"}
    assert tool == common | {
        "type": "tool",
        "name": "mytool",
        "agent_id": "myagent",
        "input": {"args": [3], "kwargs": {}},
        "output": {"y": 3},
        "metadata": {"traceloop.workflow.name": "wf"},
    }
    assert agent == common | {
        "type": "run",
        "name": "myagent",
        "agent_id": "myagent",
        "input": {"args": ["hello"], "kwargs": {}},
        "output": "done",
        "metadata": {"traceloop.workflow.name": "wf"},
    }
    assert (workflow["type"], workflow["name"], workflow["output"]) == ("run", "wf", "done")
    assert first["generation"] == {
        "type": "chat",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "response_model": "gpt-4o-mini-2024-07-18",
        "messages": [SYSTEM, USER],
        "message_completion": CALL,
        "settings": {"temperature": 0.3, "top_p": 0.9, "max_tokens": 50, "stream": False},
        "tools": [TOOL],
        "usage": {
            "input_tokens": 20,
            "output_tokens": 7,
            "total_tokens": 27,
            "cached_input_tokens": 5,
            "reasoning_tokens": 2,
        },
        "stop_reason": "tool_calls",
        "response_id": "chatcmpl-1",
        "model_endpoint": "http://127.0.0.1:4900/v1/",
    }
    assert first["metadata"] == {
        "traceloop.workflow.name": "wf",
        "gen_ai.openai.response.system_fingerprint": "fp_1",
    }
    assert second["generation"]["messages"] == [SYSTEM, USER, CALL, RETURN]
    assert (second["type"], second["output"]) == ("llm", ANSWER)
    assert (embedding["type"], embedding["input"], embedding["generation"]["usage"]["input_tokens"]) == (
        "embedding",
        "hello",
        4,
    )


@captured
def test_spans_of_the_official_instrumentation_become_llm_steps() -> None:
    without, _, embedding = of_file("otel_openai_v2_2_3.json")
    assert without == {
        "type": "llm",
        "name": "chat gpt-4o-mini",
        "status": "success",
        "sdk": "opentelemetry.instrumentation.openai_v2",
        "generation": {
            "provider": "openai",
            "model": "gpt-4o-mini",
            "response_model": "gpt-4o-mini-2024-07-18",
            "settings": {"temperature": 0.3, "top_p": 0.9, "max_tokens": 50},
            "usage": {"input_tokens": 20, "output_tokens": 7, "total_tokens": 27},
            "stop_reason": "tool_calls",
            "response_id": "chatcmpl-1",
        },
        "metadata": {"server.address": "127.0.0.1", "server.port": 4900},
    }
    assert (embedding["type"], embedding["metadata"]["gen_ai.embeddings.dimension.count"]) == ("embedding", 3)
    first, second, _ = of_file("otel_openai_v2_2_4.json")
    assert (first["generation"]["messages"], first["output"]) == ([SYSTEM, USER], CALL)
    assert (second["generation"]["messages"], second["output"]) == ([SYSTEM, USER, CALL, RETURN], ANSWER)


# -- types


@pytest.mark.parametrize(
    ("attributes", "type"),
    [
        ({"gen_ai.operation.name": "chat"}, "llm"),
        ({"gen_ai.operation.name": "text_completion"}, "llm"),
        ({"gen_ai.operation.name": "generate_content"}, "llm"),
        ({"gen_ai.operation.name": "embeddings"}, "embedding"),
        ({"gen_ai.operation.name": "execute_tool"}, "tool"),
        ({"gen_ai.operation.name": "retrieval"}, "retrieval"),
        ({"gen_ai.operation.name": "invoke_agent"}, "run"),
        ({"gen_ai.operation.name": "invoke_workflow"}, "run"),
        ({"gen_ai.operation.name": "chat", "openinference.span.kind": "CHAIN"}, "llm"),
        ({"gen_ai.tool.name": "search"}, "tool"),
        ({"gen_ai.request.model": "gpt-4o"}, "llm"),
        ({"openinference.span.kind": "RERANKER"}, "rerank"),
        ({"openinference.span.kind": "RETRIEVER"}, "retrieval"),
        ({"openinference.span.kind": "AGENT"}, "run"),
        ({"openinference.span.kind": "GUARDRAIL"}, "undefined"),
        ({"traceloop.span.kind": "task"}, "undefined"),
        ({"llm.request.type": "rerank"}, "rerank"),
        ({"langfuse.observation.type": "generation"}, "llm"),
        ({"langfuse.observation.type": "span"}, "undefined"),
        ({"db.vector.query.top_k": 3}, "retrieval"),
        ({"http.method": "GET"}, "undefined"),
    ],
)
def test_every_convention_says_what_type_a_step_is(attributes: dict[str, Any], type: str) -> None:
    assert step(attributes)["type"] == type


def test_a_span_without_a_parent_and_without_a_hint_is_a_run() -> None:
    told = step({"http.method": "GET"}, origin_of({"service.name": "shop", "host.name": "h"}), parent_id=None)
    assert told == {
        "type": "run",
        "name": "span",
        "status": "success",
        "service": "shop",
        "root_run_id": "01a2018c-c5cd-7433-0000-000000000001",
        "metadata": {"http.method": "GET", "resource": {"host.name": "h"}},
    }


def test_a_kind_that_is_no_type_is_kept() -> None:
    assert step({"openinference.span.kind": "GUARDRAIL"}, parent_id=None) == {
        "type": "undefined",
        "name": "span",
        "status": "success",
        "metadata": {"openinference.span.kind": "GUARDRAIL"},
    }


def test_resource_and_scope_say_where_a_step_is_from() -> None:
    origin = origin_of(
        {
            "service.name": "shop",
            "service.version": "1.2",
            "deployment.environment.name": "prod",
            "telemetry.sdk.name": "opentelemetry",
        },
        "lib",
        "3",
    )
    assert origin == Origin("shop", "prod", "1.2", "lib/3", {})
    assert origin_of({"service.name": "unknown_service:python"}).service is None


# -- conventions that no capture shows


def test_openllmetry_of_before_the_conventions_is_read() -> None:
    told = step(
        {
            "llm.request.type": "chat",
            "gen_ai.system": "OpenAI",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.prompt.0.role": "user",
            "gen_ai.prompt.0.content": "Weather in Paris?",
            "gen_ai.prompt.1.role": "tool",
            "gen_ai.prompt.1.content": "rainy, 57F",
            "gen_ai.prompt.1.tool_call_id": "call_1",
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.finish_reason": "tool_calls",
            "gen_ai.completion.0.tool_calls.0.id": "call_1",
            "gen_ai.completion.0.tool_calls.0.name": "get_weather",
            "gen_ai.completion.0.tool_calls.0.arguments": '{"location":"Paris"}',
            "llm.request.functions.0.name": "get_weather",
            "llm.request.functions.0.parameters": '{"type": "object"}',
            "gen_ai.usage.prompt_tokens": 20,
            "gen_ai.usage.completion_tokens": 7,
            "llm.usage.total_tokens": 27,
            "gen_ai.usage.cache_read_input_tokens": 5,
        }
    )
    assert told["generation"] == {
        "type": "chat",
        "provider": "OpenAI",
        "model": "gpt-4o",
        "messages": [USER, {"role": "tool", "content": "rainy, 57F", "tool_call_id": "call_1"}],
        "message_completion": CALL,
        "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}],
        "usage": {"input_tokens": 20, "output_tokens": 7, "total_tokens": 27, "cached_input_tokens": 5},
        "stop_reason": "tool_calls",
    }


@pytest.mark.parametrize(
    ("content", "read"),
    [
        ("[1, 2]", "[1, 2]"),
        ('"quoted"', '"quoted"'),
        ('[{"type": "text", "text": "Hi"}]', [{"type": "text", "text": "Hi"}]),
    ],
)
def test_text_that_looks_like_json_stays_text(content: str, read: object) -> None:
    told = step({"llm.request.type": "chat", "gen_ai.prompt.0.role": "user", "gen_ai.prompt.0.content": content})
    assert told["generation"]["messages"] == [{"role": "user", "content": read}]


def test_langfuse_generations_are_read() -> None:
    told = step(
        {
            "langfuse.observation.type": "generation",
            "langfuse.observation.input": json.dumps([USER]),
            "langfuse.observation.output": json.dumps(ANSWER),
            "langfuse.observation.model.name": "gpt-4o",
            "langfuse.observation.model.parameters": '{"temperature": 1, "max_tokens": "Infinity"}',
            "langfuse.observation.usage_details": '{"input": 20, "output": 7, "total": 27, "input_cached_tokens": 5}',
            "langfuse.observation.cost_details": '{"total": 0.5}',
            "langfuse.observation.completion_start_time": '"1970-01-01T00:00:00.500000Z"',
            "langfuse.observation.metadata.k": "v",
            "langfuse.observation.metadata.reason": '"stop"',
            "langfuse.trace.tags": ["a", "b"],
            "langfuse.trace.name": "talk",
            "langfuse.environment": "staging",
            "langfuse.release": "r1",
            "session.id": "t-1",
            "user.id": "ada",
        }
    )
    assert told == {
        "type": "llm",
        "name": "span",
        "status": "success",
        "thread_id": "t-1",
        "user": "ada",
        "environment": "staging",
        "release": "r1",
        "tags": ["a", "b"],
        "metadata": {"k": "v", "reason": "stop", "langfuse.trace.name": "talk"},
        "output": ANSWER,
        "generation": {
            "type": "chat",
            "model": "gpt-4o",
            "response_model": "gpt-4o",
            "messages": [USER],
            "message_completion": ANSWER,
            "settings": {"temperature": 1},
            "usage": {"input_tokens": 20, "output_tokens": 7, "total_tokens": 27, "cached_input_tokens": 5},
            "ttft_ns": 499_999_000,
            "cost": {"total": 0.5},
        },
    }


def test_an_error_is_what_the_exception_or_the_status_says() -> None:
    thrown = SpanEvent(
        "exception",
        1500,
        {"exception.type": "ValueError", "exception.message": "no", "exception.stacktrace": "Traceback"},
    )
    told = step({}, status=STATUS_ERROR, message="ValueError: no", events=[thrown])
    assert (told["status"], told["error"]) == (
        "failed",
        {"type": "ValueError", "message": "no", "traceback": "Traceback"},
    )
    assert "metadata" not in told
    assert step({"error.type": "timeout"}, status=STATUS_ERROR, message="late")["error"] == {
        "type": "timeout",
        "message": "late",
    }
    level = step({"langfuse.observation.level": "ERROR", "langfuse.observation.status_message": "bad"})
    assert (level["status"], level["error"]) == ("failed", {"message": "bad"})
    stopped = SpanEvent("exception", 1500, {"exception.type": "asyncio.exceptions.CancelledError"})
    assert step({}, status=STATUS_ERROR, events=[stopped])["status"] == "cancelled"
    handled = step({}, events=[thrown])
    assert (handled["status"], handled["metadata"]["events"][0]["name"]) == ("success", "exception")


def test_a_span_that_has_not_ended_is_pending() -> None:
    told = json.loads(encode_record(step_of(Span(TRACE, 1, start_ns=5, end_ns=0))))
    assert (told["status"], "end_ns" in told) == ("pending", False)


def test_links_and_events_are_kept() -> None:
    told = step({}, links=[SpanLink(TRACE, 7, {"k": 1})], events=[SpanEvent("tried", 3, {})], kind=5)
    assert told["metadata"] == {
        "links": [
            {"trace_id": "01a2018cc5cd743386c4a5277c5fccc5", "span_id": "0000000000000007", "attributes": {"k": 1}}
        ],
        "events": [{"name": "tried", "time_ns": 3, "attributes": {}}],
        "otel.kind": 5,
    }


def test_attributes_named_as_links_and_events_keep_their_place() -> None:
    told = step({"events": 5}, links=[SpanLink(TRACE, 7, {})], events=[SpanEvent("tried", 3, {})])
    assert (told["metadata"]["events"], told["metadata"]["otel.events"][0]["name"]) == (5, "tried")
    assert told["metadata"]["links"][0]["span_id"] == "0000000000000007"


def test_two_attributes_of_one_meaning_are_both_kept_where_they_differ() -> None:
    told = step({"openinference.span.kind": "LLM", "llm.provider": "azure", "llm.system": "openai"})
    assert (told["generation"]["provider"], told["metadata"]) == ("azure", {"llm.system": "openai"})
    same = step({"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.system": "openai"})
    assert (same["generation"]["provider"], "metadata" in same) == ("openai", False)


def test_documents_found_are_the_output() -> None:
    told = step(
        {
            "openinference.span.kind": "RETRIEVER",
            "input.value": "wells",
            "retrieval.documents.0.document.content": "deep",
            "retrieval.documents.0.document.score": 0.5,
            "retrieval.documents.0.document.metadata": '{"page": 1}',
            "retrieval.documents.10.document.content": "last",
            "retrieval.documents.2.document.content": "dry",
        }
    )
    assert (told["type"], told["input"]) == ("retrieval", "wells")
    assert told["output"] == [
        {"content": "deep", "score": 0.5, "metadata": {"page": 1}},
        {"content": "dry"},
        {"content": "last"},
    ]


def test_annotations_are_scores() -> None:
    told = step(
        {
            "annotations.0.annotation.name": "relevance",
            "annotations.0.annotation.score": 0.9,
            "annotations.0.annotation.annotator_kind": "LLM",
            "annotations.0.annotation.explanation": "on topic",
        }
    )
    assert told["scores"] == [
        {
            "id": "01a2018c-c5cd-7433-0000-000000000001/annotations/0",
            "name": "relevance",
            "type": "AI",
            "value": 0.9,
            "comment": "on topic",
        }
    ]


def test_images_and_thoughts_of_messages_are_kept() -> None:
    told = step(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.system_instructions": '[{"type": "text", "content": "Be terse."}]',
            "gen_ai.input.messages": [
                {
                    "role": "user",
                    "parts": [
                        {"type": "text", "content": "What is it?"},
                        {"type": "uri", "modality": "image", "uri": "https://x/y.png"},
                        {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "AAAA"},
                    ],
                },
                {
                    "role": "tool",
                    "parts": [
                        {"type": "tool_call_response", "id": "a", "response": {"n": 1}},
                        {"type": "tool_call_response", "id": "b", "result": "two"},
                    ],
                },
            ],
            "gen_ai.output.messages": '[{"role": "assistant", "finish_reason": "stop", "parts": ['
            '{"type": "reasoning", "content": "hm"}, {"type": "text", "content": "A well."}]}]',
        }
    )
    assert told["generation"]["messages"] == [
        SYSTEM,
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": '{"n":1}'},
        {"role": "tool", "tool_call_id": "b", "content": "two"},
    ]
    assert told["output"] == {"role": "assistant", "content": "A well.", "reasoning_content": "hm"}
    assert told["generation"]["stop_reason"] == "stop"


def test_what_is_of_a_wrong_type_is_kept_as_it_is() -> None:
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": 7,
        "gen_ai.usage.input_tokens": "many",
        "session.id": ["a"],
        "llm.invocation_parameters": "[",
        "gen_ai.input.messages": "{",
        "metadata": "none",
    }
    told = step(dict(attributes))
    assert (told["type"], told["status"]) == ("llm", "success")
    for name in ("gen_ai.request.model", "gen_ai.usage.input_tokens", "session.id", "metadata"):
        assert told["metadata"][name] == attributes[name]


# -- log records


def event(name: str, body: Any = None, **fields: Any) -> tuple[LogEvent, Origin]:
    return LogEvent(name, TRACE, 1, 5, body, **fields), Origin()


def test_messages_in_log_records_become_those_of_their_step() -> None:
    events = [
        event("gen_ai.system.message", {"content": "Be terse."}),
        event("gen_ai.user.message", {"content": "Weather in Paris?"}),
        event("gen_ai.assistant.message", {"tool_calls": CALL["tool_calls"]}),
        event("gen_ai.tool.message", {"id": "call_1", "content": "rainy, 57F"}),
        event("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": ANSWER}),
        event("app.started", {"a": 1}),
    ]
    found = records_of_events(events)
    [record] = found.records
    assert found.others == 1
    assert json.loads(encode_record(record)) == {
        "kind": "step",
        "id": "01a2018c-c5cd-7433-0000-000000000001",
        "trace_id": "01a2018cc5cd743386c4a5277c5fccc5",
        "generation": {
            "type": "chat",
            "messages": [SYSTEM, USER, CALL, RETURN],
            "message_completion": ANSWER,
            "stop_reason": "stop",
        },
    }


def test_messages_that_come_apart_or_twice_are_told_once_and_in_order() -> None:
    first = records_of_events([event("gen_ai.system.message", {"content": "Be terse."})]).records[0]
    assert isinstance(first, StepRecord)
    later = [event("gen_ai.user.message", {"content": "Weather in Paris?"})]
    second = records_of_events(later, lambda _: first.generation).records[0]
    assert isinstance(second, StepRecord)
    again = records_of_events(later, lambda _: second.generation).records[0]
    assert isinstance(again, StepRecord)
    assert json.loads(bytes(second.generation))["messages"] == [SYSTEM, USER]
    assert json.loads(bytes(again.generation))["messages"] == [SYSTEM, USER]


def test_an_evaluation_is_a_score_of_its_span() -> None:
    attributes = {"gen_ai.evaluation.name": "relevance", "gen_ai.evaluation.score.value": 0.5}
    [record] = records_of_events([event("gen_ai.evaluation.result", attributes=attributes)]).records
    told = json.loads(encode_record(record))
    assert told.pop("id") == json.loads(encode_record(record))["id"]
    assert told == {
        "kind": "score",
        "name": "relevance",
        "value": 0.5,
        "step_id": "01a2018c-c5cd-7433-0000-000000000001",
        "created_ns": 5,
    }


def test_the_details_of_a_call_are_part_of_its_step() -> None:
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.input.messages": [{"role": "user", "parts": [{"type": "text", "content": "Weather in Paris?"}]}],
    }
    [record] = records_of_events([event("gen_ai.client.inference.operation.details", attributes=attributes)]).records
    assert isinstance(record, StepRecord)
    assert json.loads(bytes(record.generation)) == {"type": "chat", "messages": [USER]}
    assert record.status is None


def test_messages_in_span_events_are_read() -> None:
    told = step(
        {"gen_ai.operation.name": "chat"},
        events=[
            SpanEvent("gen_ai.user.message", 1, {"gen_ai.event.content": '{"content": "Weather in Paris?"}'}),
            SpanEvent("gen_ai.choice", 2, {"finish_reason": "stop", "message": json.dumps(ANSWER)}),
        ],
        kind=INTERNAL,
    )
    assert (told["generation"]["messages"], told["output"]) == ([USER], ANSWER)
    assert told["generation"]["stop_reason"] == "stop"


# -- the corners of calls


def call(attributes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    told: dict[str, Any] = step({"gen_ai.operation.name": "chat", **attributes}, **fields)["generation"]
    return told


def test_a_request_and_a_response_say_what_no_attribute_does() -> None:
    request = {"model": "claude", "max_tokens": 5, "messages": [USER]}
    response = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "model": "claude-4",
        "content": [{"type": "text", "text": "Rainy"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 2, "cache_read_input_tokens": 4},
    }
    told = step(
        {
            "openinference.span.kind": "LLM",
            "input.value": json.dumps(request),
            "input.mime_type": "application/json",
            "output.value": json.dumps(response),
            "output.mime_type": "application/json",
        }
    )
    assert "input" not in told
    assert told["output"] == {"role": "assistant", "content": [{"type": "text", "text": "Rainy"}]}
    assert told["generation"] == {
        "type": "chat",
        "model": "claude",
        "response_model": "claude-4",
        "messages": [USER],
        "message_completion": told["output"],
        "usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9, "cached_input_tokens": 4},
        "stop_reason": "end_turn",
        "response_id": "msg_1",
        "provider_request": request,
        "provider_response": response,
    }


def test_an_input_that_is_no_messages_is_the_prompt() -> None:
    told = step({"openinference.span.kind": "LLM", "input.value": "Once upon", "output.value": "a time"})
    assert (told["input"], told["output"]) == ("Once upon", "a time")
    assert told["generation"] == {"prompt": "Once upon", "completion": "a time"}


def test_an_input_with_more_than_messages_is_kept_beside_them() -> None:
    given = {"messages": [USER], "tools": [TOOL], "user": "ada"}
    told = step({"langfuse.observation.type": "generation", "langfuse.observation.input": json.dumps(given)})
    assert (told["input"], told["generation"]["messages"], told["generation"]["tools"]) == (given, [USER], [TOOL])


def test_prompts_and_choices_are_a_completion() -> None:
    told = call(
        {"llm.prompts.0.prompt.text": "a", "llm.prompts.1.prompt.text": "b", "llm.choices.0.completion.text": "c"}
    )
    assert told == {"type": "completion", "prompt": ["a", "b"], "completion": "c"}


def test_prompt_and_completion_as_plain_attributes_are_messages() -> None:
    told = call({"gen_ai.prompt": "Hi", "gen_ai.completion": json.dumps([ANSWER])})
    assert (told["messages"], told["message_completion"]) == ([{"role": "user", "content": "Hi"}], ANSWER)


def test_messages_of_the_first_events_are_read() -> None:
    told = call(
        {},
        events=[
            SpanEvent("gen_ai.content.prompt", 1, {"gen_ai.prompt": json.dumps([USER])}),
            SpanEvent("gen_ai.content.completion", 2, {"gen_ai.completion": json.dumps([ANSWER])}),
        ],
    )
    assert (told["messages"], told["message_completion"]) == ([USER], ANSWER)


def test_several_choices_are_all_kept() -> None:
    outputs = [{"role": "assistant", "parts": [{"type": "text", "content": text}]} for text in ("a", "b")]
    told = call({"gen_ai.output.messages": json.dumps(outputs)})
    assert told["message_completion"] == [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_flat_contents_and_function_calls_are_read() -> None:
    told = step(
        {
            "openinference.span.kind": "LLM",
            "llm.input_messages.0.message.role": "user",
            "llm.input_messages.0.message.name": "ada",
            "llm.input_messages.0.message.contents.0.message_content.type": "text",
            "llm.input_messages.0.message.contents.0.message_content.text": "What is it?",
            "llm.input_messages.0.message.contents.1.message_content.image.image.url": "https://x/y.png",
            "llm.input_messages.1.message.role": "assistant",
            "llm.input_messages.1.message.function_call_name": "f",
            "llm.input_messages.1.message.function_call_arguments_json": "{}",
        }
    )
    assert told["generation"]["messages"] == [
        {
            "role": "user",
            "name": "ada",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
            ],
        },
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
    ]


@pytest.mark.parametrize(
    ("attributes", "field", "expected"),
    [
        ({"gen_ai.response.time_to_first_chunk": 0.25}, "ttft_ns", 250_000_000),
        ({"gen_ai.response.time_to_first_chunk": float("nan")}, "ttft_ns", None),
        ({"langfuse.observation.completion_start_time": "soon"}, "ttft_ns", None),
        ({"langfuse.observation.completion_start_time": "1960-01-01T00:00:00Z"}, "ttft_ns", None),
        ({"llm.cost.prompt": 0.5, "llm.cost.completion": 0.25}, "cost", {"input": 0.5, "output": 0.25}),
        ({"operation.cost": 0.5}, "cost", {"total": 0.5}),
        ({"gen_ai.response.finish_reasons": '["stop"]'}, "stop_reason", "stop"),
        ({"gen_ai.response.finish_reasons": ["tool_call"]}, "stop_reason", "tool_calls"),
        ({"llm.prompt_template.variables": '{"a": 1}'}, "variables", {"a": 1}),
        ({"gen_ai.request.stream": True, "gen_ai.is_streaming": True}, "settings", {"stream": True}),
        ({"gen_ai.request.max_tokens": 5.0}, "settings", {"max_tokens": 5.0}),
        ({"gen_ai.usage.input_tokens": 3.0}, "usage", {"input_tokens": 3, "total_tokens": 3}),
        ({"gen_ai.usage.input_tokens": float("inf")}, "usage", None),
        (
            {"langfuse.observation.usage_details": '{"input": true, "output": 2}'},
            "usage",
            {"output_tokens": 2, "total_tokens": 2},
        ),
        ({"request_data": '{"model": "m", "user": "x"}'}, "provider_request", {"model": "m", "user": "x"}),
        ({"request_data": '{"model": "m"}'}, "provider_request", None),
    ],
)
def test_facts_of_calls_are_read(attributes: dict[str, Any], field: str, expected: object) -> None:
    told = step({"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", **attributes})
    assert told["generation"].get(field) == expected


def test_an_embedding_that_is_told_by_its_parts_has_input_and_output() -> None:
    told = step(
        {
            "openinference.span.kind": "EMBEDDING",
            "embedding.embeddings.0.embedding.text": "a",
            "embedding.embeddings.0.embedding.vector": [0.5],
            "embedding.embeddings.1.embedding.text": "b",
            "embedding.embeddings.1.embedding.vector": [0.25],
        }
    )
    assert (told["input"], told["output"]) == (["a", "b"], [[0.5], [0.25]])


def test_a_ranking_has_its_query_and_both_lists_of_documents() -> None:
    told = step(
        {
            "openinference.span.kind": "RERANKER",
            "reranker.query": "wells",
            "reranker.top_k": 1,
            "reranker.model_name": "ranker",
            "reranker.input_documents.0.document.content": "deep",
            "reranker.input_documents.1.document.content": "dry",
            "reranker.output_documents.0.document.content": "dry",
            "output.value": "dry",
        }
    )
    assert told["input"] == {"query": "wells", "documents": [{"content": "deep"}, {"content": "dry"}]}
    assert (told["output"], told["generation"]) == ([{"content": "dry"}], {"model": "ranker"})
    assert told["metadata"] == {"reranker.top_k": 1, "output.value": "dry"}


def test_hits_of_a_vector_database_are_the_output() -> None:
    hit = SpanEvent("db.query.result", 1, {"db.query.result.id": "7", "db.query.result.metadata": '{"page": 1}'})
    told = step({"db.system": "chroma", "db.vector.query.top_k": 3}, events=[hit])
    assert (told["type"], told["output"]) == ("retrieval", [{"id": "7", "metadata": {"page": 1}}])


def test_an_agent_has_its_name_and_what_it_was_asked() -> None:
    told = step(
        {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": "guide",
            "gen_ai.agent.id": "a-1",
            "gen_ai.input.messages": [{"role": "user", "parts": [{"type": "text", "content": "Hi"}]}],
            "gen_ai.output.messages": [{"role": "assistant", "parts": [{"type": "text", "content": "Ho"}]}],
            "gen_ai.usage.input_tokens": 5,
        },
        name="invoke_agent guide",
    )
    assert told == {
        "type": "run",
        "name": "guide",
        "status": "success",
        "agent_id": "a-1",
        "input": [{"role": "user", "content": "Hi"}],
        "output": {"role": "assistant", "content": "Ho"},
        "metadata": {"gen_ai.agent.name": "guide", "gen_ai.usage.input_tokens": 5},
    }


def test_a_workflow_has_its_name() -> None:
    assert step({"gen_ai.operation.name": "invoke_workflow", "gen_ai.workflow.name": "wf"})["name"] == "wf"


def test_a_name_of_many_parts_does_not_nest_without_end() -> None:
    deep = step({"openinference.span.kind": "LLM", "llm.input_messages.0.message." + ".".join("a" * 500): 1})
    assert len(json.dumps(deep)) < 2500


@pytest.mark.parametrize("names", [("gen_ai.provider.name", "llm.system"), ("llm.system", "gen_ai.provider.name")])
def test_the_order_of_attributes_does_not_matter(names: tuple[str, str]) -> None:
    told = step({"gen_ai.operation.name": "chat", **{name: name for name in names}})
    assert (told["generation"]["provider"], told["metadata"]) == ("gen_ai.provider.name", {"llm.system": "llm.system"})
