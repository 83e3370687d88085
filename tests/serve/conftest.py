"""A real server on a free port, in this process, and a raw client that sends exactly what a test says."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeserve.serve.settings.server import Settings
from tests.bundles import linear_bundle
from tests.serve.background import Background


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linear_bundle(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def server(bundle: Path) -> Iterator[Background]:
    settings = Settings(bundle=str(bundle), http_port=0, max_body=1 << 20)
    with Background(settings) as running:
        yield running


class RawClient:
    """A socket that speaks HTTP only as far as the test writes it."""

    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def response(self) -> tuple[int, dict[str, str], bytes]:
        """The next response: status, headers, body. Raises ConnectionError when there is none."""
        while b"\r\n\r\n" not in self._buffer:
            self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {n.lower(): v for n, v in (line.split(": ", 1) for line in lines[1:])}
        status = int(lines[0].split()[1])
        length = int(headers.get("content-length", 0))
        while len(self._buffer) < length:
            self._more()
        body, self._buffer = self._buffer[:length], self._buffer[length:]
        return status, headers, body

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed by the server")
        self._buffer += data

    def is_closed(self) -> bool:
        """Whether the server closes its side, now."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@pytest.fixture
def client(server: Background) -> Iterator[RawClient]:
    with RawClient(server.url) as raw:
        yield raw


def infer_body(rows: list[list[float]], **extra: Any) -> bytes:
    flat = [v for row in rows for v in row]
    entry = {"name": "x", "shape": [len(rows), 4], "datatype": "FP32", "data": flat}
    return json.dumps({"inputs": [entry], **extra}).encode()


def post(body: bytes, path: str = "/v2/models/linear/infer", *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
