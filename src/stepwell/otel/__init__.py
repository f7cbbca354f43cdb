"""Steps as OpenTelemetry spans and back; needs neither the OpenTelemetry SDK nor protobuf."""
