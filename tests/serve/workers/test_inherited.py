"""What a worker accepts from: listeners that others hold too, and connections that others accepted."""

from __future__ import annotations

import asyncio
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgeserve.serve.app import Service, event_loop
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.workers.inherited import Inherited, Listener, Plane, hand_over
from tests.serve.access.test_tls import Authority, TlsClient, client_context
from tests.serve.conftest import RawClient, infer_body, post

Pool = tuple[socket.socket, socket.socket]


@pytest.fixture
def pool() -> Iterator[Pool]:
    """The supervisor's end and the workers'."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_the_queued_and_the_handed_over_are_served(
    bundle: Path, pool: Pool, tmp_path: Path, *, tls: bool
) -> None:
    if tls and shutil.which("openssl") is None:
        pytest.skip("openssl makes the keys")
    settings = Settings(bundle=str(bundle), http_port=0)
    authority = Authority(tmp_path) if tls else None
    if authority is not None:
        certificate, key = authority.issue("worker", "server")
        settings = Settings(
            bundle=str(bundle), http_port=0, tls_cert=str(certificate), tls_key=str(key)
        )

    def ask(port: int) -> int:
        url = f"http://127.0.0.1:{port}"
        client = RawClient(url) if authority is None else TlsClient(url, client_context(authority))
        with client:
            client.send(post(infer_body([[1, 2, 3, 4]])))
            return client.response()[0]

    async def main(listener: socket.socket, elsewhere: socket.socket) -> list[int]:
        loop = asyncio.get_running_loop()
        port = listener.getsockname()[1]
        asked = [
            asyncio.ensure_future(asyncio.to_thread(ask, one.getsockname()[1]))
            for one in (listener, elsewhere)
        ]
        connection, _ = await asyncio.to_thread(elsewhere.accept)
        with connection:
            hand_over(pool[0], Plane.DATA, connection)
        mine = Listener(Plane.DATA, listener.dup().detach())
        inherited = Inherited([mine], pool[1].dup().detach())
        async with Service(settings, loop, inherited=inherited) as service:
            started = await service.start()
            assert started.url.endswith(f"127.0.0.1:{port}")
            statuses = await asyncio.gather(*asked)
            assert await service.drain()
            return statuses

    with (
        listening() as listener,
        listening() as elsewhere,
        asyncio.Runner(loop_factory=event_loop) as runner,
    ):
        assert runner.run(main(listener, elsewhere)) == [200, 200]


def test_what_one_does_not_take_another_does_until_there_is_no_more(pool: Pool) -> None:
    ours, theirs = pool
    workers = [Inherited([], theirs.dup().detach()) for _ in range(2)]
    assert workers[0].take() is None
    for plane in (Plane.CONTROL, Plane.DATA):
        one, other = socket.socketpair()
        with one, other:
            hand_over(ours, plane, one)
            workers[0].close()  # takes nothing with it
            taken = workers[1].take()
            assert taken is not None
            assert taken[0] is plane
            with taken[1] as same:
                same.sendall(b"x")
            assert other.recv(2) == b"x"
    assert workers[1].take() is None
    ours.close()
    with pytest.raises(EOFError):
        workers[1].take()
    workers[1].close()


def test_programs_that_a_worker_starts_inherit_nothing(pool: Pool) -> None:
    with listening() as listener:
        passed = listener.dup(), pool[1].dup()
        for one in passed:
            one.set_inheritable(True)
        descriptors = [one.detach() for one in passed]
        inherited = Inherited([Listener(Plane.DATA, descriptors[0])], descriptors[1])
        (mine,) = inherited.listeners(Plane.DATA)
        assert [mine.get_inheritable(), inherited.pool.get_inheritable()] == [False, False]
        assert inherited.listeners(Plane.CONTROL) == []
        inherited.close()
