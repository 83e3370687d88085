"""The supervisor's copies of the workers' listeners: connections queued for a worker outlive it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Container, Sequence
from typing import Final

from edgeserve.serve.supervisor.ports import Bound
from edgeserve.serve.workers.inherited import Listener, Plane, hand_over

log = logging.getLogger(__name__)

# Until what could not be accepted or handed over is tried again.
_PAUSE_S: Final = 0.1
# Until the log says again what it has said.
_QUIET_S: Final = 10.0


class Standin:
    """Accepts in the place of workers that do not, into a pool from which every worker takes. Owns the pool;
    lives on the supervisor's event loop.

    Nothing is lost with a worker that dies but what it had taken: the pool is one socket for all of them.
    """

    def __init__(self, bound: Sequence[Bound]) -> None:
        self._bound = bound
        self._absent: Container[int] = ()
        self._ours, self._pool = socket.socketpair()
        self._ours.setblocking(False)
        self._pool.setblocking(False)
        self._late: tuple[Plane, socket.socket] | None = None
        self._again: asyncio.TimerHandle | None = None
        self._quiet_until = 0.0
        self.failures = 0  # to accept

    @property
    def pool(self) -> int:
        """The descriptor that workers inherit."""
        return self._pool.fileno()

    def listeners_of(self, worker: int) -> tuple[Listener, ...]:
        """The listeners that a worker inherits: its successor gets the same."""
        return tuple(
            Listener(b.plane, b.socket.fileno()) for b in self._bound if b.worker == worker
        )

    def accept_for(self, absent: Container[int]) -> None:
        """Accept for these workers from now on, and for no others."""
        self._absent = absent
        if self._again is None:
            self._watch()

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        for one in self._bound:
            if one.worker in self._absent and _listens(one.socket):
                loop.add_reader(one.socket, self._accept, one)
            else:
                loop.remove_reader(one.socket)

    def _accept(self, one: Bound) -> None:
        try:
            connection, _ = one.socket.accept()
        except (BlockingIOError, ConnectionError):
            return  # the worker was faster, or the client left
        except OSError as error:
            self.failures += 1
            if time.monotonic() >= self._quiet_until:
                log.warning("connections cannot be accepted now: %s", error.strerror or error)
                self._quiet_until = time.monotonic() + _QUIET_S
            self._pause()
            return
        self._late = (one.plane, connection)
        self._hand_over()

    def _hand_over(self) -> None:
        """If that fails, accept nothing until it works: the kernel's queue is longer and outlives workers, too."""
        if self._late is None:
            return
        plane, connection = self._late
        try:
            hand_over(self._ours, plane, connection)
        except OSError as error:
            log.debug("a connection cannot be handed over now: %s", error)
            self._pause()
            return
        connection.close()
        self._late = None

    def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        for one in self._bound:
            loop.remove_reader(one.socket)
        self._again = loop.call_later(_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._again = None
        self._hand_over()
        if self._again is None:
            self._watch()

    def close(self) -> None:
        """Leave the listeners to the running workers; they still get what is in the pool."""
        loop = asyncio.get_running_loop()
        if self._again is not None:
            self._again.cancel()
        for one in self._bound:
            loop.remove_reader(one.socket)
            one.socket.close()
        if self._late is not None:
            plane, connection = self._late
            with contextlib.suppress(OSError), connection:
                hand_over(self._ours, plane, connection)
        self._ours.close()
        self._pool.close()


def _listens(bound: socket.socket) -> bool:
    """Whether a worker has ever listened on it; before that it is readable for another reason."""
    return bool(bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
