"""Traces with OpenTelemetry: a span for each inference, with its time in the queue and on the device below it.

A span is made when its request has been answered, from the times that the engine takes anyway, and exported on a thread of
the SDK: a collector that is slow or away delays nobody. Nothing of OpenTelemetry is imported unless tracing is on.
Attributes are named as in https://opentelemetry.io/docs/specs/semconv/ (http, rpc), edgeserve's own `edgeserve.*`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from edgeserve.errors import DependencyMissing
from edgeserve.version import __version__

log = logging.getLogger(__name__)

_NS: Final = 1_000_000_000
_CLOSE_S: Final = 3.0
# What the SDK logs each time that a collector cannot be reached.
_LOUD: Final = "opentelemetry"


class Ran(msgspec.Struct, frozen=True):
    """What became of an inference. `asked_ns` is when the model was asked (time.time_ns); `queue_s` and `compute_s`
    follow. `error` is the word for a failure, empty for an answer."""

    model: str
    version: str
    rows: int
    asked_ns: int
    device: str = ""
    runtime: str = ""
    variant: str = ""
    batch: int = 0
    queue_s: float = 0.0
    compute_s: float = 0.0
    error: str = ""


class Tracing:
    """Makes and exports spans. Owns the SDK's thread; used from any thread."""

    def __init__(self, exporter: Any = None) -> None:
        """`exporter` None: OTLP, as OTEL_* variables say. Raises DependencyMissing."""
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise _missing(error) from None
        logging.getLogger(_LOUD).addFilter(_Once())
        self._trace = trace
        self._context = TraceContextTextMapPropagator()
        named = {"service.version": __version__}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            named["service.name"] = "edgeserve"
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter or _exporter()))
        self._tracer = self._provider.get_tracer("edgeserve", __version__)

    def record(
        self,
        name: str,
        carrier: Mapping[str, str],
        began_ns: int,
        ended_ns: int,
        attributes: Mapping[str, Any],
        ran: Ran | None,
        error: str = "",
    ) -> None:
        """One request. `carrier` may have traceparent and tracestate, whose sampling decision is followed. `error`: the
        server failed."""
        parent = self._context.extract(carrier)
        kind = self._trace.SpanKind.SERVER
        span = self._tracer.start_span(name, parent, kind, attributes, start_time=began_ns)
        if span.is_recording():
            if ran is not None:
                self._describe(span, parent, ran)
                error = error or ran.error
            if error:
                span.set_attribute("error.type", error)
                span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, error))
        span.end(ended_ns)

    def _describe(self, span: Any, parent: Any, ran: Ran) -> None:
        known = {
            "edgeserve.model": ran.model, "edgeserve.version": ran.version, "edgeserve.rows": ran.rows,
            "edgeserve.device": ran.device, "edgeserve.runtime": ran.runtime,
            "edgeserve.variant": ran.variant, "edgeserve.batch": ran.batch,
        }  # fmt: skip
        span.set_attributes({key: value for key, value in known.items() if value})
        if ran.error:
            return
        below = self._trace.set_span_in_context(span, parent)
        computes = ran.asked_ns + int(ran.queue_s * _NS)
        ends = computes + int(ran.compute_s * _NS)
        self._tracer.start_span("queue", below, start_time=ran.asked_ns).end(computes)
        compute = self._tracer.start_span("compute", below, start_time=computes)
        compute.set_attributes({"edgeserve.device": ran.device, "edgeserve.batch": ran.batch})
        compute.end(ends)

    def close(self) -> None:
        """Export what waits, for a few seconds at most."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)


def open_tracing(kind: str) -> Tracing | None:
    """None for "off". Raises DependencyMissing."""
    return None if kind == "off" else Tracing()


def _exporter() -> Any:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    try:
        if protocol == "grpc":
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        else:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise _missing(error) from None
    return OTLPSpanExporter()


def _missing(error: ImportError) -> DependencyMissing:
    name = str(error.name or "opentelemetry").partition(".")[0]
    return DependencyMissing(name, needed_for="--trace otlp", extra="otel")


class _Once(logging.Filter):
    """Lets one warning through: a collector that is away is away for a while."""

    def __init__(self) -> None:
        super().__init__()
        self._said = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        said, self._said = self._said, True
        return not said
