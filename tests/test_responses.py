"""A provider's response becomes output, generation and usage, whole or in chunks."""

from __future__ import annotations

import asyncio
import copy
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pydantic
import pytest

import stepwell as sw
from stepwell import _stream
from stepwell.responses import Parsed, is_response, merge_chunks, parse_response
from stepwell.testing import Captured, FakeClock

CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "gpt-4o-2024-08-06",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 1},
    },
}
CHAT_USAGE = {
    "input_tokens": 9,
    "output_tokens": 2,
    "total_tokens": 11,
    "cached_input_tokens": 4,
    "reasoning_tokens": 1,
}
COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "model": "davinci",
    "choices": [{"text": "Hi", "index": 0, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
}
RESPONSE = {
    "id": "resp-1",
    "object": "response",
    "status": "completed",
    "model": "gpt-5",
    "output": [
        {"type": "reasoning", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi "}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "there"}]},
        {"type": "function_call", "call_id": "c1", "name": "search", "arguments": "{}"},
    ],
    "usage": {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 2},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 8,
    },
}
RESPONSE_MESSAGE = {
    "role": "assistant",
    "content": "Hi there",
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "search", "arguments": "{}"}}],
}
MESSAGE = {
    "id": "msg-1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [{"type": "text", "text": "Hi"}],
    "stop_reason": "end_turn",
    "usage": {
        "input_tokens": 5,
        "output_tokens": 2,
        "cache_read_input_tokens": 10,
        "cache_creation_input_tokens": 3,
    },
}


class Choice(pydantic.BaseModel):
    message: dict[str, Any]
    finish_reason: str


class ChatObject(pydantic.BaseModel):
    id: str
    model: str
    choices: list[Choice]
    system_fingerprint: str | None = None


def openai_chunk(content: str | None = None, **choice: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta, **choice}]}


# -- whole responses


def test_a_string_is_a_completion_and_a_message() -> None:
    message = {"role": "assistant", "content": "Hi"}
    assert parse_response("Hi") == Parsed("Hi", {"message_completion": message, "completion": "Hi"}, {})


def test_a_chat_completion_of_openai_is_read() -> None:
    message = {"role": "assistant", "content": "Hi"}
    assert parse_response(CHAT) == Parsed(
        message,
        {
            "provider_response": CHAT,
            "response_model": "gpt-4o-2024-08-06",
            "response_id": "chatcmpl-1",
            "stop_reason": "stop",
            "message_completion": message,
        },
        CHAT_USAGE,
    )


def test_a_text_completion_of_openai_is_read() -> None:
    parsed = parse_response(COMPLETION)
    assert (parsed.output, parsed.generation["completion"], parsed.generation["stop_reason"]) == ("Hi", "Hi", "length")
    assert parsed.usage == {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4}


def test_an_answer_of_the_responses_api_is_read() -> None:
    parsed = parse_response(RESPONSE)
    assert parsed.output == parsed.generation["message_completion"] == RESPONSE_MESSAGE
    assert (parsed.generation["response_id"], parsed.generation["stop_reason"]) == ("resp-1", "completed")
    assert parsed.usage == {
        "input_tokens": 5,
        "output_tokens": 3,
        "total_tokens": 8,
        "cached_input_tokens": 2,
        "reasoning_tokens": 1,
    }


def test_an_incomplete_answer_of_the_responses_api_says_why() -> None:
    cut = {**RESPONSE, "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    assert parse_response(cut).generation["stop_reason"] == "max_output_tokens"


def test_a_message_of_anthropic_is_read_and_its_cached_tokens_are_input() -> None:
    parsed = parse_response(MESSAGE)
    assert parsed.output == {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]}
    assert (parsed.generation["response_model"], parsed.generation["stop_reason"]) == ("claude", "end_turn")
    assert parsed.usage == {
        "input_tokens": 18,
        "output_tokens": 2,
        "cached_input_tokens": 10,
        "cache_write_tokens": 3,
    }


def test_an_object_of_a_providers_library_is_read_as_its_dict() -> None:
    made = ChatObject(
        id="x", model="m", choices=[Choice(message={"role": "assistant", "content": "Hi"}, finish_reason="stop")]
    )
    parsed = parse_response(made)
    assert parsed.output == {"role": "assistant", "content": "Hi"}
    assert parsed.generation["provider_response"] == made.model_dump(exclude_none=True)


