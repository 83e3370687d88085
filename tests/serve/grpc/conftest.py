"""Real servers with gRPC on free ports, and clients of each kind."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from edgeserve.serve.settings.server import Settings
from edgeserve.tensors import Array
from edgeserve.wire import SERVICE, messages
from tests.serve.background import Background
from tests.serve.grpc.models import echo_bundle
from tests.serve.slow import slow_bundle

MAX_BODY = 1 << 20


def settings(bundle: Path, **changes: object) -> Settings:
    values = {"http_port": 0, "grpc_port": 0, "max_body": MAX_BODY, **changes}
    return Settings(bundle=str(bundle), **values)  # type: ignore[arg-type]


@pytest.fixture(scope="package")
def server(bundle: Path) -> Iterator[Background]:
    """Serves `linear`, which runs on the event loop."""
    with Background(settings(bundle)) as running:
        yield running


@pytest.fixture(scope="package")
def slow_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return slow_bundle(tmp_path_factory.mktemp("slow"))


@pytest.fixture(scope="package")
def slow_server(slow_file: Path) -> Iterator[Background]:
    """Serves `slow`, which takes milliseconds on a worker thread."""
    with Background(settings(slow_file, threads=1)) as running:
        yield running


@pytest.fixture(scope="package")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    with Background(settings(echo_bundle(tmp_path_factory.mktemp("echo")))) as running:
        yield running


def address(server: Background) -> str:
    found = server.started.grpc
    assert found is not None
    return found


@pytest.fixture
def client(server: Background) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(address(server)) as connected:
        yield connected


@pytest.fixture
def channel(server: Background) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address(server)) as connected:
        yield connected


def method(channel: grpc.Channel, name: str) -> Callable[..., bytes]:
    """A unary method that takes and gives bytes."""
    call: Callable[..., bytes] = channel.unary_unary(f"/{SERVICE}/{name}")
    return call


def tensor(name: str, array: Array, dtype: str = "FP32") -> triton.InferInput:
    given = triton.InferInput(name, array.shape, dtype)
    given.set_data_from_numpy(array)
    return given


def request(rows: int = 1, **fields: object) -> messages.ModelInferRequest:
    """A good request for `linear`, with `fields` in place of its own."""
    values = {"model_name": "linear", "raw_input_contents": [bytes(16 * rows)], **fields}
    message = messages.ModelInferRequest(**values)
    if not message.inputs:
        message.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    return message


def samples(rows: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)


def pending(server: Background) -> float:
    """How many requests wait or run, from the metrics."""
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return float(next(v for k, v in (x.rsplit(" ", 1) for x in lines) if "pending_requests{" in k))
