"""The shapes of Letta's answers, for the OpenAPI schema; and what its clients may send."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from stepwell.server._errors import ErrorBody
from stepwell.server._routing import Model

__all__ = [
    "FeedbackBody",
    "LettaError",
    "LettaMessage",
    "LettaMetrics",
    "LettaRun",
    "LettaStep",
    "LettaTrace",
    "LettaUsage",
    "RunStatus",
    "StopReason",
    "Text",
    "Verdict",
]


def _checked_text(text: str) -> str:
    text.encode()  # UnicodeEncodeError is a ValueError, which is what pydantic expects
    return text


Text = Annotated[str, AfterValidator(_checked_text)]  # JSON can spell half of a surrogate pair, which UTF-8 can't
Verdict = Literal["positive", "negative"]
RunStatus = Literal["created", "running", "completed", "failed", "cancelled"]
StopReason = Literal[
    "end_turn",
    "error",
    "llm_api_error",
    "invalid_llm_response",
    "invalid_tool_call",
    "max_steps",
    "max_tokens_exceeded",
    "no_tool_call",
    "tool_rule",
    "cancelled",
    "insufficient_credits",
    "requires_approval",
    "context_window_overflow_in_system_prompt",
]


class FeedbackBody(BaseModel):
    """What is thought of a step."""

    feedback: Verdict | None = None
    tags: list[Text] | None = None


class LettaError(ErrorBody):
    """The body of every answer that is no success."""

    detail: str = Field(
        default="",
        description="The error's message, where Letta's clients look. Absent where a key or origin was refused.",
    )


class LettaStep(Model):
    """A step, in Letta's words; `type`, `name`, `parent_id` and `thread_id` are ours."""

    id: str
    origin: str | None
    project_id: str | None
    agent_id: str | None
    run_id: str | None
    trace_id: str | None
    request_id: str | None
    provider_name: str | None
    model: str | None
    model_handle: str | None
    model_endpoint: str | None
    context_window_limit: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    prompt_tokens_details: dict[str, int] | None
    completion_tokens_details: dict[str, int] | None
    status: Literal["pending", "success", "failed", "cancelled"] | None
    stop_reason: StopReason | None
    error_type: str | None
    error_data: dict[str, Any] | None
    feedback: Verdict | None
    tags: list[str]
    messages: list[Any]
    type: str | None
    name: str | None
    parent_id: str | None
    thread_id: str | None


class LettaMetrics(Model):
    """How long a step took, in nanoseconds; the starts are since the Unix epoch."""

    id: str
    agent_id: str | None
    project_id: str | None
    run_id: str | None
    step_start_ns: int | None
    step_ns: int | None
    llm_request_start_ns: int | None
    llm_request_ns: int | None
    tool_execution_ns: int | None


class LettaTrace(Model):
    """What was sent to a model's provider, and what came back."""

    id: str
    step_id: str
    run_id: str | None
    agent_id: str | None
    agent_tags: list[str]
    call_type: str
    source: str | None
    created_at: str | None
    latency_ms: int | None
    llm_config: dict[str, Any]
    request_json: dict[str, Any]
    response_json: dict[str, Any]


class LettaMessage(Model):
    """A message; which fields it has besides these depends on `message_type`."""

    model_config = ConfigDict(extra="allow")

    id: str
    date: str
    otid: str
    step_id: str
    run_id: str | None
    message_type: Literal[
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


class LettaRun(Model):
    """A run, in Letta's words; `conversation_id` is its thread, `name` and `tags` are ours."""

    id: str
    agent_id: str
    background: bool
    conversation_id: str | None
    created_at: str | None
    completed_at: str | None
    status: RunStatus | None
    stop_reason: StopReason | None
    total_duration_ns: int | None
    ttft_ns: int | None
    metadata: dict[str, Any] | None
    name: str | None
    tags: list[str]


class LettaUsage(Model):
    """Tokens of a run; null where nothing was counted."""

    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    prompt_tokens_details: dict[str, int] | None
    completion_tokens_details: dict[str, int] | None
