"""Real servers for clients, and sockets that answer what a test says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeserve.serve.settings.server import Settings
from tests.bundles import linear_bundle
from tests.serve.background import Background


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return linear_bundle(tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="session")
def server(bundle: Path) -> Iterator[Background]:
    with Background(Settings(bundle=str(bundle), http_port=0)) as running:
        yield running


Scripted = Callable[[bytes], str]


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A server that sends the same bytes for every request, then closes; nothing at all for b""."""
    stop: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(answer: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        stop.append(listener)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    if answer:
                        connection.sendall(answer)
                    else:
                        connection.recv(1)  # until the client gives up

        thread = threading.Thread(target=serve)
        thread.start()
        threads.append(thread)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in stop:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()
