"""The ports that worker processes share: reserved on every address, and nobody else's."""

from __future__ import annotations

import socket

import pytest

from edgeserve.errors import EnvironmentProblem
from edgeserve.serve.access.addresses import addresses_of
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.supervisor.ports import ReservedPorts, with_ports

BOTH = addresses_of("localhost")
ASKED = Settings(bundle="m.edge", http_port=0, grpc_port=0, control_port=0, workers=2)


def taken(host: str, port: int = 0, *, share: bool = False) -> socket.socket:
    one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if share:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        one.bind((host, port))
    except OSError:
        one.close()
        raise
    return one


def test_ports_are_picked_and_held_on_every_address_until_they_are_given_up() -> None:
    with ReservedPorts(ASKED) as reserved:
        settings = reserved.settings
        ports = [settings.http_port, settings.grpc_port, settings.control_port]
        assert len({0, *ports}) == 4
        for host in BOTH:
            for port in ports:
                assert port is not None
                with pytest.raises(OSError, match="in use"):
                    taken(host, port)
                taken(host, port, share=True).close()  # as a worker does
        assert with_ports(ASKED, settings) == settings
    for host in BOTH:
        taken(host, settings.http_port).close()


@pytest.mark.parametrize("share", [False, True])
def test_somebody_elses_port_is_an_error_though_it_may_be_shared(*, share: bool) -> None:
    with taken(BOTH[0], share=share) as other:
        other.listen()
        settings = Settings(bundle="m.edge", http_port=other.getsockname()[1], workers=2)
        with pytest.raises(EnvironmentProblem, match="the port is in use") as caught:
            ReservedPorts(settings)
        assert caught.value.hint == "--http-port 0 picks a free one"


@pytest.mark.skipif(len(BOTH) < 2, reason="there is no IPv6 here")
@pytest.mark.parametrize("share", [False, True])
def test_where_only_the_first_address_is_free_it_alone_is_used(*, share: bool) -> None:
    with taken(BOTH[1], share=share) as other:
        port = other.getsockname()[1]
        other.listen()
        asked = Settings(bundle="m.edge", http_port=port, workers=2)
        with ReservedPorts(asked) as reserved:
            assert (reserved.settings.host, reserved.settings.http_port) == (BOTH[0], port)
            assert with_ports(asked, reserved.settings) == reserved.settings


@pytest.mark.skipif(len(BOTH) < 2, reason="there is no IPv6 here")
def test_every_address_of_a_name_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = socket.getaddrinfo

    def resolver(host: str, *args: object, **options: object) -> list[tuple[object, ...]]:
        names = BOTH if host == "device.test" else (host,)
        return [found for name in names for found in ask(name, *args, **options)]  # type: ignore[call-overload]

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    settings = Settings(bundle="m.edge", http_port=0, host="device.test", workers=2)
    with ReservedPorts(settings) as reserved:
        found = {(one.worker, one.socket.getsockname()[0]) for one in reserved.bound}
        assert found == {(worker, host) for worker in (1, 2) for host in BOTH}
        assert reserved.settings.host == "device.test"


def test_a_name_of_nothing_is_named() -> None:
    settings = Settings(bundle="m.edge", http_port=0, host="nowhere.invalid", workers=2)
    with pytest.raises(EnvironmentProblem, match=r"nowhere\.invalid"):
        ReservedPorts(settings)
