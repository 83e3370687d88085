"""How instances' threads hand results to the event loop, at less than `call_soon_threadsafe` costs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

log = logging.getLogger(__name__)

_HAS_EVENTFD: Final = hasattr(os, "eventfd")


class Mailbox:
    """Calls posted by any thread, made on the event loop in the order they came. Owns a descriptor.

    `call_soon_threadsafe` wakes the loop while its caller holds the interpreter's lock: on a busy core the
    loop wakes, finds the lock taken and sleeps again, which doubles what the hop costs. Writing to an
    eventfd lets go of the lock first. Where there are none (they are Linux's) the former has to do.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """On any thread."""
        self._loop = loop
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._told = False  # the loop has been woken and has not looked yet
        self._lock = threading.Lock()  # a descriptor that was closed may be somebody else's by now
        self._descriptor: int | None = None
        if _HAS_EVENTFD:
            self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            loop.call_soon_threadsafe(self._listen)

    def post(self, call: Callable[..., None], *arguments: Any) -> None:
        self._posted.append((call, arguments))
        with self._lock:
            if self._descriptor is None:
                self._loop.call_soon_threadsafe(self._deliver)
            elif not self._told:
                self._told = True
                os.eventfd_write(self._descriptor, 1)

    def close(self) -> None:
        """On any thread. What is posted later is still delivered, while the loop runs."""
        try:
            self._loop.call_soon_threadsafe(self._unlisten)
        except RuntimeError:  # the loop has ended, and forgotten its descriptors
            self._forget()

    # On the loop

    def _listen(self) -> None:
        if self._descriptor is not None:
            self._loop.add_reader(self._descriptor, self._read)

    def _read(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._descriptor)
        self._deliver()

    def _deliver(self) -> None:
        self._told = False  # before looking: what comes from here on wakes the loop anew
        for _ in range(len(self._posted)):
            call, arguments = self._posted.popleft()
            try:
                call(*arguments)
            except Exception:  # the others are somebody else's
                log.exception("a result could not be delivered")

    def _unlisten(self) -> None:
        if self._descriptor is not None:
            self._loop.remove_reader(self._descriptor)
        self._forget()
        self._deliver()

    def _forget(self) -> None:
        with self._lock:
            descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
