"""The gRPC client against a real server: the same as over HTTP, in the same words."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeserve.client import Access, Question, connect
from edgeserve.errors import EnvironmentProblem, InvalidInput, ModelNotFound, UsageError
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear
from tests.serve.background import Background

X = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def url(bundle: Path) -> Iterator[str]:
    with Background(Settings(bundle=str(bundle), http_port=0, grpc_port=0)) as running:
        assert running.started.grpc is not None
        yield f"grpc://{running.started.grpc}"


def test_it_asks_and_learns_what_answered(url: str) -> None:
    with connect(url) as client:
        got = client.infer("linear", Question({"x": X}, ("y",), {"priority": 1}, "seven"))
    np.testing.assert_allclose(got.outputs["y"], linear(X), rtol=1e-5)
    assert (got.model, got.version, got.where.device) == ("linear", "1", "cpu")


def test_it_learns_the_interface_and_the_state(url: str) -> None:
    with connect(url) as client:
        assert client.server().name == "edgeserve"
        assert client.ready()
        info = client.model("linear")
        client.infer("linear", Question({"x": X}))
        (state,) = client.models()
    assert info.interface.inputs[0].shape == ("batch", 4)
    assert info.interface.max_batch == 64
    assert (state.name, state.version, state.ready) == ("linear", "1", True)
    assert state.statistics is not None
    assert state.statistics.succeeded >= 1


@pytest.mark.parametrize(
    ("model", "version", "inputs", "kind", "says"),
    [
        ("nobody", None, {"x": X}, ModelNotFound, "nobody|unknown model"),
        ("linear", "7", {"x": X}, ModelNotFound, "version"),
        ("linear", None, {"x": X[:, :3]}, InvalidInput, "shape"),
        ("linear", None, {"x": X.astype(np.float64)}, InvalidInput, "FP32"),
        ("linear", None, {}, InvalidInput, "missing"),
    ],
)
def test_what_the_server_refuses_is_told_in_its_words(
    url: str, model: str, version: str | None, inputs: dict, kind: type, says: str
) -> None:
    with connect(url) as client, pytest.raises(kind, match=says):
        client.infer(model, Question(inputs), version)


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        connect(f"grpc://127.0.0.1:{port}") as client,
        pytest.raises(EnvironmentProblem, match="nothing listens at"),
    ):
        client.ready()


def test_a_silent_server_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"grpc://127.0.0.1:{listener.getsockname()[1]}"
        with (
            connect(url, Access(timeout_s=0.3)) as client,
            pytest.raises(EnvironmentProblem, match=r"did not answer in 0\.3 s|the connection to"),
        ):
            client.ready()


def test_a_server_that_speaks_http_is_told_apart(server: Background) -> None:
    with (
        connect(server.url.replace("http", "grpc"), Access(timeout_s=2)) as client,
        pytest.raises(EnvironmentProblem, match=r"the connection to .* failed|did not answer"),
    ):
        client.ready()


@pytest.mark.parametrize("url", ["grpc://", "grpc://h", "grpc://h:1/path"])
def test_what_is_no_url_of_a_server(url: str) -> None:
    with pytest.raises(UsageError, match="is not the URL of a server"):
        connect(url)
