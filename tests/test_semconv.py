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
    Span,
    SpanEvent,
    SpanLink,
    span_of,
    step_of,
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


@pytest.mark.usefixtures("untraced")
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
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


# -- told by a convention alone, and read by it


def read_by(step: StepRecord, convention: Convention) -> dict[str, Any]:
    """Return what is read of a step's span when it has a convention's attributes and none of ours."""
    span = span_of(step, conventions=[convention])
    span.attributes = {name: value for name, value in span.attributes.items() if not name.startswith("stepwell.")}
    told: dict[str, Any] = json.loads(encode_record(step_of(span)))
    return told


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_call_is_read_by_the_convention_it_was_told_in(convention: Convention) -> None:
    sent = call()
    told = read_by(sent, convention)
    generation, expected = told["generation"], json.loads(bytes(sent.generation))
    same = ["type", "provider", "model", "response_model", "messages", "message_completion", "settings", "tools"]
    for name in [*same, "stop_reason", "usage"]:
        assert (name, generation[name]) == (name, expected[name])
    assert (told["id"], told["parent_id"], told["thread_id"], told["user"]) == (
        sent.id,
        sent.parent_id,
        sent.thread_id,
        "ada",
    )
    if convention == "genai":
        assert (generation["ttft_ns"], generation["response_id"]) == (250_000_000, "chatcmpl-1")
    else:
        assert (generation["cost"], told["tags"], told["metadata"]) == ({"total": 0.25}, ["x"], {"k": 1})


def of_type(type: str, **fields: Any) -> StepRecord:
    given = {"kind": "step", "id": "a", "trace_id": "b", "parent_id": "c", "type": type, "name": "n", **fields}
    step = decode_record(bytes(raw({"start_ns": 5, "end_ns": 9, "status": "success", **given})))
    assert isinstance(step, StepRecord)
    return step


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("type", ["run", "llm", "tool", "embedding", "retrieval", "rerank"])
def test_types_are_read_by_the_convention_they_were_told_in(type: str, convention: Convention) -> None:
    agent = of_type(type, agent_id="guide", generation={"prompt": "Hi", "model": "m"})
    assert read_by(agent, convention)["type"] == type


def test_a_search_is_told_with_its_query_and_documents() -> None:
    found = {"hits": [{"id": 7, "text": "deep", "score": 0.5, "metadata": {"page": 1}}, "dry"]}
    attributes = span_of(of_type("retrieval", input={"query": "wells"}, output=found)).attributes
    assert attributes["gen_ai.retrieval.query.text"] == "wells"
    assert json.loads(attributes["gen_ai.retrieval.documents"]) == [{"id": "7", "score": 0.5}]
    told = {name.removeprefix("retrieval.documents."): value for name, value in attributes.items()}
    assert (told["0.document.id"], told["0.document.score"], told["0.document.content"]) == ("7", 0.5, "deep")
    assert (told["0.document.metadata"], told["1.document.content"]) == ('{"page":1}', "dry")


def test_a_ranking_is_told_with_its_query_and_documents() -> None:
    step = of_type("rerank", input={"query": "wells"}, output=["deep"], generation={"model": "ranker"})
    attributes = span_of(step).attributes
    assert attributes["gen_ai.operation.name"] == "rerank"
    assert (attributes["reranker.query"], attributes["reranker.model_name"]) == ("wells", "ranker")
    assert attributes["reranker.output_documents.0.document.content"] == "deep"


@pytest.mark.parametrize("input", ["one", ["one"], {"texts": ["one"]}, {"x": "one"}])
def test_an_embedding_is_told_with_its_texts(input: object) -> None:
    attributes = span_of(of_type("embedding", input=input, generation={"model": "m"})).attributes
    assert attributes["embedding.embeddings.0.embedding.text"] == "one"
    assert (attributes["embedding.model_name"], attributes["gen_ai.operation.name"]) == ("m", "embeddings")


