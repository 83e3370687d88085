"""Puts the server together: chain, engine, router, sockets, signals. Nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from edgeserve.bundle import Bundle
from edgeserve.chain import Attempt, Chain, ChainOptions
from edgeserve.errors import DependencyMissing, EdgeServeError, EnvironmentProblem
from edgeserve.serve.engine import EngineSettings
from edgeserve.serve.http.front import HttpFront
from edgeserve.serve.metrics import ServerMetrics
from edgeserve.serve.model import ServedModel
from edgeserve.serve.repository import ModelRepository
from edgeserve.serve.settings import Settings
from edgeserve.serve.shm import SharedMemory

if TYPE_CHECKING:
    from edgeserve.serve.grpc.server import GrpcServer

log = logging.getLogger(__name__)


class Started(msgspec.Struct, frozen=True):
    """What serves, and where; for the start-up table."""

    url: str
    grpc: str | None
    model: str
    attempts: tuple[Attempt, ...]
    inline: bool
    max_batch: int
    instances: int
    control_url: str | None = None
    injected: tuple[str, ...] = ()
    placement: str | None = None


def _placement(chain: Chain) -> str | None:
    """What of the model an accelerator runs; None on a CPU, and where the engine does not tell."""
    if chain.candidate.device.partition(".")[0] == "cpu" or chain.options.inject:
        return None
    try:
        return chain.session.placement().describe()
    except EdgeServeError as error:
        log.debug("placement: %s", error)
        return None


def open_chain(settings: Settings) -> Chain:
    """Open what the settings name. Raises BundleError, UsageError, DeviceUnavailable, CheckFailed."""
    settings.check()
    options = ChainOptions(
        fallback=settings.fallback == "auto",
        device=settings.device,
        variant=settings.variant,
        require=settings.require,
        threads=settings.threads,
        instances=settings.instances,
        spin=settings.spin,
        isolate=settings.isolate,
        standby=settings.standby,
        watchdog_s=settings.watchdog,
        open_timeout_s=settings.open_timeout,
        recheck_s=settings.recheck,
        verify=settings.verify,
        reopen_s=settings.reopen,
        worker_memory=settings.worker_memory,
        inject=settings.inject,
    )
    return Chain(Bundle.open(settings.bundle), options)


def serve(settings: Settings, on_start: Callable[[Started], None]) -> bool:
    """Serve until SIGTERM or SIGINT, then drain. False when requests had to be given up.

    `on_start` is called once the server answers. Raises what `open_chain` raises, and
    EnvironmentProblem when the address cannot be used.
    """
    chain = open_chain(settings)
    try:
        with asyncio.Runner(loop_factory=_loop) as runner:
            return runner.run(_serve(settings, chain, on_start))
    finally:
        chain.close()


async def _serve(settings: Settings, chain: Chain, on_start: Callable[[Started], None]) -> bool:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with _Service(settings, chain, loop) as service:
        on_start(await service.start())
        # What start-up left behind is not worth a pause while serving.
        gc.collect()
        gc.freeze()
        await stop.wait()
        return await service.drain()


class _Service:
    """The parts of one running server, on one event loop."""

    def __init__(self, settings: Settings, chain: Chain, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._chain = chain
        metrics = ServerMetrics()
        name = settings.name or chain.bundle.name
        counters = metrics.model(name, "1")
        engine = EngineSettings(
            queue=settings.queue,
            timeout_s=settings.timeout,
            instances=settings.instances,
            batching=settings.batching,
        )

        def served(chain: Chain) -> ServedModel:
            return ServedModel(name, "1", chain, engine, counters, loop)

        self._model = served(chain)
        self._repository = ModelRepository({name: lambda: served(open_chain(settings))})
        self._repository.add(self._model)
        self._shm = SharedMemory(settings.shared_memory, settings.limits.shm_regions)
        self._http = HttpFront(settings, self._repository, metrics, self._shm, settings.open_tls())
        self._grpc = open_grpc(settings, self._repository)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._http.close()
        if self._grpc is not None:
            await self._grpc.close()
        await self._repository.close()
        self._shm.close()

    async def start(self) -> Started:
        url, control_url = await self._http.listen()
        grpc = (
            self._grpc.listen(self._settings.host, self._settings.grpc_port or 0)
            if self._grpc
            else None
        )
        self._repository.serve()
        engine = self._model.engine
        return Started(
            url=url,
            control_url=control_url,
            grpc=grpc,
            model=self._model.name,
            attempts=tuple(self._chain.attempts),
            inline=engine.inline,
            max_batch=engine.max_batch,
            instances=self._settings.instances,
            injected=self._settings.inject,
            placement=await asyncio.to_thread(_placement, self._chain),
        )

    async def drain(self) -> bool:
        """Not ready, no new connections; what has begun is answered, within the drain timeout."""
        self._repository.stop_serving()
        log.info("draining")
        began = time.monotonic()
        limit = self._settings.drain_timeout
        drains = [self._http.drain(limit)]
        if self._grpc is not None:
            drains.append(self._grpc.drain(limit))
        done = all(await asyncio.gather(*drains))
        # What the engine still has is nobody's by now: its clients are served, gone or cut.
        await self._repository.drain(max(0.0, limit - (time.monotonic() - began)))
        if not done:
            log.error("requests were given up after %g s", limit)
        return done


class Background:
    """A server on a thread of its own, for tests and notebooks; stop it, or use it with `with`."""

    def __init__(self, settings: Settings) -> None:
        """Returns when the server answers. Raises what `serve` raises."""
        self._settings = settings
        self._chain = open_chain(settings)
        self._loop = _loop()
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
            self._chain.close()
            self._answering.set()

    async def _main(self) -> None:
        async with _Service(self._settings, self._chain, self._loop) as service:
            self._started = await service.start()
            self._answering.set()
            await self._stop.wait()
            await service.drain()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()


def open_grpc(settings: Settings, repository: ModelRepository) -> GrpcServer | None:
    """The gRPC server, where a port is asked for. Raises DependencyMissing."""
    if settings.grpc_port is None:
        return None
    try:
        from edgeserve.serve.grpc.memory import NoSharedMemory
        from edgeserve.serve.grpc.server import GrpcServer, GrpcSettings
    except ImportError as error:
        raise DependencyMissing(
            str(error.name).partition(".")[0], needed_for="--grpc-port", extra="grpc"
        ) from None
    return GrpcServer(
        repository,
        NoSharedMemory(),
        GrpcSettings(receive_bytes=settings.effective_limits().body_bytes, queue=settings.queue),
        lambda need, key: None,
    )


def _loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop
