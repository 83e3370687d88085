"""Puts the server together: models, listeners, signals. Nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import msgspec

from edgeserve.chain import Attempt
from edgeserve.devices import usable_cores
from edgeserve.errors import DependencyMissing, EdgeServeError, EnvironmentProblem
from edgeserve.serve import logs
from edgeserve.serve.apart import apart, is_busy
from edgeserve.serve.control import Control, OwnControl
from edgeserve.serve.ending import Stop, leave, leave_later, on_hangup
from edgeserve.serve.engine import ResponseCache
from edgeserve.serve.engine.flight import InFlight
from edgeserve.serve.fronts.http import HttpFront
from edgeserve.serve.heap import few_arenas
from edgeserve.serve.log_writer import write_on_a_thread
from edgeserve.serve.metrics.loads import LoadMetrics
from edgeserve.serve.metrics.prometheus import ServerMetrics
from edgeserve.serve.metrics.triton import TritonMetrics
from edgeserve.serve.models.entries import IndexEntry
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.models.opening import Opener
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.models.sources import find_sources
from edgeserve.serve.models.stepping import SteppingRepository
from edgeserve.serve.settings.model import size_bytes
from edgeserve.serve.settings.server import Settings, followed
from edgeserve.serve.shm import SharedMemory
from edgeserve.serve.workers import Link, Siblings
from edgeserve.serve.workers.inherited import Inherited
from edgeserve.serve.workers.messages import Journal

if TYPE_CHECKING:
    from edgeserve.serve.fronts.grpc import GrpcFront

log = logging.getLogger(__name__)

# How much of what a worker counted is lost at most when it is killed.
_PUSH_S: Final = 1.0
# The start-up table is read within that, or nobody reads it.
_SHOWN_S: Final = 2.0


class StartedModel(msgspec.Struct, frozen=True):
    """One model that serves: what became of its candidates, how its requests run and share batches. Without `attempts`
    it comes into memory when it is asked for."""

    name: str
    version: str
    attempts: tuple[Attempt, ...] = ()
    inline: bool = False
    batching: str = ""
    instances: int = 1
    placement: str | None = None


class Started(msgspec.Struct, frozen=True):
    """What serves, and where; for the start-up table. `failed` are the models that do not, `also` further
    addresses of the same listeners."""

    url: str
    grpc: str | None
    models: tuple[StartedModel, ...]
    failed: tuple[IndexEntry, ...] = ()
    control_url: str | None = None
    also: tuple[str, ...] = ()
    injected: tuple[str, ...] = ()
    workers: int = 1


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
    """Have `on_start` print, on a thread: nobody may read it."""
    try:
        async with asyncio.timeout(_SHOWN_S):
            await apart(partial(on_start, started), name="edgeserve-start")
    except (OSError, SystemExit, TimeoutError) as error:
        log.debug("the start-up table is not printed: %r", error)


def end_soon(code: int) -> None:
    """Every request is answered or given up. Nobody waits for what still opens or hangs in a device."""
    if is_busy():
        leave(code)
    leave_later(code)


def settle() -> None:
    """What start-up left behind is not worth a pause while serving."""
    gc.collect()
    gc.freeze()


class Service:
    """The parts of one running server, on one event loop. With a `link` it is one of several workers that
    serve as one; `journal` says what became of them before this one came, and `inherited` is what it accepts
    from."""

    def __init__(
        self,
        settings: Settings,
        loop: asyncio.AbstractEventLoop,
        reread: Callable[[], Settings] | None = None,
        *,
        link: Link | None = None,
        journal: Journal | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        settings.check()
        self._settings = settings
        self._reread = reread or (lambda: settings)
        self._keys = settings.read_keys()
        metrics = ServerMetrics()
        # Workers share what the server as a whole may have.
        kept = size_bytes(settings.cache, "cache") // settings.workers
        opener = Opener(metrics, loop, ResponseCache(kept) if kept else None, settings.workers)
        self._repository = SteppingRepository(
            opener,
            lambda: find_sources(self._settings),
            budget=size_bytes(settings.memory_budget, "memory_budget") // settings.workers,
            readiness=settings.readiness,
            resident=resident_bytes,
        )
        metrics.registry.register(
            LoadMetrics(self._repository.load_states, self._repository.load_failures)
        )
        if settings.metrics_compat == "triton":
            metrics.registry.register(TritonMetrics(metrics, self._repository.loaded))
        self._shm = SharedMemory(settings.shared_memory_prefixes, settings.limits.shm_regions)
        flight = InFlight(settings.limits.in_flight)
        metrics.watch_flight(flight)
        self._siblings: Siblings | None = None
        if link is not None and journal is not None:
            self._siblings = Siblings(
                link, journal, self._repository, self._shm, metrics, self._read_keys
            )
        control = self._siblings or OwnControl(self._repository, self._shm)
        self._http = HttpFront(
            settings, self._repository, metrics, self._shm, flight, settings.open_tls(), control,
            self._siblings, inherited,
        )  # fmt: skip
        self._grpc = open_grpc(
            settings, self._repository, self._shm, flight, metrics, control, self._siblings
        )
        self._following = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await self._http.close()
        if self._grpc is not None:
            await self._grpc.close()
        await self._repository.close()
        self._shm.close()

    async def start(self) -> Started:
        """Load the models, listen, say what serves. Raises the first model's error when none serves."""
        settings = self._settings
        await self._load()
        failures = self._repository.failures()
        may_come = settings.watch > 0 or settings.model_control
        if failures and not self._repository.loaded() and not may_come:
            raise failures[0]
        if self._siblings is not None:
            self._settings = await self._siblings.join()
        url, control_url = await self._http.listen()
        self._repository.serve()
        grpc = self._grpc.listen() if self._grpc is not None else None
        keep = self._follow() if self._siblings is None else _push_often(self._siblings)
        self._tasks.append(asyncio.ensure_future(keep))
        return Started(
            url=url,
            control_url=control_url,
            grpc=grpc,
            also=(*self._http.also, *(self._grpc.also if self._grpc is not None else ())),
            models=tuple([await started(model) for model in self._repository.loaded()]),
            failed=tuple(e for e in self._repository.index() if e.state != "READY"),
            injected=settings.inject,
            workers=settings.workers,
        )

    async def _load(self) -> None:
        """What serves from the start on: as the settings say, or as it is with the other workers."""
        names = self._settings.load
        if self._siblings is None:
            await self._repository.start(names)
            return
        journal = self._siblings.journal
        if names is not None:
            names = tuple(n for n in (*names, *journal.on) if n not in journal.off)
        await self._repository.start(names, journal.off, journal.expected, journal.held)

    def hang_up(self) -> None:
        """Follow settings and files now."""
        if self._siblings is not None:
            self._siblings.refresh()
        self._following.set()

    async def _follow(self) -> None:
        """On SIGHUP, and every `watch` seconds, have the repository follow settings and files."""
        refreshing: asyncio.Task[None] | None = None
        while True:
            self._tasks = [task for task in self._tasks if not task.done()]
            every = self._settings.watch or None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self._following.wait()
            asked = self._following.is_set()
            self._following.clear()
            try:
                # First: a key that was taken away must not work on because of another mistake.
                await self._read_keys()
                new = await asyncio.to_thread(self._reread)
            except EdgeServeError as error:
                log.error("the settings stay as they are: %s", error)  # noqa: TRY400 - the reason is in its words
                continue
            if asked:
                log.warning("settings and models are read again")
            self._settings = followed(self._settings, new)
            if asked or refreshing is None or refreshing.done():
                # Not waited for: a device may open slowly, and keys may have to be changed meanwhile.
                refreshing = asyncio.ensure_future(self._repository.refresh())
                self._tasks.append(refreshing)

    async def _read_keys(self) -> None:
        """Only the keys that there are now work from now on. Raises UsageError."""
        keys = await asyncio.to_thread(self._settings.read_keys)
        if keys == self._keys:
            return
        self._keys = keys
        self._http.change_keys(keys)
        if self._grpc is not None:
            self._grpc.change_keys(keys)
        log.warning("the keys have changed: %r", keys)

    async def drain(self) -> bool:
        """Not ready, then no new connections; what has begun is answered, within the drain timeout."""
        self._repository.stop_serving()
        if self._settings.lame_duck:
            log.info("not ready; connections are accepted for %g s more", self._settings.lame_duck)
            await asyncio.sleep(self._settings.lame_duck)
        if self._siblings is not None:
            self._siblings.leave()
        log.info("draining")
        began = time.monotonic()
        limit = self._settings.drain_timeout
        drains = [self._http.drain(limit)]
        if self._grpc is not None:
            drains.append(self._grpc.drain(limit))
        done = all(await asyncio.gather(*drains))
        # What the engine still has is nobody's by now: its clients are served, gone or cut.
        await self._repository.drain(max(0.0, limit - (time.monotonic() - began)))
        if self._siblings is not None:
            self._siblings.push()
        if not done:
            log.error("requests were given up after %g s", limit)
        return done


