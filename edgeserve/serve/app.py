"""Puts the server together: models, listeners, signals. Nothing else."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from edgeserve.devices import usable_cores
from edgeserve.errors import DependencyMissing
from edgeserve.serve.access.keys import Keys
from edgeserve.serve.control import Control, OneProcess, Parts
from edgeserve.serve.engine import ResponseCache
from edgeserve.serve.engine.in_flight import InFlight
from edgeserve.serve.fronts.http import HttpFront
from edgeserve.serve.metrics.loads import LoadMetrics
from edgeserve.serve.metrics.prometheus import ServerMetrics
from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.metrics.triton import TritonMetrics
from edgeserve.serve.models.opening import Opener
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.models.sources import find_sources
from edgeserve.serve.process import logs
from edgeserve.serve.process.blocking import apart, is_busy
from edgeserve.serve.process.heap import few_arenas
from edgeserve.serve.process.log_writer import write_on_a_thread
from edgeserve.serve.process.signals import Stop, leave, leave_later, on_hangup
from edgeserve.serve.reload import Following
from edgeserve.serve.settings.protocols import protocols_of
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.settings.setting import size_bytes
from edgeserve.serve.shm import SharedMemory
from edgeserve.serve.started import Started, started_model
from edgeserve.serve.status.status import server_status
from edgeserve.serve.tracing import open_tracing
from edgeserve.serve.workers.inherited import Inherited

if TYPE_CHECKING:
    from edgeserve.serve.fronts.grpc import GrpcFront

log = logging.getLogger(__name__)

# The start-up table is read within that, or nobody reads it.
_SHOWN_S: Final = 2.0


def serve(
    settings: Settings,
    on_start: Callable[[Started], None],
    reread: Callable[[], Settings] | None = None,
) -> bool:
    """Serve until SIGTERM or SIGINT, then drain. False when requests had to be given up.

    `on_start` is called once the server answers; `reread` gives the settings as they are on disk now, for
    SIGHUP and `watch`. Raises UsageError, what opening a model raises when none can be served, and
    EnvironmentProblem when the address cannot be used.
    """
    few_arenas(max(2, usable_cores()))
    write_on_a_thread()
    logs.set_up(settings.log_format, access=settings.access_log)
    with asyncio.Runner(loop_factory=event_loop) as runner:
        return runner.run(_serve(settings, on_start, reread))


async def _serve(
    settings: Settings,
    on_start: Callable[[Started], None],
    reread: Callable[[], Settings] | None,
) -> bool:
    stop = Stop()
    async with Service(settings, asyncio.get_running_loop(), reread) as service:
        on_hangup(service.hang_up)
        await shown(on_start, await start_unless_stopped(service, stop))
        settle()
        await stop.wait()
        done = await service.drain()
        end_soon(0 if done else 1)
        return done


async def start_unless_stopped(service: Service, stop: Stop) -> Started:
    """What serves. Ends the process if it is asked to end before: no request can have come. Raises what
    `Service.start` raises."""
    starting = asyncio.ensure_future(service.start())
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        leave(stop.code)
    stopped.cancel()
    return starting.result()


async def shown(on_start: Callable[[Started], None], started: Started) -> None:
    """Have `on_start` print, on a thread: stderr may block."""
    try:
        async with asyncio.timeout(_SHOWN_S):
            await apart(partial(on_start, started), name="edgeserve-start")
    except (OSError, SystemExit, TimeoutError) as error:
        log.debug("the start-up table is not printed: %r", error)


def end_soon(code: int) -> None:
    """End the process with `code`, without waiting for devices that still open or hang."""
    if is_busy():
        leave(code)
    leave_later(code)


def settle() -> None:
    """Collect what start-up left, so that no collection pauses for it later."""
    gc.collect()
    gc.freeze()


class Service:
    """The parts of one running server, on one event loop.

    `reread` gives the settings as they are on disk now; `control` makes what answers for one process or several;
    `inherited` is what it accepts from where it does not listen itself.
    """

    def __init__(
        self,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        reread: Callable[[], Settings] | None = None,
        *,
        control: Callable[[Parts, Following], Control] = OneProcess,
        inherited: Inherited | None = None,
    ) -> None:
        settings.check()
        self._following = Following(settings, reread or (lambda: settings), self._change_keys)
        recorder = Recorder()
        # Workers share what the server as a whole may have.
        kept = size_bytes(settings.cache, "cache") // settings.workers
        opener = Opener(recorder, loop, ResponseCache(kept) if kept else None, settings.workers)
        repository = ModelRepository(
            opener,
            lambda: find_sources(self._following.settings),
            budget=size_bytes(settings.memory_budget, "memory_budget") // settings.workers,
            readiness=settings.readiness,
            resident=resident_bytes,
        )
        flight = InFlight(settings.limits.in_flight)
        triton = settings.metrics_compat == "triton"
        metrics = ServerMetrics(
            recorder,
            lambda: flight.count,
            LoadMetrics(repository.load_states, repository.load_failures),
            *([TritonMetrics(recorder, repository.pending)] if triton else []),
        )
        shm = SharedMemory(settings.shared_memory_prefixes, settings.limits.shm_regions)
        self._tracing = open_tracing(settings.trace)
        parts = Parts(repository, shm, recorder, metrics, flight, self._tracing)
        self._settings, self._repository, self._shm = settings, repository, shm
        self._control = control(parts, self._following)
        self._http = HttpFront(settings, parts, self._control, settings.open_tls(), inherited)
        self._grpc = open_grpc(settings, parts, self._control)
        self._keeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        await self._http.close()
        if self._grpc is not None:
            await self._grpc.close()
        await self._repository.close()
        self._shm.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)

    async def start(self) -> Started:
        """Load the models, listen, say what serves. Raises the first model's error when none serves."""
        settings = self._settings
        await self._control.open()
        failures = self._repository.failures()
        may_come = settings.watch > 0 or settings.model_control
        if failures and not self._repository.loaded() and not may_come:
            raise failures[0]
        await self._control.join()
        url, control_url = await self._http.listen()
        self._repository.serve()
        grpc = self._grpc.listen() if self._grpc is not None else None
        self._keeping = asyncio.ensure_future(self._control.keep())
        versions = server_status(self._repository).models
        return Started(
            url=url,
            control_url=control_url,
            grpc=grpc,
            also=(*self._http.also, *(self._grpc.also if self._grpc is not None else ())),
            models=tuple([await started_model(model) for model in self._repository.loaded()]),
            failed=tuple(v for v in versions if v.state != "READY"),
            injected=settings.inject,
            workers=settings.workers,
            protocols=protocols_of(settings.protocols),
        )

    def hang_up(self) -> None:
        """What SIGHUP does: reload settings, keys and models now."""
        self._control.hang_up()

    def _change_keys(self, keys: Keys) -> None:
        self._http.change_keys(keys)
        if self._grpc is not None:
            self._grpc.change_keys(keys)

    async def drain(self) -> bool:
        """Not ready, then no new connections; what has begun is answered, within the drain timeout."""
        self._repository.stop_serving()
        settings = self._following.settings
        if settings.lame_duck:
            log.info("not ready; connections are accepted for %g s more", settings.lame_duck)
            await asyncio.sleep(settings.lame_duck)
        self._control.leave()
        log.info("draining")
        began = time.monotonic()
        limit = settings.drain_timeout
        drains = [self._http.drain(limit)]
        if self._grpc is not None:
            drains.append(self._grpc.drain(limit))
        done = all(await asyncio.gather(*drains))
        # What the engine still has is nobody's by now: its clients are served, gone or cut.
        await self._repository.drain(max(0.0, limit - (time.monotonic() - began)))
        self._control.end()
        if not done:
            log.error("requests were given up after %g s", limit)
        return done


def resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def open_grpc(settings: Settings, parts: Parts, control: Control) -> GrpcFront | None:
    """The gRPC side, if a port is set. Raises DependencyMissing, UsageError."""
    if settings.grpc_port is None:
        return None
    try:
        from edgeserve.serve.fronts.grpc import GrpcFront
    except ImportError as error:
        raise DependencyMissing(
            str(error.name).partition(".")[0], needed_for="--grpc-port", extra="grpc"
        ) from None
    return GrpcFront(settings, parts, control)


def event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
