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

from edgeserve.errors import DependencyMissing, EnvironmentProblem
from edgeserve.version import __version__

log = logging.getLogger(__name__)

_NS: Final = 1_000_000_000
_CLOSE_S: Final = 3.0
# Its loggers say each time that a collector cannot be reached.
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
        """`exporter` None: OTLP, as OTEL_* variables say. Raises EnvironmentProblem, as for one that means nothing."""
        self._once = _Once() if exporter is None else None
        try:
            self._open(exporter or _exporter())
        except ValueError as error:  # the SDK reads some variables as it is imported
            self._unhush()
            raise EnvironmentProblem(
                "--trace otlp cannot read an OTEL_ variable", cause=str(error)
            ) from None
        except EnvironmentProblem:
            self._unhush()
            raise

    def _open(self, exporter: Any) -> None:
        try:
            from opentelemetry import trace
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise _missing(error) from None
        self._trace = trace
        self._context = TraceContextTextMapPropagator()
        named = {"service.version": __version__}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            named["service.name"] = "edgeserve"
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
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
        server failed; `ran` may know better why. A client's mistake is none."""
        parent = self._context.extract(carrier)
        kind = self._trace.SpanKind.SERVER
        span = self._tracer.start_span(name, parent, kind, attributes, start_time=began_ns)
        if span.is_recording():
            if ran is not None:
                self._describe(span, parent, ran)
            if error:
                error = ran.error if ran is not None and ran.error else error
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
        on = {"edgeserve.device": ran.device, "edgeserve.batch": ran.batch}
        self._tracer.start_span("compute", below, attributes=on, start_time=computes).end(ends)

    def close(self) -> None:
        """Export what waits, for a few seconds at most."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)
        self._unhush()

    def _unhush(self) -> None:
        if self._once is not None:
            self._once.close()


def open_tracing(kind: str) -> Tracing | None:
    """None for "off". Raises DependencyMissing."""
    return None if kind == "off" else Tracing()


def _exporter() -> Any:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"
    )
    if protocol == "grpc":
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        except ImportError:
            package = "opentelemetry-exporter-otlp-proto-grpc"
            needs = "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"
            raise DependencyMissing(package, needed_for=needs) from None
        return OTLPSpanExporter()
    if protocol != "http/protobuf":
        raise EnvironmentProblem(
            f"--trace otlp does not speak {protocol!r}",
            hint="set OTEL_EXPORTER_OTLP_PROTOCOL to http/protobuf or grpc",
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise _missing(error) from None
    return OTLPSpanExporter()


def _missing(error: ImportError) -> DependencyMissing:
    name = str(error.name or "opentelemetry").partition(".")[0]
    return DependencyMissing(name, needed_for="--trace otlp", extra="otel")


class _Once(logging.Handler):
    """Passes on the first warning of each of OpenTelemetry's loggers, without its traceback: a collector that is away is
    away for a while. A filter on their parent would not see what they log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()
        self._logger = logging.getLogger(_LOUD)
        self._propagated = self._logger.propagate
        self._logger.propagate = False
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name not in self._said:
            self._said.add(record.name)
            log.warning("tracing: %s (the log says this once)", record.getMessage())

    def close(self) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagated
        super().close()
