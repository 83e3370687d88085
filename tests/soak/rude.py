"""Clients that do not behave: each opens a connection, does one thing wrong, and leaves."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

_PAUSE_S: Final = 0.005
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER 0: close sends RST


class RudeClients:
    """Threads that bother a server until they are stopped; use it with `with`. Owns its threads."""

    def __init__(self, port: int, request: bytes, *, threads: int = 2) -> None:
        self.done: Counter[str] = Counter()
        self._port = port
        self._request = request
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(threads)]

    def __enter__(self) -> RudeClients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        chance = random.Random(seed)
        ways: list[Callable[[socket.socket, random.Random], None]] = [
            self._leave, self._half_head, self._half_body, self._never_listen, self._reset,
            self._garbage, self._wrong_length, self._many_and_gone, self._bad_request,
        ]  # fmt: skip
        while not self._stop.wait(_PAUSE_S):
            way = chance.choice(ways)
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", self._port), timeout=5) as connection,
            ):
                way(connection, chance)
                self.done[way.__name__.strip("_")] += 1

    def _leave(self, connection: socket.socket, chance: random.Random) -> None:
        pass

    def _half_head(self, connection: socket.socket, chance: random.Random) -> None:
        connection.sendall(self._request[: chance.randrange(1, 60)])

    def _half_body(self, connection: socket.socket, chance: random.Random) -> None:
        connection.sendall(self._request[: -chance.randrange(1, 40)])

    def _never_listen(self, connection: socket.socket, chance: random.Random) -> None:
        """A whole request whose answer finds nobody."""
        connection.sendall(self._request)

    def _reset(self, connection: socket.socket, chance: random.Random) -> None:
        connection.sendall(self._request)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)

    def _garbage(self, connection: socket.socket, chance: random.Random) -> None:
        connection.sendall(chance.randbytes(chance.randrange(1, 4096)))
        connection.recv(4096)

    def _wrong_length(self, connection: socket.socket, chance: random.Random) -> None:
        connection.sendall(b"POST /v2 HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n")
        connection.recv(4096)

    def _many_and_gone(self, connection: socket.socket, chance: random.Random) -> None:
        """Pipelined requests, one answer read."""
        connection.sendall(self._request * chance.randrange(2, 20))
        connection.recv(100)

    def _bad_request(self, connection: socket.socket, chance: random.Random) -> None:
        body = self._request.replace(b"FP32", b"FP33")
        connection.sendall(body)
        connection.recv(4096)
