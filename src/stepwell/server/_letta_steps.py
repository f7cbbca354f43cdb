"""From a step's record to what Letta's API says of it: the step, its metrics, its provider trace, its run.

Pure functions. Field names and words are those of letta-client 1.12.1 (`types/step.py`, `types/provider_trace.py`,
`types/agents/run.py`, `types/steps/metric_retrieve_response.py`). What Letta's vocabulary has no word for is absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from msgspec import UNSET, Raw, UnsetType, json

from stepwell.model import Generation, Score, StepRecord, Usage, decode_payload
from stepwell.server._letta_messages import date_of, derived_id, generation_of, run_id_of, step_id_of
from stepwell.store import StepRow

__all__ = [
    "feedback_of",
    "feedback_records",
    "letta_metrics",
    "letta_run",
    "letta_spans",
    "letta_step",
    "letta_trace",
    "letta_usage",
]

Json = dict[str, Any]
FEEDBACK: Final = "feedback"
WITHDRAWN: Final = "withdrawn"
SUPERSEDED: Final = "feedback-superseded"
_LABELS: Final = {"positive": 1.0, "negative": 0.0}
# Letta has no `interrupted`: what ended with its process has failed, and its error says how.
_STATUSES: Final = {"interrupted": "failed"}
_RUN_STATUSES: Final = {
    "pending": "running",
    "success": "completed",
    "failed": "failed",
    "cancelled": "cancelled",
    "interrupted": "failed",
}
_STOP_REASONS: Final = {
    "stop": "end_turn",
    "stop_sequence": "end_turn",
    "completed": "end_turn",
    "length": "max_tokens_exceeded",
    "max_tokens": "max_tokens_exceeded",
    "max_output_tokens": "max_tokens_exceeded",
    "content_filter": "error",
    "refusal": "error",
}
_LETTA_STOP_REASONS: Final = frozenset(
    {
        *("end_turn", "error", "llm_api_error", "invalid_llm_response", "invalid_tool_call", "max_steps"),
        *("max_tokens_exceeded", "no_tool_call", "tool_rule", "cancelled", "insufficient_credits"),
        *("requires_approval", "context_window_overflow_in_system_prompt"),
    }
)
_NO_USAGE: Final = Usage()
_NULL: Final = Raw(b"null")


def letta_step(step: StepRecord) -> Json:
    """Return a step as Letta's; besides its fields, our `type`, `name`, `parent_id` and `thread_id`."""
    generation = generation_of(step)
    provider, model = generation.provider, generation.model or generation.response_model
    error_type, error_data = _error(step)
    return {
        "id": step_id_of(step.id),
        "origin": step.sdk,
        "project_id": step.service,
        "agent_id": step.agent_id,
        "run_id": run_id_of(step.root_run_id),
        "trace_id": step.trace_id,
        "request_id": generation.request_id,
        "provider_name": provider,
        "model": model,
        "model_handle": f"{provider}/{model}" if provider and model else model,
        "model_endpoint": generation.model_endpoint,
        "context_window_limit": generation.context_window_limit,
        **_tokens(generation.usage or _NO_USAGE),
        "status": _STATUSES.get(step.status, step.status) if step.status else None,
        "stop_reason": _stop_reason(step, generation),
        "error_type": error_type,
        "error_data": error_data,
        "feedback": feedback_of(step.scores or ()),
        "tags": step.tags or [],
        "messages": [],
        "type": step.type,
        "name": step.name,
        "parent_id": None if step.parent_id is None else step_id_of(step.parent_id),
        "thread_id": step.thread_id,
    }


def _tokens(usage: Usage) -> Json:
    prompt: Json = {}
    if usage.cached_input_tokens:
        prompt["cached_tokens"] = usage.cached_input_tokens
    if usage.cache_write_tokens:
        prompt["cache_creation_tokens"] = usage.cache_write_tokens
    completion = {"reasoning_tokens": usage.reasoning_tokens} if usage.reasoning_tokens else None
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": _total(usage),
        "cached_input_tokens": usage.cached_input_tokens or None,
        "cache_write_tokens": usage.cache_write_tokens or None,
        "reasoning_tokens": usage.reasoning_tokens or None,
        "prompt_tokens_details": prompt or None,
        "completion_tokens_details": completion,
    }


def _total(usage: Usage) -> int | None:
    if usage.total_tokens is not None or usage.input_tokens is None or usage.output_tokens is None:
        return usage.total_tokens
    return usage.input_tokens + usage.output_tokens


def _error(step: StepRecord) -> tuple[str | None, Json | None]:
    error = step.error
    data = None if error is None else {"message": error.message, "traceback": error.traceback, "details": None}
    if step.status != "interrupted":
        return (None if error is None else error.type), data
    return "interrupted", data or {
        "message": "the process ended before the step did",
        "traceback": None,
        "details": None,
    }