def test_a_completion_is_told_as_one() -> None:
    step = of_type("llm", generation={"type": "completion", "prompt": "Once", "completion": " upon", "model": "m"})
    span = span_of(step)
    assert span.attributes["gen_ai.operation.name"] == "text_completion"
    told = read_by(step, "openinference")["generation"]
    assert (told["type"], told["prompt"], told["completion"]) == ("completion", "Once", " upon")


def test_scores_are_annotations_and_events() -> None:
    score = {
        "id": "s",
        "name": "relevance",
        "type": "AI",
        "value": 0.5,
        "label": "ok",
        "comment": "why",
        "created_ns": 7,
    }
    step = of_type("tool", scores=[score])
    span = span_of(step)
    [event] = span.events
    assert (event.name, event.time_ns) == ("gen_ai.evaluation.result", 7)
    assert event.attributes == {
        "gen_ai.evaluation.name": "relevance",
        "gen_ai.evaluation.score.value": 0.5,
        "gen_ai.evaluation.score.label": "ok",
        "gen_ai.evaluation.explanation": "why",
    }
    [told] = read_by(step, "openinference")["scores"]
    assert told == {name: value for name, value in score.items() if name != "created_ns"}


EVENT = {"name": "tried", "time_ns": 7, "attributes": {"n": 1, "why": ["late", "dry"]}}
LINK = {"trace_id": f"{5:032x}", "span_id": f"{6:016x}", "attributes": {"why": "batch"}}


@pytest.mark.parametrize(
    "metadata",
    [
        {"events": [EVENT]},
        {"a": 1, "links": [LINK, LINK], "b": 2, "events": [EVENT, {**EVENT, "name": "exception"}], "c": 3},
    ],
)
def test_events_and_links_are_the_spans_own_and_not_in_its_metadata(metadata: dict[str, Any]) -> None:
    error, scores = {"type": "ValueError"}, [{"id": "s", "value": 0.5}]
    step = of_type("tool", metadata=metadata, error=error, scores=scores)
    span = span_of(step)
    assert [(event.name, event.time_ns) for event in span.events] == [
        *((each["name"], 7) for each in metadata["events"]),
        ("exception", 9),
        ("gen_ai.evaluation.result", 9),
    ]
    assert span.events[0].attributes == {"n": 1, "why": ["late", "dry"]}
    assert list(span.links) == [SpanLink(5, 6, {"why": "batch"})] * len(metadata.get("links", ()))
    rest = {name: value for name, value in metadata.items() if name not in ("events", "links")}
    assert json.loads(span.attributes.get("metadata", "{}")) == rest
    assert "tried" not in json.dumps(span.attributes)
    assert step_of(span) == step


@pytest.mark.parametrize(
    "metadata",
    [
        {"events": [EVENT, "mine"]},
        {"events": [{**EVENT, "attributes": {"deep": {"er": 1}}}]},
        {"events": [{**EVENT, "attributes": {"large": 2**70}}]},
        {"events": [{**EVENT, "more": 1}]},
        {"links": [LINK, {**LINK, "span_id": "0" * 16}]},
    ],
)
def test_events_and_links_that_a_span_would_tell_otherwise_are_in_the_metadata_as_well(
    metadata: dict[str, Any],
) -> None:
    step = of_type("tool", metadata=metadata)
    span = span_of(step)
    assert (len(span.events), len(span.links)) == (len(metadata.get("events", ())) and 1, "links" in metadata)
    assert json.loads(span.attributes["metadata"]) == metadata
    assert step_of(span) == step


@pytest.mark.parametrize("metadata", [{"events": "mine"}, {"links": {}}, {"events": []}, ["events"], "links", None])
def test_metadata_that_only_looks_like_events_stays_metadata(metadata: object) -> None:
    step = of_type("tool", metadata=metadata)
    span = span_of(step)
    assert (list(span.events), list(span.links)) == ([], [])
    assert step_of(span) == step


@pytest.mark.usefixtures("untraced")
@given(
    st.lists(
        st.fixed_dictionaries({"name": records.texts, "time_ns": records.times, "attributes": records.attributes})
    ),
    st.permutations(["events", "links", "k"]),
    conventions,
)
def test_any_events_come_back_equal(
    events: list[dict[str, Any]], names: list[str], conventions: list[Convention]
) -> None:
    held: dict[str, Any] = {"events": events, "links": [{**LINK, "attributes": each["attributes"]} for each in events]}
    step = of_type("tool", metadata={name: held.get(name, 1) for name in names})
    assert step_of(span_of(step, conventions=conventions)) == step


