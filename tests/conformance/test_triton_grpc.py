"""NVIDIA's tritonclient over gRPC: sync, asyncio, streams, compression; and the health of grpc.health.v1."""

from __future__ import annotations

import asyncio
import os
import queue
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
import tritonclient.utils.shared_memory as shm
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from tests.bundles import linear
from tests.conformance.models import LABELS, SHARED
from tests.conformance.process import Served

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@pytest.fixture
def client(linear_server: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(linear_server.grpc) as client:
        yield client


def tensor(array: np.ndarray) -> triton.InferInput:
    value = triton.InferInput("x", list(array.shape), "FP32")
    value.set_data_from_numpy(array)
    return value


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.is_model_ready("linear", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata(as_json=True)["name"] == "edgeserve"
    model = client.get_model_metadata("linear", as_json=True)
    assert model["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    assert model["platform"] == "onnxruntime_onnx"
    config = client.get_model_config("linear", as_json=True)["config"]
    assert config["max_batch_size"] == 64
    assert config["input"][0]["data_type"] == "TYPE_FP32"


def test_infer(client: triton.InferenceServerClient) -> None:
    answer = client.infer(
        "linear",
        [tensor(X)],
        outputs=[triton.InferRequestedOutput("y")],
        request_id="r-1",
        model_version="1",
        priority=1,
        timeout=5_000_000,
        client_timeout=10,
        parameters={"mine": "yes"},
    )
    np.testing.assert_allclose(answer.as_numpy("y"), linear(X), rtol=1e-5)
    assert answer.get_response().id == "r-1"
    assert answer.get_response().parameters["edgeserve_device"].string_param == "cpu"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client: triton.InferenceServerClient, algorithm: str) -> None:
    answer = client.infer("linear", [tensor(X)], compression_algorithm=algorithm)
    np.testing.assert_allclose(answer.as_numpy("y"), linear(X), rtol=1e-5)


def test_classification(client: triton.InferenceServerClient) -> None:
    wanted = [triton.InferRequestedOutput("y", class_count=2)]
    answer = client.infer("linear", [tensor(X)], outputs=wanted).as_numpy("y")
    assert answer.shape == (3, 2)
    best = linear(X).argmax(axis=1)
    assert [e[0].decode().split(":")[2] for e in answer] == [LABELS[i] for i in best]


def test_async_requests_of_one_client(client: triton.InferenceServerClient) -> None:
    answers: queue.Queue[tuple[int, Any, Any]] = queue.Queue()

    def done(i: int, result: Any, error: Any) -> None:
        answers.put((i, result, error))

    for i in range(16):
        client.async_infer("linear", [tensor(X + i)], callback=partial(done, i))
    for _ in range(16):
        i, result, error = answers.get(timeout=20)
        assert error is None
        np.testing.assert_allclose(result.as_numpy("y"), linear(X + i), rtol=1e-5)


def test_a_stream_keeps_order_and_goes_on_after_errors(
    client: triton.InferenceServerClient,
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for i in range(9):
        model = "nobody" if i == 4 else "linear"
        client.async_stream_infer(model, [tensor(X + i)], request_id=str(i))
    found: dict[str, np.ndarray] = {}
    errors = []
    for _ in range(9):
        result, error = answers.get(timeout=20)
        if error is not None:
            errors.append(str(error))
        else:
            found[result.get_response().id] = result.as_numpy("y")
    client.stop_stream()
    assert len(errors) == 1
    assert sorted(found) == [str(i) for i in range(9) if i != 4]
    for i, got in found.items():
        np.testing.assert_allclose(got, linear(X + int(i)), rtol=1e-5)


def test_the_asyncio_client_and_its_stream(linear_server: Served) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(linear_server.grpc) as client:
            assert await client.is_server_ready()
            answers = await asyncio.gather(
                *(client.infer("linear", [tensor(X + i)]) for i in range(8))
            )
            for i, answer in enumerate(answers):
                np.testing.assert_allclose(answer.as_numpy("y"), linear(X + i), rtol=1e-5)

            async def requests() -> AsyncIterator[dict[str, Any]]:
                for i in range(5):
                    yield {"model_name": "linear", "inputs": [tensor(X - i)], "request_id": str(i)}

            seen = 0
            async for result, error in client.stream_infer(requests()):
                assert error is None
                i = int(result.get_response().id)
                np.testing.assert_allclose(result.as_numpy("y"), linear(X - i), rtol=1e-5)
                seen += 1
            assert seen == 5

    asyncio.run(ask())


def test_every_type_comes_back(echo_server: Served) -> None:
    arrays = {
        "half": np.float16([[0.5, -65504]]),
        "long": np.int64([[2**40, -1]]),
        "byte": np.uint8([[0, 255]]),
        "flag": np.array([[True, False]]),
        "text": np.array([["caf\u00e9".encode(), b""]], dtype=object),
    }
    types = {"half": "FP16", "long": "INT64", "byte": "UINT8", "flag": "BOOL", "text": "BYTES"}
    inputs = []
    for name, array in arrays.items():
        value = triton.InferInput(name, [1, 2], types[name])
        value.set_data_from_numpy(array)
        inputs.append(value)
    with triton.InferenceServerClient(echo_server.grpc) as client:
        answer = client.infer("echo", inputs)
    for name, array in arrays.items():
        np.testing.assert_array_equal(answer.as_numpy(f"{name}_out"), array)


@pytest.mark.parametrize(
    ("model", "version", "inputs", "status", "says"),
    [
        ("nobody", "", [tensor(X)], "NOT_FOUND", "nobody|unknown model"),
        ("linear", "9", [tensor(X)], "NOT_FOUND", "version"),
        ("linear", "a", [tensor(X)], "INVALID_ARGUMENT", "version"),
        ("linear", "", [tensor(X[:, :3].copy())], "INVALID_ARGUMENT", "shape"),
        ("linear", "", [], "INVALID_ARGUMENT", "missing"),
    ],
)
def test_errors_have_a_status_and_a_text(
    client: triton.InferenceServerClient,
    model: str, version: str, inputs: list[triton.InferInput], status: str, says: str,
) -> None:  # fmt: skip
    with pytest.raises(InferenceServerException, match=says) as caught:
        client.infer(model, inputs, model_version=version)
    assert caught.value.status() == f"StatusCode.{status}"


def test_statistics_and_index(client: triton.InferenceServerClient) -> None:
    before = client.get_inference_statistics("linear", as_json=True)["model_stats"][0]
    for _ in range(3):
        client.infer("linear", [tensor(X)])
    after = client.get_inference_statistics("linear", as_json=True)["model_stats"][0]
    done = [int(s["inference_stats"]["success"].get("count", 0)) for s in (before, after)]
    assert done[1] - done[0] == 3
    index = client.get_model_repository_index(as_json=True)["models"]
    assert {"name": "linear", "version": "1", "state": "READY"} in index


def test_settings_are_shown(client: triton.InferenceServerClient) -> None:
    assert "trace_level" in client.get_trace_settings(as_json=True)["settings"]
    assert "log_info" in client.get_log_settings(as_json=True)["settings"]


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService"])
def test_grpc_health(linear_server: Served, service: str) -> None:
    with grpc.insecure_channel(linear_server.grpc) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_shared_memory(client: triton.InferenceServerClient) -> None:
    size, key = X.nbytes, f"{SHARED}grpc-{os.getpid()}"
    region = shm.create_shared_memory_region("ours", key, size + 36)
    try:
        shm.set_shared_memory_region(region, [X])
        client.register_system_shared_memory("ours", key, size + 36)
        status = client.get_system_shared_memory_status(as_json=True)["regions"]
        assert int(status["ours"]["byte_size"]) == size + 36
        value = triton.InferInput("x", list(X.shape), "FP32")
        value.set_shared_memory("ours", size)
        wanted = triton.InferRequestedOutput("y")
        wanted.set_shared_memory("ours", 36, offset=size)
        client.infer("linear", [value], outputs=[wanted])
        got = shm.get_contents_as_numpy(region, np.float32, [3, 3], offset=size)
        np.testing.assert_allclose(got, linear(X), rtol=1e-5)
        client.unregister_system_shared_memory("ours")
        with pytest.raises(InferenceServerException) as caught:
            client.infer("linear", [value])
        assert caught.value.status() in ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT")
    finally:
        shm.destroy_shared_memory_region(region)


def test_models_unload_and_load(controlled_server: Served) -> None:
    with triton.InferenceServerClient(controlled_server.grpc) as client:
        client.unload_model("linear")
        assert not client.is_model_ready("linear")
        client.load_model("linear")
        assert client.is_model_ready("linear")
        answer = client.infer("linear", [tensor(X)])
        np.testing.assert_allclose(answer.as_numpy("y"), linear(X), rtol=1e-5)
