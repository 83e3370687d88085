"""The C library's heap: few arenas, and memory freed by unloaded models is returned to the system."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import sys
from functools import cache
from typing import Any, Final

_M_ARENA_MAX: Final = -8  # malloc.h
_SOON_S: Final = 1.0
_SAID: Final = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


def few_arenas(most: int) -> bool:
    """Have the threads of this process share `most` arenas (glibc; elsewhere nothing happens).

    Left alone glibc makes up to eight for each core, and each keeps holes of its own where models come
    and go. Python's lock lets few threads allocate at the same time. To be called before there are
    threads; False when the environment says otherwise, or there is no such setting.
    """
    set_option = _function("mallopt")
    if set_option is None or any(name in os.environ for name in _SAID):
        return False
    return bool(set_option(_M_ARENA_MAX, most))


class Trimmer:
    """Trims the heap soon after memory was freed, on a thread; lives on one event loop."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def soon(self) -> None:
        """Once, however often this is called within a second."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_SOON_S, self._trim, loop)

    def _trim(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        loop.run_in_executor(None, trim)


def trim() -> None:
    """Have the C library return what is free inside its heap (glibc; elsewhere nothing happens).

    A model that is closed leaves holes between what is still used: after a hundred reloads a fifth of
    the resident memory was such. Takes milliseconds; the GIL is released meanwhile.
    """
    give_back = _function("malloc_trim")
    if give_back is not None:
        give_back(0)


def collect() -> None:
    """Collect cycles, then trim: for what a closed model leaves, of which Python itself would wait for
    hundreds. Half a millisecond with the GIL where start-up's objects are frozen."""
    gc.collect()
    trim()


@cache
def _function(name: str) -> Any:
    """A function of the C library; None where it has none. Looking one up makes classes, in cycles."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
