"""Which instrumentations tell of LLM applications, by the names of their scopes.

What must stay true: a scope that also tells of requests, queries or health checks is none of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["LLM_SCOPES", "Scopes"]

# A name stands for itself and for what follows it behind a dot. What comes with `*` stands for all that begins so.
LLM_SCOPES: Final = (
    "openinference.instrumentation",  # Arize: one a library
    "langfuse-sdk",
    "langsmith",
    "logfire.openai",
    "logfire.anthropic",
    "logfire.litellm",
    "logfire.google_genai",
    "logfire.openai_agents",
    "logfire.dspy",
    "pydantic-ai",
    "traceloop.tracer",  # OpenLLMetry: decorators
    "opentelemetry.util.genai*",  # OpenTelemetry: what its own instrumentations share
    *(
        f"opentelemetry.instrumentation.{name}"  # OpenLLMetry's and OpenTelemetry's own
        for name in (
            *("agno", "aleph_alpha", "alephalpha", "anthropic", "bedrock", "chromadb", "cohere", "crewai", "genai"),
            *("google_genai", "google_generativeai", "groq", "haystack", "lancedb", "langchain", "llamaindex", "marqo"),
            *("mcp", "milvus", "mistralai", "ollama", "openai", "openai_agents", "openai_v2", "pinecone", "qdrant"),
            *("replicate", "sagemaker", "together", "transformers", "vertexai", "voyageai", "watsonx", "weaviate"),
            "writer",
        )
    ),
    "agent_framework",  # Microsoft
    "autogen-core",
    "semantic_kernel",
    "gcp.vertex.agent",  # Google ADK
    "strands.telemetry.tracer",
    "haystack",
    "litellm",
)


class Scopes:
    """Says of a scope whether it is one of some names. Answers are remembered, for so many as a program may have."""

    _REMEMBERED: Final = 1000

    def __init__(self, names: Sequence[str]) -> None:
        self._all = "*" in names
        self._begin = tuple(name.rstrip("*") for name in names if name.endswith("*"))
        self._names = frozenset(name for name in names if not name.endswith("*"))
        self._dotted = tuple(f"{name}." for name in self._names)
        self._known: dict[str, bool] = {}

    def __contains__(self, scope: object) -> bool:
        if not isinstance(scope, str):
            return self._all
        known = self._known.get(scope)
        if known is None:
            known = self._all or scope in self._names or scope.startswith((*self._dotted, *self._begin))
            if len(self._known) < self._REMEMBERED:
                self._known[scope] = known
        return known
