"""OpenTelemetry out of and into the recorder: foreign spans as steps, and traces that go on across services.

Needs neither the OpenTelemetry SDK nor protobuf.
"""

from stepwell.otel._scopes import LLM_SCOPES
from stepwell.otel.middleware import AsgiMiddleware, WsgiMiddleware
from stepwell.otel.processor import StepwellSpanProcessor

__all__ = ["LLM_SCOPES", "AsgiMiddleware", "StepwellSpanProcessor", "WsgiMiddleware"]
