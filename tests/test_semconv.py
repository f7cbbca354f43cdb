"""Steps as OpenTelemetry spans: what the conventions see of them, and that they come back equal."""

from __future__ import annotations

import json
from typing import Any

import pytest
import records
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Raw
from msgspec.json import encode as encode_generation

from stepwell.model import Generation, StepRecord, Usage, decode_record, encode_record
from stepwell.otel._own import read_own
from stepwell.otel.semconv import (
    CLIENT,
    CONVENTIONS,
    INTERNAL,
    STATUS_ERROR,
    STATUS_OK,
    Convention,
    span_of,
)

conventions: st.SearchStrategy[list[Convention]] = st.lists(st.sampled_from(CONVENTIONS), unique=True)


def raw(value: object) -> Raw:
    return Raw(json.dumps(value, separators=(",", ":")).encode())


def call(**fields: Any) -> StepRecord:
    """One call of a model, as the recorder tells it."""
    generation: dict[str, Any] = {
        "type": "chat",
        "model": "gpt-4o",
        "provider": "openai",
        "messages": [
            {"role": "system", "content": "Be terse."},
            {"role": "user", "content": "Weather in Paris?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "weather", "arguments": '{"location":"Paris"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "call_1", "content": "rainy"},
        ],
        "settings": {"temperature": 0.5, "max_tokens": 50, "stop": ["x"]},
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        "response_model": "gpt-4o-2024",
        "response_id": "chatcmpl-1",
        "stop_reason": "stop",
        "message_completion": {"role": "assistant", "content": "Rainy"},
        "completion": "Rainy",
        "ttft_ns": 250_000_000,
        "usage": {"input_tokens": 20, "output_tokens": 7, "total_tokens": 27, "cached_input_tokens": 5},
        "cost": {"total": 0.25},
    }
    return StepRecord(
        id="01a2018c-c5cd-7433-a29f-56ddf5693e36",
        trace_id="01a2018cc5cd743386c4a5277c5fccc5",
        parent_id="01a2018c-c5cd-7433-86c4-a5277c5fccc5",
        thread_id="t-1",
        type="llm",
        name="answer",
        start_ns=1_795_322_332_621_301_312,
        end_ns=1_795_322_332_621_501_248,
        status="success",
        output=raw("Rainy"),
        generation=raw(generation),
        metadata=raw({"k": 1}),
        tags=["x"],
        user="ada",
        **fields,
    )


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(records.steps, conventions)
def test_any_step_comes_back_equal_from_its_span(step: StepRecord, conventions: list[Convention]) -> None:
    frame = encode_record(step)
    step = decode_record(frame)  # type: ignore[assignment]
    assert encode_record(read_own(span_of(step, conventions=conventions))) == encode_record(step)


def test_a_call_of_a_model_is_told_in_the_genai_conventions() -> None:
    span = span_of(call(), conventions=["genai"])
    assert (span.name, span.kind, span.status) == ("answer", CLIENT, STATUS_OK)
    told = {name: value for name, value in span.attributes.items() if not name.startswith("stepwell.")}
    messages = [json.loads(told.pop(f"gen_ai.{name}")) for name in ("input.messages", "output.messages")]
    assert json.loads(told.pop("gen_ai.tool.definitions")) == [
        {"type": "function", "name": "weather", "parameters": {"type": "object"}}
    ]
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.system": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o-2024",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 50,
        "gen_ai.request.stop_sequences": ["x"],
        "gen_ai.conversation.id": "t-1",
        "user.id": "ada",
    }
    assert messages == [
        [
            {"role": "system", "parts": [{"type": "text", "content": "Be terse."}]},
            {"role": "user", "parts": [{"type": "text", "content": "Weather in Paris?"}]},
            {
                "role": "assistant",
                "parts": [{"type": "tool_call", "name": "weather", "id": "call_1", "arguments": {"location": "Paris"}}],
            },
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": "rainy"}]},
        ],
        [{"role": "assistant", "parts": [{"type": "text", "content": "Rainy"}], "finish_reason": "stop"}],
    ]


