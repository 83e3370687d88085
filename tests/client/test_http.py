"""The HTTP client against real servers, and against ones that do not keep the protocol."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from edgeserve.client import Access, Question, connect
from edgeserve.errors import (
    EdgeServeError,
    EnvironmentProblem,
    InferenceFailed,
    InvalidInput,
    ModelNotFound,
    UsageError,
)
from tests.bundles import linear
from tests.client.conftest import Scripted
from tests.serve.background import Background

X = np.random.default_rng(3).normal(size=(5, 4)).astype(np.float32)


def answer(status: str, body: str, *headers: str) -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body.encode())}", *headers])
    return f"{head}\r\n\r\n{body}".encode()


def test_it_asks_and_learns_what_answered(server: Background) -> None:
    with connect(server.url) as client:
        got = client.infer("linear", Question({"x": X}))
        np.testing.assert_allclose(got.outputs["y"], linear(X), rtol=1e-5)
        assert (got.model, got.version, got.where.device) == ("linear", "1", "cpu")
        assert got.where.variant == "onnx-fp32"


def test_it_learns_the_interface_and_the_largest_batch(server: Background) -> None:
    with connect(server.url) as client:
        interface = client.model("linear").interface
    assert interface.inputs[0].shape == ("batch", 4)
    assert interface.max_batch == 64


def test_it_lists_models_with_where_they_run(server: Background) -> None:
    with connect(server.url) as client:
        assert client.ready()
        assert client.server().name == "edgeserve"
        (model,) = client.models()
    assert (model.name, model.version, model.ready) == ("linear", "1", True)
    assert (model.where.runtime, model.where.device) == ("onnxruntime", "cpu")


def test_one_connection_serves_many_requests_and_errors(server: Background) -> None:
    with connect(server.url) as client:
        client.infer("linear", Question({"x": X}))
        sock = client._connection.sock  # type: ignore[attr-defined]
        for _ in range(3):
            with pytest.raises(ModelNotFound):
                client.infer("nobody", Question({"x": X}))
            client.infer("linear", Question({"x": X}))
        assert client._connection.sock is sock  # type: ignore[attr-defined]


def test_a_connection_that_the_server_ended_is_opened_again(server: Background) -> None:
    with connect(server.url) as client:
        client.infer("linear", Question({"x": X}))
        client._connection.sock.shutdown(socket.SHUT_WR)  # type: ignore[attr-defined]
        got = client.infer("linear", Question({"x": X}))
    np.testing.assert_allclose(got.outputs["y"], linear(X), rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "version", "inputs", "kind", "says"),
    [
        ("nobody", None, {"x": X}, ModelNotFound, "unknown model"),
        ("linear", "7", {"x": X}, ModelNotFound, "version"),
        ("linear", None, {"x": X[:, :3]}, InvalidInput, r"expected shape \[batch,4\], got \[5,3\]"),
        ("linear", None, {"x": X.astype(np.float64)}, InvalidInput, "expected FP32, got FP64"),
        ("linear", None, {}, InvalidInput, "'x' is missing"),
    ],
)
def test_what_the_server_refuses_is_told_in_its_words(
    server: Background, model: str, version: str | None, inputs: dict, kind: type, says: str
) -> None:
    with connect(server.url) as client, pytest.raises(kind, match=says) as caught:
        client.infer(model, Question(inputs), version)
    assert caught.value.exit_code == 2


def test_a_name_with_a_slash_is_one_name(server: Background) -> None:
    with connect(server.url) as client, pytest.raises(ModelNotFound, match="unknown model"):
        client.infer("linear/infer", Question({"x": X}))


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (
        connect(f"http://127.0.0.1:{port}") as client,
        pytest.raises(EnvironmentProblem, match="nothing listens at") as caught,
    ):
        client.ready()
    assert caught.value.exit_code == 3


def test_a_silent_server_is_given_up(scripted: Scripted) -> None:
    with (
        connect(scripted(b""), Access(timeout_s=0.2)) as client,
        pytest.raises(EnvironmentProblem, match=r"did not answer in 0\.2 s"),
    ):
        client.ready()


@pytest.mark.parametrize(
    ("sent", "kind", "says"),
    [
        (answer("401 Unauthorized", '{"error": "a key is needed"}'), UsageError, "a key is needed"),
        (answer("403 Forbidden", "no"), UsageError, "no"),
        (answer("413 Too Large", '{"error": "4 bytes"}'), InvalidInput, "4 bytes"),
        (answer("503 Busy", '{"error": "queue"}'), EnvironmentProblem, "is too busy"),
        (answer("504 Late", '{"error": "late"}'), EnvironmentProblem, "in time"),
        (answer("500 Oops", '{"error": {"a": 1}}'), InferenceFailed, "HTTP 500"),
        (answer("500 Oops", ""), InferenceFailed, "HTTP 500"),
        (answer("200 OK", "<html>"), InferenceFailed, "does not follow the protocol"),
        (answer("200 OK", '{"name": 3}'), InferenceFailed, "does not follow the protocol"),
        (answer("200 OK", "[" * 100_000), InferenceFailed, "does not follow the protocol"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", EnvironmentProblem, "the connection to"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
            EnvironmentProblem,
            "the connection to",
        ),
    ],
)
def test_answers_that_are_none(scripted: Scripted, sent: bytes, kind: type, says: str) -> None:
    with connect(scripted(sent)) as client, pytest.raises(kind, match=says):
        client.server()


@pytest.mark.parametrize(
    "output",
    [
        '{"name": "y", "datatype": "FP32", "shape": [3], "data": [1, 2]}',
        '{"name": "y", "datatype": "WHAT", "shape": [1], "data": [1]}',
        '{"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}',
        '{"name": "y", "datatype": "FP32", "shape": [-1], "parameters": {"binary_data_size": -8}}',
        '{"name": "y", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": "x"}}',
    ],
)
def test_outputs_that_do_not_add_up_are_errors(scripted: Scripted, output: str) -> None:
    body = (
        '{"name": "t", "version": "1", "extensions": ["binary_tensor_data"],'
        f'"model_name": "m", "outputs": [{output}]}}'
    )
    with (
        connect(scripted(answer("200 OK", body))) as client,
        pytest.raises(InferenceFailed, match="output 'y'"),
    ):
        client.infer("m", Question({"x": X}))


def test_a_server_without_binary_data_is_asked_in_json(scripted: Scripted) -> None:
    body = (
        '{"name": "t", "version": "1", "model_name": "m", "outputs": ['
        '{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1, NaN]},'
        '{"name": "t", "datatype": "BYTES", "shape": [2], "data": ["a", "\u00e9"]}]}'
    )
    with connect(scripted(answer("200 OK", body))) as client:
        got = client.infer("m", Question({"x": X}, outputs=("y",), parameters={"priority": 1}))
    np.testing.assert_array_equal(got.outputs["y"], np.float32([[1, np.nan]]))
    assert got.outputs["t"].tolist() == [b"a", "\u00e9".encode()]
    assert got.where.device is None


@pytest.mark.parametrize(
    "url",
    ["ftp://h:1", "http://", "http://h:99999", "http://h:x", "http://u:p@h:1", "http://h:1/?q=1"],
)
def test_what_is_no_url_of_a_server(url: str) -> None:
    with pytest.raises(UsageError, match="is not the URL of a server"):
        connect(url)


def test_a_ca_file_that_is_none(tmp_path: object) -> None:
    file = str(tmp_path) + "/ca.pem"
    with pytest.raises(UsageError, match="TLS files"):
        connect("https://localhost:1", Access(ca=file))  # type: ignore[arg-type]


def test_a_key_is_not_shown() -> None:
    assert "geheim" not in repr(Access(api_key="geheim"))


def test_errors_keep_their_hint(scripted: Scripted) -> None:
    url = scripted(answer("401 Unauthorized", "{}"))
    with connect(url) as client, pytest.raises(EdgeServeError) as caught:
        client.models()
    assert "--key-env" in str(caught.value.hint)
