"""The ports that workers share, taken before the first of them listens."""

from __future__ import annotations

import logging
import socket
from dataclasses import dataclass
from typing import Final, Self

import msgspec

from edgeserve.serve.access import LOCALHOST
from edgeserve.serve.access.addresses import addresses_of, cannot_listen, joined, resolved
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.workers.inherited import Plane

log = logging.getLogger(__name__)

_FLAGS: Final = {
    "http_port": "--http-port",
    "grpc_port": "--grpc-port",
    "control_port": "--control-port",
}
# gRPC makes its own sockets, and takes none.
_PLANES: Final = {"http_port": Plane.DATA, "control_port": Plane.CONTROL}
# What stands for loopback whatever its addresses are, and what is listened on if only one can be had.
_HOSTS: Final = {"host": LOCALHOST, "control_host": None}
_FIRST: Final = addresses_of(LOCALHOST)[0]


def with_ports(settings: Settings, reserved: Settings) -> Settings:
    """The settings, with the reserved ports and addresses where they leave them open."""
    picked = {f: getattr(reserved, f) for f in _FLAGS if getattr(settings, f) == 0}
    for field, open_ in _HOSTS.items():
        if getattr(settings, field) == open_ and getattr(reserved, field) == _FIRST:
            picked[field] = _FIRST
    return msgspec.structs.replace(settings, **picked)


@dataclass(frozen=True)
class Bound:
    """A bound socket for one worker to listen on."""

    worker: int
    plane: Plane
    socket: socket.socket


class ReservedPorts:
    """Owns a bound socket for each address, so that nobody else gets it; nothing is listened for on it.
    `settings` are the settings with the ports that were picked, `bound` the workers' own sockets."""

    def __init__(self, settings: Settings) -> None:
        """Raises EnvironmentProblem for a port in use."""
        self._sockets: list[socket.socket] = []
        self.bound: list[Bound] = []
        self.settings = settings
        for field, flag in _FLAGS.items():
            port = getattr(settings, field)
            if port is None:
                continue
            where = "control_host" if field == "control_port" else "host"
            host, others = getattr(settings, where) or LOCALHOST, []
            try:
                host, *others = resolved(host)
                got = self._reserve(field, host, port)
            except OSError as error:
                self.close()
                raise cannot_listen(host, port, flag, error) from None
            self.settings = msgspec.structs.replace(self.settings, **{field: got})
            for other in others:
                try:
                    self._reserve(field, other, got)
                except OSError as error:
                    log.warning("only %s is listened on: %s", joined(host, got), error)
                    self.settings = msgspec.structs.replace(self.settings, **{where: host})

    def _reserve(self, field: str, host: str, port: int) -> int:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        held = socket.socket(family, socket.SOCK_STREAM)
        self._sockets.append(held)
        if port:
            # Sharing is for our own workers: asked for without SO_REUSEPORT nobody else may have it.
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, port))
        _share(held)
        held.bind((host, port))
        got = int(held.getsockname()[1])
        if field in _PLANES:
            for worker in range(1, self.settings.workers + 1):
                own = socket.socket(family, socket.SOCK_STREAM)
                self.bound.append(Bound(worker, _PLANES[field], own))
                own.setblocking(False)
                _share(own)
                if family == socket.AF_INET6:
                    own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                own.bind((host, got))
        return got

    def close(self) -> None:
        for held in (*self._sockets, *(one.socket for one in self.bound)):
            held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _share(one: socket.socket) -> None:
    """Let the workers' sockets have the same address, also while connections of a server that has just ended
    linger on it."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
