"""The server over real sockets: answers, refusals, strictness, order, limits."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeserve.bundle import Bundle
from edgeserve.chain import Chain
from edgeserve.errors import EnvironmentProblem, UsageError
from edgeserve.serve.http import connection
from edgeserve.serve.http.connection import Connection
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import Response
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear, linear_bundle
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.slow import slow_bundle

INFER = "/v2/models/linear/infer"
GET = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"


def test_tritonclient_gets_the_session_s_own_numbers(server: Background, bundle: Path) -> None:
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    with Chain(Bundle.open(bundle)) as chain:
        wanted = chain.run({"x": x})[0]["y"]
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.is_model_ready("linear", "1")
    assert client.get_model_metadata("linear")["inputs"][0]["shape"] == [-1, 4]
    assert client.get_model_config("linear")["max_batch_size"] == 64
    for as_binary in (True, False):
        given_input = triton.InferInput("x", x.shape, "FP32")
        given_input.set_data_from_numpy(x, binary_data=as_binary)
        asked = [triton.InferRequestedOutput("y", binary_data=as_binary)]
        result = client.infer("linear", [given_input], outputs=asked, request_id="r1")
        np.testing.assert_array_equal(result.as_numpy("y"), wanted)
        response = result.get_response()
        assert response["id"] == "r1"
        assert response["parameters"]["edgeserve_device"] == "cpu"
    with pytest.raises(triton.InferenceServerException, match="unknown model"):
        client.infer("nope", [given_input])
    client.close()


def test_the_device_is_in_every_response(client: RawClient) -> None:
    client.send(post(infer_body([[1, 2, 3, 4]])))
    status, headers, body = client.response()
    assert (status, headers["x-edgeserve-device"]) == (200, "cpu")
    np.testing.assert_allclose(
        json.loads(body)["outputs"][0]["data"],
        linear(np.float32([[1, 2, 3, 4]]))[0],
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("request_bytes", "status", "words"),
    [
        (post(b"{"), 400, "not JSON"),
        (post(infer_body([[1, 2, 3]])), 400, "'x' data: expected 4 elements"),
        (post(b'{"inputs":[]}'), 400, "input 'x' is missing: expected FP32[batch,4]"),
        (
            post(b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"INT64","data":[1,2,3,4]}]}'),
            400,
            "'x': expected FP32, got INT64",
        ),
        (
            post(b"x" * 9, "/v2/models/linear/infer", "Inference-Header-Content-Length: 99"),
            400,
            "99",
        ),
        (
            post(b"x", "/v2/models/linear/infer", "Inference-Header-Content-Length: abc"),
            400,
            "'abc'",
        ),
        (post(b"x", "/v2/models/linear/infer", "Inference-Header-Content-Length: -1"), 400, "'-1'"),
        (
            post(b"x", "/v2/models/linear/infer", "Content-Encoding: br"),
            415,
            "expected gzip or deflate",
        ),
        (
            post(infer_body([[1, 2, 3, 4]]), "/v2/models/nope/infer"),
            404,
            "unknown model 'nope'; loaded",
        ),
        (
            post(infer_body([[1, 2, 3, 4]]), "/v2/models/linear/versions/2/infer"),
            404,
            "no version '2' of 'linear': it has 1",
        ),
        (post(b"{}", "/v2/models/linear/explode"), 404, "no such route"),
        *(
            (request, status, words)
            for path in ("generate", "generate_stream", "versions/1/generate")
            for request, status, words in (
                (
                    post(b'{"text_input": "hi"}', f"/v2/models/linear/{path}"),
                    501,
                    "'linear' does not generate text",
                ),
                (post(b"{}", f"/v2/models/nope/{path}"), 404, "unknown model 'nope'"),
                (
                    f"GET /v2/models/linear/{path} HTTP/1.1\r\nHost: t\r\n\r\n".encode(),
                    405,
                    "use POST",
                ),
            )
        ),
        (post(b"{}", "/v2/models/linear/generate/more"), 404, "no such route"),
        (post(b"{}", "/v2/models/linear"), 405, "use GET"),
        (post(b"{}", "/v2/health/live"), 405, "use GET"),
        (b"GET /v2/models/linear/infer HTTP/1.1\r\nHost: t\r\n\r\n", 405, "use POST"),
        (b"GET /nothing HTTP/1.1\r\nHost: t\r\n\r\n", 404, "no such route"),
        (b"GET /v2/models/%2e%2e%2f%2e%2e HTTP/1.1\r\nHost: t\r\n\r\n", 404, "'../..'"),
        (b"GET /v2/models/%0d%0a%1b%5b2J HTTP/1.1\r\nHost: t\r\n\r\n", 404, r"'\r\n\x1b[2J'"),
        (
            b"GET /v2/models/" + b"n" * 4000 + b" HTTP/1.1\r\nHost: t\r\n\r\n",
            404,
            f"unknown model '{'n' * 60}'…; loaded",
        ),
    ],
)
def test_refusals_keep_the_connection_and_say_why(
    client: RawClient, request_bytes: bytes, status: int, words: str
) -> None:
    client.send(request_bytes)
    got, headers, body = client.response()
    assert got == status
    assert headers["content-type"] == "application/json"
    assert words in json.loads(body)["error"]
    if status == 405:
        assert headers["allow"]
    client.send(GET)
    assert client.response()[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (
            b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: -5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: +5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 5, 5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 0x5\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: xchunked\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\nHost: t\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: t\nX: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: t\r\nX: a\r\n b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: t\r\nX : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: t\r\nX: a\0b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET http://other/ HTTP/1.1\r\nHost: t\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: t\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: t\r\nExpect: magic\r\n\r\n", 417),
        (b"\x16\x03\x01\x02\x00\x01\x00\n\x01\xfc\x03\x03", 400),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: t\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: t\r\nX: " + b"a" * 20000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: t\r\n" + b"X: a\r\n" * 150 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 1048577\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
    ],
)
def test_ambiguous_or_oversized_requests_are_refused_and_the_connection_closed(
    client: RawClient, request_bytes: bytes, status: int
) -> None:
    client.send(request_bytes)
    got, headers, body = client.response()
    assert got == status
    assert headers["connection"] == "close"
    assert json.loads(body)["error"]
    assert client.is_closed()


def chunked(body: bytes, size: int) -> bytes:
    head = b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return head + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_chunked_bodies_are_put_together(client: RawClient, size: int) -> None:
    client.send(chunked(infer_body([[1, 2, 3, 4]]), size) + GET)
    assert client.response()[0] == 200
    assert client.response()[0] == 200


@pytest.mark.parametrize(
    ("chunks", "status"),
    [
        (b"zz\r\n", 400),
        (b"-1\r\n", 400),
        (b"5\r\nhelloXX", 400),
        (b"fffffffffffffffff\r\n", 400),
        (b"200000\r\n", 413),
        (b"0\r\nX: trailer\r\n\r\n", 400),
        (b";" * 300 + b"\r\n", 400),
    ],
)
def test_broken_chunks_are_refused(client: RawClient, chunks: bytes, status: int) -> None:
    head = b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.send(head + chunks)
    assert client.response()[0] == status
    assert client.is_closed()


def test_pipelined_requests_are_answered_in_order(client: RawClient) -> None:
    client.send(b"".join(post(infer_body([[i, 0, 0, 0]], id=str(i))) for i in range(50)))
    for i in range(50):
        status, _, body = client.response()
        assert (status, json.loads(body)["id"]) == (200, str(i))


def test_a_client_that_has_said_all_gets_all_answers(
    tmp_path: Path, server: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A half-closed connection, with requests behind the one that runs and an unfinished one at the end."""
    monkeypatch.setattr(connection, "_LEFT_S", 2.0)  # a busy machine begins one within this
    with Background(Settings(bundle=str(slow_bundle(tmp_path)), http_port=0)) as busy:
        for running, name in ((busy, "slow"), (server, "linear")):
            assert running.started.models[0].inline is (name == "linear")
            path = f"/v2/models/{name}/infer"
            wanted = [post(infer_body([[i, 0, 0, 0]], id=str(i)), path) for i in range(5)]
            for rest in (b"", wanted[0][:40], wanted[0][:-3]):
                with RawClient(running.url) as client:
                    client.send(b"".join(wanted) + rest)
                    client.socket.shutdown(socket.SHUT_WR)
                    for i in range(5):
                        status, _, body = client.response()
                        assert (status, json.loads(body)["id"]) == (200, str(i))
                    assert client.is_closed()


