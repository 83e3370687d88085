"""Those who may not ask get their answer before their bodies come, and take no room from those who may."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.server import Settings
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.waiting import wait_for

KEY = "k" * 32
MIB = 1 << 20
INFER = "/v2/models/linear/infer"
BODY = infer_body([[1, 2, 3, 4]])


@pytest.fixture(scope="module")
def locked(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"infer {KEY}\n")
    limits = Limits(
        body_bytes=8 * MIB, bodies_bytes=12 * MIB, connections=24, connections_per_address=20,
        body_s=1.0, idle_s=30.0, head_s=20.0,
    )  # fmt: skip
    settings = Settings(bundle=str(bundle), http_port=0, keys=str(keys), limits=limits)
    with Background(settings) as running:
        yield running


def asked(length: int, *headers: str, path: str = INFER, method: str = "POST") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: t", f"Content-Length: {length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def holder(body: bytes = BODY, path: str = INFER) -> bytes:
    return post(body, path, f"Authorization: Bearer {KEY}")


def served(server: Background) -> None:
    with RawClient(server.url) as client:
        client.send(holder())
        assert client.response()[0] == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (asked(8 * MIB), 401),
        (asked(8 * MIB, "X-Api-Key: " + "x" * 32), 401),
        (asked(8 * MIB, "Expect: 100-continue"), 401),
        (asked(0, "Transfer-Encoding: chunked").replace(b"Content-Length: 0\r\n", b""), 401),
        (asked(8 * MIB, f"X-Api-Key: {KEY}", path="/v2/models/nobody/infer"), 404),
        (asked(8 * MIB, f"X-Api-Key: {KEY}", path="/v2/models/linear/versions/7/infer"), 404),
        (asked(8 * MIB, f"X-Api-Key: {KEY}", path="/nowhere"), 404),
        (asked(8 * MIB, f"X-Api-Key: {KEY}", method="PUT"), 405),
        (asked(8 * MIB, f"X-Api-Key: {KEY}", "Content-Encoding: br"), 415),
        (asked(8 * MIB + 1, f"X-Api-Key: {KEY}"), 413),
        (asked(2 * MIB, f"X-Api-Key: {KEY}", path="/v2/repository/index"), 413),
        (asked(2 * MIB, f"X-Api-Key: {KEY}", path="/v2/models/linear", method="GET"), 413),
        (asked(2 * MIB, path="/v2/health/live", method="GET"), 413),
        (asked(2 * MIB, f"X-Api-Key: {KEY}", path="/v2/repository/models/linear/load"), 403),
        (asked(2 * MIB, f"X-Api-Key: {KEY}", "Inference-Header-Content-Length: -1"), 400),
    ],
)
def test_the_answer_comes_before_the_body(locked: Background, sent: bytes, status: int) -> None:
    with RawClient(locked.url) as client:
        client.send(sent)
        got, headers, _ = client.response()  # no byte of the body was sent, nor a 100 received
        assert (got, headers["connection"]) == (status, "close")
        assert client.is_closed()


def test_bodies_of_strangers_take_no_memory_and_no_room(locked: Background) -> None:
    process = psutil.Process()
    before = process.memory_info().rss
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            client = stack.enter_context(RawClient(locked.url))
            client.send(asked(8 * MIB))
            with contextlib.suppress(OSError):  # the server does not take it for ever
                for _ in range(7):
                    client.send(bytes(MIB))
        assert process.memory_info().rss - before < 16 * MIB  # the clients are in this process
        with RawClient(locked.url) as client:
            client.send(holder(BODY + b" " * (6 * MIB)))
            assert client.response()[0] == 200


def test_a_short_body_is_thrown_away_and_the_connection_goes_on(locked: Background) -> None:
    """Also where it looks like a request, and where it comes later."""
    inner = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"
    with RawClient(locked.url) as client:
        client.send(asked(len(inner)) + inner + holder())
        assert [client.response()[0] for _ in range(2)] == [401, 200]
        for _ in range(2):
            client.send(asked(len(inner)))
            assert client.response()[0] == 401
            client.send(inner[:10])
            time.sleep(0.05)
            client.send(inner[10:] + holder())
            assert client.response()[0] == 200
        client.send(asked(len(inner), "Connection: close") + inner)
        assert client.response()[0] == 401
        assert client.is_closed()


def test_a_short_body_that_never_comes_ends_the_connection(locked: Background) -> None:
    with RawClient(locked.url) as client:
        client.send(asked(1000))
        assert client.response()[0] == 401
        assert client.is_closed()  # within body_s, without another answer


def test_strangers_cannot_take_all_connections(locked: Background) -> None:
    """More than there may be, of every kind: the longest idle make room for those who come."""
    with contextlib.ExitStack() as stack:
        known = stack.enter_context(RawClient(locked.url))
        known.send(holder())
        assert known.response()[0] == 200
        strangers = []
        for number in range(40):
            client = stack.enter_context(RawClient(locked.url))
            strangers.append(client)
            if number % 3:
                client.send(b"GET /v2/health/live HTTP/1.1\r\nHo"[: 1 + number])
            served(locked)
        known.send(holder())  # was idle longest, and stays
        assert known.response()[0] == 200
        assert sum(client.is_closed() for client in strangers[:20]) == 20


def test_connections_of_those_with_leave_are_not_ended_for_others(locked: Background) -> None:
    with contextlib.ExitStack() as stack:
        known = [stack.enter_context(RawClient(locked.url)) for _ in range(20)]
        for client in known:
            client.send(holder())
            assert client.response()[0] == 200
        late = stack.enter_context(RawClient(locked.url))
        status, headers, body = late.response()
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body) == {"error": "too many connections from this address"}
        for client in known:
            client.send(holder())
            assert client.response()[0] == 200
    wait_for(lambda: _is_served(locked))


def _is_served(server: Background) -> bool:
    with contextlib.suppress(ConnectionError, AssertionError):
        served(server)
        return True
    return False


def test_a_key_that_is_gone_while_a_body_comes_gives_no_leave(bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"infer {KEY}\n")
    settings = Settings(bundle=str(bundle), http_port=0, keys=str(keys))
    with Background(settings) as running, RawClient(running.url) as client:
        whole = holder(BODY + b" " * 100_000)
        client.send(whole[:-10])
        time.sleep(0.1)
        keys.write_text(f"infer {'n' * 32}\n")
        running.hang_up()

        def changed() -> bool:
            with RawClient(running.url) as other:
                other.send(post(BODY, INFER, f"Authorization: Bearer {'n' * 32}"))
                return other.response()[0] == 200

        wait_for(changed)
        client.send(whole[-10:])
        assert client.response()[0] == 401


def test_head_requests_that_are_refused_have_no_body(locked: Background) -> None:
    with RawClient(locked.url) as client:
        client.send(
            b"HEAD /v2 HTTP/1.1\r\nHost: t\r\n\r\nGET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"
        )
        client.socket.shutdown(socket.SHUT_WR)
        answer = b""
        while data := client.socket.recv(65536):
            answer += data
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 ")
    assert rest.startswith(b"HTTP/1.1 200 ")
