"""What is changed while workers serve: in all of them or in none, one change at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from edgeserve.errors import (
    EdgeServeError,
    EnvironmentProblem,
    ModelNotFound,
    ModelUnavailable,
)
from edgeserve.serve.settings import Settings, SettingsSource, followed
from edgeserve.serve.shm import Region
from edgeserve.serve.siblings import LinkLost
from edgeserve.serve.siblings.link import NoAnswer
from edgeserve.serve.siblings.messages import (
    Abort,
    Commit,
    Failure,
    Finish,
    Journal,
    Key,
    Plan,
    Prepare,
    ReadKeys,
    Register,
    Unload,
    Unregister,
)
from edgeserve.serve.sources import ModelSource, find_sources
from edgeserve.serve.workers.members import Members
from edgeserve.serve.workers.ports import with_ports

log = logging.getLogger(__name__)

# For what a worker does at once: its event loop runs, or it does not.
_STEP_S: Final = 10.0


class Changes:
    """Has the `members` change together, and keeps the journal of it for those that come later.

    `loaded` is told of each version that is loaded anew. Who holds the `lock` keeps changes from being made.
    """

    def __init__(
        self,
        members: Members,
        settings: Settings,
        source: SettingsSource,
        loaded: Callable[[Key], None],
    ) -> None:
        self.journal = Journal(settings)
        self.lock = asyncio.Lock()
        self._members = members
        self._source = source
        self._loaded = loaded
        self._killers: dict[str, ModelSource] = {}

    async def load(self, name: str) -> None:
        """Load a model in all workers; if it fails in one, all keep what they had.

        Raises ModelNotFound, and what opening its bundle raised.
        """
        async with self.lock:
            settings = self.journal.settings
            sources = [s for s in await asyncio.to_thread(find_sources, settings) if s.name == name]
            if not sources:
                raise ModelNotFound(f"no model '{name}' in this server's repository")
            self._forgive(name)
            if settings.load is not None and name not in (*settings.load, *self.journal.on):
                self._note(on=(*self.journal.on, name))
            failures = await self._follow(sources, name)
        if failures:
            raise failures[0]

    async def unload(self, name: str) -> None:
        """Stop serving a model in all workers. Raises ModelNotFound."""
        async with self.lock:
            limit = self._limit_s()
            _, failures = await self._members.ask(Unload(name), type(None), limit)
            if failures and all(isinstance(e, ModelNotFound) for e in failures.values()):
                raise next(iter(failures.values()))
            self._note(off={**self.journal.off, name: "it was unloaded"})
            _raise_for(failures, f"model '{name}' is not unloaded everywhere")

    async def refresh(self, *, asked: bool = False) -> None:
        """Follow the settings and the files, as ModelRepository.refresh does. Never raises."""
        async with self.lock:
            try:
                # First: a key that was taken away must not work on because of another mistake.
                await asyncio.to_thread(self.journal.settings.read_keys)
                _, failures = await self._members.ask(ReadKeys(), type(None), _STEP_S)
                for number, error in failures.items():
                    log.error("worker %d may still have the keys of before: %s", number, error)
                new = await asyncio.to_thread(self._source.read)
                if asked:
                    log.warning("settings and models are read again")
                settings = followed(self.journal.settings, with_ports(new, self.journal.settings))
                sources = await asyncio.to_thread(find_sources, settings)
            except EdgeServeError as error:
                log.error("settings and models stay as they are: %s", error)  # noqa: TRY400 - the reason is in its words
                return
            if settings != self.journal.settings:
                self._note(settings=settings)
            for name, killer in list(self._killers.items()):
                if asked or not any(s.loads_as(killer) for s in sources if s.name == name):
                    self._forgive(name)
                    await self._follow([s for s in sources if s.name == name], name)
            await self._follow(sources, None)

    async def _follow(self, sources: list[ModelSource], name: str | None) -> list[EdgeServeError]:
        """Have all workers load what is to be loaded, a version at a time; what went wrong."""
        plans, failures = await self._members.ask(Plan(sources, name), list[Key], _STEP_S)
        problems = _problems(failures)
        wanted = dict.fromkeys(key for keys in plans.values() for key in keys)
        if wanted:
            self._note()
        for source in sources:
            if source.key in wanted:
                problem = await self._one(source, sorted(plans), demanded=name is not None)
                problems += [] if problem is None else [problem]
        keys = [s.key for s in sources]
        _, failures = await self._members.ask(Finish(keys, name), type(None), _STEP_S)
        return problems + _problems(failures)

    async def _one(
        self, source: ModelSource, numbers: list[int], *, demanded: bool
    ) -> EdgeServeError | None:
        """Open a version everywhere, then serve it everywhere. First in one worker alone: a model that
        ends its process must not end them all."""
        key, limit = source.key, self._limit_s()
        for some in (numbers[:1], numbers[1:]):
            _, failures = await self._members.ask(Prepare(key, demanded), type(None), limit, some)
            if some != numbers[:1]:
                failures = _of_living(failures)
            if failures:
                number, error = min(failures.items())
                if isinstance(error, LinkLost):
                    error = self._deadly(source, number)
                others = [n for n in numbers if n not in failures]
                await self._members.ask(Abort(key, Failure.of(error)), type(None), _STEP_S, others)
                return error
        self._loaded(key)
        _, failures = await self._members.ask(Commit(key), type(None), _STEP_S, numbers)
        failures = _of_living(failures)
        if not failures:
            return None
        log.error("'%s' version %s is not loaded everywhere", *key)
        return _partly(failures, f"'{key[0]}' is not loaded everywhere")

    def _deadly(self, source: ModelSource, number: int) -> EdgeServeError:
        why = f"worker {number} ended while it opened it"
        self._killers[source.name] = source
        self._note(off={**self.journal.off, source.name: why})
        return ModelUnavailable(f"model '{source.name}' cannot be loaded", cause=why)

    def _forgive(self, name: str) -> None:
        self._killers.pop(name, None)
        self._note(off={n: why for n, why in self.journal.off.items() if n != name})

    async def register(self, region: Region) -> None:
        """Register a region in all workers, or in none. Raises what registering raised."""
        async with self.lock:
            done, failures = await self._members.ask(Register(region), type(None), _STEP_S)
            failures = _of_living(failures)
            if failures:
                await self._members.ask(Unregister(region.name), type(None), _STEP_S, list(done))
                raise next(iter(failures.values()))
            self._note(regions=(*self.journal.regions, region))

    async def unregister(self, name: str | None) -> None:
        """Forget a region, or all, in all workers."""
        async with self.lock:
            _, failures = await self._members.ask(Unregister(name), type(None), _STEP_S)
            left = tuple(r for r in self.journal.regions if name is not None and r.name != name)
            self._note(regions=left)
            _raise_for(failures, "the region is not unregistered everywhere")

    def _limit_s(self) -> float:
        """What opening a model may take at most, and answering what an old one has begun."""
        settings = self.journal.settings
        return settings.open_timeout + settings.drain_timeout + 60.0

    def _note(
        self,
        *,
        settings: Settings | None = None,
        off: dict[str, str] | None = None,
        on: tuple[str, ...] | None = None,
        regions: tuple[Region, ...] | None = None,
    ) -> None:
        """For workers that start later."""
        before = self.journal
        self.journal = Journal(
            before.settings if settings is None else settings,
            before.number + (regions is None),
            before.off if off is None else off,
            before.on if on is None else on,
            before.regions if regions is None else regions,
        )


def _partly(failures: Mapping[int, EdgeServeError], what: str) -> EdgeServeError:
    which = "; ".join(f"worker {number}: {error}" for number, error in sorted(failures.items()))
    return EnvironmentProblem(what, cause=which)


def _problems(failures: Mapping[int, EdgeServeError]) -> list[EdgeServeError]:
    """What the living could not do, by their numbers."""
    return [
        _partly({number: error}, "not all workers could be asked")
        for number, error in _of_living(failures).items()
    ]


def _of_living(failures: Mapping[int, EdgeServeError]) -> dict[int, EdgeServeError]:
    """A worker that has ended does not count: the one in its place does as the journal says."""
    return {n: e for n, e in failures.items() if not isinstance(e, LinkLost)}


def _raise_for(failures: Mapping[int, EdgeServeError], what: str) -> None:
    left = _of_living(failures)
    silent = {n: e for n, e in left.items() if isinstance(e, NoAnswer)}
    if silent:
        raise _partly(silent, what)
    if left:
        raise next(iter(left.values()))
