"""The supervisor in the place of workers that do not accept: nothing is lost, however much comes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator

import pytest

from edgeserve.serve.settings.server import Settings
from edgeserve.serve.supervisor.ports import Bound, ReservedPorts
from edgeserve.serve.supervisor.standin import Standin
from edgeserve.serve.workers.inherited import Inherited, Plane

MANY = 700  # more than a pool holds


@pytest.fixture
def bound() -> Iterator[list[Bound]]:
    """Two workers' sockets for one address."""
    with ReservedPorts(Settings(bundle="m.edge", host="127.0.0.1", http_port=0, workers=2)) as held:
        assert [one.worker for one in held.bound] == [1, 2]
        yield held.bound


def connected(to: Bound, count: int) -> list[socket.socket]:
    """Clients, by number."""
    clients = [socket.create_connection(to.socket.getsockname()) for _ in range(count)]
    for number, client in enumerate(clients):
        client.sendall(number.to_bytes(2, "big"))
    return clients


async def taken(worker: Inherited, count: int) -> set[int]:
    """Who was handed over, by what they said, once `count` were."""
    numbers: set[int] = set()
    async with asyncio.timeout(30):
        while len(numbers) < count:
            got = worker.take()
            if got is None:
                await asyncio.sleep(0.01)
                continue
            plane, connection = got
            assert plane is Plane.DATA
            with connection:
                connection.setblocking(True)
                numbers.add(int.from_bytes(connection.recv(2), "big"))
    return numbers


def test_all_who_come_are_handed_over_though_the_pool_is_full_meanwhile(bound: list[Bound]) -> None:
    async def main() -> set[int]:
        standin = Standin(bound)
        worker = Inherited([], os.dup(standin.pool))
        bound[0].socket.listen(1024)
        clients = connected(bound[0], MANY)
        standin.accept_for({1, 2})  # the second has never listened
        await asyncio.sleep(0.3)
        numbers = await taken(worker, MANY)
        standin.close()
        worker.close()
        for client in clients:
            client.close()
        return numbers

    assert asyncio.run(main()) == set(range(MANY))


def test_who_accepts_again_is_left_to_do_so(bound: list[Bound]) -> None:
    async def main() -> None:
        standin = Standin(bound)
        bound[0].socket.listen()
        bound[1].socket.listen()
        standin.accept_for({1})
        standin.accept_for(set())
        clients = connected(bound[0], 20)
        await asyncio.sleep(0.1)
        accepted = 0
        for one in bound:
            while accepted < 20:
                try:
                    one.socket.accept()[0].close()
                except BlockingIOError:
                    break
                accepted += 1
        assert accepted == 20
        standin.close()
        for client in clients:
            client.close()

    asyncio.run(main())


def test_once_it_is_closed_only_workers_hold_the_port(bound: list[Bound]) -> None:
    async def main() -> None:
        standin = Standin(bound)
        address = bound[0].socket.getsockname()
        with bound[0].socket.dup() as of_a_worker:
            of_a_worker.listen()
            standin.accept_for({1})
            standin.close()
            with socket.create_connection(address):
                pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)

    asyncio.run(main())
