"""Clients that close their side while their requests wait: what has not begun is not run."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeserve.serve.http import connection
from edgeserve.serve.settings.server import Settings
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.held import Held, failures, in_flight
from tests.serve.slow import slow_bundle
from tests.waiting import wait_for

WAITS_S = 2.0
SLOW = "/v2/models/slow/infer"


@pytest.fixture(scope="module")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    """A server whose requests wait for others for two seconds, unless sixteen are there."""
    bundle = slow_bundle(tmp_path_factory.mktemp("waiting"))
    settings = Settings(bundle=str(bundle), http_port=0, threads=1, batch_delay=WAITS_S)
    with Background(settings) as running:
        yield running


def asked(number: int, rows: int = 1) -> bytes:
    return post(infer_body([[number, 0, 0, 0]] * rows, id=str(number)), SLOW)


def rows_run(server: Background) -> int:
    with RawClient(server.url) as client:
        client.send(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
        text = client.response()[2].decode()
    (line,) = [x for x in text.splitlines() if x.startswith("edgeserve_batch_rows_sum{")]
    return int(float(line.rpartition(" ")[2]))


@pytest.mark.parametrize("half", [True, False])
def test_what_a_client_that_closes_left_in_the_queue_is_not_run(
    waiting: Background, half: bool
) -> None:
    ran, canceled = rows_run(waiting), failures(waiting, "canceled")
    clients = [RawClient(waiting.url) for _ in range(6)]
    for number, client in enumerate(clients):
        client.send(asked(number))
    wait_for(lambda: in_flight(waiting) == 6)
    for client in clients:
        if half:
            client.socket.shutdown(socket.SHUT_WR)
            assert client.is_closed()  # without an answer
        client.close()
    wait_for(lambda: in_flight(waiting) == 0, WAITS_S * 0.9)
    assert failures(waiting, "canceled") == canceled + 6
    with RawClient(waiting.url) as other:
        other.send(asked(7, rows=16))
        assert other.response()[0] == 200
    assert rows_run(waiting) == ran + 16


def test_what_runs_is_answered_to_a_client_that_only_said_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `nc -N` does: its requests came before the end, and nobody else keeps them waiting."""
    monkeypatch.setattr(connection, "_LEFT_S", 2.0)  # a busy machine begins one within this
    settings = Settings(bundle=str(slow_bundle(tmp_path)), http_port=0)
    with Background(settings) as idle, RawClient(idle.url) as client:
        client.send(b"".join(asked(number) for number in range(8)))
        client.socket.shutdown(socket.SHUT_WR)
        for number in range(8):
            status, _, body = client.response()
            assert (status, json.loads(body)["id"]) == (200, str(number))
        assert client.is_closed()


def test_requests_behind_one_that_waits_are_not_begun(waiting: Background) -> None:
    ran, canceled = rows_run(waiting), failures(waiting, "canceled")
    with RawClient(waiting.url) as client:
        client.send(asked(1, rows=16) + asked(2) + asked(3))
        assert json.loads(client.response()[2])["id"] == "1"
        client.socket.shutdown(socket.SHUT_WR)
        assert client.is_closed()
    wait_for(lambda: in_flight(waiting) == 0)
    assert failures(waiting, "canceled") == canceled + 1
    assert rows_run(waiting) == ran + 16


def test_a_body_that_ends_too_early_is_no_request(waiting: Background) -> None:
    with RawClient(waiting.url) as client:
        client.send(asked(1)[:-1])
        client.socket.shutdown(socket.SHUT_WR)
        assert client.is_closed()
    assert in_flight(waiting) == 0


def test_what_waits_to_be_read_is_not_read(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large JSON is read one after the other: of a client that has left meanwhile it is not."""
    large = post(infer_body([[1, 2, 3, 4]]) + b" " * 2_000_000, "/v2/models/linear/infer")
    with Background(Settings(bundle=str(bundle), http_port=0)) as server:
        held = Held(monkeypatch, "decode")
        with RawClient(server.url) as first, RawClient(server.url) as second:
            first.send(large)
            held.wait()
            second.send(large)
            wait_for(lambda: in_flight(server) == 2)
            second.socket.shutdown(socket.SHUT_WR)
            first.socket.shutdown(socket.SHUT_WR)  # is being read: it is answered
            assert second.is_closed()
            held.may_go_on.set()
            assert first.response()[0] == 200
        wait_for(lambda: failures(server, "canceled") == 1)
        assert not held.begun.acquire(timeout=0.2)