class Background:
    """A server on a thread of its own, for tests and notebooks; stop it, or use it with `with`."""

    def __init__(self, settings: Settings, reread: Callable[[], Settings] | None = None) -> None:
        """Returns when the server answers. Raises what `serve` raises."""
        self._reread = reread
        self._service: Service | None = None
        self._settings = settings
        logs.set_up(settings.log_format, access=settings.access_log)
        self._loop = event_loop()
        self._stop = asyncio.Event()
        self._answering = threading.Event()
        self._error: EdgeServeError | None = None
        self._started: Started | None = None
        self._thread = threading.Thread(target=self._run, name="edgeserve-server", daemon=True)
        self._thread.start()
        self._answering.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error

    @property
    def started(self) -> Started:
        assert self._started is not None
        return self._started

    @property
    def url(self) -> str:
        return self.started.url

    def stop(self) -> None:
        """Drain and end; may be called twice."""
        with contextlib.suppress(RuntimeError):  # the loop is closed already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def hang_up(self) -> None:
        """What SIGHUP does."""
        assert self._service is not None
        self._loop.call_soon_threadsafe(self._service.hang_up)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._main())
        except EdgeServeError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for the start
            self._error = EnvironmentProblem("the server failed", cause=repr(error))
        finally:
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            self._answering.set()

    async def _main(self) -> None:
        async with Service(self._settings, self._loop, self._reread) as service:
            self._service = service
            self._started = await service.start()
            self._answering.set()
            await self._stop.wait()
            await service.drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


async def _push_often(siblings: Siblings) -> None:
    while True:
        await asyncio.sleep(_PUSH_S)
        siblings.push()


async def started(model: ServedModel) -> StartedModel:
    engine = model.engine
    if engine is None:
        return StartedModel(model.name, model.version)
    placement = await asyncio.to_thread(model.read_placement)
    return StartedModel(
        model.name,
        model.version,
        tuple(model.attempts),
        engine.inline,
        engine.batching,
        engine.settings.instances,
        placement,
    )


def resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def open_grpc(
    settings: Settings,
    repository: ModelRepository,
    shm: SharedMemory,
    flight: InFlight,
    metrics: ServerMetrics,
    control: Control,
    siblings: Siblings | None = None,
) -> GrpcFront | None:
    """The gRPC side, where a port is asked for. Raises DependencyMissing, UsageError."""
    if settings.grpc_port is None:
        return None
    try:
        from edgeserve.serve.fronts.grpc import GrpcFront
    except ImportError as error:
        raise DependencyMissing(
            str(error.name).partition(".")[0], needed_for="--grpc-port", extra="grpc"
        ) from None
    return GrpcFront(settings, repository, shm, flight, metrics, control, siblings)


def event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
