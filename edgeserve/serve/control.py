"""What the server as a whole is asked and told, whatever the protocol: its status, its counts, changes of models and
of shared memory. Whether one process serves or several is known here, to `supervisor` and to `workers`, to nobody
else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from edgeserve.serve.access.keys import Forbidden
from edgeserve.serve.engine.in_flight import InFlight
from edgeserve.serve.metrics.prometheus import ServerMetrics
from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.metrics.server_counts import Counts, RequestCounts
from edgeserve.serve.metrics.statistics import ModelStatistics
from edgeserve.serve.models.repository import ModelRepository, Parameters
from edgeserve.serve.models.sources import Key
from edgeserve.serve.reload import Following
from edgeserve.serve.shm import SharedMemory
from edgeserve.serve.status.status import Observed, ServerStatus, server_status
from edgeserve.serve.tracing import Tracing


def check_model_control(allowed: bool) -> None:
    """Raises Forbidden if clients may not load and unload models, whatever their role."""
    if not allowed:
        raise Forbidden(
            "loading models over the API is disabled", hint="edgeserve run --model-control"
        )


class Control(Observed, Protocol):
    """One server, of one process or several. Every method returns once it is done; raises EdgeServeError."""

    # Asked by protocols, beside `status` and `counts`

    async def ready(self) -> bool:
        """Whether the server is ready, as in `status`. Never raises."""

    async def answers(self, key: Key) -> bool:
        """Whether a version answers requests now. Never raises."""

    async def load(self, name: str, parameters: Parameters | None = None) -> None:
        """As ModelRepository.load, in all processes or in none."""

    async def unload(self, name: str) -> None:
        """As ModelRepository.unload."""

    async def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """As SharedMemory.register, in all processes or in none."""

    async def unregister(self, name: str | None) -> None:
        """As SharedMemory.unregister, of all regions if none is named."""

    # Asked by the process itself, from its start to its end

    async def open(self) -> None:
        """Load what serves from the start on. Raises UsageError."""

    async def join(self) -> None:
        """Be as the other processes are, before listening."""

    async def keep(self) -> None:
        """Follow what changes outside, until cancelled."""

    def hang_up(self) -> None:
        """What SIGHUP does: follow settings, keys and files now."""

    def leave(self) -> None:
        """This process accepts nothing more."""

    def end(self) -> None:
        """This process has answered everything."""


@dataclass(frozen=True)
class Parts:
    """What one process has of the server: what its listeners answer from, and its Control acts on."""

    repository: ModelRepository
    shm: SharedMemory
    recorder: Recorder
    metrics: ServerMetrics
    flight: InFlight
    tracing: Tracing | None = None


class OneProcess:
    """A server that is one process: what its parts say is the answer."""

    def __init__(self, parts: Parts, following: Following) -> None:
        self._repository = parts.repository
        self._shm = parts.shm
        self._parts = parts
        self._following = following

    async def status(self) -> ServerStatus:
        return server_status(self._repository)

    async def ready(self) -> bool:
        return self._repository.ready

    async def answers(self, key: Key) -> bool:
        return self._repository.answers(key)

    async def counts(self) -> Counts:
        return _OwnCounts(self._parts)

    async def load(self, name: str, parameters: Parameters | None = None) -> None:
        await self._repository.load(name, parameters)

    async def unload(self, name: str) -> None:
        await self._repository.unload(name)

    async def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        self._shm.register(name, key, offset, byte_size)

    async def unregister(self, name: str | None) -> None:
        self._shm.unregister(name)

    async def open(self) -> None:
        await self._repository.start(self._following.settings.load)

    async def join(self) -> None:
        """There are no other processes."""

    async def keep(self) -> None:
        await self._following.follow(self._repository)

    def hang_up(self) -> None:
        self._following.hang_up()

    def leave(self) -> None:
        """No other process has to know."""

    def end(self) -> None:
        """No other process has to know."""


@dataclass(frozen=True)
class _OwnCounts:
    """Read when it is rendered."""

    parts: Parts
    silent: tuple[int, ...] = ()

    def metrics(self) -> bytes:
        return self.parts.metrics.render()

    def statistics(self) -> list[ModelStatistics]:
        return [model.statistics() for model in self.parts.repository.loaded()]

    def requests(self) -> dict[Key, RequestCounts]:
        pending = self.parts.repository.pending()
        found = {}
        for model in self.parts.recorder.models():
            model.catch_up()
            key = (model.name, model.version)
            failed = {reason: n for reason, n in model.failures.items() if n}
            times = tuple(model.request.counts)
            found[key] = RequestCounts(model.answered, failed, pending.get(key, 0), times)
        return found

    def memory_bytes(self) -> int:
        return self.parts.metrics.memory_bytes()
