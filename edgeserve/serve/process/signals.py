"""How a server process ends: on signals, and at once if something hangs."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Final

from edgeserve import startup

log = logging.getLogger(__name__)

INTERRUPTED: Final = 130
# What is closed at the end in any case: scratch folders, isolated processes, log lines.
_LAST_S: Final = 2.0
# What closing the models may take once every request was answered.
_CLOSING_S: Final = 5.0


class Stop:
    """SIGTERM and SIGINT of this process, on its event loop. The first one asks for an orderly end; a SIGINT
    after that ends the process at once."""

    def __init__(self, at_once: Callable[[], None] | None = None) -> None:
        """`at_once` is called before the process ends at a second Ctrl-C."""
        self._at_once = at_once
        self._asked = asyncio.Event()
        self.code = 0  # with which a process ends that had nothing to answer yet
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask, number)

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    async def wait(self) -> None:
        await self._asked.wait()

    def ask(self, number: int = signal.SIGTERM) -> None:
        """What a signal does."""
        interrupted = number == signal.SIGINT
        if self._asked.is_set():
            if interrupted:
                if self._at_once is not None:
                    self._at_once()
                leave(INTERRUPTED)
            return
        self.code = INTERRUPTED if interrupted else 0
        self._asked.set()


def on_hangup(handler: Callable[[], None]) -> None:
    """Have the running loop call `handler` at a SIGHUP, and now if one came since the process started."""
    if not hasattr(signal, "SIGHUP"):
        return
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, handler)
    startup.release_hangups()
    if startup.hung_up():
        handler()


def leave(code: int) -> None:
    """End this process now. Threads that wait for a device are not waited for; what must be cleaned up is,
    as far as that does not take long."""
    last = threading.Thread(target=_clean_up, daemon=True)
    last.start()
    last.join(_LAST_S)
    os._exit(code)


def leave_later(code: int) -> None:
    """End this process with `code` if it has not ended by itself soon: closing a device may hang."""

    def end() -> None:
        log.warning("closing the models takes too long: the process ends now")
        leave(code)

    timer = threading.Timer(_CLOSING_S, end)
    timer.daemon = True
    timer.start()


def _clean_up() -> None:
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
