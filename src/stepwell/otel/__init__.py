"""OpenTelemetry out of and into the recorder: foreign spans as steps, and traces that go on across services.

Needs neither the OpenTelemetry SDK nor protobuf.
"""

from stepwell.otel.middleware import AsgiMiddleware, WsgiMiddleware

__all__ = ["AsgiMiddleware", "WsgiMiddleware"]
