"""A server whose process may have no more files open says so, and goes on when it may."""

from __future__ import annotations

import contextlib
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.serve.conftest import RawClient, infer_body, post
from tests.waiting import wait_for

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"
FEW = 12


def highest(process: int) -> int:
    """The highest descriptor that it has open."""
    return max(int(one.name) for one in Path(f"/proc/{process}/fd").iterdir())


class Served:
    """`edgeserve run` in a process of its own."""

    def __init__(self, folder: Path, bundle: Path, *flags: str) -> None:
        self.log = folder / "log"
        command = [
            sys.executable,
            "-m",
            "edgeserve",
            "run",
            str(bundle),
            "--http-port",
            "0",
            *flags,
        ]
        with self.log.open("wb") as log, (folder / "out").open("wb") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=log)
        self.url = ""

        def serves() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            text = (folder / "out").read_text() + self.log.read_text()
            found = re.search(r"serving \S+ at (http://[\d.:]+)", text)
            self.url = found[1] if found else ""
            return found is not None

        wait_for(serves)

    def members(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def counted(self, name: str) -> float:
        with RawClient(self.url) as client:
            client.send(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
            text = client.response()[2].decode()
        return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@pytest.fixture(params=[1, 2])
def served(request: pytest.FixtureRequest, tmp_path: Path, bundle: Path) -> Iterator[Served]:
    running = Served(tmp_path, bundle, "--workers", str(request.param))
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()


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
    assert served.counted("edgeserve_accept_failures_total") > 0
    assert served.log.read_text().count("connections cannot be accepted now") <= 4
    known.close()
    assert served.stop() == 0


def test_strangers_make_room_for_those_with_leave(tmp_path: Path, bundle: Path) -> None:
    """No more files may be opened, and idle connections have them: a key holder gets one of those."""
    keys = tmp_path / "keys"
    keys.write_text(f"infer {'k' * 32}\n")
    served = Served(tmp_path, bundle, "--keys", str(keys))
    try:
        opened = highest(served.process.pid)
        _, hard = resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (opened + FEW, hard))
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(RawClient(served.url)).send(b"GET")
            with RawClient(served.url) as client:
                client.send(
                    post(
                        infer_body([[1, 2, 3, 4]]),
                        "/v2/models/linear/infer",
                        f"X-Api-Key: {'k' * 32}",
                    )
                )
                assert client.response()[0] == 200
    finally:
        served.process.kill()
        served.process.wait()