@pytest.mark.parametrize("value", [None, 5, [1], object(), ChatObject, b"x"])
def test_anything_else_is_the_output(value: Any) -> None:
    assert parse_response(value) == Parsed(value, {}, {})


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"choices": None},
        {"choices": []},
        {"choices": "text"},
        {"choices": [None]},
        {"choices": [{"message": "text"}]},
        {"choices": [{"text": 5}]},
        {"usage": 5, "model": 5, "id": []},
        {"usage": {"prompt_tokens": "many", "completion_tokens": True, "total_tokens": -1}},
        {"usage": {"prompt_tokens_details": 5, "cache_read_input_tokens": None}},
        {"type": "error", "error": {"message": "overloaded"}},
    ],
)
def test_a_dict_of_another_shape_is_the_output_and_kept(odd: dict[str, Any]) -> None:
    assert parse_response(odd) == Parsed(odd, {"provider_response": odd}, {})


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        ("text", True),
        (CHAT, True),
        (COMPLETION, True),
        (RESPONSE, True),
        (MESSAGE, True),
        ({"role": "assistant", "content": None}, True),
        ({"a": 1}, False),
        ({}, False),
        (5, False),
        (None, False),
    ],
)
def test_is_response_knows_an_answer_by_its_shape(value: Any, is_one: bool) -> None:
    assert is_response(value) is is_one


def test_a_message_alone_is_the_answer() -> None:
    message = {"role": "assistant", "content": "Hi", "refusal": None}
    assert parse_response(message).generation["message_completion"] == message


def test_record_puts_a_response_on_the_step(captured: Captured) -> None:
    with sw.llm("x", model="gpt-4o", messages=[]) as step:
        step.record(CHAT)
    fields = captured.fields("x")
    assert fields["output"] == {"role": "assistant", "content": "Hi"}
    assert fields["generation"]["usage"] == CHAT_USAGE
    assert fields["generation"]["response_model"] == "gpt-4o-2024-08-06"
    assert fields["generation"]["provider_response"] == CHAT


# -- chunks


def test_strings_are_joined() -> None:
    assert merge_chunks(["a", "", "b"]).output == "ab"


