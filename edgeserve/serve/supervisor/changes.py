"""Changes while workers serve: in all of them or in none, one change of a model at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from edgeserve.errors import (
    EdgeServeError,
    EnvironmentProblem,
    ModelNotFound,
    ModelUnavailable,
)
from edgeserve.serve.models.sources import Key, ModelSource, find_sources
from edgeserve.serve.settings.reading import SettingsSource, followed
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.shm import Region
from edgeserve.serve.started import Started
from edgeserve.serve.status.status import ServerStatus
from edgeserve.serve.supervisor.members import Members
from edgeserve.serve.supervisor.ports import with_ports
from edgeserve.serve.supervisor.scheduling import Gate
from edgeserve.serve.workers import LinkLost
from edgeserve.serve.workers.link import NoAnswer
from edgeserve.serve.workers.messages import (
    Abort,
    Commit,
    Finish,
    Journal,
    Plan,
    Prepare,
    ReadKeys,
    Register,
    TellStatus,
    Unload,
    Unregister,
)
from edgeserve.wire.failures import Failure

log = logging.getLogger(__name__)

# For what a worker does at once: its event loop runs, or it does not.
_STEP_S: Final = 10.0
# Not the name of a model.
_REGIONS: Final = "/shared memory"


class Changes:
    """Has the `members` change together, and keeps the journal of it for those that come later.

    Who closes the `gate` keeps changes from being made.
    """

    def __init__(
        self,
        members: Members,
        settings: Settings,
        source: SettingsSource,
    ) -> None:
        self.journal = Journal(settings)
        self.gate = Gate()
        self._refreshing = asyncio.Lock()
        self._changed: Counter[str] = Counter()  # by clients, to know what a scan is too old for
        self._members = members
        self._source = source
        self._killers: dict[str, ModelSource] = {}

    async def began(self, started: Started) -> None:
        """The first workers serve: without these models the server is not ready any more."""
        names = {m.name for m in started.models} | {e.name for e in started.failed}
        serving = {(m.name, m.version) for m in started.models}
        held: list[ModelSource] = []
        with contextlib.suppress(EdgeServeError):
            sources = await asyncio.to_thread(find_sources, self.journal.settings)
            held = [s for s in sources if s.key in serving]
        expected = tuple(sorted({*names, *(self.journal.expected or ())}))
        self._note(expected=expected, held=(*self.journal.held, *held))

    async def load(self, name: str) -> None:
        """Load a model in all workers; if it fails in one, all keep what they had.

        Raises ModelNotFound, and what opening its bundle raised.
        """
        async with self.gate.passing(name):
            settings = self.journal.settings
            sources = [s for s in await asyncio.to_thread(find_sources, settings) if s.name == name]
            if not sources:
                raise ModelNotFound(f"no model '{name}' in this server's repository")
            self._changed[name] += 1
            self._forgive(name)
            if settings.load is not None and name not in (*settings.load, *self.journal.on):
                self._note(on=(*self.journal.on, name))
            failures = await self._follow(name, sources, demanded=True)
        if failures:
            raise failures[0]

    async def unload(self, name: str) -> None:
        """Stop serving a model in all workers. Raises ModelNotFound."""
        async with self.gate.passing(name):
            limit = self._limit_s()
            _, failures = await self._members.ask(Unload(name), type(None), limit)
            if failures and all(isinstance(e, ModelNotFound) for e in failures.values()):
                raise next(iter(failures.values()))
            self._changed[name] += 1
            self._note(
                off={**self.journal.off, name: "it was unloaded"},
                held=tuple(s for s in self.journal.held if s.name != name),
            )
            _raise_for(failures, f"model '{name}' is not unloaded everywhere")

    async def refresh(self, *, asked: bool = False) -> None:
        """Follow the settings and the files, as ModelRepository.refresh does. Never raises."""
        try:
            # First, and beside a refresh that is under way: a key that was taken away must not work on
            # because of another mistake, nor until a slow device has opened.
            await asyncio.to_thread(self.journal.settings.read_keys)
            _, failures = await self._members.ask(ReadKeys(), type(None), _STEP_S)
            for number, error in failures.items():
                log.error("worker %d may still accept the old keys: %s", number, error)
            if asked:
                log.warning("settings and models are read again")
            async with self._refreshing:
                await self._refresh(asked=asked)
        except EdgeServeError as error:
            log.error("settings and models are not reloaded: %s", error)  # noqa: TRY400 - the reason is in its words

    async def _refresh(self, *, asked: bool) -> None:
        new = await asyncio.to_thread(self._source.read)
        settings = followed(self.journal.settings, with_ports(new, self.journal.settings))
        changed = dict(self._changed)
        sources = await asyncio.to_thread(find_sources, settings)
        if settings != self.journal.settings:
            self._note(settings=settings)
        by_name: dict[str, list[ModelSource]] = {name: [] for name in await self._known()}
        for source in sources:
            by_name.setdefault(source.name, []).append(source)
        for name, its in by_name.items():
            async with self.gate.passing(name):
                if self._changed[name] != changed.get(name, 0):
                    continue  # a client changed it after the scan
                killer = self._killers.get(name)
                if killer is not None and (asked or not any(s.loads_as(killer) for s in its)):
                    self._forgive(name)
                    await self._follow(name, its, demanded=True)
                else:
                    await self._follow(name, its, demanded=False)

    async def _known(self) -> set[str]:
        """The models that any worker knows."""
        answers, _ = await self._members.ask(TellStatus(), ServerStatus, _STEP_S)
        return {model.name for status in answers.values() for model in status.models}

    async def _follow(
        self, name: str, sources: list[ModelSource], *, demanded: bool
    ) -> list[EdgeServeError]:
        """Have all workers load a model's new or changed versions, one at a time; returns what failed."""
        plans, failures = await self._members.ask(Plan(sources, demanded), list[Key], _STEP_S)
        problems = _problems(failures)
        wanted = dict.fromkeys(key for keys in plans.values() for key in keys)
        if wanted:
            self._note()
        for source in sources:
            if source.key in wanted:
                problem = await self._one(source, sorted(plans), demanded=demanded)
                problems += [] if problem is None else [problem]
        keys = [s.key for s in sources]
        _, failures = await self._members.ask(Finish(keys, name), type(None), _STEP_S)
        self._let_go(name, keys)
        return problems + _problems(failures)

    def _let_go(self, name: str, keys: list[Key]) -> None:
        """Drop held versions of a model that are not among `keys`, if one of those serves."""
        held = self.journal.held
        stay = bool(keys) and not any(s.key in keys for s in held)
        left = tuple(s for s in held if s.name != name or s.key in keys or stay)
        if left != held:
            self._note(held=left)

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
        self._note(
            expected=tuple({*(self.journal.expected or ()), source.name}),
            held=(*(s for s in self.journal.held if s.key != key), source),
        )
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
        async with self.gate.passing(_REGIONS):
            done, failures = await self._members.ask(Register(region), type(None), _STEP_S)
            failures = _of_living(failures)
            if failures:
                await self._members.ask(Unregister(region.name), type(None), _STEP_S, list(done))
                raise next(iter(failures.values()))
            self._note(regions=(*self.journal.regions, region))

    async def unregister(self, name: str | None) -> None:
        """Forget a region, or all, in all workers."""
        async with self.gate.passing(_REGIONS):
            _, failures = await self._members.ask(Unregister(name), type(None), _STEP_S)
            left = tuple(r for r in self.journal.regions if name is not None and r.name != name)
            self._note(regions=left)
            _raise_for(failures, "the region is not unregistered everywhere")

    def _limit_s(self) -> float:
        """Time limit in seconds for opening a model and finishing the old one's requests."""
        settings = self.journal.settings
        return settings.open_timeout + settings.drain_timeout + 60.0

    def _note(self, **changed: Any) -> None:
        """Update the journal for workers that start later. `changed` are fields of it."""
        number = self.journal.number + ("regions" not in changed)
        self.journal = msgspec.structs.replace(self.journal, number=number, **changed)


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
