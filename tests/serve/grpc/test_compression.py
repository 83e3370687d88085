"""Answers that are compressed where that was asked for, for clients that accept it: counted on the wire."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from edgeserve.serve.settings.limits import Limits
from edgeserve.wire import SERVICE, messages
from tests.serve.background import Background
from tests.serve.grpc.conftest import address, settings
from tests.serve.grpc.models import NUMERIC, echo_bundle

ROWS = 16
# grpc's bits: 1 as it is, 2 deflate, 4 gzip.
CLIENTS = {"gzip": 1 | 4, "deflate": 1 | 2, "neither": 1}


class Relay:
    """Between a client and a server; counts what the server sends."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.received = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self._listener.accept()
            server = socket.create_connection(self._target)
            ways = ((client, server, 0), (server, client, 1))
            pumps = [threading.Thread(target=self._pump, args=w, daemon=True) for w in ways]
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join(30)
            client.close()
            server.close()

    def _pump(self, source: socket.socket, sink: socket.socket, weight: int) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self.received += weight * len(data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._threads[0].join(30)
        self._listener.close()


@pytest.fixture(scope="module")
def bundle_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return echo_bundle(tmp_path_factory.mktemp("echo"))


@pytest.fixture(scope="module")
def server(bundle_file: Path) -> Iterator[Background]:
    changes = {"grpc_compression": True, "limits": Limits(compress_bytes=1_000)}
    with Background(settings(bundle_file, **changes)) as running:
        yield running


def request(outputs: list[str]) -> bytes:
    message = messages.ModelInferRequest(model_name="echo")
    for dtype in NUMERIC:
        message.inputs.add(name=f"in_{dtype}", datatype=dtype, shape=[ROWS, 2])
        size = np.dtype(triton.triton_to_np_dtype(dtype)).itemsize
        message.raw_input_contents.append(bytes(2 * ROWS * size))
    for dtype in outputs:
        message.outputs.add(name=f"out_{dtype}")
    return bytes(message.SerializeToString())


def ask(server: Background, accepts: int, outputs: list[str], *, streamed: bool) -> tuple[int, int]:
    """The size of the answer, and what came over the wire for it."""
    relay = Relay(address(server))
    options = [("grpc.compression_enabled_algorithms_bitset", accepts)]
    with grpc.insecure_channel(relay.address, options=options) as channel:
        message = request(outputs)
        if streamed:
            call = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(iter([message]))
            (answer,) = list(call)
            found = messages.ModelStreamInferResponse.FromString(answer)
            assert not found.error_message
            response = found.infer_response
        else:
            answer = channel.unary_unary(f"/{SERVICE}/ModelInfer")(message)
            response = messages.ModelInferResponse.FromString(answer)
    relay.close()
    assert not any(b"".join(response.raw_output_contents))
    return len(answer), relay.received


@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "streamed"])
@pytest.mark.parametrize("accepts", list(CLIENTS))
def test_large_answers_as_the_client_accepts(
    server: Background, accepts: str, streamed: bool
) -> None:
    size, sent = ask(server, CLIENTS[accepts], NUMERIC, streamed=streamed)
    assert size > 1_800
    assert (sent > size) if accepts == "neither" else (sent < size / 2)


@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "streamed"])
def test_small_ones_go_as_they_are(server: Background, streamed: bool) -> None:
    size, sent = ask(server, CLIENTS["gzip"], ["FP32", "FP64"], streamed=streamed)
    assert size < 1_000
    assert sent > size


def test_off_unless_asked_for(bundle_file: Path) -> None:
    with Background(settings(bundle_file, limits=Limits(compress_bytes=1))) as plain:
        size, sent = ask(plain, CLIENTS["gzip"], NUMERIC, streamed=False)
    assert sent > size


def test_tritonclient_reads_them(server: Background) -> None:
    inputs = []
    for dtype in NUMERIC:
        tensor = triton.InferInput(f"in_{dtype}", [ROWS, 2], dtype)
        tensor.set_data_from_numpy(np.ones((ROWS, 2), triton.triton_to_np_dtype(dtype)))
        inputs.append(tensor)
    with triton.InferenceServerClient(address(server)) as client:
        answer = client.infer("echo", inputs, compression_algorithm="gzip")
        for dtype in NUMERIC:
            np.testing.assert_array_equal(answer.as_numpy(f"out_{dtype}"), np.ones((ROWS, 2)))
        assert client.get_model_config("echo").config.name == "echo"
