"""SIGHUP in the first moments of a process, before its event loop takes it: a server must survive one from its
first moment on, since service managers send it to have it reload.

Imports nothing but the standard library's smallest modules.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_hangups: list[int] = []


def keep_hangups() -> None:
    """Note each SIGHUP from now on instead of ending; left alone where it is ignored already (nohup)."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda number, _: _hangups.append(number))


def hung_up() -> bool:
    """Whether a SIGHUP was noted since this was last asked."""
    noted = bool(_hangups)
    _hangups.clear()
    return noted


def release_hangups() -> None:
    """Let a SIGHUP come that `hangups_held` kept from this process when it was started."""
    if hasattr(signal, "SIGHUP"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


@contextmanager
def hangups_held() -> Iterator[None]:
    """Processes that are started meanwhile, from this thread, get no SIGHUP until they ask for it: one that
    comes before their handler is there waits for it."""
    if not hasattr(signal, "SIGHUP"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
