"""The first process of several: it serves nothing itself, but starts the workers, has those that die
started again, passes signals on, and is where they meet. The kernel spreads connections over them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from asyncio.subprocess import Process
from collections.abc import Callable
from typing import Final

import msgspec

from edgeserve import startup
from edgeserve.serve.app import shown
from edgeserve.serve.process import logs
from edgeserve.serve.process.log_writer import write_on_a_thread
from edgeserve.serve.process.signals import Stop, leave, on_hangup
from edgeserve.serve.settings.reading import SettingsSource
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.started import Started
from edgeserve.serve.supervisor.hub import Hub
from edgeserve.serve.supervisor.members import Member
from edgeserve.serve.supervisor.ports import ReservedPorts
from edgeserve.serve.supervisor.standin import Standin
from edgeserve.serve.workers.link import WorkerLink, send_order
from edgeserve.serve.workers.messages import Order

log = logging.getLogger(__name__)

# A worker that dies soon after its start is started again after a pause, then after twice as long each time.
_SOON_S: Final = 10.0
_PAUSE_S: Final = 1.0
_PAUSE_LONGEST_S: Final = 30.0
# A worker whose event loop does not run for so long hangs, and its clients with it.
_HUNG_S: Final = 30.0
_CHECK_S: Final = 5.0
# What a worker gets beyond --drain-timeout to end.
_LAST_S: Final = 10.0


def serve_in_processes(
    settings: Settings, source: SettingsSource, on_start: Callable[[Started], None]
) -> bool:
    """Serve until SIGTERM or SIGINT, then have every worker drain. False when one had to give up requests.

    Raises what the first worker's start raises.
    """
    write_on_a_thread()
    logs.set_up(settings.log_format, access=settings.access_log)
    with ReservedPorts(settings) as reserved, asyncio.Runner() as runner:
        return runner.run(_supervise(reserved, source, on_start))


async def _supervise(
    reserved: ReservedPorts, source: SettingsSource, on_start: Callable[[Started], None]
) -> bool:
    return await Supervisor(reserved, source).run(on_start)


class Supervisor:
    """Owns the worker processes and the tasks that watch them; lives on its event loop."""

    def __init__(self, reserved: ReservedPorts, source: SettingsSource) -> None:
        self._settings = reserved.settings
        self._standin = Standin(reserved.bound)
        self._hub = Hub(self._settings, source, self._stand_in)
        self._processes: dict[int, Process] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._stop = Stop(self._kill_all)
        self._serving = False
        self._clean = True

    async def run(self, on_start: Callable[[Started], None]) -> bool:
        on_hangup(self._hang_up)
        try:
            started = await self._start_all()
            if started is not None:
                self._serving = True
                await self._hub.changes.began(started)
                await shown(on_start, started)
                checking = asyncio.ensure_future(self._end_hung())
                self._tasks.add(checking)
                await self._until_stopped()
        finally:
            await self._end()
        if not self._serving and self._stop.code:
            leave(self._stop.code)
        return self._clean

    async def _start_all(self) -> Started | None:
        """Start the first worker alone, whose error is the server's, then the others. None if the server is stopped meanwhile."""
        started = None
        for numbers in ([1], range(2, self._settings.workers + 1)):
            members = [await self._start(n) for n in numbers]
            for member in members:
                self._keepers.append(asyncio.ensure_future(self._keep(member)))
            stop = asyncio.ensure_future(self._stop.wait())
            every = asyncio.gather(*(m.started for m in members))
            waited: list[asyncio.Future[object]] = [stop, every]  # type: ignore[list-item] # invariant
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            if self._stop.asked:
                every.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await every
                return None
            told = every.result()
            if started is None:
                started = msgspec.msgpack.decode(told[0], type=Started)
        return started

    async def _until_stopped(self) -> None:
        """Until SIGTERM or SIGINT; follow files every `watch` seconds."""
        every = self._settings.watch or None
        stopped = asyncio.ensure_future(self._stop.wait())
        while not stopped.done():
            await asyncio.wait({stopped}, timeout=every)
            if not stopped.done():
                refreshing = self._refresh(False)
                await asyncio.wait({stopped, refreshing}, return_when=asyncio.FIRST_COMPLETED)

    async def _end_hung(self) -> None:
        """Kill workers that hang; others are started in their place."""
        while True:
            await asyncio.sleep(_CHECK_S)
            for member in await self._hub.hung(_HUNG_S):
                log.error(
                    "worker %d has not answered for %g s and is ended", member.number, _HUNG_S
                )
                with contextlib.suppress(ProcessLookupError):
                    self._processes[member.number].kill()

    def _hang_up(self) -> None:
        self._refresh(True)

    def _refresh(self, asked: bool) -> asyncio.Task[None]:
        task = asyncio.ensure_future(self._hub.changes.refresh(asked=asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _stand_in(self) -> None:
        """Accept connections in place of workers that are gone, leaving or hanging."""
        if not self._stop.asked:
            everybody = set(range(1, self._settings.workers + 1))
            self._standin.accept_for(everybody - self._hub.accepting())

    # One worker

    async def _start(self, number: int) -> Member:
        """A worker process, which has its order and a link."""
        ours, theirs = socket.socketpair()
        listeners, pool = self._standin.listeners_of(number), self._standin.pool
        with theirs, startup.hangups_held():
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "edgeserve.serve.supervisor", str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), pool, *(one.descriptor for one in listeners)],
                start_new_session=True,  # Ctrl-C reaches the supervisor alone, which passes it on
            )  # fmt: skip
        self._processes[number] = process
        level = logging.getLogger().getEffectiveLevel()
        with contextlib.suppress(OSError):  # it is gone already
            order = Order(number, self._hub.changes.journal, level, listeners, pool)
            await asyncio.to_thread(send_order, ours, order)
        member = Member(number)
        link = await WorkerLink.over(ours, lambda request: self._hub.answer(member, request))
        self._hub.add(member, link)
        return member

    async def _keep(self, member: Member) -> None:
        """Replace a worker whenever it ends, until the server ends."""
        pause = _PAUSE_S / 2
        while True:
            began = time.monotonic()
            process, link = self._processes[member.number], member.link
            if self._stop.asked:
                _terminate(process)
            code = await process.wait()
            assert link is not None
            await asyncio.wait([link.reading], timeout=_PAUSE_S)  # what it still said
            served = member.serves
            await self._hub.remove(member)
            await link.close()
            if self._stop.asked:
                self._clean = self._clean and (code == 0 or not served)
                return
            if not self._serving:
                return
            self._hub.ends += 1
            lived = time.monotonic() - began
            pause = _PAUSE_S if lived > _SOON_S else min(_PAUSE_LONGEST_S, 2 * pause)
            log.error("worker %d ended with %d; another one is started", member.number, code)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, pause - lived)):
                    await self._stop.wait()
            if self._stop.asked:
                return
            member = await self._start(member.number)

    async def _end(self) -> None:
        """Have every worker drain; kill those that take too long."""
        self._stop.ask()
        self._standin.close()
        for task in self._tasks:
            task.cancel()
        for process in self._processes.values():
            _terminate(process)
        if self._keepers:
            limit = self._settings.lame_duck + self._settings.drain_timeout + _LAST_S
            _, late = await asyncio.wait(self._keepers, timeout=limit)
            if late:
                self._clean = False
                self._kill_all()
                await asyncio.wait(late)

    def _kill_all(self) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()


def _terminate(process: Process) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