def test_a_request_may_arrive_a_byte_at_a_time(client: RawClient) -> None:
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for i, byte in enumerate(request := post(infer_body([[1, 2, 3, 4]]))):
        client.send(bytes([byte]))
        assert i < len(request)
    assert client.response()[0] == 200


def test_expect_100_continue_is_answered_before_the_body(client: RawClient) -> None:
    body = infer_body([[1, 2, 3, 4]])
    head, _, _ = post(body, "/v2/models/linear/infer", "Expect: 100-continue").partition(
        b"\r\n\r\n"
    )
    client.send(head + b"\r\n\r\n")
    assert client.response()[0] == 100
    client.send(body)
    assert client.response()[0] == 200


def test_a_head_like_the_last_one_is_no_other_than_it_was(client: RawClient) -> None:
    """Heads that differ in no byte but the digits of Content-Length are parsed once; any other byte counts."""
    body = infer_body([[1, 2, 3, 4]], id="a")
    path = "/v2/models/linear/infer"
    for _ in range(2):
        client.send(post(body, path, "Expect: 100-continue"))
        assert [client.response()[0] for _ in range(2)] == [100, 200]
    for name, status in (("linear", 200), ("linear", 200), ("lineax", 404), ("linear", 200)):
        client.send(post(body, f"/v2/models/{name}/infer"))
        assert client.response()[0] == status
    longer = infer_body([[1, 2, 3, 4]] * 9, id="b")
    for sent in (chunked(body, 7), chunked(longer, 7), post(longer), post(body), post(body)):
        client.send(sent)
        assert client.response()[0] == 200
    client.send(post(body, path, "Connection: close"))
    assert client.response()[1]["connection"] == "close"
    assert client.is_closed()


