"""The listening side of gRPC: grpc's server with our limits, keys and TLS in front of the services that it is given,
beside which it has health and reflection."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import CancelledError
from typing import Final

import grpc

from edgeserve.errors import EnvironmentProblem
from edgeserve.serve.access.addresses import joined
from edgeserve.serve.access.keys import Role
from edgeserve.serve.grpc import health, reflection
from edgeserve.serve.grpc.admission import Admit, Door
from edgeserve.serve.grpc.handlers import Handlers, Traced
from edgeserve.serve.grpc.limits import THREADS, channel_options
from edgeserve.serve.grpc.pool import Pools
from edgeserve.serve.grpc.receive_timeout import Arrivals
from edgeserve.serve.grpc.refusals import Refusals
from edgeserve.serve.grpc.service import GrpcService
from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.settings.server import Settings

_HEALTH_S: Final = 1.0
_POLL_S: Final = 0.005
_QUIET_S: Final = 0.05
_ARRIVING_S: Final = 0.25

# Whether the server takes requests, and each of its models, by name.
Readiness = Callable[[], Awaitable[tuple[bool, dict[str, bool]]]]


class GrpcServer:
    """Owns grpc's server and its threads; made, drained and closed on the event loop."""

    def __init__(
        self,
        settings: Settings,
        admit: Admit,
        readiness: Readiness,
        recorder: Recorder,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        """`readiness` is awaited on the event loop every second, for health probes."""
        self._loop = asyncio.get_running_loop()
        self._credentials = credentials
        self._admit = admit
        self._readiness = readiness
        self._refusals = Refusals(recorder)
        self._pools = Pools(THREADS, settings.grpc_streams, _too_many(self._refusals))
        self._arrivals = Arrivals()
        self._health = health.Health(self._renew_health, self._refusals)
        self._telling: asyncio.Task[None] | None = None
        compressed = settings.limits.compress_bytes if settings.grpc_compression else None
        self._handlers = Handlers(self._pools, self._arrivals, self._refusals, compressed)
        self._server = grpc.server(self._pools.infer, options=channel_options(settings))
        self._most = THREADS + settings.queue
        self._door: Door
        self._timer: asyncio.TimerHandle | None = None

    def serve(self, services: Sequence[GrpcService], traced: Traced | None = None) -> None:
        """Have these answered, beside health and reflection; once, before `listen`. `traced` is called after each call
        that infers, on its thread."""
        self._handlers.traced = traced
        self._health.services = tuple(service.name for service in services)
        entries = self._health.entries(self._pools, self._arrivals)
        entries |= reflection.entries(self._pools, services)
        for service in services:
            entries |= self._handlers.of(service)
        self._door = Door(entries, self._admit, self._pools, self._most, self._refusals)
        self._server.add_generic_rpc_handlers((self._door,))

    def listen(self, host: str, port: int) -> int:
        """Bind an address, on which calls are answered after `start`; returns the port. Raises
        EnvironmentProblem."""
        address = joined(host, port)
        try:
            if self._credentials is None:
                bound = self._server.add_insecure_port(address)
            else:
                bound = self._server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise EnvironmentProblem(
                f"cannot listen on {address} for gRPC",
                cause=str(error),
                hint="--grpc-port 0 picks a free port",
            ) from None
        return int(bound)

    def start(self) -> None:
        """Answer calls on every address that was bound."""
        self._server.start()
        self._watch_health()

    async def drain(self, timeout_s: float) -> bool:
        """Report not serving, refuse new calls, answer those that have begun; False if `timeout_s` was too short."""
        began = time.monotonic()
        self._health.drain()
        # grpc's own stop cancels calls that it has received and not handed over yet. So what is on its
        # way is admitted first, then new calls are refused, and stop comes last.
        await self._quiet(began + min(_ARRIVING_S, timeout_s))
        self._door.close()
        self._handlers.drain()
        while (busy := self._busy()) and time.monotonic() < began + timeout_s:  # noqa: ASYNC110 - threads count
            await asyncio.sleep(_POLL_S)
        await self._quiet(time.monotonic() + _ARRIVING_S)
        await asyncio.to_thread(self._server.stop, None)
        return not busy

    def check_streams(self) -> None:
        """End streams whose key is not valid any more."""
        self._handlers.check_streams(lambda key: self._admit(Role.INFER, key))

    async def _quiet(self, until: float) -> None:
        """Until no call came for a moment."""
        seen = -1
        while seen != self._door.seen and time.monotonic() < until:
            seen = self._door.seen
            await asyncio.sleep(_QUIET_S)

    async def close(self) -> None:
        """End every call and all threads."""
        if self._timer is not None:
            self._timer.cancel()
        if self._telling is not None:
            self._telling.cancel()
        self._handlers.drain()
        await asyncio.to_thread(self._server.stop, None)
        await asyncio.to_thread(self._pools.close)

    def _busy(self) -> bool:
        # In this order: a call leaves its pool after it was counted among the open ones.
        return self._pools.infer.calls > 0 or self._handlers.open > 0

    def tell_health(self) -> None:
        """Soon set the health again, and tell those who watch it."""
        if self._telling is None or self._telling.done():
            self._telling = asyncio.ensure_future(self._tell_now())

    async def _tell_now(self) -> None:
        self._health.tell(*await self._readiness())

    def _renew_health(self) -> None:
        """Set the health again, on a call's thread: the last state may be a second old."""
        telling = asyncio.run_coroutine_threadsafe(self._tell_now(), self._loop)
        with contextlib.suppress(TimeoutError, CancelledError):
            telling.result(_HEALTH_S)

    def _watch_health(self) -> None:
        self.tell_health()
        self._arrivals.sweep()
        self._timer = self._loop.call_later(_HEALTH_S, self._watch_health)


def _too_many(refusals: Refusals) -> Callable[[grpc.ServicerContext], None]:
    """What is done about a stream that is one too many."""
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    return lambda context: refusals.note(code, "streams", "", context)
