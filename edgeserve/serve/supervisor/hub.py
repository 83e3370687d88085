"""Where the workers' links meet: answers their requests, adds up their reports."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from edgeserve.errors import (
    EdgeServeError,
    EnvironmentProblem,
)
from edgeserve.serve.metrics.shared import Family, Sample
from edgeserve.serve.process.log_writer import DROPPED, dropped_lines
from edgeserve.serve.settings.reading import SettingsSource
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.status.status import ServerStatus
from edgeserve.serve.supervisor.changes import Changes
from edgeserve.serve.supervisor.members import Member, Members
from edgeserve.serve.workers import WorkerLink
from edgeserve.serve.workers.adding import Departed, status_of_all, total
from edgeserve.serve.workers.messages import (
    AskCounts,
    AskStatus,
    Failed,
    Join,
    Leaving,
    Load,
    Push,
    Refresh,
    Register,
    Report,
    Request,
    Serving,
    TellReport,
    TellStatus,
    Total,
    Unload,
    Unregister,
)

log = logging.getLogger(__name__)

# A probe waits a second by default (Kubernetes); a worker that takes longer to say how it is, is not well.
_TELL_S: Final = 0.8
_T = TypeVar("_T")


class Hub:
    """Lives on the supervisor's event loop; knows the workers by their numbers, from 1.

    `changed` is called when others than before accept connections.
    """

    def __init__(
        self, settings: Settings, source: SettingsSource, changed: Callable[[], None]
    ) -> None:
        self._changed = changed
        self.members = Members()
        self._departed = Departed()
        self.changes = Changes(self.members, settings, source)
        self.ends = 0
        self._status = _Rounds(self._ask_status)
        self._counts = _Rounds(self._ask_counts)

    # Workers come and go

    def add(self, member: Member, link: WorkerLink) -> None:
        """A worker process was started; its link asks here from now on."""
        member.link = link
        self.members[member.number] = member

    async def remove(self, member: Member) -> None:
        """A worker has ended: what it had counted stays."""
        if member.report is not None:
            self._departed.add(member.report)
            member.report = None
        member.serves = False
        self.members.pop(member.number, None)
        await self._joined(member)
        self._changed()
        if not member.started.done():
            error = EnvironmentProblem(
                "a worker ended during its start", hint="run it with --workers 1"
            )
            member.started.set_exception(error)
            member.started.exception()  # not everybody waits for it

    async def answer(self, member: Member, request: Request) -> object:
        """What a worker asks. Raises EdgeServeError."""
        match request:
            case AskStatus():
                return await self._status.next()
            case AskCounts():
                return await self._counts.next()
            case Push(report):
                if self.members.has(member):
                    member.report = report
            case Join():
                await self.changes.gate.close()
                member.joining = True
                # Before it listens: who asks it must hear of it, too.
                member.serves, member.heard = True, time.monotonic()
                if not self.members.has(member):  # it ended while it waited
                    member.serves = False
                    await self._joined(member)
                return self.changes.journal
            case Serving(started):
                await self._joined(member)
                if not member.started.done():
                    member.started.set_result(started)
                member.listens = True
                self._changed()
            case Leaving():
                member.listens = False
                self._changed()
            case Failed(failure):
                if not member.started.done():
                    member.started.set_exception(failure.error())
                    member.started.exception()
            case Load(name):
                await self.changes.load(name)
            case Unload(name):
                await self.changes.unload(name)
            case Refresh():
                await self.changes.refresh(asked=True)
            case Register(region):
                await self.changes.register(region)
            case Unregister(name):
                await self.changes.unregister(name)
            case _:
                raise EdgeServeError(f"{type(request).__name__} is not for the supervisor")
        return None

    async def _joined(self, member: Member) -> None:
        if member.joining:
            member.joining = False
            await self.changes.gate.open()

    async def hung(self, limit_s: float) -> list[Member]:
        """The serving workers that have not answered for `limit_s` seconds. To be called periodically."""
        answers, _ = await self.members.ask(TellStatus(), ServerStatus, _TELL_S)
        now = time.monotonic()
        for member in self.members.values():
            member.silent = member.listens and member.number not in answers
            if member.number in answers:
                member.heard = now
        self._changed()
        return [m for m in self.members.values() if m.serves and now - m.heard > limit_s]

    def accepting(self) -> set[int]:
        """The workers known to accept their connections."""
        return {m.number for m in self.members.values() if m.listens and not m.silent}

    # What they say, as one

    async def _ask_status(self) -> ServerStatus:
        answers, failures = await self.members.ask(TellStatus(), ServerStatus, _TELL_S)
        silent = {n: error.message for n, error in failures.items()}
        for number in range(1, self.changes.journal.settings.workers + 1):
            if number not in answers and number not in silent:
                silent[number] = "it is starting"
        return status_of_all(answers, silent, self.changes.journal.settings.readiness)

    async def _ask_counts(self) -> Total:
        answers, failures = await self.members.ask(TellReport(), Report, _TELL_S)
        for number, report in answers.items():
            member = self.members.get(number)
            if member is None:  # it has ended meanwhile, and what it said before was kept
                continue
            member.report = report
        living = [m.report for m in self.members.values() if m.report is not None]
        for number, error in failures.items():
            log.warning("worker %d did not answer, its last counts are used: %s", number, error)
        reports = [self._departed.beside(living), *living, Report(self._own(len(failures)), [])]
        return total(reports, failures)

    def _own(self, silent: int) -> list[Family]:
        """What the supervisor itself counts."""
        return [
            _family("edgeserve_workers", "gauge", "Worker processes that serve", self._serving()),
            _family(
                "edgeserve_workers_silent", "gauge", "Those that did not answer just now", silent
            ),
            _family("edgeserve_worker_ends", "counter", "Workers that ended unasked", self.ends),
            _family("edgeserve_log_lines_dropped", "counter", DROPPED, dropped_lines()),
        ]

    def _serving(self) -> int:
        return sum(member.serves for member in self.members.values())


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