def test_bodies_of_any_length_follow_heads_that_are_alike(client: RawClient) -> None:
    bodies = [infer_body([[n, 2, 3, 4]] * n, id="a" * n) for n in (1, 3, 2, 8, 1)]
    for body in bodies:  # at once
        client.send(post(body))
        assert json.loads(client.response()[2])["id"] == json.loads(body)["id"]
    client.send(b"".join(map(post, bodies)))
    for body in bodies:  # one behind the other
        assert json.loads(client.response()[2])["id"] == json.loads(body)["id"]
    for body in bodies:  # in pieces
        wire = post(body)
        client.send(wire[:-7])
        client.send(wire[-7:])
        assert json.loads(client.response()[2])["id"] == json.loads(body)["id"]


@pytest.mark.slow
def test_what_is_left_of_the_last_request_completes_no_other(
    server: Background, client: RawClient
) -> None:
    first, second = (post(infer_body([[n, 2, 3, 4]] * n, id="a" * n)) for n in (1, 40))
    with RawClient(server.url) as other:
        for wire in (first, second):
            for cut in range(1, wire.index(b"\r\n\r\n") + 6):
                client.send(first)
                assert json.loads(client.response()[2])["id"] == "a"
                client.send(wire[:cut])
                other.send(GET)  # answered when the piece has been read
                assert other.response()[0] == 200
                client.send(wire[cut:])
                assert len(json.loads(client.response()[2])["id"]) == (1 if wire is first else 40)


