"""Traces and metrics over OTLP, with OpenTelemetry's names for generative AI (`gen_ai.*`).

Imported only where an endpoint is set. A request's spans are made when it has ended, from the times of its parts, and none for a token:
a live span costs tens of microseconds for each of its changes. What is not sampled costs the decision alone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.trace.status import Status, StatusCode

if TYPE_CHECKING:
    from llmos.runtime.server.core.http import RequestInfo

_Value = str | int | float
_HEADERS = "opentelemetry.trace"  # whose logger has a line for what is wrong with a client's headers, and quotes it
_EXPORT_S = 5  # that an export may take
_CLOSE_S = 3.0  # that a shutdown waits for the last export
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
# Of the semantic conventions.
_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_EACH_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)


@dataclass(frozen=True)
class Ended:
    """A request that has ended. call: such as "POST /v1/embeddings", with parameters unfilled. end_s: of time.perf_counter."""

    info: RequestInfo
    call: str
    status: int
    end_s: float

    @property
    def route(self) -> str:
        """Return the route without what is done to it."""
        return self.call.rpartition(" ")[2]


class Telemetry:
    """Sends what requests did to an OTLP endpoint. What else can be set is read from OpenTelemetry's own variables (OTEL_*)."""

    def __init__(self, endpoint: str) -> None:
        logging.getLogger(_HEADERS).setLevel(logging.ERROR)
        insecure = not endpoint.startswith("https:")
        scope = version("llmos")
        resource = _resource()
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._sampler, self._resource = provider.sampler, provider.resource
        self._scope = InstrumentationScope("llmos", scope)
        self._ids = RandomIdGenerator()
        self._propagator = TraceContextTextMapPropagator()
        self._spans = BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=insecure, timeout=_EXPORT_S))
        reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=endpoint, insecure=insecure, timeout=_EXPORT_S))
        self._meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        meter = self._meters.get_meter("llmos", scope)
        histogram = meter.create_histogram
        duration, first = "gen_ai.server.request.duration", "gen_ai.server.time_to_first_token"
        each, usage = "gen_ai.server.time_per_output_token", "gen_ai.client.token.usage"
        self._duration = histogram(duration, "s", "Of a request.", explicit_bucket_boundaries_advisory=_SECONDS)
        self._first = histogram(first, "s", "Time to the first token.", explicit_bucket_boundaries_advisory=_FIRST_S)
        self._each = histogram(each, "s", "Time per token behind the first.", explicit_bucket_boundaries_advisory=_EACH_S)
        self._usage = histogram(usage, "{token}", "Tokens of a request.", explicit_bucket_boundaries_advisory=_TOKENS)

    def record(self, info: RequestInfo, call: str, status: int, traceparent: str = "", tracestate: str = "") -> None:
        """Take note of a request that has ended now. traceparent, tracestate: W3C's headers, where a client sent them."""
        ended = Ended(info, call, status, time.perf_counter())
        names = _names(ended)
        self._measure(ended, names)
        self._trace(ended, names, self._parent(traceparent, tracestate))

    def close(self) -> None:
        """Send what is left, if it is taken soon."""

        def shut_down() -> None:
            with contextlib.suppress(Exception):
                self._spans.shutdown()  # type: ignore[no-untyped-call]
                self._meters.shutdown(timeout_millis=_CLOSE_S * 1e3)

        thread = threading.Thread(target=shut_down, name="llmos-telemetry", daemon=True)
        thread.start()
        thread.join(_CLOSE_S)

    def _measure(self, ended: Ended, names: Mapping[str, _Value]) -> None:
        info = ended.info
        if info.model is None or not info.is_call:  # elsewhere the model is whatever a client wrote
            return
        self._duration.record(ended.end_s - info.start_s, names)
        if info.first_token_s is not None:
            self._first.record(info.first_token_s - info.start_s, names)
            if info.num_output_tokens > 1:
                self._each.record((ended.end_s - info.first_token_s) / (info.num_output_tokens - 1), names)
        for kind, count in (("input", info.num_prompt_tokens), ("output", info.num_output_tokens)):
            if count:
                self._usage.record(count, {**names, "gen_ai.token.type": kind})

    def _parent(self, traceparent: str, tracestate: str) -> Context | None:
        if not traceparent:
            return None
        return self._propagator.extract({"traceparent": traceparent, "tracestate": tracestate})

    def _trace(self, ended: Ended, names: Mapping[str, _Value], context: Context | None) -> None:
        parent = get_current_span(context).get_span_context() if context is not None else None
        parent = parent if parent is not None and parent.is_valid else None
        trace_id = self._ids.generate_trace_id() if parent is None else parent.trace_id
        operation = names.get("gen_ai.operation.name")
        name = f"{operation} {ended.info.model}" if operation and ended.info.model else ended.call
        sampled = self._sampler.should_sample(context, trace_id, name, SpanKind.SERVER, names)
        if sampled.decision is not Decision.RECORD_AND_SAMPLE:
            return
        info = ended.info
        state = None if parent is None else parent.trace_state
        offset_ns = time.time_ns() - round(time.perf_counter() * 1e9)  # of the wall clock

        def span(name: str, above: SpanContext | None, start_s: float, end_s: float, attributes: Mapping[str, _Value]) -> SpanContext:
            own = SpanContext(trace_id, self._ids.generate_span_id(), is_remote=False, trace_flags=_SAMPLED, trace_state=state)
            failed = "error.type" in attributes and ended.status >= 500
            made = ReadableSpan(
                name,
                context=own,
                parent=above,
                resource=self._resource,
                attributes=attributes,
                kind=SpanKind.SERVER if above is parent else SpanKind.INTERNAL,
                status=Status(StatusCode.ERROR) if failed else Status(),
                start_time=offset_ns + round(start_s * 1e9),
                end_time=offset_ns + round(max(start_s, end_s) * 1e9),
                instrumentation_scope=self._scope,
            )
            self._spans.on_end(made)
            return own

        counts = {"gen_ai.usage.input_tokens": info.num_prompt_tokens, "gen_ai.usage.output_tokens": info.num_output_tokens}
        more: dict[str, _Value] = {
            "http.response.status_code": ended.status,
            "http.route": ended.route,
            "llmos.request_id": info.request_id,
        }
        used = {key: count for key, count in counts.items() if count}
        own = span(name, parent, info.start_s, ended.end_s, {**names, **more, **used})
        for phase in info.phases or ():
            span(phase.name, own, phase.start_s, phase.end_s, phase.attributes)


def _names(ended: Ended) -> dict[str, _Value]:
    names: dict[str, _Value] = {"gen_ai.provider.name": "llmos"}
    if (operation := _OPERATIONS.get(ended.route) or ("infer" if ended.route.endswith("/infer") else None)) is not None:
        names["gen_ai.operation.name"] = operation
    if ended.info.model is not None:
        names["gen_ai.request.model"] = ended.info.model
    if ended.status >= 400:
        names["error.type"] = str(ended.status)
    return names


def _resource() -> Resource:
    """Return what the environment says of this service, with a name where it says none."""
    found = Resource.create()
    if not str(found.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        return found
    return found.merge(Resource({SERVICE_NAME: "llmos", "service.version": version("llmos")}))
