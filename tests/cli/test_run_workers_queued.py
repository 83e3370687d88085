"""`edgeserve run --workers`: what the kernel has queued for a worker is answered, whatever becomes of that worker."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest

from edgeserve.serve.access.addresses import addresses_of
from tests.cli.test_run import Process, serving
from tests.cli.test_run_models import body
from tests.cli.test_run_workers import TWO, client_of_each, ready, workers
from tests.serve.conftest import RawClient, post
from tests.serve.repositories import shifted_bundle
from tests.waiting import wait_for

REQUEST = post(body(0), "/v2/models/m/infer")
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"


def suspended(process: Process) -> list[psutil.Process]:
    """The workers, which take nothing from now on: what comes stays queued."""
    found = workers(process)
    for worker in found:
        worker.suspend()
    return found


def queued(url: str, count: int, data: bytes = REQUEST) -> list[RawClient]:
    """Clients that have asked; the kernel spreads them over the workers' queues."""
    clients = [RawClient(url) for _ in range(count)]
    for client in clients:
        client.socket.settimeout(60)
        client.send(data)
    return clients


def heard(clients: list[RawClient]) -> list[object]:
    """The statuses of their answers, or why there is none."""
    found: list[object] = []
    for client in clients:
        with client:
            try:
                found.append(client.response()[0])
            except OSError as error:
                found.append(error)
    return found


def urls(process: Process) -> set[str]:
    """Every address of the data and the control plane."""
    return set(re.findall(r"http://[^\s/]+:\d+", process.printed))


@pytest.mark.parametrize("kill", [1, 2], ids=["one of two", "both"])
def test_who_waits_for_killed_workers_is_answered(tmp_path: Path, kill: int) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with serving("m.edge", *TWO, "--control-port", "0", cwd=tmp_path) as process:
        assert len(urls(process)) == 2 * len(addresses_of("localhost"))
        there = suspended(process)
        clients = [client for url in urls(process) for client in queued(url, 20, LIVE)]
        for worker in there[:kill]:
            worker.kill()
        for worker in there[kill:]:
            worker.resume()
        assert heard(clients) == [200] * len(clients)
        wait_for(lambda: len(workers(process)) == 2 and ready(process))
        assert process.stop() == 0


@pytest.mark.slow
def test_who_waits_for_one_that_hangs_is_answered_by_another(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with serving("m.edge", *TWO, cwd=tmp_path) as process:
        hung = workers(process)[0]
        hung.suspend()
        assert heard(queued(process.url, 40)) == [200] * 40
        hung.resume()
        wait_for(lambda: ready(process))
        assert workers(process)[0] == hung
        assert process.stop() == 0


@pytest.mark.slow
def test_one_that_drains_alone_leaves_what_comes_to_the_others(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with serving("m.edge", *TWO, cwd=tmp_path) as process, client_of_each(process) as each:
        pid, client = next(iter(each.items()))
        client.send(REQUEST[:-1])
        ending = psutil.Process(pid)
        ending.terminate()
        wait_for(lambda: not listens(ending))
        assert heard(queued(process.url, 40)) == [200] * 40
        assert ending.is_running()
        client.send(REQUEST[-1:])
        assert client.response()[0] == 200
        wait_for(lambda: not ending.is_running())
        wait_for(lambda: len(workers(process)) == 2 and ready(process))
        assert process.stop() == 0


def test_a_server_that_drains_lets_nobody_wait(tmp_path: Path) -> None:
    shifted_bundle(tmp_path, "m", 1)
    with serving("m.edge", *TWO, cwd=tmp_path) as process, client_of_each(process) as each:
        for client in each.values():
            client.send(REQUEST[:-1])
        process.popen.terminate()
        wait_for(lambda: refuses(process.url))
        assert process.popen.poll() is None
        for client in each.values():
            client.send(REQUEST[-1:])
            assert client.response()[0] == 200
        process.popen.communicate(timeout=30)
        assert process.popen.returncode == 0


def listens(worker: psutil.Process) -> bool:
    return any(c.status == psutil.CONN_LISTEN for c in worker.net_connections("tcp"))


def refuses(url: str) -> bool:
    try:
        with RawClient(url):
            return False
    except ConnectionRefusedError:
        return True
