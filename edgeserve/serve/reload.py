"""What happens on SIGHUP, and every `watch` seconds: keys, settings and models are read again.

Where several workers serve, the supervisor follows settings and models for them (supervisor/changes.py), and each
worker its keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from edgeserve.errors import EdgeServeError
from edgeserve.serve.access.keys import Keys
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.settings.reading import followed
from edgeserve.serve.settings.server import Settings

log = logging.getLogger(__name__)


class Following:
    """The settings of a running server as they are now, and how they come to be others. Lives on the event loop.

    `reread` gives the settings as they are on disk; `change_keys` is called with keys that replace those before.
    """

    def __init__(
        self,
        settings: Settings,
        reread: Callable[[], Settings],
        change_keys: Callable[[Keys], None],
    ) -> None:
        self.settings = settings
        self._reread = reread
        self._change_keys = change_keys
        self._keys = settings.read_keys()
        self._hung_up = asyncio.Event()

    def hang_up(self) -> None:
        """Follow now."""
        self._hung_up.set()

    async def follow(self, repository: ModelRepository) -> None:
        """On `hang_up`, and every `watch` seconds, have the repository follow settings and files; until cancelled."""
        refreshing: set[asyncio.Task[None]] = set()
        try:
            while True:
                asked = await self._next()
                try:
                    # First: a key that was taken away must not work on because of another mistake.
                    await self.read_keys()
                    new = await asyncio.to_thread(self._reread)
                except EdgeServeError as error:
                    log.error("the settings stay as they are: %s", error)  # noqa: TRY400 - the reason is in its words
                    continue
                if asked:
                    log.warning("settings and models are read again")
                self.settings = followed(self.settings, new)
                if asked or not refreshing:
                    # Not waited for: a device may open slowly, and keys may have to be changed meanwhile.
                    task = asyncio.ensure_future(repository.refresh())
                    refreshing.add(task)
                    task.add_done_callback(refreshing.discard)
        finally:
            for task in refreshing:
                task.cancel()

    async def _next(self) -> bool:
        """The next time to follow; whether that was asked for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.watch or None):
                await self._hung_up.wait()
        asked = self._hung_up.is_set()
        self._hung_up.clear()
        return asked

    async def read_keys(self) -> None:
        """Only the keys that there are now work from now on. Raises UsageError."""
        keys = await asyncio.to_thread(self.settings.read_keys)
        if keys == self._keys:
            return
        self._keys = keys
        self._change_keys(keys)
        log.warning("the keys have changed: %r", keys)