def _stop_reason(step: StepRecord, generation: Generation) -> str | None:
    if step.status == "cancelled":
        return "cancelled"
    if step.status in {"failed", "interrupted"}:
        return "llm_api_error" if step.type == "llm" and step.status == "failed" else "error"
    reason = generation.stop_reason
    if reason is None or reason in _LETTA_STOP_REASONS:
        return reason
    return _STOP_REASONS.get(reason)


# -- feedback


def feedback_of(scores: Iterable[Score]) -> str | None:
    """Return the verdict in force, as the store finds it: that of the latest score named `feedback`, if it is one."""
    said = [score for score in scores if score.name == FEEDBACK]
    if not said:
        return None
    label = max(enumerate(said), key=lambda each: (each[1].created_ns or 0, each[0]))[1].label
    return label if label in _LABELS else None


def feedback_records(step: StepRecord, feedback: str | None, tags: Sequence[str], now_ns: int) -> list[bytes]:
    """Return the records that make this verdict the one in force, none where it is already.

    Records only ever add, and may be delivered again. So nothing is deleted: the verdict given through this API is one
    score, its withdrawal another, whose ids follow from the step's; either is later than all that was said before, so
    that it stays in force when that is delivered again. Verdicts that no longer hold are named otherwise, so that
    counts of feedback have one a step.
    """
    records: list[Json] = []
    scores = step.scores or []
    if feedback_of(scores) != feedback:
        what = FEEDBACK if feedback else f"{FEEDBACK}/{WITHDRAWN}"
        own = {"kind": "score", "id": derived_id(step.id, what), "step_id": step.id, "name": FEEDBACK, "type": "HUMAN"}
        verdict = {"label": feedback, "value": _LABELS[feedback]} if feedback else {"label": WITHDRAWN}
        latest = max((score.created_ns or 0 for score in scores), default=0)
        past = [score.id for score in scores if score.name == FEEDBACK and score.label in _LABELS]
        records += [
            {"kind": "score", "id": id, "step_id": step.id, "name": SUPERSEDED} for id in past if id != own["id"]
        ]
        records.append({**own, **verdict, "created_ns": max(now_ns, latest + 1)})
    if new := [tag for tag in dict.fromkeys(tags) if tag not in (step.tags or ())]:
        records.append({"kind": "step", "id": step.id, "tags": new})
    return [json.encode(record) for record in records]


# -- metrics


def letta_metrics(step: StepRecord, tree: Sequence[StepRow]) -> Json:
    """Return how long a step and what is below it took, in nanoseconds; what is not known is null.

    Calls that run at the same time count once: `llm_request_ns` and `tool_execution_ns` are the time in which at least
    one of them ran, so of parallel tools it is the time of the longest, of tools in turn their sum.
    """
    models = [row for row in tree if row.type == "llm" or row.downgraded_from == "llm"]
    tools = [row for row in tree if row.type == "tool"]
    ended = step.start_ns is not None and step.end_ns is not None
    return {
        "id": step_id_of(step.id),
        "agent_id": step.agent_id,
        "project_id": step.service,
        "run_id": run_id_of(step.root_run_id),
        "step_start_ns": step.start_ns,
        "step_ns": (step.end_ns or 0) - (step.start_ns or 0) if ended else None,
        "llm_request_start_ns": min((row.start_ns for row in models if row.start_ns is not None), default=None),
        "llm_request_ns": _covered(models),
        "tool_execution_ns": _covered(tools),
    }


def _covered(rows: Iterable[StepRow]) -> int | None:
    """Return the time that at least one of the rows covers, None where none has an end."""
    spans = sorted((row.start_ns, row.end_ns) for row in rows if row.start_ns is not None and row.end_ns is not None)
    if not spans:
        return None
    total, reached = 0, spans[0][0]
    for start, end in spans:
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


# -- provider trace


def letta_trace(step: StepRecord) -> Json | None:
    """Return what was sent to the provider and what came back, as recorded, else built; None for no call of a model.

    Recorded objects stay JSON bytes (`msgspec.Raw`).
    """
    generation = generation_of(step)
    payloads = ("messages", "prompt", "message_completion", "completion", "provider_request", "provider_response")
    if not any(_is_present(getattr(generation, name)) for name in payloads):
        return None
    took = None if step.start_ns is None or step.end_ns is None else (step.end_ns - step.start_ns) // 1_000_000
    return {
        "id": f"provider_trace-{derived_id(step.id, 'trace')}",
        "step_id": step_id_of(step.id),
        "run_id": run_id_of(step.root_run_id),
        "agent_id": step.agent_id,
        "agent_tags": step.tags or [],
        "call_type": "agent_step",
        "source": step.sdk,
        "created_at": date_of(step.start_ns),
        "latency_ms": took,
        "llm_config": _present(
            model=generation.model,
            model_endpoint=generation.model_endpoint,
            provider_name=generation.provider,
            context_window=generation.context_window_limit,
        ),
        "request_json": _object(generation.provider_request) or _request(generation),
        "response_json": _object(generation.provider_response) or _response(generation),
    }


