"""What a worker accepts from: sockets that its supervisor made and holds too, so that they outlive the worker."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from enum import IntEnum

import msgspec

log = logging.getLogger(__name__)


class Plane(IntEnum):
    """Which plane a listener serves; one byte when a connection is handed over."""

    DATA = 0
    CONTROL = 1


class Listener(msgspec.Struct, frozen=True):
    """A bound socket, by its descriptor in the worker."""

    plane: Plane
    descriptor: int


def hand_over(pool: socket.socket, plane: Plane, connection: socket.socket) -> None:
    """Put a connection into the pool, from which any worker takes it. Raises OSError: BlockingIOError when the pool is full."""
    socket.send_fds(pool, [bytes([plane])], [connection.fileno()])


class Inherited:
    """Owns a worker's listeners, and its end of the pool: what the supervisor accepted for workers that did
    not, for the first that takes it."""

    def __init__(self, listeners: Sequence[Listener], pool: int) -> None:
        for descriptor in (pool, *(one.descriptor for one in listeners)):
            os.set_inheritable(descriptor, False)
        self.pool = socket.socket(fileno=pool)
        self._listeners = [(one.plane, socket.socket(fileno=one.descriptor)) for one in listeners]

    def listeners(self, plane: Plane) -> list[socket.socket]:
        """Bound sockets in the order of their addresses; who accepts from one closes it."""
        return [listener for its, listener in self._listeners if its == plane]

    def take(self) -> tuple[Plane, socket.socket] | None:
        """A connection of the pool; None where there is none, or another worker was faster.

        Raises EOFError when there will be no more.
        """
        try:
            data, descriptors, _, _ = socket.recv_fds(self.pool, 1, 1)
        except BlockingIOError:
            return None
        if not data:
            raise EOFError
        if not descriptors:
            log.warning("a connection was lost: this process may have no more files open")
            return None
        os.set_inheritable(descriptors[0], False)
        return Plane(data[0]), socket.socket(fileno=descriptors[0])

    def close(self) -> None:
        self.pool.close()
        for _, listener in self._listeners:
            listener.close()
