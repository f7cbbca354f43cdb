"""A program that calls OpenAI under an instrumentation: `python instrumented.py NAME OTLP_URL OPENAI_URL KEY`."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, suppress
from typing import Any

MESSAGES: Any = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Weather in Paris?"}]
TOOLS: Any = [
    {"type": "function", "function": {"name": "get_weather", "description": "w", "parameters": {"type": "object"}}}
]


def provider_of(url: str) -> Any:
    from opentelemetry import _logs, trace
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk._logs import LoggerProvider
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource({"service.name": "shop"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces")))
    trace.set_tracer_provider(provider)
    logs = LoggerProvider(resource=resource)
    logs.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(f"{url}/v1/logs")))
    _logs.set_logger_provider(logs)
    return provider


def in_provider(provider: Any) -> AbstractContextManager[Any]:
    span: AbstractContextManager[Any] = provider.get_tracer("app").start_as_current_span("outer")
    return span


def openinference(url: str, _: str) -> tuple[Any, AbstractContextManager[Any]]:
    from openinference.instrumentation.openai import OpenAIInstrumentor

    provider = provider_of(url)
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    return None, in_provider(provider)


def openllmetry(url: str, _: str) -> tuple[Any, AbstractContextManager[Any]]:
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor

    provider = provider_of(url)
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    return None, in_provider(provider)


def openai_v2(url: str, _: str) -> tuple[Any, AbstractContextManager[Any]]:
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental"
    os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "SPAN_ONLY"
    from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor

    provider = provider_of(url)
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    return None, in_provider(provider)


def logfire(url: str, _: str) -> tuple[Any, AbstractContextManager[Any]]:
    import logfire
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    sending = BatchSpanProcessor(OTLPSpanExporter(f"{url}/v1/traces"))
    logfire.configure(
        send_to_logfire=False,
        service_name="shop",
        console=False,
        additional_span_processors=[sending],
        inspect_arguments=False,
    )
    logfire.instrument_openai()
    return None, logfire.span("outer")


def langfuse(url: str, key: str) -> tuple[Any, AbstractContextManager[Any]]:
    os.environ |= {"LANGFUSE_PUBLIC_KEY": "pk", "LANGFUSE_SECRET_KEY": key, "LANGFUSE_HOST": url}
    from langfuse import get_client
    from langfuse.openai import openai

    return openai, get_client().start_as_current_observation(as_type="span", name="outer")


def drive(client: Any) -> None:
    chat = client.chat.completions
    first = chat.create(model="gpt-4o-mini", messages=MESSAGES, tools=TOOLS, temperature=0.5)
    message = first.choices[0].message
    answered = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump() for call in message.tool_calls]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rainy"},
    ]
    chat.create(model="gpt-4o-mini", messages=answered)
    stream = chat.create(model="gpt-4o-mini", messages=MESSAGES, stream=True, stream_options={"include_usage": True})
    list(stream)
    with suppress(client_errors()):
        chat.create(model="missing", messages=MESSAGES)
    client.embeddings.create(model="text-embedding-3-small", input="hello")


def client_errors() -> type[Exception]:
    import openai

    return openai.OpenAIError


def main() -> None:
    name, url, openai_url, key = sys.argv[1:]
    try:
        module, outer = globals()[name](url, key)
    except ImportError as error:
        raise SystemExit(f"skip: {error}") from error
    if module is None:
        import openai

        module = openai
    with outer:
        drive(module.OpenAI(base_url=openai_url, api_key="none", max_retries=0))
    if name == "langfuse":
        from langfuse import get_client

        get_client().flush()


if __name__ == "__main__":
    main()
