"""OpenTelemetry spans of each request, where an exporter is configured: request -> admit, queue, infer, encode, stream.

What happened when is noted in a `Trace` on the way, as `time.monotonic()`, and becomes spans only when the answer is
sent. Without an exporter there is no `Trace`, and OpenTelemetry is not imported.
Knows nothing of routes, bundles or the engine.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from augmint.errors import UsageError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

__all__ = ["Attributes", "Trace", "Tracer", "open_tracer"]

log = logging.getLogger("augmint")

# A stream has as many stages as parts, without end.
_MOST_STAGES: Final = 128
Attributes = Mapping[str, str | int | float]


class Trace:
    """One request's span, and what is known of its stages so far."""

    __slots__ = ("begun", "span", "stages")

    def __init__(self, span: Span, begun: float) -> None:
        self.span = span
        self.begun = begun
        self.stages: list[tuple[str, float, float, Attributes]] = []

    def add(self, name: str, begun: float, ended: float, attributes: Attributes | None = None) -> None:
        """A stage that ended; times are of `time.monotonic()`."""
        if len(self.stages) < _MOST_STAGES:
            self.stages.append((name, begun, ended, attributes or {}))

    @property
    def traceparent(self) -> str:
        context = self.span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


class Tracer:
    """Makes spans and hands them to the exporters, in a thread of its own."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._api = trace
        self._provider = provider
        self._tracer = provider.get_tracer("augmint")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, traceparent: str, begun: float) -> Trace:
        """A request arrived, with this traceparent (or none: "-"), at this `time.monotonic()`."""
        parent = self._propagator.extract({"traceparent": traceparent})
        span = self._tracer.start_span(
            method, context=parent, kind=self._api.SpanKind.SERVER, start_time=_nanoseconds(begun)
        )
        return Trace(span, begun)

    def end(self, trace: Trace, name: str, status: int, sent: float, attributes: Attributes) -> None:
        """Its answer is out, since a moment ago; the sending of it began at this `time.monotonic()`."""
        span = trace.span
        trace.stages.append(("stream", sent, time.monotonic(), {}))
        if span.is_recording():
            span.update_name(name)
            span.set_attributes({"http.response.status_code": status, **attributes})
            if status >= 500:
                span.set_status(self._api.StatusCode.ERROR)
            inside = self._api.set_span_in_context(span)
            for stage, begun, ended, more in trace.stages:
                child = self._tracer.start_span(stage, context=inside, start_time=_nanoseconds(begun), attributes=more)
                child.end(end_time=_nanoseconds(ended))
        span.end()

    def close(self, seconds: float = 2.0) -> None:
        """Hand over what is left, within this time: a collector that does not answer holds nobody's shutdown up."""
        closing = threading.Thread(target=self._provider.shutdown, name="augmint-tracing", daemon=True)
        closing.start()
        closing.join(seconds)


def open_tracer(mode: str, environment: Mapping[str, str] | None = None) -> Tracer | None:
    """A tracer as OpenTelemetry's own variables (OTEL_*) configure it.

    Args:
        mode: "auto" traces where an exporter is configured and installed; "on" always; "off" never.
        environment: instead of the process's own, for choosing the exporters.

    Raises:
        UsageError: "on", and what is needed is not there.
    """
    env = os.environ if environment is None else environment
    names = _configured(env)
    if mode == "off" or (mode == "auto" and not names):
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporters = [_exporter(name) for name in names or ("otlp",)]
    except (ImportError, UsageError) as error:
        reason = str(error) if isinstance(error, UsageError) else 'tracing needs: pip install "augmint[tracing]".'
        if mode == "on":
            raise UsageError(reason) from None
        log.warning("requests are not traced: %s", reason)
        return None
    resource = Resource.create({"service.name": env.get("OTEL_SERVICE_NAME") or "augmint"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    for exporter in exporters:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracer(provider)


def _configured(env: Mapping[str, str]) -> tuple[str, ...]:
    """The exporters that the environment names; empty: none."""
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ()
    named = env.get("OTEL_TRACES_EXPORTER", "").strip()
    if named:
        return tuple(name for part in named.split(",") if (name := part.strip()) not in ("", "none"))
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return ("otlp",) if any(env.get(variable, "").strip() for variable in endpoints) else ()


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter(out=sys.stderr, formatter=_one_line)
    if name == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return OTLPSpanExporter()
    raise UsageError(f"OTEL_TRACES_EXPORTER must be otlp, console or none, not {name[:40]!r}.")


def _one_line(span: ReadableSpan) -> str:
    return str(span.to_json(indent=None)) + "\n"


def _nanoseconds(monotonic: float) -> int:
    """Of the epoch, which OpenTelemetry wants, from a `time.monotonic()`."""
    return time.time_ns() - int((time.monotonic() - monotonic) * 1e9)