def test_events_and_links_of_a_foreign_span_are_its_own_again_when_they_are_sent_on() -> None:
    event, link = SpanEvent("tried", 3, {"n": 1}), SpanLink(7, 8, {})
    taken = step_of(Span(5, 6, start_ns=1, end_ns=9, events=[event], links=[link]))
    sent = span_of(taken)
    assert (list(sent.events), list(sent.links)) == ([event], [link])
    assert step_of(sent) == taken


def test_where_a_model_is_called_is_told_as_a_server() -> None:
    def told(endpoint: str) -> dict[str, Any]:
        attributes = span_of(of_type("llm", generation={"prompt": "x", "model_endpoint": endpoint})).attributes
        return {name: value for name, value in attributes.items() if name.startswith("server.")}

    assert told("https://api.example.com/v1") == {"server.address": "api.example.com", "server.port": 443}
    assert told("http://localhost:8080") == {"server.address": "localhost", "server.port": 8080}
    assert told("http://[") == told("none") == {}


def test_messages_of_other_providers_become_parts() -> None:
    messages = [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm"},
                {"type": "tool_use", "id": "a", "name": "search", "input": {"q": 1}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "dry"}]},
        {
            "role": "user",
            "content": [
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                {"type": "image_url", "image_url": {"url": "data:image/gif;base64,BBBB"}},
                {"type": "input_image", "image_url": "https://x/y.png"},
                {"type": "strange", "field": 1},
            ],
        },
        {"type": "function_call", "call_id": "b", "name": "search", "arguments": '{"q":2}'},
        {"type": "function_call_output", "call_id": "b", "output": "wet"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{not json"}},
        "plain",
    ]
    step = of_type("llm", generation={"messages": messages})
    told = json.loads(span_of(step).attributes["gen_ai.input.messages"])
    assert [(each["role"], each["parts"]) for each in told] == [
        (
            "assistant",
            [
                {"type": "reasoning", "content": "hm"},
                {"type": "tool_call", "name": "search", "id": "a", "arguments": {"q": 1}},
            ],
        ),
        ("user", [{"type": "tool_call_response", "id": "a", "response": "dry"}]),
        (
            "user",
            [
                {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "AAAA"},
                {"type": "blob", "modality": "image", "mime_type": "image/gif", "content": "BBBB"},
                {"type": "uri", "modality": "image", "uri": "https://x/y.png"},
                {"type": "strange", "field": 1},
            ],
        ),
        ("assistant", [{"type": "tool_call", "name": "search", "id": "b", "arguments": {"q": 2}}]),
        ("tool", [{"type": "tool_call_response", "id": "b", "response": "wet"}]),
        ("assistant", [{"type": "tool_call", "name": "f", "id": None, "arguments": "{not json"}]),
        ("user", [{"type": "text", "content": "plain"}]),
    ]
    flat = span_of(step).attributes
    assert (
        flat["llm.input_messages.2.message.contents.0.message_content.image.image.url"] == "data:image/png;base64,AAAA"
    )
    assert flat["llm.input_messages.1.message.tool_call_id"] == "a"


def test_a_span_that_was_cut_on_its_way_is_read_as_far_as_it_goes() -> None:
    span = span_of(call())
    attributes = dict(span.attributes)
    attributes["gen_ai.input.messages"] = attributes["gen_ai.input.messages"][:20]
    del attributes["metadata"]
    span.attributes = attributes
    step = step_of(span)
    assert (step.id, step.thread_id, step.tags) == (call().id, "t-1", ["x"])
    generation = json.loads(bytes(step.generation))
    assert (generation["model"], generation["completion"], "messages" in generation) == ("gpt-4o", "Rainy", False)
    attributes["stepwell.generation"] = "{"
    attributes["stepwell.type"] = "strange"
    assert step_of(span).type == "llm"  # as the conventions say
