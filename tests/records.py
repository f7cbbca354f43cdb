"""Any record: strategies for hypothesis."""

from __future__ import annotations

import json
from typing import Any, get_args

from hypothesis import strategies as st
from msgspec import UNSET, Raw
from msgspec import json as mjson

from stepwell._vocabulary import ScoreType, Status, StepType
from stepwell.model import Attachment, ErrorInfo, Generation, Score, ScoreRecord, StepRecord, ThreadRecord, Usage, User

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
ids = st.one_of(
    st.uuids().map(str),
    st.integers(0, 2**64 - 1).map(lambda n: f"{n:016x}"),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
)
times = st.integers(-(2**65), 2**65) | st.integers(10**18, 2 * 10**18)
counts = st.integers(0, 2**40)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
attributes = st.dictionaries(texts, values, max_size=3)
calls = st.fixed_dictionaries(
    {
        "id": texts,
        "type": st.just("function"),
        "function": st.fixed_dictionaries({"name": texts, "arguments": texts | values.map(json.dumps)}),
    }
)
parts = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": texts}),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": texts})}),
    st.fixed_dictionaries({"type": st.just("tool_use"), "id": texts, "name": texts, "input": values}),
    st.fixed_dictionaries({"type": st.just("tool_result"), "tool_use_id": texts, "content": values}),
    values,
)
messages = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "x"]), "content": texts},
        optional={"tool_calls": st.lists(calls, max_size=2), "name": texts, "tool_call_id": texts},
    ),
    st.fixed_dictionaries({"role": st.just("user"), "content": st.lists(parts, max_size=3)}),
    st.fixed_dictionaries({"role": st.just("assistant"), "content": st.none(), "tool_calls": st.lists(calls)}),
    values,
)


def encoded(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Raw]:
    """JSON of a value: as the recorder writes it, or another way."""
    compact = strategy.map(lambda value: Raw(mjson.encode(value)))
    return compact | strategy.map(lambda value: Raw(json.dumps(value, indent=1).encode()))


payloads: st.SearchStrategy[Any] = st.just(UNSET) | encoded(values)


def built(kind: type[Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(kind, **{name: st.none() | each for name, each in fields.items()})


def with_payloads(strategy: st.SearchStrategy[Any], *names: str) -> st.SearchStrategy[Any]:
    def put(record: Any, payloads: list[Any]) -> Any:
        for name, payload in zip(names, payloads, strict=True):
            setattr(record, name, payload)
        return record

    return st.builds(put, strategy, st.tuples(*[payloads for _ in names]).map(list))


score_fields: dict[str, st.SearchStrategy[Any]] = {
    "name": texts,
    "step_id": ids,
    "type": st.sampled_from(get_args(ScoreType)),
    "value": st.floats(allow_nan=False, allow_infinity=False),
    "label": texts,
    "comment": texts,
    "tags": st.lists(texts, max_size=2),
    "created_ns": times,
}


def with_id(kind: type[Any], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(kind, id=ids, **{name: st.none() | each for name, each in fields.items()})


scores = with_id(Score, **score_fields)
score_records = with_id(ScoreRecord, **score_fields)
attachments = with_payloads(
    with_id(Attachment, name=texts, mime=texts, size=counts, sha256=texts, url=texts), "metadata"
)
errors = built(ErrorInfo, type=texts, message=texts, traceback=texts)
usages = built(Usage, **dict.fromkeys(Usage.__struct_fields__, counts))


def with_messages(generation: Generation, given: list[Any]) -> Generation:
    generation.messages, generation.message_completion, generation.tools = given
    return generation


generations = st.builds(
    with_messages,
    with_payloads(
        built(
            Generation,
            type=st.sampled_from(["chat", "completion"]),
            provider=texts | st.sampled_from(["openai", "azure"]),
            model=texts,
            response_model=texts,
            prompt_id=texts,
            usage=usages,
            ttft_ns=counts,
            tokens_per_second=st.floats(0, 1e6),
            stop_reason=texts,
            response_id=texts,
            model_endpoint=texts | st.just("https://api.example.com/v1"),
        ),
        *("prompt", "completion", "settings", "variables", "cost", "provider_request", "provider_response"),
    ),
    st.tuples(
        st.just(UNSET) | encoded(st.lists(messages, max_size=4)),
        st.just(UNSET) | encoded(messages),
        st.just(UNSET) | encoded(st.lists(values, max_size=2)),
    ).map(list),
)
generation_payloads: st.SearchStrategy[Any] = st.one_of(
    st.just(UNSET), generations.map(lambda value: Raw(mjson.encode(value))), st.just(Raw(b"null")), encoded(values)
)


def with_generation(step: StepRecord, generation: Any) -> StepRecord:
    step.generation = generation
    return step


steps: st.SearchStrategy[StepRecord] = st.builds(
    with_generation,
    with_payloads(
        with_id(
            StepRecord,
            trace_id=st.integers(0, 2**128 - 1).map(lambda n: f"{n:032x}") | ids,
            parent_id=ids,
            thread_id=ids,
            root_run_id=ids,
            type=st.sampled_from(get_args(StepType)),
            name=texts,
            start_ns=times,
            end_ns=times,
            status=st.sampled_from(get_args(Status)),
            error=errors,
            tags=st.lists(texts, max_size=3),
            attachments=st.lists(attachments, max_size=2),
            scores=st.lists(scores, max_size=2),
            downgraded_from=st.sampled_from(get_args(StepType)),
            child_count=counts,
            active_ns=counts,
            agent_id=texts,
            user=texts,
            environment=texts,
            release=texts,
            service=texts,
            sdk=texts,
        ),
        *("input", "output", "metadata"),
    ),
    generation_payloads,
)
threads: st.SearchStrategy[ThreadRecord] = with_payloads(
    with_id(
        ThreadRecord,
        name=texts,
        user=with_payloads(built(User, id=texts, identifier=texts), "metadata"),
        tags=st.lists(texts, max_size=2),
        environment=texts,
        created_ns=times,
    ),
    "metadata",
)
