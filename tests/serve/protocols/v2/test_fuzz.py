"""Fuzzing over real sockets: whatever comes is answered or closed, soon, in bounded memory, never a 500.

Cases are requests of every kind, damaged at random from a seed that is printed when one fails. The quick
test runs some thousand of them, the slow one a hundred thousand.
"""

from __future__ import annotations

import errno
import gzip
import json
import random
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest

from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.server import Settings
from tests.serve.background import Background
from tests.serve.conftest import infer_body, post

INFER = "/v2/models/linear/infer"
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
# All that a server may say to nonsense; not 500, which would be a mistake of ours.
_ALLOWED = {
    b"%d" % s for s in (100, 200, 400, 403, 404, 405, 408, 413, 414, 415, 417, 431, 501, 505)
}
_WORDS = (
    b"\r\n", b"\r\n\r\n", b"\n", b"\0", b" ", b":", b",", b"[", b"]", b"{", b"}", b'"', b"\\", b"-1", b"0",
    b"1", b"18446744073709551616", b"9223372036854775807", b"4294967296", b"1e400", b"NaN", b"Infinity",
    b"null", b"true", b"1.5", b"[[[[[[[[", b"\xff\xfe", b"\xed\xa0\x80", b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n", b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n",
    b"Inference-Header-Content-Length: ", b"Host: x\r\n", b"GET ", b"POST ", b" HTTP/1.1\r\n", b"..%2f",
    b"shared_memory_region", b"binary_data_size", b"classification", b"FP16", b"BYTES", b"timeout",
)  # fmt: skip


def corpus() -> list[bytes]:
    """Requests that are right."""
    x = np.ones((2, 4), np.float32).tobytes()
    described = {"name": "x", "shape": [2, 4], "datatype": "FP32"}
    binary = json.dumps(
        {
            "id": "7",
            "inputs": [{**described, "parameters": {"binary_data_size": 32}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
            "parameters": {"timeout": 10**9, "priority": 1},
        }
    ).encode()
    region = json.dumps(
        {
            "inputs": [
                {**described, "parameters": {"shared_memory_region": "r",
                                             "shared_memory_byte_size": 32}}
            ]
        }
    ).encode()  # fmt: skip
    plain = infer_body([[1, 2, 3, 4]], outputs=[{"name": "y", "parameters": {"classification": 2}}])
    chunked = f"POST {INFER} HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    get = "GET {} HTTP/1.1\r\nHost: t\r\n\r\n"
    return [
        post(plain),
        post(infer_body([[1, 2, 3, 4]] * 3)) + post(plain, INFER, "Connection: close"),
        post(plain, INFER, "Accept-Encoding: gzip;q=0.5, deflate, *;q=0"),
        post(binary + x, INFER, f"Inference-Header-Content-Length: {len(binary)}"),
        post(x[:16], INFER, "Inference-Header-Content-Length: 0"),
        post(gzip.compress(plain), INFER, "Content-Encoding: gzip"),
        chunked + b"%x\r\n%s\r\n0\r\n\r\n" % (len(plain), plain),
        post(region),
        post(b'{"key":"/edgeserve-fuzz-x","offset":0,"byte_size":64}',
             "/v2/systemsharedmemory/region/r/register"),
        post(b"{}", "/v2/repository/index"),
        post(b'{"parameters":{}}', "/v2/repository/models/linear/load"),
        *(
            get.format(path).encode()
            for path in ("/v2", "/v2/health/ready", "/v2/models/linear/versions/1/config", "/metrics",
                         "/v2/models/stats", "/v2/logging", "/v2/systemsharedmemory/status")
        ),
    ]  # fmt: skip


def damaged(choice: random.Random, requests: list[bytes]) -> bytes:
    """One of the requests, or two of them, with up to six things wrong."""
    data = bytearray(choice.choice(requests))
    if choice.random() < 0.2:
        data += choice.choice(requests)
    for _ in range(choice.randrange(7)):
        at = choice.randrange(len(data) + 1)
        kind = choice.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << choice.randrange(8)
        elif kind == 1:
            data[at:at] = choice.choice(_WORDS)
        elif kind == 2:
            word = choice.choice(_WORDS)
            data[at : at + len(word)] = word
        elif kind == 3:
            del data[at : at + choice.randrange(1, 20)]
        elif kind == 4:
            data[at:at] = data[at : at + choice.randrange(1, 60)] * choice.randrange(1, 4)
        else:
            data[at:at] = choice.randbytes(choice.randrange(1, 9))
    if choice.random() < 0.2:
        del data[choice.randrange(len(data) + 1) :]
    return bytes(data)


def answer(address: tuple[str, int], sent: bytes, choice: random.Random) -> bytes:
    """All that comes back, until the server closes; TimeoutError if it does not."""
    with socket.create_connection(address, timeout=10) as connection:
        try:
            if choice.random() < 0.1 and len(sent) > 2:
                cut = choice.randrange(1, len(sent))
                connection.sendall(sent[:cut])
                time.sleep(0.001)
                sent = sent[cut:]
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
        except (
            OSError
        ) as error:  # closed by the server already; whether it answered is in what it sent
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN):
                raise
        parts = []
        try:
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)


def fuzz(server: Background, seed: int, cases: int) -> int:
    """Run cases; how many were answered."""
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    choice, requests, answered = random.Random(seed), corpus(), 0
    for number in range(cases):
        sent = damaged(choice, requests)
        got = answer((host, int(port)), sent, choice)
        statuses = _STATUS.findall(got)
        wrong = [s for s in statuses if s not in _ALLOWED]
        assert not wrong, (seed, number, sent, got)
        assert bool(statuses) == bool(got), (seed, number, sent, got)
        answered += bool(statuses)
    return answered


@pytest.fixture
def fuzzed(bundle: Path) -> Iterator[Background]:
    settings = Settings(
        bundle=str(bundle), http_port=0, shared_memory="edgeserve-fuzz-", max_body=1 << 20,
        limits=Limits(head_s=2, body_s=2),
    )  # fmt: skip
    with Background(settings) as server:
        yield server


def run(server: Background, cases: int, threads: int) -> None:
    fuzz(server, 0, 50)
    process = psutil.Process()
    memory, descriptors = process.memory_info().rss, process.num_fds()
    with ThreadPoolExecutor(threads) as pool:
        answered = sum(pool.map(lambda s: fuzz(server, s, cases // threads), range(1, threads + 1)))
    assert answered > cases / 2
    assert fuzz(server, 0, 20) > 5
    assert process.memory_info().rss - memory < 48 << 20
    deadline = time.monotonic() + 5
    while process.num_fds() > descriptors and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.num_fds() <= descriptors


def test_damaged_requests_are_answered_or_closed(fuzzed: Background) -> None:
    run(fuzzed, 2_000, 4)


@pytest.mark.slow
def test_a_hundred_thousand_damaged_requests(fuzzed: Background) -> None:
    run(fuzzed, 100_000, 4)
