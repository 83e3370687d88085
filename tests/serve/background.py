"""A server on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Self

from edgeserve.errors import EdgeServeError, EnvironmentProblem
from edgeserve.serve.app import Service, event_loop
from edgeserve.serve.process import logs
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.started import Started


class Background:
    """One server and the thread that it runs on; stop it, or use it with `with`."""

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
        except Exception as error:
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
