"""NVIDIA's tritonclient over HTTP: what its users call, and that the answers are the model's."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
import tritonclient.utils.shared_memory as shm
from tritonclient.utils import InferenceServerException

from tests.bundles import linear
from tests.conformance.models import LABELS, SHARED
from tests.conformance.process import Served

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@pytest.fixture
def client(linear_server: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(linear_server.http, concurrency=4) as client:
        yield client


def tensor(array: np.ndarray, name: str = "x", *, binary: bool = True) -> triton.InferInput:
    datatype = "FP32" if name == "x" else "BYTES"
    value = triton.InferInput(name, list(array.shape), datatype)
    value.set_data_from_numpy(array, binary_data=binary)
    return value


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.is_model_ready("linear", "1")
    assert not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert server["name"] == "edgeserve"
    assert {"binary_tensor_data", "classification"} <= set(server["extensions"])
    model = client.get_model_metadata("linear")
    assert model["versions"] == ["1"]
    assert model["platform"] == "onnxruntime_onnx"
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert model["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [-1, 3]}]
    config = client.get_model_config("linear")
    assert config["max_batch_size"] == 64
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer(client: triton.InferenceServerClient, binary_in: bool, binary_out: bool) -> None:
    wanted = [triton.InferRequestedOutput("y", binary_data=binary_out)]
    answer = client.infer(
        "linear", [tensor(X, binary=binary_in)], outputs=wanted, request_id="r-1", model_version="1"
    )
    np.testing.assert_allclose(answer.as_numpy("y"), linear(X), rtol=1e-5)
    head = answer.get_response()
    assert (head["id"], head["model_name"], head["model_version"]) == ("r-1", "linear", "1")


def test_infer_without_naming_outputs(client: triton.InferenceServerClient) -> None:
    answer = client.infer("linear", [tensor(X)])
    np.testing.assert_allclose(answer.as_numpy("y"), linear(X), rtol=1e-5)


def test_async_requests_of_one_client(client: triton.InferenceServerClient) -> None:
    batches = [X + i for i in range(16)]
    asked = [client.async_infer("linear", [tensor(x)]) for x in batches]
    for x, answer in zip(batches, asked, strict=True):
        np.testing.assert_allclose(answer.get_result().as_numpy("y"), linear(x), rtol=1e-5)


def test_the_asyncio_client(linear_server: Served) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(linear_server.http) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("linear")
            answers = await asyncio.gather(
                *(client.infer("linear", [tensor(X + i)]) for i in range(8))
            )
        for i, answer in enumerate(answers):
            np.testing.assert_allclose(answer.as_numpy("y"), linear(X + i), rtol=1e-5)

    with warnings.catch_warnings():
        # aiohttp warns of its own connector while tritonclient closes it.
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.run(ask())


def test_classification(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("y", class_count=2)]
    answer = client.infer("linear", [tensor(X)], outputs=wanted).as_numpy("y")
    assert answer.shape == (3, 2)
    scores = linear(X)
    for row, entries in enumerate(answer):
        best = np.argsort(-scores[row], kind="stable")[:2]
        for entry, index in zip(entries, best, strict=True):
            score, number, label = entry.decode().split(":")
            assert (int(number), label) == (index, LABELS[index])
            assert float(score) == pytest.approx(float(scores[row, index]), abs=1e-5)


def test_more_classes_than_there_are(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("y", class_count=9)]
    assert client.infer("linear", [tensor(X)], outputs=wanted).as_numpy("y").shape == (3, 3)


@pytest.mark.parametrize("binary", [True, False])
def test_every_type_comes_back(echo_server: Served, binary: bool) -> None:
    arrays = {
        "long": np.int64([[2**40, -1]]),
        "byte": np.uint8([[0, 255]]),
        "flag": np.array([[True, False]]),
        "text": np.array([["caf\u00e9".encode(), b""]], dtype=object),
    }
    types = {"half": "FP16", "long": "INT64", "byte": "UINT8", "flag": "BOOL", "text": "BYTES"}
    inputs = []
    half = np.float16([[0.5, -65504]])
    for name, array in {"half": half, **arrays}.items():
        value = triton.InferInput(name, [1, 2], types[name])
        value.set_data_from_numpy(array, binary_data=binary or name == "half")
        inputs.append(value)
    outputs = [
        triton.InferRequestedOutput(f"{n}_out", binary_data=binary or n == "half") for n in types
    ]
    with triton.InferenceServerClient(echo_server.http) as client:
        answer = client.infer("echo", inputs, outputs=outputs)
    for name, array in {"half": half, **arrays}.items():
        got = answer.as_numpy(f"{name}_out")
        if name == "text" and not binary:
            got = np.array([[t.encode() for t in row] for row in got], dtype=object)
        np.testing.assert_array_equal(got, array)


def test_parameters_go_through(client: triton.InferenceServerClient) -> None:
    answer = client.infer(
        "linear", [tensor(X)], priority=1, timeout=5_000_000, parameters={"mine": "yes"}
    )
    assert answer.get_response()["parameters"]["edgeserve_device"] == "cpu"


@pytest.mark.parametrize(
    ("model", "version", "inputs", "status", "says"),
    [
        ("nobody", "", [tensor(X)], "404", "nobody|unknown model"),
        ("linear", "9", [tensor(X)], "404", "version"),
        ("linear", "", [tensor(X[:, :3].copy())], "400", "shape"),
        ("linear", "", [tensor(np.zeros((65, 4), np.float32))], "400", "batch"),
        ("linear", "", [tensor(X), tensor(X)], "400", "twice"),
        ("linear", "", [], "400", "missing"),
    ],
)
def test_errors_have_a_status_and_a_text(
    client: triton.InferenceServerClient,
    model: str, version: str, inputs: list[triton.InferInput], status: str, says: str,
) -> None:  # fmt: skip
    with pytest.raises(InferenceServerException, match=says) as caught:
        client.infer(model, inputs, model_version=version)
    assert caught.value.status() == status


def test_it_goes_on_after_errors(client: triton.InferenceServerClient) -> None:
    for _ in range(3):
        with pytest.raises(InferenceServerException):
            client.infer("linear", [])
        answer = client.infer("linear", [tensor(X)])
        np.testing.assert_allclose(answer.as_numpy("y"), linear(X), rtol=1e-5)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client: triton.InferenceServerClient, algorithm: str) -> None:
    x = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    for binary in (True, False):
        answer = client.infer(
            "linear",
            [tensor(x, binary=binary)],
            outputs=[triton.InferRequestedOutput("y", binary_data=binary)],
            request_compression_algorithm=algorithm,
            response_compression_algorithm=algorithm,
        )
        np.testing.assert_allclose(answer.as_numpy("y"), linear(x), rtol=1e-5)


def test_shared_memory(client: triton.InferenceServerClient) -> None:
    """Inputs and outputs in regions that this process made, two tensors in one."""
    size, key = X.nbytes, f"{SHARED}{os.getpid()}"
    region = shm.create_shared_memory_region("both", key, size + 36)
    try:
        shm.set_shared_memory_region(region, [X])
        client.register_system_shared_memory("both", key, size + 36)
        (status,) = client.get_system_shared_memory_status()
        assert (status["name"], status["byte_size"]) == ("both", size + 36)
        value = triton.InferInput("x", list(X.shape), "FP32")
        value.set_shared_memory("both", size)
        wanted = triton.InferRequestedOutput("y", binary_data=True)
        wanted.set_shared_memory("both", 36, offset=size)
        answer = client.infer("linear", [value], outputs=[wanted])
        assert answer.get_output("y")["shape"] == [3, 3]
        got = shm.get_contents_as_numpy(region, np.float32, [3, 3], offset=size)
        np.testing.assert_allclose(got, linear(X), rtol=1e-5)
        client.unregister_system_shared_memory("both")
        assert client.get_system_shared_memory_status() == []
        with pytest.raises(InferenceServerException) as caught:
            client.infer("linear", [value])
        assert caught.value.status() in ("400", "404")
    finally:
        shm.destroy_shared_memory_region(region)


def test_statistics(client: triton.InferenceServerClient) -> None:
    before = client.get_inference_statistics("linear")["model_stats"][0]
    for _ in range(3):
        client.infer("linear", [tensor(X)])
    after = client.get_inference_statistics("linear")["model_stats"][0]
    assert after["inference_count"] - before["inference_count"] == 9
    done = [s["inference_stats"]["success"]["count"] for s in (before, after)]
    assert done[1] - done[0] == 3


def test_the_index_lists_models(client: triton.InferenceServerClient) -> None:
    (entry,) = client.get_model_repository_index()
    assert (entry["name"], entry["version"], entry["state"]) == ("linear", "1", "READY")


def test_settings_are_shown(client: triton.InferenceServerClient) -> None:
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    assert client.get_log_settings()["log_file"] == ""


def test_models_unload_and_load(controlled_server: Served) -> None:
    with triton.InferenceServerClient(controlled_server.http) as client:
        client.unload_model("linear")
        assert not client.is_model_ready("linear")
        with pytest.raises(InferenceServerException):
            client.infer("linear", [tensor(X)])
        client.load_model("linear")
        assert client.is_model_ready("linear")
        answer = client.infer("linear", [tensor(X)])
        np.testing.assert_allclose(answer.as_numpy("y"), linear(X), rtol=1e-5)


def test_control_is_off_unless_asked_for(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException):
        client.unload_model("linear")
    assert client.is_model_ready("linear")
