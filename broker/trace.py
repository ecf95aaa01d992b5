"""Traces: one span for a request at its API replica, and below it what each attempt did with it.

Names and attributes follow OpenTelemetry's conventions for generative AI; the context travels as a W3C `traceparent` in
the headers of the prompt. OpenTelemetry is imported where traces are on, and nowhere else.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inferflux.config.errors import ConfigError
from inferflux.config.settings import TracingSettings
from inferflux.config.version import package_version

from .subjects import HEADER_TRACEPARENT, Lane

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

OPERATIONS = {"chat": "chat", "completion": "text_completion", "embedding": "embeddings"}
_NANOS = 1_000_000_000


def make_tracer(settings: TracingSettings, service: str) -> Tracer | None:
    """None without an endpoint. Raises ConfigError when the packages for it are missing."""
    if settings.endpoint is None:
        return None
    if importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is None:
        raise ConfigError('tracing.endpoint needs more packages: pip install "inferflux[tracing]"')
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return Tracer(service, settings.sample, OTLPSpanExporter(settings.endpoint))


class Tracer:
    """Makes spans and hands them to an exporter, in batches and on a thread of its own."""

    def __init__(self, service: str, sample: float, exporter: SpanExporter) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({"service.name": f"inferflux-{service}", "service.version": package_version()})
        self._provider: TracerProvider = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(sample)), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("inferflux")
        self._propagator = TraceContextTextMapPropagator()

    def request(self, kind: str, lane: Lane, traceparent: str | None) -> Trace:
        """The span of a request that is about to be published; below its client's, where that sent one."""
        from opentelemetry.trace import SpanKind

        operation = OPERATIONS.get(kind, kind)
        attributes = {"gen_ai.operation.name": operation, **_about(lane)}
        name = f"{operation} {lane.model}"
        context = self._context(traceparent)
        return Trace(self._tracer.start_span(name, context, kind=SpanKind.SERVER, attributes=attributes))

    def attempt(self, lane: Lane, traceparent: str | None, begin_s: float) -> Trace:
        """The span of one attempt; Unix time."""
        from opentelemetry.trace import SpanKind

        return Trace(
            self._tracer.start_span(
                f"process {lane.model}",
                self._context(traceparent),
                kind=SpanKind.CONSUMER,
                attributes={"messaging.system": "nats", "messaging.operation.type": "process", **_about(lane)},
                start_time=int(begin_s * _NANOS),
            )
        )

    def part(self, of: Trace, name: str, begin_s: float, end_s: float, attributes: Mapping[str, Any]) -> None:
        """A span that has ended already, below another one; Unix times."""
        span = self._tracer.start_span(
            name, self._context(of.traceparent), attributes=dict(attributes), start_time=int(begin_s * _NANOS)
        )
        span.end(int(max(begin_s, end_s) * _NANOS))

    def close(self) -> None:
        """Send what is left; takes a few seconds at most."""
        self._provider.shutdown()

    def _context(self, traceparent: str | None) -> Any:
        return self._propagator.extract({HEADER_TRACEPARENT: traceparent} if traceparent else {})


class Trace:
    """A span that is open. `traceparent` names it to whatever is below."""

    def __init__(self, span: Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"

    def answered(
        self, request: str, finish_reason: str, num_tokens: int, first_s: float | None, *, error: str | None
    ) -> None:
        """The answer has left. `first_s` is when its first token did, in seconds from now, and so negative."""
        if first_s is not None:
            self._span.add_event("gen_ai.first_token", timestamp=int((time.time() + first_s) * _NANOS))
        attributes: dict[str, Any] = {"gen_ai.response.id": request, "gen_ai.usage.output_tokens": num_tokens}
        if error is None:
            attributes["gen_ai.response.finish_reasons"] = (finish_reason,)
        self.end(attributes, error=error)

    def end(self, attributes: Mapping[str, Any], *, error: str | None = None, at_s: float | None = None) -> None:
        """Close the span, now or at a Unix time. What a prompt or an answer says is in no attribute."""
        from opentelemetry.trace import StatusCode

        self._span.set_attributes(dict(attributes))
        if error is not None:
            self._span.set_attribute("error.type", error)
            self._span.set_status(StatusCode.ERROR)
        self._span.end(None if at_s is None else int(at_s * _NANOS))


def _about(lane: Lane) -> dict[str, str]:
    return {
        "gen_ai.provider.name": "inferflux",
        "gen_ai.request.model": lane.model,
        "inferflux.tenant": lane.tenant,
        "inferflux.service_class": lane.service_class.value,
    }