def _is_present(payload: Raw | UnsetType) -> bool:
    return payload is not UNSET and payload != _NULL


def _present(**fields: object) -> Json:
    return {
        name: value for name, value in fields.items() if value is not None and value is not UNSET and value != _NULL
    }


def _object(payload: Raw | UnsetType) -> Raw | Json | None:
    """Return a JSON object as it is, anything else inside of one: Letta's models allow no other."""
    if payload is UNSET or payload == _NULL:
        return None
    return payload if bytes(payload).lstrip().startswith(b"{") else {"body": payload}


def _request(generation: Generation) -> Json:
    settings = decode_payload(generation.settings)
    return _present(
        model=generation.model, messages=generation.messages, prompt=generation.prompt, tools=generation.tools
    ) | (settings if isinstance(settings, dict) else {})


def _response(generation: Generation) -> Json:
    answer = _present(message=generation.message_completion) or _present(text=generation.completion)
    usage = generation.usage
    tokens = None
    if usage is not None:
        tokens = _present(
            prompt_tokens=usage.input_tokens, completion_tokens=usage.output_tokens, total_tokens=_total(usage)
        )
    choice = {"index": 0, **answer, "finish_reason": generation.stop_reason}
    return _present(
        id=generation.response_id,
        model=generation.response_model,
        choices=[choice] if answer else None,
        usage=tokens or None,
    )


# -- runs


def letta_run(run: StepRecord, ttft_ns: int | None = None) -> Json:
    """Return a run as Letta's, and its `name` and `tags`. Letta's has an agent: of a run without one it is empty."""
    metadata = decode_payload(run.metadata)
    ended = run.start_ns is not None and run.end_ns is not None
    return {
        "id": run_id_of(run.id),
        "agent_id": run.agent_id or "",
        "background": False,
        "conversation_id": run.thread_id,
        "created_at": date_of(run.start_ns),
        "completed_at": date_of(run.end_ns),
        "status": _RUN_STATUSES.get(run.status or ""),
        "stop_reason": _stop_reason(run, generation_of(run)) or ("end_turn" if run.status == "success" else None),
        "total_duration_ns": (run.end_ns or 0) - (run.start_ns or 0) if ended else None,
        "ttft_ns": ttft_ns,
        "metadata": metadata if isinstance(metadata, dict) else None,
        "name": run.name,
        "tags": run.tags or [],
    }


def letta_usage(steps: Iterable[StepRecord]) -> Json:
    """Return the tokens of all steps together; null where none of them counts."""
    usages = [usage for step in steps if (usage := generation_of(step).usage) is not None]

    def total(*values: int | None) -> int | None:
        counted = [value for value in values if value is not None]
        return sum(counted) if counted else None

    cached = total(*(usage.cached_input_tokens for usage in usages))
    written = total(*(usage.cache_write_tokens for usage in usages))
    reasoning = total(*(usage.reasoning_tokens for usage in usages))
    return {
        "prompt_tokens": total(*(usage.input_tokens for usage in usages)),
        "completion_tokens": total(*(usage.output_tokens for usage in usages)),
        "total_tokens": total(*(_total(usage) for usage in usages)),
        "prompt_tokens_details": _present(cached_tokens=cached, cache_creation_tokens=written) or None,
        "completion_tokens_details": _present(reasoning_tokens=reasoning) or None,
    }


def letta_spans(tree: Iterable[StepRow]) -> list[Json]:
    """Return steps as spans, in the words of OpenTelemetry: what Letta gives as a run's trace."""
    return [
        {
            "span_id": _span_id(row.id),
            "parent_span_id": None if row.parent_id is None else _span_id(row.parent_id),
            "trace_id": row.trace_id,
            "span_name": row.name,
            "start_time_unix_nano": row.start_ns,
            "end_time_unix_nano": row.end_ns,
            "duration_ns": None if row.start_ns is None or row.end_ns is None else row.end_ns - row.start_ns,
            "status_code": {"success": "OK", "pending": "UNSET"}.get(row.status or "pending", "ERROR"),
            "attributes": _present(
                step_id=step_id_of(row.id), type=row.type, model=row.model, total_tokens=row.total_tokens
            ),
        }
        for row in tree
    ]


def _span_id(id: str) -> str:
    digits = id.replace("-", "")
    return digits[16:] if len(id) == 36 and len(digits) == 32 else id
