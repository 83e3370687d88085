"""The listening side of gRPC: grpc's server with our limits, keys and TLS in front of the methods."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import grpc
import msgspec

from edgeserve.errors import EnvironmentProblem
from edgeserve.serve.grpc import SERVICE, health, reflection
from edgeserve.serve.grpc.about import About
from edgeserve.serve.grpc.calls import Inferences
from edgeserve.serve.grpc.door import Admit, Door, Method, Need
from edgeserve.serve.grpc.memory import SharedMemory
from edgeserve.serve.grpc.pool import Pools
from edgeserve.serve.grpc.service import INFER, Service
from edgeserve.serve.repository import ModelRepository

_HEALTH_S: Final = 1.0
_POLL_S: Final = 0.005
_QUIET_S: Final = 0.02
_ARRIVING_S: Final = 0.25
_OPEN: Final = frozenset({"ServerLive", "ServerReady"})
_CONTROL: Final = frozenset(
    {
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
    }
)


class GrpcSettings(msgspec.Struct, frozen=True):
    """Sizes in bytes, times in seconds. `threads` calls are inferred side by side, `queue` wait for a
    thread; each stream has threads of its own."""

    receive_bytes: int = 64 << 20
    send_bytes: int = 1 << 30
    metadata_bytes: int = 16_384
    threads: int = 64
    queue: int = 1024
    streams: int = 32
    streams_per_connection: int = 1024
    idle_s: float = 300.0
    keepalive_s: float = 60.0
    model_control: bool = False

    def channel_options(self) -> list[tuple[str, int]]:
        return [
            ("grpc.max_receive_message_length", self.receive_bytes),
            ("grpc.max_send_message_length", self.send_bytes),
            ("grpc.max_metadata_size", self.metadata_bytes),
            ("grpc.absolute_max_metadata_size", 2 * self.metadata_bytes),
            ("grpc.max_concurrent_streams", self.streams_per_connection),
            ("grpc.max_connection_idle_ms", int(self.idle_s * 1000)),
            ("grpc.keepalive_time_ms", int(self.keepalive_s * 1000)),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.max_ping_strikes", 5),
            ("grpc.so_reuseport", 0),  # a second server on the port is an error, not half the calls
        ]


class GrpcServer:
    """Owns grpc's server and its threads; made, drained and closed on the event loop."""

    def __init__(
        self,
        repository: ModelRepository,
        memory: SharedMemory,
        settings: GrpcSettings,
        admit: Admit,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._repository = repository
        self._credentials = credentials
        self._pools = Pools(settings.threads, settings.streams)
        self._health = health.Health()
        about = About(
            repository,
            memory,
            model_control=settings.model_control,
            changed=self._tell_health,
        )
        self._service = Service(
            Inferences(repository, memory, self._loop),
            about,
            self._pools,
        )
        self._server = grpc.server(self._pools.infer, options=settings.channel_options())
        self._door = Door(self._methods(), admit, self._pools, settings.threads + settings.queue)
        self._server.add_generic_rpc_handlers((self._door,))
        self._timer: asyncio.TimerHandle | None = None

    def listen(self, host: str, port: int) -> str:
        """Start answering; the address that is really listened on. Raises EnvironmentProblem."""
        name = f"[{host}]" if ":" in host else host
        address = f"{name}:{port}"
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
        self._server.start()
        self._watch_health()
        return f"{name}:{bound}"

    async def drain(self, timeout_s: float) -> bool:
        """Not serving, nothing new, what has begun is answered; False when time ran out."""
        began = time.monotonic()
        self._health.drain()
        # grpc's own stop cancels calls that it has received and not handed over yet. So what is on its
        # way is let in first, then new calls are told to go elsewhere, and stop comes last.
        await self._quiet(began + min(_ARRIVING_S, timeout_s))
        self._door.close()
        self._service.drain()
        while (busy := self._busy()) and time.monotonic() < began + timeout_s:
            await asyncio.sleep(_POLL_S)
        await self._quiet(time.monotonic() + _ARRIVING_S)
        await asyncio.to_thread(self._server.stop, None)
        return not busy

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
        self._service.drain()
        await asyncio.to_thread(self._server.stop, None)
        await asyncio.to_thread(self._pools.close)

    def _busy(self) -> bool:
        # In this order: a call leaves its pool after it was counted among the open ones.
        return self._pools.infer.calls > 0 or self._service.open > 0

    def _tell_health(self) -> None:
        models: dict[str, bool] = {}
        for entry in self._repository.index():
            models[entry.name] = models.get(entry.name, False) or entry.state == "READY"
        self._health.tell(self._repository.ready, models)

    def _watch_health(self) -> None:
        self._tell_health()
        self._timer = self._loop.call_later(_HEALTH_S, self._watch_health)

    def _methods(self) -> dict[str, Method]:
        found = {
            f"/{SERVICE}/{name}": Method(handler, _need(name), name == INFER)
            for name, handler in self._service.handlers().items()
        }
        for name, handler in self._health.handlers(self._pools).items():
            found[f"/{health.NAME}/{name}"] = Method(handler, Need.OPEN)
        for name, handler in reflection.handlers(self._pools).items():
            found[name] = Method(handler, Need.INFER)
        return found


def _need(method: str) -> Need:
    if method in _OPEN:
        return Need.OPEN
    return Need.CONTROL if method in _CONTROL else Need.INFER
