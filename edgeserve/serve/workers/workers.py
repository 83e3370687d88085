"""The Control of one worker among several: it answers the supervisor, and asks it for what concerns all workers."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from edgeserve.errors import EdgeServeError, EnvironmentProblem
from edgeserve.serve.control import Parts
from edgeserve.serve.metrics.prometheus import rendered
from edgeserve.serve.metrics.server_counts import Counts, RequestCounts
from edgeserve.serve.metrics.shared import Shown, families, memory_of, requests_of
from edgeserve.serve.metrics.statistics import ModelStatistics
from edgeserve.serve.models.repository import Parameters, check_parameters
from edgeserve.serve.models.sources import Key, find_sources
from edgeserve.serve.reload import Following
from edgeserve.serve.shm import Region
from edgeserve.serve.status.status import ServerStatus, server_status
from edgeserve.serve.workers.link import WorkerLink
from edgeserve.serve.workers.messages import (
    Abort,
    AskCounts,
    AskStatus,
    Commit,
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
    TellReport,
    TellStatus,
    Total,
    Unload,
    Unregister,
)

log = logging.getLogger(__name__)

# The supervisor gives workers less than that to answer (edgeserve.serve.supervisor.hub).
_TOLD_S: Final = 5.0
# How much of what a worker counted is lost at most when it is killed.
_PUSH_S: Final = 1.0
# Changes take as long as opening a model does, which has limits of its own.
_CHANGED_S: Final = 3600.0


class Workers:
    """The Control of a server of several processes, in one of them.
    Lives on the event loop. `journal` says what became of them before this one came."""

    def __init__(
        self, link: WorkerLink, journal: Journal, parts: Parts, following: Following
    ) -> None:
        self._link = link
        self._journal = journal
        self._following = following
        self._repository = parts.repository
        self._shm = parts.shm
        self._recorder = parts.recorder
        self._metrics = parts.metrics
        self._pushed: list[int] = []
        link.handle = self.answer

    # Asked by protocols

    async def status(self) -> ServerStatus:
        """The status of all workers; while the supervisor does not answer, none of them is ready."""
        try:
            return await self._link.ask(AskStatus(), ServerStatus, _TOLD_S)
        except EnvironmentProblem as error:
            log.warning("the other workers could not be asked: %s", error)
            own = server_status(self._repository)
            return msgspec.structs.replace(own, ready=False, serves=())

    async def ready(self) -> bool:
        return (await self.status()).ready

    async def answers(self, key: Key) -> bool:
        status = await self.status()
        return status.serving and key in status.serves

    async def counts(self) -> Counts:
        return CountsOfAll(await self._link.ask(AskCounts(), Total, _TOLD_S))

    async def load(self, name: str, parameters: Parameters | None = None) -> None:
        """Raises what loading raised in any worker; then all keep what they had."""
        check_parameters(parameters)
        await self._link.ask(Load(name), type(None), _CHANGED_S)

    async def unload(self, name: str) -> None:
        await self._link.ask(Unload(name), type(None), _CHANGED_S)

    async def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        region = Region(name, key, offset, byte_size)
        await self._link.ask(Register(region), type(None), _CHANGED_S)

    async def unregister(self, name: str | None) -> None:
        await self._link.ask(Unregister(name), type(None), _CHANGED_S)

    # Asked by this process

    async def open(self) -> None:
        """Load what the settings say, as changed by the other workers since the start."""
        journal = self._journal
        names = self._following.settings.load
        if names is not None:
            names = tuple(n for n in (*names, *journal.on) if n not in journal.off)
        await self._repository.start(names, journal.off, journal.expected, journal.held)

    async def join(self) -> None:
        """Take over the state of the others, which make no change until this worker listens."""
        now = await self._link.ask(Join(), Journal, _CHANGED_S)
        await self._following.read_keys()
        if now.number != self._journal.number:
            before, self._journal = self._journal, now
            on = (*now.on, *(set(before.off) - set(now.off)))
            sources = await asyncio.to_thread(find_sources, now.settings)
            await self._repository.adopt(sources, now.off, on)
        for region in now.regions:
            try:
                self._shm.register(region.name, region.key, region.offset, region.byte_size)
            except EdgeServeError as error:
                log.warning("shared memory region not registered in this worker: %s", error)
        self._following.settings = now.settings

    async def keep(self) -> None:
        """Send counts to the supervisor now and then; it follows settings and files."""
        while True:
            await asyncio.sleep(_PUSH_S)
            self.end()

    def hang_up(self) -> None:
        self._link.tell(Refresh())

    def leave(self) -> None:
        """Tell the supervisor that others accept from now on."""
        self._link.tell(Leaving())

    def end(self) -> None:
        """Send counts to the supervisor if they have changed."""
        counted = self._recorder.counted()
        if counted != self._pushed:
            self._pushed = counted
            self._link.tell(Push(self._report()))

    # Asked by the supervisor

    async def answer(self, request: Request) -> object:
        """Raises EdgeServeError."""
        match request:
            case TellStatus():
                return server_status(self._repository)
            case TellReport():
                return self._report()
            case Plan(sources, demanded):
                return self._repository.plan(sources, demanded=demanded)
            case Prepare(key, demanded):
                await self._repository.prepare(key, demanded=demanded)
            case Commit(key):
                self._repository.commit(key)
            case Abort(key, failure):
                await self._repository.abort(key, failure.error())
            case ReadKeys():
                await self._following.read_keys()
            case Finish(keys, name):
                self._repository.finish(keys, name)
            case Unload(name):
                await self._repository.unload(name)
            case Register(region):
                self._shm.register(region.name, region.key, region.offset, region.byte_size)
            case Unregister(name):
                self._shm.unregister(name)
            case _:
                raise EdgeServeError(f"{type(request).__name__} is not for workers")
        return None

    def _report(self) -> Report:
        return Report(
            families(self._metrics),
            [model.statistics() for model in self._repository.loaded()],
        )


class CountsOfAll:
    """What all workers have counted."""

    def __init__(self, total: Total) -> None:
        self._total = total

    @property
    def silent(self) -> list[int]:
        return self._total.silent

    def metrics(self) -> bytes:
        return rendered(Shown(self._total.families))

    def statistics(self) -> list[ModelStatistics]:
        return self._total.statistics

    def requests(self) -> dict[Key, RequestCounts]:
        return requests_of(self._total.families)

    def memory_bytes(self) -> int:
        return memory_of(self._total.families)
