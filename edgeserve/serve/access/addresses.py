"""Addresses to listen on."""

from __future__ import annotations

import errno
import socket

from edgeserve.errors import EnvironmentProblem
from edgeserve.serve.access import LOCALHOST


def addresses_of(host: str) -> tuple[str, ...]:
    """What `host` stands for: `localhost` is this machine's loopback address, and IPv6's where there is one.

    Clients that are told `localhost` try ::1 first, many of them: nobody else shall be there.
    """
    if host != LOCALHOST:
        return (host,)
    return ("127.0.0.1", "::1") if _has_ipv6() else ("127.0.0.1",)


def resolved(host: str) -> tuple[str, ...]:
    """The addresses that `host` stands for where it is listened on each by itself. Raises OSError."""
    found = [
        str(address[0])
        for name in addresses_of(host)
        for *_, address in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    ]
    return tuple(dict.fromkeys(found))


def joined(host: str, port: int) -> str:
    """HOST:PORT as URLs have it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def cannot_listen(host: str, port: int, flag: str, error: OSError) -> EnvironmentProblem:
    """What to raise for an address that cannot be had. `flag` is the option that sets its port."""
    in_use = error.errno == errno.EADDRINUSE
    return EnvironmentProblem(
        f"cannot listen on {joined(host, port)}",
        cause="the port is in use" if in_use else str(error),
        hint=f"{flag} 0 picks a free one" if in_use else None,
    )


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
