"""Accepts connections. If the process has no file descriptors left, that is logged and counted, and accepting goes on
once it has some again."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger(__name__)

_PAUSE_S: Final = 0.2
_HINT: Final = "; raise the limit of open files (ulimit -n, LimitNOFILE)"
# Between two log lines that say the same.
_QUIET_S: Final = 10.0
# Connections accepted before the event loop does anything else.
_AT_ONCE: Final = 64


class Acceptor:
    """Accepts from listening sockets, which it owns; lives on an event loop.

    `take` gets each connection. `failed` is called each time that none could be accepted although one is
    there, which is tried again after a moment.
    """

    def __init__(self, take: Callable[[socket.socket], None], failed: Callable[[], None]) -> None:
        self._take = take
        self._failed = failed
        self._listeners: list[socket.socket] = []
        self._again: asyncio.TimerHandle | None = None
        self._quiet_until = 0.0
        self._failures = 0

    def listen(self, listener: socket.socket) -> None:
        """Accept from this bound socket, too."""
        listener.setblocking(False)
        listener.listen(1024)
        self._listeners.append(listener)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def accept_all(self) -> None:
        """Accept every connection that waits in the kernel."""
        for listener in self._listeners:
            while self._accept(listener):
                pass

    def close(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self._listeners.clear()

    def _accept(self, listener: socket.socket) -> bool:
        """Accept some connections; whether there may be more."""
        for _ in range(_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return False
            except ConnectionError:
                continue  # the client has left already
            except OSError as error:  # mostly EMFILE: the connection stays in the kernel's queue
                self._pause(error)
                return False
            self._take(connection)
        return True

    def _pause(self, error: OSError) -> None:
        self._failures += 1
        now = time.monotonic()
        if now >= self._quiet_until:
            full = error.errno in (errno.EMFILE, errno.ENFILE)
            log.warning(
                "connections cannot be accepted now (%d attempts failed): %s%s",
                self._failures, error.strerror or error, _HINT if full else "",
            )  # fmt: skip
            self._quiet_until = now + _QUIET_S
        self._failed()
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener)
        if self._again is None:
            self._again = loop.call_later(_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._again = None
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.add_reader(listener, self._accept, listener)


async def bound(host: str, port: int) -> list[socket.socket]:
    """Sockets on every address of `host`; port 0 takes a free one. Raises OSError."""
    found: list[socket.socket] = []
    loop = asyncio.get_running_loop()
    flags = socket.AI_PASSIVE
    infos = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
    try:
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            try:
                one = socket.socket(family, kind, protocol)
            except OSError:  # a kernel without IPv6
                if len(infos) == 1:
                    raise
                continue
            found.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind(address)
    except OSError:
        for one in found:
            one.close()
        raise
    return found
