"""The listening side: accepts connections, hands requests to the router, enforces time limits, drains."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import socket
import time
from collections import Counter
from typing import Any, Final

from edgeserve.serve.access.addresses import cannot_listen
from edgeserve.serve.access.tls import Tls
from edgeserve.serve.http.accepting import Acceptor, bound
from edgeserve.serve.http.buffers import BodyBuffers
from edgeserve.serve.http.connection import Connection
from edgeserve.serve.http.reading import INCOMING_BYTES, Handler
from edgeserve.serve.http.response import Refusal
from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.process import logs
from edgeserve.serve.settings.limits import Limits

log = logging.getLogger(__name__)

_SWEEP_S: Final = 1.0
_SHRINK_S: Final = 30.0
# Turns of the event loop after which connections that came before SIGTERM have been read: accepting and reading take
# up to six.
_TURNS: Final = 10
# Connections that are closed at one time if there are too many: finding the oldest takes a while.
_MAKES_ROOM: Final = 8


class HttpServer:
    """Owns its listening addresses and their connections; lives on one event loop."""

    def __init__(
        self,
        handler: Handler,
        limits: Limits,
        recorder: Recorder,
        tls: Tls | None = None,
    ) -> None:
        self.limits = limits
        self.admit = handler.admit
        self.announced = handler.announced
        self.handle = handler.handle
        self.incoming = bytearray(INCOMING_BYTES)
        self.bodies = BodyBuffers(limits.bodies_bytes)
        self._recorder = recorder
        self._tls = tls
        self._connections: set[Connection] = set()
        self._adopting: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._addresses: Counter[str] = Counter()
        self._empty = asyncio.Event()
        self._acceptor = Acceptor(self.adopt, self._no_room)
        self._draining = False
        self._sweeper: asyncio.TimerHandle | None = None
        self._shrink_at = time.monotonic() + _SHRINK_S

    async def listen(self, host: str, port: int) -> tuple[str, int]:
        """Start accepting on an address; the address and port in use. May be called several times.

        Raises EnvironmentProblem when it is in use or may not be used.
        """
        try:
            sockets = await bound(host, port)
        except OSError as error:
            raise cannot_listen(host, port, "--http-port", error) from None
        first, *_ = [self.accept_from(one) for one in sockets]
        return first

    def accept_from(self, listener: socket.socket) -> tuple[str, int]:
        """Start accepting on a bound socket, which the server then owns; its address and port. Connections that
        were queued before are answered, too."""
        self._acceptor.listen(listener)
        if self._sweeper is None:
            self._sweep()
        address = listener.getsockname()
        return str(address[0]), int(address[1])

    def _tls_options(self) -> dict[str, Any]:
        if self._tls is None:
            return {}
        return {"ssl": self._tls.context, "ssl_handshake_timeout": self.limits.handshake_s}

    def adopt(self, accepted: socket.socket) -> None:
        """Serve an accepted connection."""
        if len(self._adopting) >= self.limits.connections:
            next(iter(self._adopting)).cancel()  # the longest handshake
        task = asyncio.get_running_loop().create_task(self._adopt(accepted))
        self._adopting[task] = None
        task.add_done_callback(self._adopting.pop)

    async def _adopt(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: Connection(self), accepted, **self._tls_options()
            )
        except OSError as error:  # a failed TLS handshake, too
            log.debug("a connection cannot be taken over: %s", error)
            accepted.close()
        except asyncio.CancelledError:
            accepted.close()
            raise

    def _no_room(self) -> None:
        """The process has no file descriptors left, and a client waits."""
        self._recorder.accept_failures.add()
        self._send_away()

    def _send_away(self, address: str | None = None) -> bool:
        """Close a few of the connections (of one address) that have been idle longest without an authorised
        request; False if there is none. This keeps room for authorised clients."""
        idle = [
            c
            for c in self._connections
            if c.idle_stranger and (address is None or c.address == address)
        ]
        for connection in heapq.nsmallest(_MAKES_ROOM, idle, key=lambda c: c.since):
            self._remove(connection)  # now: many may come at one time
            connection.abort()
        return bool(idle)

    def connected(self, connection: Connection) -> str | None:
        """Count a new connection; the reason if it has to be refused."""
        problem = self._too_many(connection.address)
        self._connections.add(connection)
        self._addresses[connection.address] += 1
        self._recorder.connections += 1
        if self._draining:  # it was in its handshake when draining began
            asyncio.get_running_loop().call_soon(connection.finish)
        return problem

    def _too_many(self, address: str) -> str | None:
        """Why there is no room for one more, unless an idle connection makes room."""
        if len(self._connections) >= self.limits.connections and not self._send_away():
            return "too many connections"
        full = self._addresses[address] >= self.limits.connections_per_address
        if full and not self._send_away(address):
            return "too many connections from this address"
        return None

    def disconnected(self, connection: Connection) -> None:
        if connection in self._connections:
            self._remove(connection)
        self._recorder.connections -= 1

    def _remove(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._addresses[connection.address] -= 1
        if not self._addresses[connection.address]:
            del self._addresses[connection.address]
        if not self._connections:
            self._empty.set()

    def refused(self, refusal: Refusal, asked: tuple[str, bytes], address: str) -> None:
        """Count a request that is not served, and write the access log. `asked`: method and path."""
        status, reason = refusal.form.status, refusal.reason
        self._recorder.refuse_http(status, reason)
        if not refusal.logged and logs.ACCESS.isEnabledFor(logging.INFO):
            method, path = asked[0], asked[1].decode("latin-1")
            logs.log_refused("http", method, path, status, reason, address)

    def forget_routes(self) -> None:
        """Route the next request of every connection anew, and check its caller."""
        for connection in self._connections:
            connection.forget()

    async def drain(self, timeout_s: float) -> bool:
        """Accept nothing new, answer every request that has begun to arrive, close the connections.

        False when a request or an answer was still on its way after `timeout_s`.
        """
        self._acceptor.accept_all()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self._acceptor.close()
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
        self._acceptor.close()
        for task in self._adopting:
            task.cancel()
        for connection in list(self._connections):
            connection.abort()
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
