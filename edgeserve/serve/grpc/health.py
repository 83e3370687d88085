"""grpc.health.v1: whether the server serves ('' and the names of its services), and each of its models (under its
name), for probes and load balancers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Final

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from edgeserve.serve.access.keys import Role
from edgeserve.serve.grpc.admission import PlacedMethod
from edgeserve.serve.grpc.pool import Pools
from edgeserve.serve.grpc.receive_timeout import Arrivals
from edgeserve.serve.grpc.refusals import Refusals

NAME: Final[str] = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_STATUS: Final = health_pb2.HealthCheckResponse


class Health:
    """The statuses, set on the event loop and read on the threads of calls. `renew` has them set again, and waits
    for that for at most a second."""

    def __init__(self, renew: Callable[[], None], refusals: Refusals | None = None) -> None:
        self._renew = renew
        self._refusals = refusals
        self.services: tuple[str, ...] = ()  # that serve when the server does
        self._statuses: dict[str, int] = {}
        self._changed = threading.Condition()
        self._drained = False

    def tell(self, server: bool, models: dict[str, bool]) -> None:
        """Whether the server and each of its models take requests; models that are gone do not."""
        wanted = {"": server} | dict.fromkeys(self.services, server) | models
        with self._changed:
            if self._drained:
                return
            gone = dict.fromkeys(self._statuses.keys() - wanted.keys(), False)
            statuses = {
                name: int(_STATUS.SERVING if ready else _STATUS.NOT_SERVING)
                for name, ready in (wanted | gone).items()
            }
            if statuses != self._statuses:
                self._statuses = statuses
                self._changed.notify_all()

    def drain(self) -> None:
        """Nothing serves any more, and nothing will."""
        with self._changed:
            self._drained = True
            self._statuses = dict.fromkeys(self._statuses, int(_STATUS.NOT_SERVING))
            self._changed.notify_all()

    def check(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        service = self._service(message, "Check", context)
        self._renew()
        status = self._statuses.get(service)
        if status is None:
            code = grpc.StatusCode.NOT_FOUND
            self._note(code, "unknown_model", "Check", context)
            context.abort(code, f"unknown service {service!r:.60}")
        return bytes(_STATUS(status=status).SerializeToString())

    def watch(self, message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """The status now and whenever it changes, until the client leaves."""
        service = self._service(message, "Watch", context)
        told = None
        context.add_callback(self._wake)
        while context.is_active():
            with self._changed:
                status = self._statuses.get(service, int(_STATUS.SERVICE_UNKNOWN))
                if status == told:
                    self._changed.wait()
                    continue
            told = status
            yield bytes(_STATUS(status=status).SerializeToString())

    def entries(self, pools: Pools, arrivals: Arrivals) -> dict[str, PlacedMethod]:
        """What answers the methods, by their paths."""
        check, watch = (arrivals.with_message(b) for b in (self.check, self.watch))
        handlers = {
            "Check": grpc.stream_unary_rpc_method_handler(pools.on(pools.probes, check)),
            "Watch": grpc.stream_stream_rpc_method_handler(pools.on_watch(watch)),
        }
        return {
            f"/{NAME}/{name}": PlacedMethod(handler, Role.OPEN)
            for name, handler in handlers.items()
        }

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _service(self, message: bytes, method: str, context: grpc.ServicerContext) -> str:
        try:
            return str(health_pb2.HealthCheckRequest.FromString(message).service)
        except DecodeError:
            code = grpc.StatusCode.INVALID_ARGUMENT
            self._note(code, "malformed", method, context)
            context.abort(code, "the message is not a valid HealthCheckRequest")
            raise

    def _note(
        self, code: grpc.StatusCode, reason: str, method: str, context: grpc.ServicerContext
    ) -> None:
        if self._refusals is not None:
            self._refusals.note(code, reason, f"/{NAME}/{method}", context)
