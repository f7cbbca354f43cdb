"""Which attribute says what, for both directions: GenAI conventions v1.41.1 and OpenInference 0.1.42, and what others
and older versions call the same.

A row names a field and the attributes that it is written to; `read` has all attributes that may say it when it is read,
of which the first that is there wins.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from stepwell._vocabulary import StepType

__all__ = [
    "FAMILIES",
    "GENERATION",
    "KINDS",
    "OPERATIONS",
    "PROVIDERS",
    "SETTINGS",
    "SLOTS",
    "TOKENS",
    "TYPES",
    "Convention",
    "Row",
]

Convention = Literal["genai", "openinference"]


class Row(NamedTuple):
    """One field and its attributes."""

    field: str
    genai: tuple[str, ...]
    openinference: tuple[str, ...]
    read: tuple[str, ...]


# Text fields of a generation.
GENERATION: Final = (
    Row(
        "provider",
        ("gen_ai.provider.name", "gen_ai.system"),  # the second for readers of conventions before v1.37
        ("llm.provider", "llm.system"),
        ("gen_ai.provider.name", "gen_ai.system", "llm.provider", "llm.system", "decision.provider", "decision.system"),
    ),
    Row(
        "model",
        ("gen_ai.request.model",),
        ("llm.request.model_name",),
        (
            *("gen_ai.request.model", "llm.request.model_name", "embedding.model_name", "reranker.model_name"),
            *("decision.request.model_name", "decision.model_name"),
        ),
    ),
    Row(
        "response_model",
        ("gen_ai.response.model",),
        ("llm.response.model_name",),
        (
            *("gen_ai.response.model", "llm.response.model_name", "llm.model_name"),
            *("langfuse.observation.model.name", "decision.response.model_name"),
        ),
    ),
    Row("response_id", ("gen_ai.response.id",), (), ("gen_ai.response.id",)),
    Row(
        "prompt_id",
        ("gen_ai.prompt.name",),
        ("prompt.id",),
        ("gen_ai.prompt.name", "prompt.id", "langfuse.observation.prompt.name", "traceloop.prompt.key"),
    ),
)

# Fields of a generation's usage.
TOKENS: Final = (
    Row(
        "input_tokens",
        ("gen_ai.usage.input_tokens",),
        ("llm.token_count.prompt",),
        (
            *("gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens", "llm.token_count.prompt"),
            *("llm.usage.prompt_tokens", "decision.token_count.input"),
        ),
    ),
    Row(
        "output_tokens",
        ("gen_ai.usage.output_tokens",),
        ("llm.token_count.completion",),
        (
            *("gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens", "llm.token_count.completion"),
            *("llm.usage.completion_tokens", "decision.token_count.output"),
        ),
    ),
    Row(
        "total_tokens",
        (),
        ("llm.token_count.total",),
        ("gen_ai.usage.total_tokens", "llm.usage.total_tokens", "llm.token_count.total"),
    ),
    Row(
        "cached_input_tokens",
        ("gen_ai.usage.cache_read.input_tokens",),
        ("llm.token_count.prompt_details.cache_read",),
        (
            *("gen_ai.usage.cache_read.input_tokens", "gen_ai.usage.cache_read_input_tokens"),
            *("gen_ai.usage.details.cache_read_tokens", "llm.token_count.prompt_details.cache_read"),
        ),
    ),
    Row(
        "cache_write_tokens",
        ("gen_ai.usage.cache_creation.input_tokens",),
        ("llm.token_count.prompt_details.cache_write",),
        (
            *("gen_ai.usage.cache_creation.input_tokens", "gen_ai.usage.cache_write.input_tokens"),
            *("gen_ai.usage.cache_creation_input_tokens", "gen_ai.usage.details.cache_write_tokens"),
            "llm.token_count.prompt_details.cache_write",
        ),
    ),
    Row(
        "reasoning_tokens",
        ("gen_ai.usage.reasoning.output_tokens",),
        ("llm.token_count.completion_details.reasoning",),
        (
            *("gen_ai.usage.reasoning.output_tokens", "gen_ai.usage.reasoning_tokens"),
            *("gen_ai.usage.details.reasoning_tokens", "llm.usage.reasoning_tokens"),
            "llm.token_count.completion_details.reasoning",
        ),
    ),
)

# What a model was asked with: attribute, and the names that providers have for it, of which the first is read back.
SETTINGS: Final = (
    ("gen_ai.request.temperature", ("temperature",)),
    ("gen_ai.request.top_p", ("top_p",)),
    ("gen_ai.request.top_k", ("top_k",)),
    ("gen_ai.request.max_tokens", ("max_tokens", "max_completion_tokens", "max_output_tokens")),
    ("gen_ai.request.frequency_penalty", ("frequency_penalty",)),
    ("gen_ai.request.presence_penalty", ("presence_penalty",)),
    ("gen_ai.request.stop_sequences", ("stop", "stop_sequences")),
    ("gen_ai.request.seed", ("seed",)),
    ("gen_ai.request.stream", ("stream",)),
    ("gen_ai.request.choice.count", ("n",)),
    ("gen_ai.request.encoding_formats", ("encoding_format",)),
)

# `gen_ai.operation.name` of a type; a chat, a completion and a run of an agent are told apart where they are written.
OPERATIONS: Final[dict[StepType, str]] = {
    "run": "invoke_workflow",
    "llm": "chat",
    "tool": "execute_tool",
    "embedding": "embeddings",
    "retrieval": "retrieval",
    "rerank": "rerank",
}

# `openinference.span.kind` of a type; UNKNOWN for all others.
KINDS: Final[dict[StepType, str]] = {
    "run": "CHAIN",
    "llm": "LLM",
    "tool": "TOOL",
    "embedding": "EMBEDDING",
    "retrieval": "RETRIEVER",
    "rerank": "RERANKER",
}

# `gen_ai.provider.name` for what people and older conventions call a provider.
PROVIDERS: Final = {
    "azure": "azure.ai.openai",
    "azure_openai": "azure.ai.openai",
    "az.ai.openai": "azure.ai.openai",
    "az.ai.inference": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "google": "gcp.gemini",
    "mistral": "mistral_ai",
    "mistralai": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "vertexai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}

# The type of a step by what different conventions call it: by slot and value, the first slot that is known decides.
# What maps to None is of no type of ours, and its name is kept.
TYPES: Final[dict[str, dict[str, StepType | None]]] = {
    "operation": {
        "chat": "llm",
        "text_completion": "llm",
        "generate_content": "llm",
        "embeddings": "embedding",
        "execute_tool": "tool",
        "retrieval": "retrieval",
        "vector_db_retrieve": "retrieval",  # OpenLLMetry's
        "rerank": "rerank",
        "create_agent": "run",
        "invoke_agent": "run",
        "invoke_workflow": "run",
        "plan": "run",
    },
    "kind": {
        "LLM": "llm",
        "CHAIN": "run",
        "AGENT": "run",
        "TOOL": "tool",
        "RETRIEVER": "retrieval",
        "EMBEDDING": "embedding",
        "RERANKER": "rerank",
    },
    "observation": {
        "generation": "llm",
        "agent": "run",
        "chain": "run",
        "tool": "tool",
        "retriever": "retrieval",
        "embedding": "embedding",
    },
    "entity": {"workflow": "run", "agent": "run", "tool": "tool"},
    "request_type": {"chat": "llm", "completion": "llm", "embedding": "embedding", "rerank": "rerank"},
}

# Other fields that attributes say, the first present wins.
_READ: Final[dict[str, tuple[str, ...]]] = {
    "operation": ("gen_ai.operation.name",),
    "kind": ("openinference.span.kind",),
    "observation": ("langfuse.observation.type",),
    "entity": ("traceloop.span.kind",),
    "request_type": ("llm.request.type",),
    "thread_id": (
        *("gen_ai.conversation.id", "session.id", "langfuse.session.id"),
        *(f"traceloop.association.properties.{name}" for name in ("thread_id", "session_id", "literal.thread_id")),
    ),
    "user": (
        *("user.id", "langfuse.user.id", "enduser.id", "gen_ai.user", "llm.user"),
        "traceloop.association.properties.user_id",
    ),
    "agent_id": ("gen_ai.agent.id",),
    "agent_name": ("gen_ai.agent.name", "agent.name"),
    "workflow_name": ("gen_ai.workflow.name",),
    "tool_name": ("gen_ai.tool.name", "tool.name"),
    "entity_name": ("traceloop.entity.name",),
    "title": ("logfire.msg",),
    "input": (
        *("gen_ai.tool.call.arguments", "traceloop.entity.input", "langfuse.observation.input", "input.value"),
        *("gen_ai.retrieval.query.text", "reranker.query", "tool_arguments"),
    ),
    "input_mime": ("input.mime_type",),
    "output": (
        *("gen_ai.tool.call.result", "traceloop.entity.output", "langfuse.observation.output", "output.value"),
        *("gen_ai.retrieval.documents", "final_result", "tool_response"),
    ),
    "output_mime": ("output.mime_type",),
    "asked": ("gen_ai.input.messages",),
    "answered": ("gen_ai.output.messages",),
    "instructions": ("gen_ai.system_instructions",),
    "prompt": ("gen_ai.prompt",),
    "completion": ("gen_ai.completion",),
    "finish": ("gen_ai.response.finish_reasons", "llm.finish_reason"),
    "ttft_s": ("gen_ai.response.time_to_first_chunk",),
    "first_at": ("langfuse.observation.completion_start_time",),
    "cost_total": ("llm.cost.total", "operation.cost"),
    "cost_input": ("llm.cost.prompt",),
    "cost_output": ("llm.cost.completion",),
    "costs": ("langfuse.observation.cost_details",),
    "usage": ("langfuse.observation.usage_details",),
    "provider_usage": ("gen_ai.usage.raw",),  # Logfire's: as the provider tells it
    "parameters": (
        *("llm.invocation_parameters", "embedding.invocation_parameters"),
        "langfuse.observation.model.parameters",
    ),
    "endpoint": ("gen_ai.openai.api_base",),
    "request": ("request_data",),  # Logfire's
    "tools": ("gen_ai.tool.definitions",),
    "variables": ("llm.prompt_template.variables", "traceloop.prompt.template_variables"),
    "metadata": ("metadata", "langfuse.observation.metadata"),
    "trace_metadata": ("langfuse.trace.metadata",),
    "tags": ("tag.tags",),
    "trace_tags": ("langfuse.trace.tags",),
    "logfire_tags": ("logfire.tags",),
    "environment": ("langfuse.environment",),
    "release": ("langfuse.release",),
    "error_type": ("error.type",),
    "level": ("langfuse.observation.level",),
    "status_message": ("langfuse.observation.status_message",),
    **{f"setting {names[0]}": (attribute,) for attribute, names in SETTINGS},
    "setting top_k": ("gen_ai.request.top_k", "llm.top_k"),
    "setting frequency_penalty": ("gen_ai.request.frequency_penalty", "llm.frequency_penalty"),
    "setting presence_penalty": ("gen_ai.request.presence_penalty", "llm.presence_penalty"),
    "setting stream": ("gen_ai.request.stream", "gen_ai.is_streaming", "llm.is_streaming"),
}

# By attribute: the field that it says, and its rank among those that say the same.
SLOTS: Final[dict[str, tuple[str, int]]] = {
    name: (field, rank)
    for field, names in (*((row.field, row.read) for row in (*GENERATION, *TOKENS)), *_READ.items())
    for rank, name in enumerate(names)
}

# Attributes numbered from 0, as `llm.input_messages.0.message.role`.
FAMILIES: Final = (
    *("llm.input_messages", "llm.output_messages", "llm.prompts", "llm.choices", "llm.tools"),
    *("gen_ai.prompt", "gen_ai.completion", "llm.request.functions"),
    *("retrieval.documents", "reranker.input_documents", "reranker.output_documents"),
    *("embedding.embeddings", "annotations", "evaluations"),
)
