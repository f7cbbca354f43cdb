"""Which attribute says what, for both directions: GenAI conventions v1.41.1 and OpenInference 0.1.42, and what others
and older versions call the same.

A row names a field and the attributes that it is written to; `read` has all attributes that may say it when it is read,
of which the first that is there wins.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from stepwell._vocabulary import StepType

__all__ = [
    "GENERATION",
    "KINDS",
    "OPERATIONS",
    "PROVIDERS",
    "SETTINGS",
    "TOKENS",
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
