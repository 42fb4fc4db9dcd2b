"""SpanGate: whether a model trained for a span may be pushed."""