def test_a_call_of_a_model_is_told_in_openinference() -> None:
    span = span_of(call(), conventions=["openinference"])
    told = {name: value for name, value in span.attributes.items() if not name.startswith("stepwell.")}
    assert json.loads(told.pop("llm.tools.0.tool.json_schema"))["function"]["name"] == "weather"
    assert told == {
        "openinference.span.kind": "LLM",
        "llm.provider": "openai",
        "llm.system": "openai",
        "llm.request.model_name": "gpt-4o",
        "llm.response.model_name": "gpt-4o-2024",
        "llm.model_name": "gpt-4o-2024",
        "llm.finish_reason": "stop",
        "llm.invocation_parameters": '{"temperature":0.5,"max_tokens":50,"stop":["x"]}',
        "llm.token_count.prompt": 20,
        "llm.token_count.completion": 7,
        "llm.token_count.total": 27,
        "llm.token_count.prompt_details.cache_read": 5,
        "llm.cost.total": 0.25,
        "llm.input_messages.0.message.role": "system",
        "llm.input_messages.0.message.content": "Be terse.",
        "llm.input_messages.1.message.role": "user",
        "llm.input_messages.1.message.content": "Weather in Paris?",
        "llm.input_messages.2.message.role": "assistant",
        "llm.input_messages.2.message.tool_calls.0.tool_call.id": "call_1",
        "llm.input_messages.2.message.tool_calls.0.tool_call.function.name": "weather",
        "llm.input_messages.2.message.tool_calls.0.tool_call.function.arguments": '{"location":"Paris"}',
        "llm.input_messages.3.message.role": "tool",
        "llm.input_messages.3.message.tool_call_id": "call_1",
        "llm.input_messages.3.message.content": "rainy",
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": "Rainy",
        "llm.choices.0.completion.text": "Rainy",
        "output.value": "Rainy",
        "output.mime_type": "text/plain",
        "session.id": "t-1",
        "user.id": "ada",
        "metadata": '{"k":1}',
        "tag.tags": ["x"],
    }


def test_a_failure_is_a_status_an_error_type_and_an_exception_event() -> None:
    step = decode_record(
        b'{"kind":"step","id":"01a2018c-c5cd-7433-92e3-bdd21290ad86","trace_id":"01a2018cc5cd743386c4a5277c5fccc5",'
        b'"type":"tool","name":"search","start_ns":5,"end_ns":9,"status":"failed","input":{"q":"tea"},'
        b'"error":{"type":"ValueError","message":"no","traceback":"Traceback"}}'
    )
    assert isinstance(step, StepRecord)
    span = span_of(step)
    assert (span.trace_id, span.span_id) == (0x01A2018CC5CD743386C4A5277C5FCCC5, 0x92E3BDD21290AD86)
    assert (span.kind, span.status, span.message, span.start_ns, span.end_ns) == (INTERNAL, STATUS_ERROR, "no", 5, 9)
    [event] = span.events
    assert (event.name, event.time_ns) == ("exception", 9)
    assert event.attributes == {
        "exception.type": "ValueError",
        "exception.message": "no",
        "exception.stacktrace": "Traceback",
    }
    assert span.attributes == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "search",
        "gen_ai.tool.call.arguments": '{"q":"tea"}',
        "error.type": "ValueError",
        "openinference.span.kind": "TOOL",
        "tool.name": "search",
        "input.value": '{"q":"tea"}',
        "input.mime_type": "application/json",
        "stepwell.version": 1,
        "stepwell.type": "tool",
        "stepwell.status": "failed",
        "stepwell.carried": ["input=input.value", "error=exception"],
    }


def size_of(step: StepRecord, *conventions: Convention) -> float:
    attributes = span_of(step, conventions=conventions).attributes
    return len(json.dumps(attributes, ensure_ascii=False)) / len(encode_record(step))


def test_a_long_chat_is_on_the_span_once_for_each_convention() -> None:
    step = call()
    messages = [{"role": "user", "content": "word " * 200}] * 100
    step.generation = raw({"type": "chat", "messages": messages})
    span = span_of(step)
    assert span.attributes["llm.input_messages.99.message.role"] == "user"
    assert 0.9 < size_of(step, "genai") < 1.2
    assert 1.8 < size_of(step, "openinference") < 2.2  # flat, and ours
    assert 1.8 < size_of(step, "genai", "openinference") < 2.2


@pytest.mark.parametrize("id", ["step-1", "0f0f0f0f0f0f0f0f", "01A2018C-C5CD-7433-92E3-BDD21290AD86"])
def test_children_find_parents_of_foreign_ids(id: str) -> None:
    parent, child = StepRecord(id=id, trace_id="any"), StepRecord(id="b", trace_id="any", parent_id=id)
    assert span_of(child).parent_id == span_of(parent).span_id
    assert span_of(child).trace_id == span_of(parent).trace_id


def test_usage_that_is_no_number_of_64_bits_has_no_attribute_of_its_own() -> None:
    step = StepRecord(
        id="a",
        type="llm",
        generation=Raw(encode_generation(Generation(prompt=raw("x"), usage=Usage(input_tokens=2**70)))),
    )
    span = span_of(step)
    assert "gen_ai.usage.input_tokens" not in span.attributes
    assert read_own(span).generation == step.generation
