"""Attacks on servers of this kind, each as a test: refused with the right status, in bounded memory and
time, and the server goes on. The list is that of the published ones (docs/security.md).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.server import Settings
from edgeserve.wire import SERVICE, messages
from tests.serve.background import Background
from tests.serve.conftest import RawClient, post
from tests.serve.slow import slow_bundle

INFER = "/v2/models/linear/infer"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: t\r\n\r\n"
MIB = 1 << 20


@pytest.fixture(scope="module")
def target(bundle: Path) -> Iterator[Background]:
    limits = Limits(
        body_bytes=8 * MIB, bodies_bytes=16 * MIB, chunks=1000, inflated_bytes=4 * MIB,
        inflated_ratio=50, elements=1 << 20, connections=40, connections_per_address=30,
        head_s=1.0, body_s=1.5, body_rate=10_000, send_s=1.0, idle_s=3.0,
    )  # fmt: skip
    settings = Settings(bundle=str(bundle), http_port=0, limits=limits)
    with Background(settings) as running:
        yield running
        alive(running)


def alive(server: Background) -> None:
    with RawClient(server.url) as client:
        client.send(LIVE)
        assert client.response()[0] == 200


def refused(server: Background, sent: bytes, status: int, words: str = "") -> None:
    with RawClient(server.url) as client:
        with contextlib.suppress(ConnectionError):  # refused before all of it was sent
            client.send(sent)
        got, _, body = client.response()
    assert got == status, body
    assert words in json.loads(body)["error"]
    alive(server)


def announced(length: int) -> bytes:
    """Of an inference request, whose body is promised."""
    return b"POST %s HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), length)


def document(**change: Any) -> bytes:
    entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    whole = {"inputs": [{**entry, **change.pop("entry", {})}], **change}
    return json.dumps(whole).encode()


# Time: slow clients.


def test_slowloris_heads_are_cut_off(target: Background) -> None:
    with RawClient(target.url) as client:
        client.send(b"POST /v2 HTTP/1.1\r\n")
        status = 0
        for i in range(40):
            try:
                client.send(b"X-%d: y\r\n" % i)
                client.socket.settimeout(0.1)
                status = client.response()[0]
                break
            except TimeoutError:
                continue
            except ConnectionError:
                break
        assert status == 408
    alive(target)


def test_bodies_slower_than_the_least_rate_are_cut_off(target: Background) -> None:
    with RawClient(target.url) as client:
        client.send(announced(100_000))
        began, status = time.monotonic(), 0
        while not status and time.monotonic() - began < 9:
            with contextlib.suppress(ConnectionError):
                client.send(b"x" * 20)
            client.socket.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                status = client.response()[0]
        assert status == 408


def test_a_slow_body_at_the_least_rate_is_taken(target: Background) -> None:
    """Slower than body_s allows as a whole, but steadily quicker than body_rate."""
    body = document() + b" " * 60_000
    with RawClient(target.url) as client:
        request = post(body)
        for i in range(0, len(request), 3000):
            client.send(request[i : i + 3000])
            time.sleep(0.1)
        assert client.response()[0] == 200


def test_idle_connections_are_closed(target: Background) -> None:
    with RawClient(target.url) as client:
        client.send(LIVE)
        client.response()
        assert client.is_closed()


def test_clients_that_do_not_read_their_answers_are_dropped(target: Background) -> None:
    """Many large answers are asked for and never read: the server must not hold them all."""
    body = document(outputs=[{"name": "y"}] * 1, id="i" * 100_000)
    with RawClient(target.url) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.socket.settimeout(1)
        before = memory()
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(1000):
                client.send(post(body))
        assert memory() - before < 60 * MIB
        time.sleep(2.5)
        client.socket.settimeout(5)
        with contextlib.suppress(ConnectionError):
            while True:
                client._more()
                assert len(client._buffer) < 60 * MIB
    alive(target)


# Framing: requests that two parsers could read differently.


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 50",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5,5",
        "Content-Length: -1",
        "Content-Length: +5",
        "Content-Length: 5 5",
        "Content-Length: 0x10",
        "Content-Length: 1e3",
        "Content-Length: 99999999999999999999999",
        "Content-Length : 5",
        "Content-Length:\x0b5",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding:\x0bchunked",
        "X: y\r\n Content-Length: 5",
        "X: y\nContent-Length: 5",
        "X: y\rContent-Length: 5",
        "X: a\x00b",
    ],
)
def test_ambiguous_framing_is_refused_and_nothing_behind_it_runs(
    target: Background, head: str
) -> None:
    smuggled = b"GET /metrics HTTP/1.1\r\nHost: t\r\n\r\n"
    with RawClient(target.url) as client:
        client.send(f"POST {INFER} HTTP/1.1\r\nHost: t\r\n{head}\r\n\r\n".encode() + smuggled)
        status, headers, _ = client.response()
        assert status in (400, 413, 501)
        assert headers["connection"] == "close"
        assert client.is_closed()


def test_a_body_is_no_request(target: Background) -> None:
    with RawClient(target.url) as client:
        client.send(post(LIVE) + LIVE)
        assert client.response()[0] == 400
        assert client.response()[0] == 200


def test_header_injection_comes_back_as_text(target: Background) -> None:
    with RawClient(target.url) as client:
        client.send(post(document(id="a\r\nX-Evil: 1\r\n\r\n")))
        _, headers, body = client.response()
        assert "x-evil" not in headers
        assert json.loads(body)["id"].startswith("a\r\nX-Evil")
        client.send(b"GET /v2/models/a%0d%0aX-Evil:%201 HTTP/1.1\r\nHost: t\r\n\r\n")
        status, headers, _ = client.response()
        assert (status, "x-evil" in headers) == (404, False)


# Size: more than fits.


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: t\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: t\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: t\r\n" + b"X: a\r\n" * 101 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 8388609\r\n\r\n", 413),
    ],
)
def test_what_is_too_large_is_refused(target: Background, sent: bytes, status: int) -> None:
    refused(target, sent, status)


def test_a_body_too_large_is_told_although_it_is_being_sent(target: Background) -> None:
    refused(target, post(bytes(9 * MIB)), 413)


def test_very_many_chunks_are_refused(target: Background) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    refused(target, head + b"1\r\n \r\n" * 1500 + b"0\r\n\r\n", 413, "1000 chunks")
    refused(target, head + b"fffffffffffffff\r\n", 413)
    refused(target, head + b"-5\r\n", 400)
    refused(target, head + b"5;" + b"x" * 500 + b"\r\n", 400)


def test_declared_bodies_take_no_memory_before_they_come(target: Background) -> None:
    before = memory()
    clients = [RawClient(target.url) for _ in range(20)]
    for client in clients:
        client.send(announced(8_000_000) + b"x")
    alive(target)
    assert memory() - before < 20 * MIB
    for client in clients:
        client.close()


def test_bodies_of_all_clients_together_are_bounded(target: Background) -> None:
    statuses = []
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(target.url)) for _ in range(5)]
        for client in clients:
            client.send(announced(8_000_000))
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.send(bytes(6 * MIB))
        for client in clients:
            with contextlib.suppress(ConnectionError):
                statuses.append(client.response()[0])
    assert 503 in statuses
    assert set(statuses) <= {408, 503}
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:  # what the clients held is given back
        with RawClient(target.url) as client:
            client.send(post(document() + b" " * 7 * MIB))
            if client.response()[0] == 200:
                return
    pytest.fail("the server still counts bodies that are gone")


def test_the_memory_of_large_requests_is_given_back(target: Background) -> None:
    padded = post(document() + b" " * 7 * MIB)
    numbers = post(document(entry={"data": [0.25] * 1_000_000}))

    def ask() -> None:
        for request, status in ((padded, 200), (numbers, 400)):
            with RawClient(target.url) as client:
                client.send(request)
                assert client.response()[0] == status

    for _ in range(3):
        ask()
    before = memory()
    for _ in range(10):
        ask()
    deadline = time.monotonic() + 10  # the heap is trimmed a second later
    while memory() - before >= 40 * MIB and time.monotonic() < deadline:
        time.sleep(0.1)
    assert memory() - before < 40 * MIB  # they were 130 MiB


def test_connections_of_one_address_are_bounded(target: Background) -> None:
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(target.url)) for _ in range(35)]
        statuses = []
        for client in clients:
            with contextlib.suppress(ConnectionError):
                client.send(LIVE)
                statuses.append(client.response()[0])
        assert statuses.count(200) >= 25
        assert statuses.count(503) + (35 - len(statuses)) >= 5
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(AssertionError, ConnectionError):
            return alive(target)
    pytest.fail("closed connections still count")


# Compression.


def test_gzip_bombs_are_refused_and_their_memory_is_given_back(target: Background) -> None:
    bomb = gzip.compress(bytes(200 * MIB), 9)
    assert len(bomb) < MIB
    before = memory()
    for _ in range(3):
        refused(target, post(bomb, INFER, "Content-Encoding: gzip"), 413)
    refused(target, post(zlib.compress(bytes(64 * MIB)), INFER, "Content-Encoding: deflate"), 413)
    assert memory() - before < 32 * MIB


def test_inflated_bodies_of_all_clients_together_are_bounded(tmp_path: Path) -> None:
    """Each becomes 1.5 MiB, of which 4 MiB are held: while some wait for others, the rest is refused."""
    limits = Limits(bodies_bytes=4 * MIB, inflated_ratio=1000)
    bundle = slow_bundle(tmp_path)
    settings = Settings(bundle=str(bundle), http_port=0, threads=1, batch_delay=1.0, limits=limits)
    sent = post(
        gzip.compress(document() + b" " * (3 * MIB // 2)),
        "/v2/models/slow/infer",
        "Content-Encoding: gzip",
    )
    with Background(settings) as running, contextlib.ExitStack() as stack:
        for _ in range(2):  # what was held is given back
            clients = [stack.enter_context(RawClient(running.url)) for _ in range(5)]
            for client in clients:
                client.send(sent)
            statuses = [client.response()[0] for client in clients]
            assert (statuses.count(200), statuses.count(503)) == (2, 3)


# Without a time of day in them: the processes that run tests must agree about what there is.
@pytest.mark.parametrize(
    ("body", "coding", "status", "words"),
    [
        (b"not gzip", "gzip", 400, "not gzip"),
        (b"", "gzip", 400, "too early"),
        (gzip.compress(document(), mtime=0)[:-9], "gzip", 400, "too early"),
        (gzip.compress(document(), mtime=0)[:-1] + b"x", "gzip", 400, "not gzip"),
        (gzip.compress(document(), mtime=0) + b"more", "gzip", 400, "follow"),
        (gzip.compress(document(), mtime=0) * 2, "gzip", 400, "follow"),
        (gzip.compress(document(), mtime=0), "deflate", 400, "not deflate"),
        (document(), "gzip, gzip", 415, "content codings"),
        (document(), "br", 415, "content codings"),
        (gzip.compress(b" " * 3_000_000 + document(), mtime=0), "gzip", 413, "50 times"),
    ],
)
def test_broken_compression_is_refused(
    target: Background, body: bytes, coding: str, status: int, words: str
) -> None:
    refused(target, post(body, INFER, f"Content-Encoding: {coding}"), status, words)


def test_compressed_bodies_within_bounds_are_taken(target: Background) -> None:
    noise = json.dumps(np.random.default_rng(0).random(40_000).tolist()).encode()
    large = document()[:-1] + b',"parameters":{"noise":"' + noise + b'"}}'
    for body in (document(), document() + b" " * 2000, large):
        for coding, compressed in (("gzip", gzip.compress(body)), ("deflate", zlib.compress(body))):
            with RawClient(target.url) as client:
                client.send(post(compressed, INFER, f"Content-Encoding: {coding}"))
                assert client.response()[0] == 200


# Content: JSON and tensors.


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[" * 20_000, "nested deeper than 100"),
        (b'{"inputs":' + b"[" * 101 + b"]" * 101 + b"}", "nested deeper than 100"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested deeper than 100"),
        (document(entry={"data": [10**400, 1, 2, 3]}), ""),
        (document(entry={"shape": [2**63, 4]}), "list of sizes"),
        (document(entry={"shape": [2**64 + 1, 4]}), ""),
        (document(entry={"shape": [-(2**63), 4]}), "shape"),
        (document(entry={"shape": [10**300, 4]}), ""),
        (document(entry={"shape": [0, 4], "data": []}), "batch of 1 to"),
        (document(entry={"shape": [4] * 5000}), "expected shape"),
        (document(entry={"shape": []}), "expected shape"),
        (document(parameters={"timeout": 2**80}), "timeout"),
        (document(parameters={"priority": -1}), "priority"),
        (document(parameters={"triton_enable_empty_final_response": True}), "reserved"),
        (document(parameters={"headers": {"authorization": "x"}}), "reserved"),
        (document(parameters={"headers": "x"}), "reserved"),
        (document(outputs=[{"name": "y"}, {"name": "y"}]), "asked for twice"),
        (document(outputs=[{"name": "y"}] * 50_000), "asked for twice"),
        (document(outputs=[{"name": "z"}]), "unknown output"),
        (document(outputs=[{"name": "y", "parameters": {"classification": 2**70}}]), "count"),
        (document(outputs=[{"name": "y", "parameters": {"classification": -1}}]), "count"),
        (document(outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]), "true or false"),
        (b'{"inputs":[{"name":"\\ud800","shape":[1],"datatype":"FP32","data":[NaN]}]}', ""),
        (b'{"id":"\\ud800","inputs":[NaN]}', ""),
        (
            b'{"inputs":[{"name":"x' + b"x" * 100_000 + b'","shape":[1],"datatype":"FP32"}]}',
            "unknown",
        ),
        (b"\xff\xfe{\x00}", "not JSON"),
        (b'{"inputs":[]}\x00', "not JSON"),
    ],
)
def test_hostile_documents_are_400_and_short(target: Background, body: bytes, words: str) -> None:
    with RawClient(target.url) as client:
        client.send(post(body))
        status, _, answer = client.response()
    assert status == 400
    assert words in json.loads(answer)["error"]
    assert len(answer) < 3000


def test_classification_of_more_classes_than_there_are_gives_all(target: Background) -> None:
    asked = [{"name": "y", "parameters": {"classification": 2**40}}]
    with RawClient(target.url) as client:
        client.send(post(document(outputs=asked)))
        status, _, body = client.response()
    assert status == 200
    assert json.loads(body)["outputs"][0]["shape"] == [1, 3]


@pytest.mark.parametrize(
    ("header", "status"),
    [("-1", 400), ("99999", 400), ("999999999999999999999", 400), ("0x10", 400), ("1.5", 400),
     ("18446744073709551616", 400), ("", 400), ("1", 400)],
)  # fmt: skip
def test_header_lengths_out_of_range_are_refused(
    target: Background, header: str, status: int
) -> None:
    refused(target, post(document(), INFER, f"Inference-Header-Content-Length: {header}"), status)


def binary_body(size: int, blob: bytes, **entry: Any) -> bytes:
    described = {"name": "x", "shape": [1, 4], "datatype": "FP32", **entry,
                 "parameters": {"binary_data_size": size}}  # fmt: skip
    head = json.dumps({"inputs": [described]}).encode()
    return post(head + blob, INFER, f"Inference-Header-Content-Length: {len(head)}")


@pytest.mark.parametrize(
    ("size", "length"),
    [
        (16, 15),
        (16, 17),
        (15, 15),
        (17, 17),
        (0, 0),
        (2**31, 16),
        (2**63, 16),
        (2**64, 16),
        (-16, 16),
    ],
)
def test_binary_sizes_that_lie_are_refused(target: Background, size: int, length: int) -> None:
    refused(target, binary_body(size, bytes(length)), 400)


def test_huge_shapes_are_refused_before_anything_is_allocated(target: Background) -> None:
    before = memory()
    for shape in ([2**40, 4], [2**62, 4], [2**20, 4]):
        refused(target, binary_body(16, bytes(16), shape=shape), 400, "expected at most")
    assert memory() - before < 8 * MIB


def test_a_binary_body_that_no_input_can_have_is_not_taken(target: Background) -> None:
    """Its head tells how much of it is tensors, and the model how much they can be: 64 rows of 16 bytes."""
    for length, status in ((600 + 16 * 64 + 1, 413), (4 * MIB, 413), (599, 400)):
        lines = f"Content-Length: {length}\r\nInference-Header-Content-Length: 600"
        with RawClient(target.url) as client:
            client.send(f"POST {INFER} HTTP/1.1\r\nHost: t\r\n{lines}\r\n\r\n".encode())
            assert client.response()[0] == status  # before the body
    for rows in (1, 64):  # what can be is taken, also where it comes in pieces
        request = binary_body(16 * rows, bytes(16 * rows), shape=[rows, 4])
        with RawClient(target.url) as client:
            client.send(request[:-8])
            time.sleep(0.05)
            client.send(request[-8:] + binary_body(16 * rows, bytes(16 * rows), shape=[rows, 4]))
            assert [client.response()[0] for _ in range(2)] == [200, 200]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no POSIX shared memory")
def test_shared_memory_that_no_input_can_be_is_not_read(bundle: Path) -> None:
    """A gigabyte for sixteen bytes, over both protocols: refused before any of it is read."""
    settings = Settings(
        bundle=str(bundle), http_port=0, grpc_port=0, shared_memory="edgeserve-attack-"
    )
    size, name = 1 << 30, f"edgeserve-attack-{os.getpid()}"
    segment = Path("/dev/shm") / name
    segment.touch()
    try:
        os.truncate(segment, size)  # sparse: it takes no memory until it is read
        with Background(settings) as server:
            register = json.dumps({"key": f"/{name}", "byte_size": size}).encode()
            path = "/v2/systemsharedmemory/region/huge/register"
            with RawClient(server.url) as client:
                client.send(post(register, path).replace(b"Host: test", b"Host: localhost"))
                assert client.response()[0] == 200
            before = memory()
            for claimed in (size, size - 1, 17):
                where = {"shared_memory_region": "huge", "shared_memory_byte_size": claimed}
                entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", "parameters": where}
                refused(server, post(json.dumps({"inputs": [entry]}).encode()), 400, "16 bytes")
                message = messages.ModelInferRequest(model_name="linear")
                given = message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
                given.parameters["shared_memory_region"].string_param = "huge"
                given.parameters["shared_memory_byte_size"].int64_param = claimed
                with grpc.insecure_channel(str(server.started.grpc)) as channel:
                    call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
                    with pytest.raises(grpc.RpcError, match="16 bytes"):
                        call(message.SerializeToString())
            assert memory() - before < 64 * MIB
    finally:
        segment.unlink()


def test_control_characters_in_strings_are_carried(target: Background) -> None:
    with RawClient(target.url) as client:
        client.send(post(document(id="a\0b")))
        status, _, body = client.response()
    assert (status, json.loads(body)["id"]) == (200, "a\0b")


# Paths and names.


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/../../etc/passwd",
        "/v2/models/..%2f..%2fetc%2fpasswd/infer",
        "/v2/models/%252e%252e/infer",
        "/v2/models/linear%00/infer",
        "/v2/models/linear/versions/-1/infer",
        "/v2/models/linear/versions/1e3/infer",
        "/v2/models/linear/versions/99999999999999999999/infer",
        "/v2/models/linear/versions/..%2f1/infer",
        "/v2/models//infer",
        "/v2/../v2/models/linear/infer",
        "//v2/models/linear/infer",
        "/V2/models/linear/infer",
    ],
)
def test_paths_lead_nowhere_else(target: Background, path: str) -> None:
    refused(target, post(document(), path), 404)


def test_verbs_that_mean_nothing_here_are_refused(target: Background) -> None:
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
        refused(target, f"{method} {INFER} HTTP/1.1\r\nHost: t\r\n\r\n".encode(), 405)
    refused(target, b"CONNECT t:80 HTTP/1.1\r\nHost: t\r\n\r\n", 501)
    refused(target, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "use HTTP/1.1")
    refused(target, b"HELLO / HTTP/1.1\r\nHost: t\r\n\r\n", 400)


# Leaving.


def test_clients_that_reset_the_connection_end_nothing(target: Background) -> None:
    """The answer meets a closed socket (SIGPIPE, ECONNRESET), at every point of a request."""
    body = document(id="i" * 50_000)
    for cut in (1, 30, 80, 1000, None):
        for _ in range(5):
            client = RawClient(target.url)
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.send((post(body) * 3)[:cut])
            client.close()
    alive(target)


def memory() -> int:
    """Resident memory of this process, which the server runs in."""
    return int(psutil.Process().memory_info().rss)
