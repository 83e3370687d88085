"""Where the workers' links meet: asks them all, adds up what they say, and has them change together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, Generic, TypeVar

from edgeserve.errors import (
    EdgeServeError,
    EnvironmentProblem,
    ModelNotFound,
    ModelUnavailable,
)
from edgeserve.serve.settings import Settings, SettingsSource, followed
from edgeserve.serve.shared_metrics import Family, Sample
from edgeserve.serve.shm import Region
from edgeserve.serve.siblings import Link, LinkLost
from edgeserve.serve.siblings.adding import Departed, counts, standing
from edgeserve.serve.siblings.link import NoAnswer
from edgeserve.serve.siblings.messages import (
    Abort,
    AskCounts,
    AskStanding,
    Commit,
    Counts,
    Failed,
    Failure,
    Finish,
    Join,
    Journal,
    Key,
    Load,
    Plan,
    Prepare,
    Push,
    ReadKeys,
    Refresh,
    Register,
    Report,
    Request,
    Serving,
    Standing,
    State,
    TellReport,
    TellState,
    Unload,
    Unregister,
)
from edgeserve.serve.sources import ModelSource, find_sources

log = logging.getLogger(__name__)

# A probe waits a second by default (Kubernetes); a worker that takes longer to say how it is, is not well.
_TELL_S: Final = 0.8
# For what a worker does at once: its event loop runs, or it does not.
_STEP_S: Final = 10.0
_T = TypeVar("_T")


class Member:
    """One worker process that is there. `started` is what it says once it listens, or why it does not."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.link: Link | None = None
        self.serves = False
        self.report: Report | None = None
        self.started: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.joining = False
        self.heard = 0.0  # monotonic, when it last said how it is


