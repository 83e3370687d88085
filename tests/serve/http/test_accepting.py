"""A server whose process may have no more files open says so, and goes on when it may."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeserve.serve.app import event_loop
from edgeserve.serve.http.head import Head
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import Response
from edgeserve.serve.http.server import HttpServer
from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.settings.limits import Limits
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.running import Served
from tests.waiting import wait_for

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"
FEW = 12


def highest(process: int) -> int:
    """The highest descriptor that it has open."""
    return max(int(one.name) for one in Path(f"/proc/{process}/fd").iterdir())


@pytest.fixture(params=[1, 2])
def served(request: pytest.FixtureRequest, tmp_path: Path, bundle: Path) -> Iterator[Served]:
    with Served(tmp_path, bundle, "--workers", str(request.param)) as running:
        yield running


def test_it_goes_on_once_it_may_open_files_again(served: Served) -> None:
    address = served.url.removeprefix("http://").rpartition(":")
    before = {p.pid: resource.prlimit(p.pid, resource.RLIMIT_NOFILE) for p in served.members()}
    known = RawClient(served.url)
    known.send(post(infer_body([[1, 2, 3, 4]])))
    assert known.response()[0] == 200
    for process in served.members():
        opened = highest(process.pid)
        limit = (opened + FEW, before[process.pid][1])
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, limit)
    cpu = {p.pid: sum(p.cpu_times()[:2]) for p in served.members()}
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        for _ in range(60):
            client = stack.enter_context(socket.create_connection((address[0], int(address[2]))))
            client.sendall(b"GET")
        wait_for(lambda: "connections cannot be accepted now" in served.log.read_text())
        time.sleep(1.0)
        known.send(post(infer_body([[1, 2, 3, 4]])))  # who is connected is served meanwhile
        assert known.response()[0] == 200
        for process in served.members():
            used = sum(process.cpu_times()[:2]) - cpu[process.pid]
            assert used < 0.7 * (time.monotonic() - began), "it spins"
    for pid, limit in before.items():
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    with RawClient(served.url) as client:
        client.send(LIVE)
        assert client.response()[0] == 200
    (failures,) = re.findall(
        r"^edgeserve_accept_failures_total (\S+)$", served.metrics(), re.MULTILINE
    )
    assert float(failures) > 0
    assert served.log.read_text().count("connections cannot be accepted now") <= 4
    known.close()
    assert served.stop() == 0


def test_strangers_make_room_for_those_with_leave(tmp_path: Path, bundle: Path) -> None:
    """No more files may be opened, and idle connections have them: a key holder gets one of those."""
    keys = tmp_path / "keys"
    keys.write_text(f"infer {'k' * 32}\n")
    with Served(tmp_path, bundle, "--keys", str(keys)) as served, contextlib.ExitStack() as stack:
        _, hard = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
        limit = highest(served.process.pid) + FEW
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (limit, hard))
        for _ in range(40):
            stack.enter_context(RawClient(served.url)).send(b"GET")
        with RawClient(served.url) as client:
            key = f"X-Api-Key: {'k' * 32}"
            client.send(post(infer_body([[1, 2, 3, 4]]), "/v2/models/linear/infer", key))
            assert client.response()[0] == 200


class Answering:
    """Answers everything at once."""

    def admit(self, head: Head, address: str) -> None:
        head.route = self

    def announced(self, head: Head) -> None:
        pass

    def handle(self, request: Request) -> None:
        request.respond(Response.json({}))


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, event_loop])
def test_what_the_kernel_holds_when_the_server_drains_is_answered(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def story() -> None:
        server = HttpServer(Answering(), Limits(), Recorder())
        address = await server.listen("127.0.0.1", 0)
        with contextlib.ExitStack() as stack:
            waiting = []
            for _ in range(100):  # the loop does not run meanwhile
                client = stack.enter_context(socket.create_connection(address, timeout=10))
                client.sendall(LIVE)
                waiting.append(client)
            assert await server.drain(10)
            for client in waiting:
                assert client.recv(12) == b"HTTP/1.1 200"
        await server.close()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(story())


def test_a_request_that_is_on_its_way_when_the_server_drains_is_answered() -> None:
    """A busy client sends the next one as soon as it has an answer, and cannot know that the server ends."""

    async def story() -> None:
        server = HttpServer(Answering(), Limits(), Recorder())
        address = await server.listen("127.0.0.1", 0)
        busy = await asyncio.open_connection(*address)
        idle = await asyncio.open_connection(*address)
        for reader, writer in (busy, idle):
            writer.write(LIVE)
            await reader.readuntil(b"{}")
        draining = asyncio.ensure_future(server.drain(10))
        while not server._draining:  # noqa: ASYNC110 - the server sets it
            await asyncio.sleep(0)
        busy[1].write(LIVE)
        answer = await busy[0].read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"Connection: close" in answer
        assert await idle[0].read() == b""
        assert await draining
        await server.close()
        for _, writer in (busy, idle):
            writer.close()

    asyncio.run(story())
