"""One worker's side of serving as one: it answers what the supervisor asks, and asks what all have to do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from edgeserve.errors import EdgeServeError, EnvironmentProblem, InvalidInput
from edgeserve.serve.metrics.prometheus import ServerMetrics
from edgeserve.serve.metrics.shared import families
from edgeserve.serve.models.entries import IndexEntry
from edgeserve.serve.models.repository import Parameters
from edgeserve.serve.models.sources import find_sources
from edgeserve.serve.models.stepping import SteppingRepository
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.shm import Region, SharedMemory
from edgeserve.serve.status.condition import conditions
from edgeserve.serve.workers.link import Link
from edgeserve.serve.workers.messages import (
    Abort,
    AskCounts,
    AskStanding,
    Commit,
    Counts,
    Finish,
    Join,
    Journal,
    Leaving,
    Load,
    Plan,
    Prepare,
    Push,
    ReadKeys,
    Refresh,
    Register,
    Report,
    Request,
    Standing,
    State,
    TellReport,
    TellState,
    Unload,
    Unregister,
)

log = logging.getLogger(__name__)

# The supervisor gives siblings less than that to answer (edgeserve.serve.supervisor.hub).
_TOLD_S: Final = 5.0
# Changes take as long as opening a model does, which has limits of its own.
_CHANGED_S: Final = 3600.0


class Siblings:
    """What a worker knows of all the workers, and does with them; a Control. Lives on the event loop."""

    def __init__(
        self,
        link: Link,
        journal: Journal,
        repository: SteppingRepository,
        shm: SharedMemory,
        metrics: ServerMetrics,
        read_keys: Callable[[], Awaitable[None]],
    ) -> None:
        """`read_keys` takes over the keys as they are now; it raises UsageError."""
        self.journal = journal
        self._read_keys = read_keys
        self._link = link
        self._repository = repository
        self._shm = shm
        self._metrics = metrics
        self._pushed: list[int] = []
        link.handle = self.answer

    # Asked by protocols

    async def standing(self) -> Standing:
        """The state of all workers; while the supervisor does not answer, none of them is ready."""
        try:
            return await self._link.ask(AskStanding(), Standing, _TOLD_S)
        except EnvironmentProblem as error:
            log.warning("the other workers could not be asked: %s", error)
            own = self._state()
            return Standing(ready=False, index=own.index, models=own.models, serves=[], workers=[])

    async def counts(self) -> Counts:
        """What all workers have counted up to now. Raises EnvironmentProblem."""
        return await self._link.ask(AskCounts(), Counts, _TOLD_S)

    async def index(self) -> list[IndexEntry]:
        """Every version, in one state for all workers."""
        return (await self.standing()).index

    async def load(self, name: str, parameters: Parameters | None = None) -> None:
        """Raises what loading raised in any of the workers; then all keep what they had."""
        if parameters:
            raise InvalidInput(
                f"load parameter '{min(parameters)}' is not taken: models come from this server's disk"
            )
        await self._link.ask(Load(name), type(None), _CHANGED_S)

    async def unload(self, name: str) -> None:
        await self._link.ask(Unload(name), type(None), _CHANGED_S)

    async def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        region = Region(name, key, offset, byte_size)
        await self._link.ask(Register(region), type(None), _CHANGED_S)

    async def unregister(self, name: str | None) -> None:
        await self._link.ask(Unregister(name), type(None), _CHANGED_S)

    # At the start, and now and then

    async def join(self) -> Settings:
        """Be as the others are now, which wait with changes until this worker listens; their settings."""
        now = await self._link.ask(Join(), Journal, _CHANGED_S)
        await self._read_keys()
        if now.number != self.journal.number:
            before, self.journal = self.journal, now
            on = (*now.on, *(set(before.off) - set(now.off)))
            sources = await asyncio.to_thread(find_sources, now.settings)
            await self._repository.adopt(sources, now.off, on)
        for region in now.regions:
            try:
                self._shm.register(region.name, region.key, region.offset, region.byte_size)
            except EdgeServeError as error:
                log.warning("a region is not known to this worker: %s", error)
        return now.settings

    def leave(self) -> None:
        """Have others accept what comes from now on."""
        self._link.tell(Leaving())

    def refresh(self) -> None:
        """Have all workers follow settings and files."""
        self._link.tell(Refresh())

    def push(self) -> None:
        """Leave what was counted with the supervisor, if it has changed."""
        counted = self._metrics.counted()
        if counted != self._pushed:
            self._pushed = counted
            self._link.tell(Push(self._report()))

    # Asked by the supervisor

    async def answer(self, request: Request) -> object:
        """Raises EdgeServeError."""
        match request:
            case TellState():
                return self._state()
            case TellReport():
                return self._report()
            case Plan(sources, name):
                return self._repository.plan(sources, name)
            case Prepare(key, demanded):
                await self._repository.prepare(key, demanded=demanded)
            case Commit(key):
                self._repository.commit(key)
            case Abort(key, failure):
                await self._repository.abort(key, failure.error())
            case ReadKeys():
                await self._read_keys()
            case Finish(keys, name):
                self._repository.finish(keys, name)
            case Unload(name):
                await self._repository.unload(name)
            case Register(region):
                self._shm.register(region.name, region.key, region.offset, region.byte_size)
            case Unregister(name):
                if name is None:
                    self._shm.unregister_all()
                else:
                    self._shm.unregister(name)
            case _:
                raise EdgeServeError(f"{type(request).__name__} is not for workers")
        return None

    def _state(self) -> State:
        repository = self._repository
        return State(
            repository.serving, repository.ready, repository.index(), conditions(repository)
        )

    def _report(self) -> Report:
        return Report(
            families(self._metrics.registry),
            [model.statistics() for model in self._repository.loaded()],
        )