@pytest.mark.parametrize(
    ("length", "status"),
    [("+3", 400), ("0x3", 400), ("3 3", 400), ("", 400), ("9" * 17, 413), ("9" * 40, 400)],
)
def test_a_length_is_as_wrong_after_a_right_one(
    client: RawClient, length: str, status: int
) -> None:
    body = infer_body([[1, 2, 3, 4]])
    wire = post(body)
    client.send(wire)
    assert client.response()[0] == 200
    right, wrong = f"Content-Length: {len(body)}", f"Content-Length: {length}"
    client.send(wire.replace(right.encode(), wrong.encode()))
    assert client.response()[0] == status
    assert client.is_closed()


def test_head_gives_headers_without_a_body(client: RawClient) -> None:
    client.send(b"HEAD /v2/health/ready HTTP/1.1\r\nHost: t\r\n\r\n")
    while b"\r\n\r\n" not in client._buffer:
        client._more()
    assert client._buffer.startswith(b"HTTP/1.1 200")
    assert client._buffer.endswith(b"\r\n\r\n")


def test_connection_close_and_http_1_0_close(server: Background) -> None:
    for head in (
        b"GET /v2 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n",
        b"GET /v2 HTTP/1.0\r\n\r\n",
    ):
        with RawClient(server.url) as client:
            client.send(head)
            assert client.response()[0] == 200
            assert client.is_closed()


def test_many_clients_get_their_own_answers(server: Background) -> None:
    """All answers are compared, not counted: a buffer used twice would show here."""

    def one_client(number: int) -> float:
        worst = 0.0
        with RawClient(server.url) as client:
            for i in range(60):
                x = np.float32([[number, i, number * i % 7, 1]] * (1 + i % 3))
                client.send(post(infer_body(x.tolist())))
                status, _, body = client.response()
                assert status == 200
                y = np.float32(json.loads(body)["outputs"][0]["data"]).reshape(-1, 3)
                worst = max(worst, float(np.abs(y - linear(x)).max()))
        return worst

    with ThreadPoolExecutor(16) as pool:
        assert max(pool.map(one_client, range(16))) < 1e-3


def test_metrics_count_and_have_no_labels_from_clients(
    server: Background, client: RawClient
) -> None:
    client.send(post(infer_body([[1, 2, 3, 4]])) + post(b"{}", "/v2/models/evil/infer"))
    client.response()
    client.response()
    client.send(b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n")
    text = client.response()[2].decode()
    assert "evil" not in text
    counted = next(x for x in text.splitlines() if x.startswith("edgeserve_requests_total"))
    assert float(counted.split()[-1]) >= 1
    assert 'edgeserve_candidate_info{device="cpu",model="linear"' in text


def test_clients_that_leave_do_no_harm(server: Background) -> None:
    for cut in (10, 60, 150):
        with RawClient(server.url) as client:
            client.send(post(infer_body([[1, 2, 3, 4]]))[:cut])
    with RawClient(server.url) as client:
        client.send(post(infer_body([[1, 2, 3, 4]])) * 5)
    with RawClient(server.url) as client:
        client.send(GET)
        assert client.response()[0] == 200


@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([GET, b"\r\n", b"POST ", b"0\r\n\r\n"]), max_size=5
    )
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_are_answered_or_closed_and_the_server_lives(
    server: Background, pieces: list[bytes]
) -> None:
    with RawClient(server.url) as client:
        client.socket.settimeout(5)
        client.send(b"".join(pieces))
        client.socket.shutdown(socket.SHUT_WR)
        answer = b""
        while data := client.socket.recv(65536):
            answer += data
        assert b"HTTP/1.1 5" not in answer.replace(b"HTTP/1.1 505", b"").replace(
            b"HTTP/1.1 501", b""
        )
    with RawClient(server.url) as client:
        client.send(GET)
        assert client.response()[0] == 200


def test_a_port_in_use_is_explained(server: Background, bundle: Path) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(EnvironmentProblem, match="cannot listen") as caught:
        Background(Settings(bundle=str(bundle), http_port=port))
    assert caught.value.cause == "the port is in use"
    assert caught.value.exit_code == 3


