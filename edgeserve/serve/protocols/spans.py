"""The spans of inferences, over HTTP and gRPC, from what is known of them once they are answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from edgeserve.errors import EdgeServeError
from edgeserve.serve.engine import Outcome
from edgeserve.serve.http.head import Head
from edgeserve.serve.http.response import Response
from edgeserve.serve.metrics.reasons import failure_of, meaning_of
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.tracing import Ran, Tracing

_CONTEXT: Final = ("traceparent", "tracestate")
_FAILED: Final = ("INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN")


class HttpTrace:
    """One request over HTTP."""

    __slots__ = ("_address", "_asked", "_began", "_head", "_ran", "_scheme", "_tracing")

    def __init__(self, tracing: Tracing, head: Head, address: str, scheme: str) -> None:
        self._tracing = tracing
        self._scheme = scheme
        self._head = head
        self._address = address
        self._began = self._asked = time.time_ns()
        self._ran: Ran | None = None

    def asks(self) -> None:
        """The model is asked now."""
        self._asked = time.time_ns()

    def ran(self, model: ServedModel, rows: int, result: Outcome | EdgeServeError) -> None:
        """What the model answered."""
        self._ran = described(model, rows, self._asked, result)

    def answered(self, response: Response) -> None:
        """The answer was sent now."""
        status = response.form.status
        self._record({"http.response.status_code": status}, str(status) if status >= 500 else "")

    def left(self) -> None:
        """The client has left before its answer."""
        self._record({}, "canceled")

    def _record(self, more: dict[str, Any], error: str) -> None:
        head = self._head
        path = head.path.decode("latin-1")
        carrier = {
            n: head.headers[n.encode()].decode("latin-1")
            for n in _CONTEXT
            if n.encode() in head.headers
        }
        attributes: dict[str, Any] = {
            "http.request.method": head.method,
            "url.path": path,
            "url.scheme": self._scheme,
        } | more
        if self._address:
            attributes["client.address"] = self._address
        self._tracing.record(
            f"{head.method} {path}" if self._ran is not None else head.method,
            carrier,
            self._began,
            time.time_ns(),
            attributes,
            self._ran,
            error,
        )


def traced(tracing: Tracing | None) -> Callable[..., None] | None:
    """What is called after each call over gRPC that infers; None if nobody traces."""
    if tracing is None:
        return None

    def record(
        path: str,
        metadata: Iterable[tuple[str, Any]],
        call: Any,
        error: EdgeServeError | None,
    ) -> None:
        """`call` is an InferenceCall that has its answer."""
        service, _, method = path.removeprefix("/").partition("/")
        status = "OK" if error is None else meaning_of(error).grpc
        ran = None
        if call.model is not None and call.result is not None:
            ran = described(call.model, call.rows, call.asked_ns or call.began_ns, call.result)
        carrier = {name: str(value) for name, value in metadata if name in _CONTEXT}
        attributes = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": method,
            "rpc.response.status_code": status,
        }
        failed = status if status in _FAILED else ""
        name = f"{service}/{method}"
        tracing.record(name, carrier, call.began_ns, time.time_ns(), attributes, ran, failed)

    return record


def described(
    model: ServedModel, rows: int, asked_ns: int, result: Outcome | EdgeServeError
) -> Ran:
    """What became of an inference, as plain values."""
    if isinstance(result, Outcome):
        by = result.candidate
        return Ran(
            model.name, model.version, rows, asked_ns, by.device, by.runtime, by.variant,
            result.batch, result.queue_s, result.compute_s,
        )  # fmt: skip
    return Ran(model.name, model.version, rows, asked_ns, error=failure_of(result))
