"""Steps are OpenTelemetry spans: spans of the SDK nest under steps, and steps under spans, in one trace.

A step's id is computed from the same bits: the first half of the trace id, then the span id.

Run it with `python examples/opentelemetry_together.py`; it needs the package `opentelemetry-sdk`.
"""

from uuid import UUID

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import stepwell as sw
from stepwell.exporters.memory import MemoryExporter

spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("shop")


@sw.tool
def stock(item: str) -> int:
    with tracer.start_as_current_span("SELECT stock"):  # as a database instrumentation would
        rows = {"lamp": 3}
    return rows[item]


def step_id(context: trace.SpanContext | None) -> str | None:
    return context and str(UUID(int=context.trace_id >> 64 << 64 | context.span_id))


@sw.run
def shop_assistant(question: str) -> str:
    trace.get_current_span().set_attribute("shop.branch", "Patan")  # the current span is our step
    return f"{question} {stock('lamp')}"


if __name__ == "__main__":
    memory = MemoryExporter()
    sw.configure(export=["sqlite:", memory])
    # The outer span would be a web framework's.
    with tracer.start_as_current_span("GET /ask") as request, sw.run("handle") as handle:
        print(shop_assistant("Lamps in stock?"))
    delivered = sw.flush()

    found = [(span.name, step_id(span.context), step_id(span.parent)) for span in spans.get_finished_spans()]
    recorded = [*found, *((step.name, step.id, step.parent_id) for step in memory.steps)]
    names = {id: name for name, id, _ in recorded}
    for name, _, parent in recorded:
        print(f"{name} is below {names[parent] if parent else 'nothing'}")
    print("one trace:", handle.trace_id == f"{request.get_span_context().trace_id:032x}", "delivered:", delivered)