def test_other_addresses_need_to_be_asked_for_aloud(bundle: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Background(Settings(bundle=str(bundle), http_port=0, host="0.0.0.0"))
    assert "--insecure" in (caught.value.hint or "")


def test_stopping_leaves_no_thread(bundle: Path) -> None:
    before = set(threading.enumerate())
    with Background(Settings(bundle=str(bundle), http_port=0, batching=True)) as running:
        assert running.started.models[0].name == "linear"
    assert {t for t in threading.enumerate() if t.is_alive()} <= before


def test_who_does_not_read_is_not_answered_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request at a time, each asking for a large answer that nobody reads."""
    blocked: list[bool] = []
    respond = Connection.respond

    def noted(connection: Connection, request: Request, response: Response) -> None:
        blocked.append(connection._blocked)
        respond(connection, request, response)

    monkeypatch.setattr(Connection, "respond", noted)
    limits = Limits(send_s=1.0)
    with Background(
        Settings(bundle=str(linear_bundle(tmp_path)), http_port=0, limits=limits)
    ) as one:
        host, _, port = one.url.removeprefix("http://").rpartition(":")
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((host, int(port)))
            client.setblocking(False)
            with pytest.raises(ConnectionError):
                ask_on(client, 60.0)
    assert len(blocked) > 1
    assert not any(blocked)


def ask_on(client: socket.socket, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(BlockingIOError):
            client.send(b"GET /openapi.json HTTP/1.1\r\nHost: t\r\n\r\n")
        time.sleep(0.005)


# What older clients, and those that would rather speak HTTP/2, send.


def test_http_1_0_is_told_that_the_connection_stays(client: RawClient) -> None:
    old = b"GET /v2/health/live HTTP/1.0\r\n\r\n"
    for _ in range(2):
        client.send(old[:-2] + b"Connection: keep-alive\r\n\r\n")
        status, headers, _ = client.response()
        assert (status, headers["connection"]) == (200, "keep-alive")
    body = infer_body([[1, 2, 3, 4]])
    for length in (body, body + b" " * 100_000, body):
        asked = post(length, INFER, "Connection: Keep-Alive", "Expect: 100-continue")
        client.send(asked.replace(b"HTTP/1.1", b"HTTP/1.0"))
        status, headers, _ = client.response()  # nothing is expected before it
        assert (status, headers["connection"]) == (200, "keep-alive")
    client.send(post(b"{", INFER, "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"))
    status, headers, _ = client.response()
    assert (status, headers["connection"]) == (400, "keep-alive")
    client.send(old)
    status, headers, _ = client.response()
    assert (status, headers["connection"]) == (200, "close")
    assert client.is_closed()


def test_http_1_1_is_told_nothing_of_a_connection_that_stays(client: RawClient) -> None:
    client.send(GET[:-2] + b"Connection: keep-alive\r\n\r\n")
    status, headers, _ = client.response()
    assert (status, "connection" in headers) == (200, False)


@pytest.mark.parametrize(
    "offer",
    [
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQA"),
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
        ("Connection: keep-alive, Upgrade", "Upgrade: TLS/1.0, HTTP/2.0"),
        ("Upgrade: h2c",),
    ],
)
def test_an_upgrade_that_is_offered_is_passed_over(
    client: RawClient, offer: tuple[str, ...]
) -> None:
    body = infer_body([[1, 2, 3, 4]])
    asked = post(body, INFER, *offer)
    lines = ["GET /v2/health/live HTTP/1.1", "Host: t", *offer]
    for _ in range(2):
        client.send("\r\n".join(lines).encode() + b"\r\n\r\n" + asked)
        assert [client.response()[0] for _ in range(2)] == [200, 200]
        client.send(asked[:-5])
        client.send(asked[-5:] + post(body + b" " * 100_000, INFER, *offer))
        assert [client.response()[0] for _ in range(2)] == [200, 200]
        client.send(chunked(body, 7).replace(b"Host", "\r\n".join((*offer, "Host")).encode(), 1))
        assert client.response()[0] == 200
