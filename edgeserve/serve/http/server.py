"""The listening side: accepts connections, hands requests to the router, sweeps, drains."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from edgeserve.errors import EnvironmentProblem
from edgeserve.serve.addresses import joined
from edgeserve.serve.http.buffers import BodyBuffers
from edgeserve.serve.http.connection import INCOMING_BYTES, Connection
from edgeserve.serve.http.request import Request
from edgeserve.serve.limits import Limits
from edgeserve.serve.metrics import ServerMetrics
from edgeserve.serve.tls import Tls

log = logging.getLogger(__name__)

_SWEEP_S: Final = 1.0
_SHRINK_S: Final = 30.0
# Turns of the event loop in which what the kernel holds at SIGTERM is accepted and read: asyncio's
# own loop takes four from accepting to reading, uvloop two.
_TURNS: Final = 5


class HttpServer:
    """Owns its listening addresses and their connections; lives on one event loop."""

    def __init__(
        self,
        handle: Callable[[Request], None],
        limits: Limits,
        metrics: ServerMetrics,
        tls: Tls | None = None,
    ) -> None:
        self.limits = limits
        self.handle = handle
        self.incoming = bytearray(INCOMING_BYTES)
        self.bodies = BodyBuffers(limits.bodies_bytes)
        self._metrics = metrics
        self._tls = tls
        self._connections: set[Connection] = set()
        self._adopting: set[asyncio.Task[None]] = set()
        self._addresses: Counter[str] = Counter()
        self._empty = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._draining = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._shrink_at = time.monotonic() + _SHRINK_S

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Start accepting; the address that is really listened on. May be called for several addresses.

        Raises EnvironmentProblem when it is in use or may not be used.
        """
        try:
            return await self._accept(host=host, port=port)
        except OSError as error:
            in_use = error.errno == errno.EADDRINUSE
            raise EnvironmentProblem(
                f"cannot listen on {joined(host, port)}",
                cause="the port is in use" if in_use else str(error),
                hint="--http-port 0 picks a free one" if in_use else None,
            ) from None

    async def accept_from(self, bound: socket.socket) -> tuple[str, int]:
        """Start accepting on a socket, whose address is returned; it is closed when the server is. What was
        queued while nobody accepted is answered, too."""
        return await self._accept(sock=bound)

    async def _accept(self, **where: Any) -> tuple[str, int]:  # Any: as create_server takes it
        server = await asyncio.get_running_loop().create_server(
            lambda: Connection(self), backlog=1024, **where, **self._tls_options()
        )
        if not self._servers:
            self._sweep()
        self._servers.append(server)
        address = server.sockets[0].getsockname()
        return str(address[0]), int(address[1])

    def _tls_options(self) -> dict[str, Any]:
        if self._tls is None:
            return {}
        return {"ssl": self._tls.context, "ssl_handshake_timeout": self.limits.handshake_s}

    def adopt(self, accepted: socket.socket) -> None:
        """Serve a connection that was accepted elsewhere."""
        task = asyncio.ensure_future(self._adopt(accepted))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    async def _adopt(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(self), accepted, **self._tls_options()
            )
        except OSError as error:  # also what a TLS handshake ends with
            log.debug("a connection cannot be taken over: %s", error)
            accepted.close()

    def connected(self, connection: Connection) -> str | None:
        """Take a connection in; why it may not stay, if so."""
        self._connections.add(connection)
        self._addresses[connection.address] += 1
        self._metrics.connections.inc()
        if self._draining:  # it was in its handshake when the others were told
            asyncio.get_running_loop().call_soon(connection.finish)
        if len(self._connections) > self.limits.connections:
            return "too many connections"
        if self._addresses[connection.address] > self.limits.connections_per_address:
            return "too many connections from this address"
        return None

    def disconnected(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._addresses[connection.address] -= 1
        if not self._addresses[connection.address]:
            del self._addresses[connection.address]
        if not self._connections:
            self._empty.set()
        self._metrics.connections.dec()

    def refused(self, status: int) -> None:
        self._metrics.refused.labels(str(status)).inc()

    def forget_routes(self) -> None:
        """Have every connection's next request routed, and its caller checked, anew."""
        for connection in self._connections:
            connection.forget()

    async def drain(self, timeout_s: float) -> bool:
        """Accept nothing new, answer every request that has begun to arrive, close the connections.

        False when a request or an answer was still on its way after `timeout_s`.
        """
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        for server in self._servers:
            server.close()
        self._draining = True
        for connection in list(self._connections):
            connection.finish()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                if self._adopting:
                    await asyncio.wait(self._adopting)
                if self._connections:
                    self._empty.clear()
                    await self._empty.wait()
        return not any(connection.owes for connection in self._connections)

    async def close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._connections):
            connection.abort()
        for server in self._servers:
            server.close()
        await asyncio.sleep(0)

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self._connections):
            connection.sweep(now)
        if self._tls is not None:
            self._tls.refresh()
        if now >= self._shrink_at:
            self.bodies.shrink()
            self._shrink_at = now + _SHRINK_S
        self._sweeper = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