def test_chunks_of_openai_are_joined() -> None:
    chunks = [openai_chunk(""), openai_chunk("Hi"), openai_chunk(" you", finish_reason="stop")]
    usage = {"id": "c", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
    assert merge_chunks([*chunks, usage]) == Parsed(
        "Hi you",
        {
            "response_model": "m",
            "response_id": "c",
            "stop_reason": "stop",
            "message_completion": {"role": "assistant", "content": "Hi you"},
            "completion": "Hi you",
        },
        {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
    )


def test_tool_calls_of_openai_are_joined() -> None:
    def part(index: int, **rest: Any) -> dict[str, Any]:
        return {"choices": [{"delta": {"tool_calls": [{"index": index, **rest}]}}]}

    parsed = merge_chunks(
        [
            part(0, id="c1", function={"name": "search", "arguments": ""}),
            part(0, function={"arguments": '{"q":'}),
            part(1, id="c2", function={"name": "add", "arguments": "{}"}),
            part(0, function={"arguments": '"tea"}'}),
        ]
    )
    calls = [
        {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q":"tea"}'}},
        {"id": "c2", "type": "function", "function": {"name": "add", "arguments": "{}"}},
    ]
    assert parsed.output == {"role": "assistant", "content": "", "tool_calls": calls}


ANTHROPIC = [
    {
        "type": "message_start",
        "message": {
            "id": "msg",
            "model": "claude",
            "usage": {"input_tokens": 5, "output_tokens": 1, "cache_read_input_tokens": 2},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "!"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
]


def test_events_of_anthropic_are_joined() -> None:
    parsed = merge_chunks(ANTHROPIC)
    assert parsed.output == "Hi!"
    assert parsed.usage == {"input_tokens": 7, "output_tokens": 9, "cached_input_tokens": 2}
    assert parsed.generation == {
        "response_model": "claude",
        "response_id": "msg",
        "stop_reason": "end_turn",
        "message_completion": {"role": "assistant", "content": "Hi!"},
        "completion": "Hi!",
    }


def test_tool_use_of_anthropic_is_joined() -> None:
    parsed = merge_chunks(
        [
            {
                "type": "content_block_start",
                "index": 1,
                "content_block": {"type": "tool_use", "id": "t", "name": "add"},
            },
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a"'}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ":1}"}},
        ]
    )
    (call,) = parsed.output["tool_calls"]
    assert call == {"id": "t", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}}


def test_events_of_the_responses_api_are_joined() -> None:
    deltas = [{"type": "response.output_text.delta", "delta": text} for text in ("Hi", "!")]
    assert merge_chunks(deltas).output == "Hi!"
    done = {"type": "response.completed", "response": RESPONSE}
    assert merge_chunks([*deltas, done]) == parse_response(RESPONSE)


def test_chunks_that_say_nothing_are_the_output_as_they_are() -> None:
    assert merge_chunks([1, None]) == Parsed([1, None], {}, {})
    assert merge_chunks([]) == Parsed([], {}, {})


def test_odd_chunks_are_passed_over() -> None:
    odd = [
        {"choices": [{"delta": None}]},
        {"delta": {"tool_calls": [None, 5]}},
        {"choices": [{"delta": {"content": 5}}]},
    ]
    assert merge_chunks([*odd, "Hi"]).output in (
        "Hi",
        {
            "role": "assistant",
            "content": "Hi",
            "tool_calls": [{"id": None, "type": "function", "function": {"name": None, "arguments": ""}}],
        },
    )


# -- stream()


def numbers(*chunks: Any, error: BaseException | None = None) -> Iterator[Any]:
    yield from chunks
    if error is not None:
        raise error


async def later(*chunks: Any, error: BaseException | None = None) -> AsyncIterator[Any]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk
    if error is not None:
        raise error


class Manager:
    """As Anthropic's `messages.stream()`: entering it gives the stream."""

    def __init__(self, swallow: bool = False) -> None:
        self.left: list[Any] = []
        self.swallow = swallow

    def __enter__(self) -> Iterator[str]:
        return iter(["a", "b"])

    def __exit__(self, *raised: object) -> bool:
        self.left.append(raised[0])
        return self.swallow

    async def __aenter__(self) -> AsyncIterator[str]:
        return later("a", "b")

    async def __aexit__(self, *raised: object) -> bool:
        return self.__exit__(*raised)


class Closing:
    def __init__(self) -> None:
        self.closed = 0
        self.response = "attribute"

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __aiter__(self) -> AsyncIterator[str]:
        return later("a", "b")

    def close(self) -> None:
        self.closed += 1

    async def aclose(self) -> None:
        self.closed += 1


def test_every_chunk_comes_through_and_is_recorded(captured: Captured) -> None:
    with FakeClock(start_ns=0) as clock, sw.llm("x", messages=[]) as step:
        clock.advance(7)
        seen = []
        for chunk in step.stream(openai_chunk(text) for text in "Hi"):
            clock.advance(1)
            seen.append(chunk["choices"][0]["delta"]["content"])
    assert seen == ["H", "i"]
    fields = captured.fields("x")
    assert (fields["output"], fields["generation"]["ttft_ns"], fields["generation"]["completion"]) == ("Hi", 7, "Hi")


def test_an_async_stream_comes_through_and_is_recorded(captured: Captured) -> None:
    async def main() -> list[str]:
        async with sw.llm("x", messages=[]) as step:
            return [chunk async for chunk in step.stream(later("a", "b"))]

    assert asyncio.run(main()) == ["a", "b"]
    assert captured.fields("x")["output"] == "ab"


def test_what_came_before_a_break_is_recorded(captured: Captured) -> None:
    with sw.llm("x", messages=[]) as step:
        for _ in step.stream(numbers("a", "b", "c")):
            break
    assert captured.fields("x")["output"] == "a"


def test_what_came_before_a_break_is_recorded_when_the_stream_is_kept(captured: Captured) -> None:
    with sw.llm("x", messages=[]) as step:
        stream = step.stream(numbers("a", "b", "c"))
        for chunk in stream:
            if chunk == "b":
                break
    assert captured.fields("x")["output"] == "ab"
    assert list(stream) == ["c"]


def test_what_came_before_an_async_break_is_recorded(captured: Captured) -> None:
    async def main() -> None:
        async with sw.llm("x", messages=[]) as step:
            async for _ in step.stream(later("a", "b")):
                break
            gc.collect()

    asyncio.run(main())
    assert captured.fields("x")["output"] == "a"


def test_an_error_in_the_stream_comes_through_after_what_was_recorded(captured: Captured) -> None:
    error = ValueError("cut off")
    with pytest.raises(ValueError, match="cut off") as raised, sw.llm("x", messages=[]) as step:
        list(step.stream(numbers("a", error=error)))
    assert raised.value is error
    assert (captured.step("x").status, captured.fields("x")["output"]) == ("failed", "a")


def test_an_error_in_an_async_stream_comes_through(captured: Captured) -> None:
    async def main() -> None:
        async with sw.llm("x", messages=[]) as step:
            async for _ in step.stream(later("a", error=ValueError("cut off"))):
                pass

    with pytest.raises(ValueError, match="cut off"):
        asyncio.run(main())
    assert (captured.step("x").status, captured.fields("x")["output"]) == ("failed", "a")


def test_a_stream_that_is_none_raises_what_python_raises(captured: Captured) -> None:
    wrong: Any = 5
    with sw.llm("x", messages=[]) as step:
        with pytest.raises(TypeError, match="'int' object is not iterable"):
            next(step.stream(wrong))
        with pytest.raises(TypeError):
            asyncio.run(anext(step.stream(wrong)))  # type: ignore[arg-type]


def test_an_empty_stream_is_no_output(captured: Captured) -> None:
    with sw.llm("x", messages=[]) as step:
        assert list(step.stream([])) == []
    assert "output" not in captured.fields("x")


def test_attributes_of_the_stream_are_reached_through_it(captured: Captured) -> None:
    with sw.llm("x", messages=[]) as step:
        stream = step.stream(Closing())
        assert stream.response == "attribute"
        with pytest.raises(AttributeError, match="missing"):
            _ = stream.missing


def test_a_stream_whose_manager_gives_another_iterator_is_read_from_that(captured: Captured) -> None:
    manager = Manager()
    with sw.llm("x", messages=[]) as step, step.stream(manager) as stream:  # type: ignore[arg-type]
        assert list(stream) == ["a", "b"]
    assert manager.left == [None]
    assert captured.fields("x")["output"] == "ab"


def test_an_async_stream_whose_manager_gives_another_iterator_is_read_from_that(captured: Captured) -> None:
    manager = Manager()

    async def main() -> None:
        async with sw.llm("x", messages=[]) as step, step.stream(manager) as stream:  # type: ignore[arg-type]
            assert [chunk async for chunk in stream] == ["a", "b"]

    asyncio.run(main())
    assert manager.left == [None]


@pytest.mark.parametrize("swallow", [True, False])
def test_a_manager_may_swallow_what_was_raised(swallow: bool, captured: Captured) -> None:
    manager = Manager(swallow)

    def sync() -> None:
        with sw.llm("x", messages=[]) as step, step.stream(manager):  # type: ignore[arg-type]
            raise KeyError

    async def soon() -> None:
        async with sw.llm("x", messages=[]) as step, step.stream(manager):  # type: ignore[arg-type]
            raise KeyError

    for run in (sync, lambda: asyncio.run(soon())):
        if swallow:
            run()
        else:
            with pytest.raises(KeyError):
                run()
    assert manager.left == [KeyError, KeyError]
    assert {step.status for step in captured.steps} == {"success" if swallow else "failed"}


def test_a_stream_that_only_closes_is_closed_by_the_block(captured: Captured) -> None:
    closing = Closing()

    async def main() -> None:
        async with sw.llm("x", messages=[]) as step, step.stream(closing) as stream:
            assert [chunk async for chunk in stream] == ["a", "b"]

    with sw.llm("x", messages=[]) as step, step.stream(closing) as stream:
        assert list(stream) == ["a", "b"]
    asyncio.run(main())
    assert closing.closed == 2


def test_a_list_needs_no_closing(captured: Captured) -> None:
    async def main() -> None:
        async with sw.llm("y", messages=[]) as step, step.stream(["a"]):
            pass

    with sw.llm("x", messages=[]) as step, step.stream(["a"]) as stream:
        assert list(stream) == ["a"]
    asyncio.run(main())


def test_what_is_kept_of_a_stream_is_bounded(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_stream, "MAX_CHUNKS", 3)
    with sw.llm("x", messages=[]) as step:
        assert len(list(step.stream("abcdef"))) == 6
    assert captured.fields("x")["output"] == "abc"
    monkeypatch.setattr(_stream, "MAX_CHUNKS", 100)
    monkeypatch.setattr(_stream, "MAX_CHUNK_BYTES", 2)
    with sw.llm("y", messages=[]) as step:
        assert len(list(step.stream("abcdef"))) == 6
    assert captured.fields("y")["output"] == "ab"


def test_a_copy_of_a_stream_records_nothing_of_its_own(captured: Captured) -> None:
    with sw.llm("x", messages=[]) as step:
        stream = step.stream(iter("ab"))
        with pytest.raises(AttributeError):
            _ = object.__new__(type(stream)).missing
        copy.copy(stream)
        assert list(stream) == ["a", "b"]
    assert captured.fields("x")["output"] == "ab"