class Hub:
    """Lives on the supervisor's event loop; knows the workers by their numbers, from 1."""

    def __init__(self, settings: Settings, source: SettingsSource) -> None:
        self.journal = Journal(settings)
        self.members: dict[int, Member] = {}
        self._source = source
        self._departed = Departed()
        self.ends = 0
        self._killers: dict[str, ModelSource] = {}
        self._changing = asyncio.Lock()
        self._standing = _Rounds(self._ask_standing)
        self._counts = _Rounds(self._ask_counts)

    # Workers come and go

    def add(self, member: Member, link: Link) -> None:
        """A worker process was started; its link asks here from now on."""
        member.link = link
        self.members[member.number] = member

    def remove(self, member: Member) -> None:
        """A worker has ended: what it had counted stays."""
        if member.report is not None:
            self._departed.add(member.report)
            member.report = None
        member.serves = False
        self.members.pop(member.number, None)
        self._joined(member)
        if not member.started.done():
            error = EnvironmentProblem(
                "a worker ended while it started", hint="run it with --workers 1"
            )
            member.started.set_exception(error)
            member.started.exception()  # not everybody waits for it

    async def answer(self, member: Member, request: Request) -> object:
        """What a worker asks. Raises EdgeServeError."""
        match request:
            case AskStanding():
                return await self._standing.next()
            case AskCounts():
                return await self._counts.next()
            case Push(report):
                if self._has(member):
                    member.report = report
            case Join():
                await self._changing.acquire()
                member.joining = True
                if not self._has(member):  # it ended while it waited
                    self._joined(member)
                return self.journal
            case Serving(started):
                member.serves, member.heard = True, time.monotonic()
                self._joined(member)
                if not member.started.done():
                    member.started.set_result(started)
            case Failed(failure):
                if not member.started.done():
                    member.started.set_exception(failure.error())
                    member.started.exception()
            case Load(name):
                await self.load(name)
            case Unload(name):
                await self.unload(name)
            case Refresh():
                await self.refresh(asked=True)
            case Register(region):
                await self.register(region)
            case Unregister(name):
                await self.unregister(name)
            case _:
                raise EdgeServeError(f"{type(request).__name__} is not for the supervisor")
        return None

    def _has(self, member: Member) -> bool:
        """Whether it is there, and no other in its place."""
        return self.members.get(member.number) is member

    def _joined(self, member: Member) -> None:
        if member.joining:
            member.joining = False
            self._changing.release()

    async def hung(self, limit_s: float) -> list[Member]:
        """Those that serve, and have not said how they are for so long. To be called now and then."""
        answers, _ = await self._ask_all(TellState(), State, _TELL_S)
        now = time.monotonic()
        for number in answers:
            if number in self.members:
                self.members[number].heard = now
        return [m for m in self.members.values() if m.serves and now - m.heard > limit_s]

    # What they say, as one

    async def _ask_standing(self) -> Standing:
        answers, failures = await self._ask_all(TellState(), State, _TELL_S)
        silent = {n: error.message for n, error in failures.items()}
        for number in range(1, self.journal.settings.workers + 1):
            if number not in answers and number not in silent:
                silent[number] = "it is being started"
        return standing(answers, silent, self.journal.settings.readiness)

    async def _ask_counts(self) -> Counts:
        answers, failures = await self._ask_all(TellReport(), Report, _TELL_S)
        for number, report in answers.items():
            member = self.members.get(number)
            if member is None:  # it has ended meanwhile, and what it said before was kept
                continue
            member.report = report
        living = [m.report for m in self.members.values() if m.report is not None]
        for number, error in failures.items():
            log.warning("worker %d: what it counted is as of earlier: %s", number, error)
        together = [self._departed.beside(living), *living, Report(self._own(len(failures)), [])]
        return counts(together, failures)

    def _own(self, silent: int) -> list[Family]:
        """What the supervisor itself counts."""
        return [
            _family("edgeserve_workers", "gauge", "Worker processes that serve", self._serving()),
            _family(
                "edgeserve_workers_silent", "gauge", "Those that did not answer just now", silent
            ),
            _family("edgeserve_worker_ends", "counter", "Workers that ended unasked", self.ends),
        ]

    def _serving(self) -> int:
        return sum(member.serves for member in self.members.values())

    async def _ask_all(
        self, request: Request, kind: type[_T], limit_s: float, numbers: Iterable[int] | None = None
    ) -> tuple[dict[int, _T], dict[int, EdgeServeError]]:
        """Ask all workers that serve (or these) at once: answers and errors by their numbers."""
        chosen = [
            m
            for m in self.members.values()
            if m.serves and (numbers is None or m.number in numbers)
        ]

        async def one(member: Member) -> _T | EdgeServeError:
            assert member.link is not None
            try:
                return await member.link.ask(request, kind, limit_s)
            except EdgeServeError as error:
                return error

        got = await asyncio.gather(*(one(m) for m in chosen))
        pairs = list(zip((m.number for m in chosen), got, strict=True))
        return (
            {n: answer for n, answer in pairs if not isinstance(answer, EdgeServeError)},
            {n: answer for n, answer in pairs if isinstance(answer, EdgeServeError)},
        )

    # Changes, one at a time

    async def load(self, name: str) -> None:
        """Load a model in all workers; if it fails in one, all keep what they had.

        Raises ModelNotFound, and what opening its bundle raised.
        """
        async with self._changing:
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
        async with self._changing:
            limit = self._limit_s()
            _, failures = await self._ask_all(Unload(name), type(None), limit)
            if failures and all(isinstance(e, ModelNotFound) for e in failures.values()):
                raise next(iter(failures.values()))
            self._note(off={**self.journal.off, name: "it was unloaded"})
            _raise_for(failures, f"model '{name}' is not unloaded everywhere")

    async def refresh(self, *, asked: bool = False) -> None:
        """Follow the settings and the files, as ModelRepository.refresh does. Never raises."""
        async with self._changing:
            try:
                # First: a key that was taken away must not work on because of another mistake.
                await asyncio.to_thread(self.journal.settings.read_keys)
                _, failures = await self._ask_all(ReadKeys(), type(None), _STEP_S)
                for number, error in failures.items():
                    log.error("worker %d may still have the keys of before: %s", number, error)
                new = await asyncio.to_thread(self._source.read)
                if asked:
                    log.warning("settings and models are read again")
                settings = followed(self.journal.settings, new)
                sources = await asyncio.to_thread(find_sources, settings)
            except EdgeServeError as error:
                log.error("settings and models stay as they are: %s", error)  # noqa: TRY400
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
        plans, failures = await self._ask_all(Plan(sources, name), list[Key], _STEP_S)
        problems = list(failures.values())
        wanted = dict.fromkeys(key for keys in plans.values() for key in keys)
        if wanted:
            self._note()
        for source in sources:
            if source.key in wanted:
                problem = await self._one(source, sorted(plans), demanded=name is not None)
                problems += [] if problem is None else [problem]
        keys = [s.key for s in sources]
        _, failures = await self._ask_all(Finish(keys, name), type(None), _STEP_S)
        return problems + list(failures.values())

    async def _one(
        self, source: ModelSource, numbers: list[int], *, demanded: bool
    ) -> EdgeServeError | None:
        """Open a version everywhere, then serve it everywhere. First in one worker alone: a model that
        ends its process must not end them all."""
        key, limit = source.key, self._limit_s()
        for some in (numbers[:1], numbers[1:]):
            _, failures = await self._ask_all(Prepare(key, demanded), type(None), limit, some)
            if failures:
                number, error = min(failures.items())
                if isinstance(error, LinkLost):
                    error = self._deadly(source, number)
                others = [n for n in numbers if n not in failures]
                await self._ask_all(Abort(key, Failure.of(error)), type(None), _STEP_S, others)
                return error
        self._departed.forget(key)
        _, failures = await self._ask_all(Commit(key), type(None), _STEP_S, numbers)
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
        async with self._changing:
            done, failures = await self._ask_all(Register(region), type(None), _STEP_S)
            if failures:
                await self._ask_all(Unregister(region.name), type(None), _STEP_S, list(done))
                raise next(iter(failures.values()))
            self._note(regions=(*self.journal.regions, region))

    async def unregister(self, name: str | None) -> None:
        """Forget a region, or all, in all workers."""
        async with self._changing:
            _, failures = await self._ask_all(Unregister(name), type(None), _STEP_S)
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


def _family(name: str, kind: str, what: str, value: float) -> Family:
    sample = name if kind == "gauge" else f"{name}_total"
    return Family(name, kind, what, [Sample(sample, {}, value)])


class _Rounds(Generic[_T]):
    """Rounds of asking all: who comes while one is under way shares the next one, so that an answer is
    never older than its question, and many questions cost no more than a few."""

    def __init__(self, ask: Callable[[], Awaitable[_T]]) -> None:
        self._ask = ask
        self._current: asyncio.Task[_T] | None = None
        self._following: asyncio.Task[_T] | None = None

    async def next(self) -> _T:
        if self._following is None:
            self._following = asyncio.ensure_future(self._run(self._current))
        return await asyncio.shield(self._following)

    async def _run(self, before: asyncio.Task[_T] | None) -> _T:
        if before is not None:
            await asyncio.wait([before])
        self._current, self._following = self._following, None
        return await self._ask()


def _partly(failures: Mapping[int, EdgeServeError], what: str) -> EdgeServeError:
    which = "; ".join(f"worker {number}: {error}" for number, error in sorted(failures.items()))
    return EnvironmentProblem(what, cause=which)


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
