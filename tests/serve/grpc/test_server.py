"""The server as Triton's client, health probes and rude clients see it."""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from edgeserve.errors import DependencyMissing, EnvironmentProblem
from edgeserve.serve.protocols.v2.grpc.stream import READER
from edgeserve.serve.settings.model import PriorityTable
from edgeserve.wire import SERVICE, messages
from tests.bundles import linear
from tests.serve.background import Background
from tests.serve.grpc.conftest import (
    MAX_BODY,
    address,
    method,
    pending,
    request,
    samples,
    settings,
    tensor,
)
from tests.serve.grpc.models import NUMERIC
from tests.serve.held import failures
from tests.serve.slow import slow
from tests.waiting import wait_for


def close_to(got: Any, x: Any) -> None:
    np.testing.assert_allclose(got, linear(x), rtol=1e-5, atol=1e-6)


# what tritonclient does


def test_tritonclient_gets_what_the_model_computes(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("linear")
    assert client.is_model_ready("linear", "1")
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready("linear", "7")
    x = samples(5)
    result = client.infer("linear", [tensor("x", x)], request_id="r1")
    close_to(result.as_numpy("y"), x)
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("r1", "linear", "1")
    assert response.parameters["edgeserve_device"].string_param == "cpu"
    assert not response.outputs[0].HasField("contents")
    close_to(client.infer("linear", [tensor("x", x)], model_version="1").as_numpy("y"), x)


def test_metadata_config_statistics_index_and_settings(
    client: triton.InferenceServerClient,
) -> None:
    server = client.get_server_metadata()
    assert server.name == "edgeserve"
    assert "classification" in server.extensions
    model = client.get_model_metadata("linear")
    assert (model.name, list(model.versions)) == ("linear", ["1"])
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [("x", "FP32", [-1, 4])]
    config = client.get_model_config("linear").config
    assert (config.max_batch_size, config.backend) == (64, "onnxruntime")
    assert list(config.input[0].dims) == [4]
    assert config.input[0].data_type == triton.model_config_pb2.TYPE_FP32
    before = client.get_inference_statistics("linear").model_stats[0].inference_count
    client.infer("linear", [tensor("x", samples(3))])
    (stats,) = client.get_inference_statistics().model_stats
    assert stats.inference_count == before + 3
    assert stats.inference_stats.success.ns > 0
    assert [b.batch_size for b in stats.batch_stats if b.batch_size == 3]
    entries = client.get_model_repository_index().models
    assert [(e.name, e.version, e.state) for e in entries] == [("linear", "1", "READY")]
    assert list(client.get_trace_settings().settings["trace_level"].value) == ["OFF"]
    assert client.get_log_settings().settings["log_info"].bool_param
    assert not client.get_cuda_shared_memory_status().regions


def test_the_configuration_tells_how_requests_wait(slow_file: Path) -> None:
    own = (PriorityTable(1, timeout=0.25, timeout_action="delay"), PriorityTable(3, queue=5))
    said = settings(
        slow_file, queue=9, timeout=1.5, own_timeouts=False, priority_levels=3, default_priority=2,
        priority=own, preferred_batches=(2, 4), batch_delay=0.003,
    )  # fmt: skip
    with Background(said) as running, triton.InferenceServerClient(address(running)) as client:
        over_grpc = client.get_model_config("slow", as_json=True)["config"]["dynamic_batching"]
        with urllib.request.urlopen(f"{running.url}/v2/models/slow/config") as answer:
            over_http = json.load(answer)["dynamic_batching"]
    assert over_http == {
        "preferred_batch_size": [2, 4],
        "max_queue_delay_microseconds": 3000,
        "priority_levels": 3,
        "default_priority_level": 2,
        "default_queue_policy": queue_policy("REJECT", 1_500_000, False, 9),
        "priority_queue_policy": {
            "1": queue_policy("DELAY", 250_000, False, 9),
            "3": queue_policy("REJECT", 1_500_000, False, 5),
        },
    }
    # JSON of protobuf: 64-bit numbers are strings, what has its default is left out.
    assert over_grpc["default_queue_policy"] == {
        "default_timeout_microseconds": "1500000", "max_queue_size": 9
    }  # fmt: skip
    assert over_grpc["priority_queue_policy"]["1"] == {
        "timeout_action": "DELAY", "default_timeout_microseconds": "250000", "max_queue_size": 9
    }  # fmt: skip


def queue_policy(action: str, timeout_us: int, own: bool, size: int) -> dict[str, object]:
    return {
        "timeout_action": action,
        "default_timeout_microseconds": timeout_us,
        "allow_timeout_override": own,
        "max_queue_size": size,
    }


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: triton.InferenceServerClient, algorithm: str) -> None:
    x = samples(64)
    result = client.infer("linear", [tensor("x", x)], compression_algorithm=algorithm)
    close_to(result.as_numpy("y"), x)


def test_classification(client: triton.InferenceServerClient) -> None:
    x = samples(2)
    asked = [triton.InferRequestedOutput("y", class_count=2)]
    result = client.infer("linear", [tensor("x", x)], outputs=asked).as_numpy("y")
    assert result.shape == (2, 2)
    wanted = linear(x)
    for row, texts in zip(wanted, result, strict=True):
        order = np.argsort(-row, kind="stable")[:2]
        assert [int(t.split(b":")[1]) for t in texts] == order.tolist()
        assert float(texts[0].split(b":")[0]) == pytest.approx(row[order[0]], abs=1e-5)


def test_every_element_type_raw(echo_server: Background) -> None:
    random = np.random.default_rng(1)
    arrays = {d: random.integers(0, 2, (2, 2)).astype(triton_to_np_dtype(d)) for d in NUMERIC}
    with triton.InferenceServerClient(address(echo_server)) as client:
        given = [tensor(f"in_{d}", a, d) for d, a in arrays.items()]
        asked = [triton.InferRequestedOutput(f"out_{d}") for d in reversed(NUMERIC)]
        result = client.infer("echo", given, outputs=asked)
    for dtype, array in arrays.items():
        got = result.as_numpy(f"out_{dtype}")
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)
    assert [o.name for o in result.get_response().outputs] == [
        f"out_{d}" for d in reversed(NUMERIC)
    ]


def test_typed_contents_are_answered_raw(channel: grpc.Channel) -> None:
    x = samples(2)
    message = request(2, raw_input_contents=[])
    message.inputs[0].contents.fp32_contents.extend(x.reshape(-1).tolist())
    answer = method(channel, "ModelInfer")(message.SerializeToString())
    response = messages.ModelInferResponse.FromString(answer)
    close_to(np.frombuffer(response.raw_output_contents[0], np.float32).reshape(2, 3), x)


def test_many_clients_at_once_get_their_own_answers(slow_server: Background) -> None:
    def ask(seed: int) -> None:
        x = samples(1 + seed % 3, seed)
        with triton.InferenceServerClient(address(slow_server)) as client:
            for _ in range(3):
                got = client.infer("slow", [tensor("x", x)]).as_numpy("y")
                np.testing.assert_allclose(got, slow(x), rtol=1e-3, atol=1e-4)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(ask, range(16)))


def test_the_aio_client(server: Background) -> None:
    async def story() -> None:
        async with triton_aio.InferenceServerClient(address(server)) as client:
            assert await client.is_server_ready()
            xs = [samples(i + 1, i) for i in range(8)]
            results = await asyncio.gather(*(client.infer("linear", [tensor("x", x)]) for x in xs))
            for x, result in zip(xs, results, strict=True):
                close_to(result.as_numpy("y"), x)

    asyncio.run(story())


# what is refused


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"model_name": "nope"}, "NOT_FOUND", "unknown model 'nope'; loaded: linear"),
        ({"model_name": "\x1b[2J\n"}, "NOT_FOUND", r"unknown model '\x1b[2J\n'"),
        ({"model_name": "n" * 100_000}, "NOT_FOUND", f"unknown model '{'n' * 60}'…;"),
        ({"model_name": ""}, "NOT_FOUND", "unknown model"),
        ({"model_version": "9"}, "NOT_FOUND", "no version '9' of 'linear': it has 1"),
        ({"model_version": "x"}, "INVALID_ARGUMENT", "version: expected a number"),
        ({"raw_input_contents": [b"1"]}, "INVALID_ARGUMENT", "'x': expected 16 bytes"),
        ({"raw_input_contents": [bytes(16)] * 2}, "INVALID_ARGUMENT", "expected 1 tensors, got 2"),
        ({"outputs": [{"name": "q"}]}, "INVALID_ARGUMENT", "unknown output 'q'"),
        ({"outputs": [{"name": "q" * 100_000}]}, "INVALID_ARGUMENT", "unknown output 'qqq"),
        (
            {
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [0, 4]}],
                "raw_input_contents": [b""],
            },
            "INVALID_ARGUMENT",
            "",
        ),
        (
            {
                "inputs": [
                    {
                        "name": "x",
                        "datatype": "FP32",
                        "shape": [1, 4],
                        "parameters": {
                            "shared_memory_region": {"string_param": "r"},
                            "shared_memory_byte_size": {"int64_param": 16},
                        },
                    }
                ],
                "raw_input_contents": [],
            },
            "PERMISSION_DENIED",
            "shared memory is off",
        ),
    ],
)
def test_status_codes(channel: grpc.Channel, fields: dict[str, Any], code: str, words: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, "ModelInfer")(request(**fields).SerializeToString())
    assert caught.value.code() is grpc.StatusCode[code]
    assert words in caught.value.details()


@pytest.mark.parametrize(
    ("name", "message", "code"),
    [
        ("ModelMetadata", messages.ModelMetadataRequest(name="nope"), "NOT_FOUND"),
        ("ModelMetadata", messages.ModelMetadataRequest(name="linear", version="x"), "INVALID_ARGUMENT"),
        ("ModelReady", messages.ModelReadyRequest(name="linear", version="x"), "INVALID_ARGUMENT"),
        ("ModelConfig", messages.ModelConfigRequest(name="nope"), "NOT_FOUND"),
        ("ModelStatistics", messages.ModelStatisticsRequest(name="nope"), "NOT_FOUND"),
        ("RepositoryIndex", messages.RepositoryIndexRequest(repository_name="r"), "INVALID_ARGUMENT"),
        ("RepositoryModelLoad", messages.RepositoryModelLoadRequest(model_name="linear"), "PERMISSION_DENIED"),
        ("RepositoryModelUnload", messages.RepositoryModelUnloadRequest(model_name="linear"), "PERMISSION_DENIED"),
        ("SystemSharedMemoryStatus", messages.SystemSharedMemoryStatusRequest(), "PERMISSION_DENIED"),
        ("SystemSharedMemoryRegister", messages.SystemSharedMemoryRegisterRequest(name="r"), "PERMISSION_DENIED"),
        ("SystemSharedMemoryUnregister", messages.SystemSharedMemoryUnregisterRequest(), "PERMISSION_DENIED"),
        ("CudaSharedMemoryRegister", messages.CudaSharedMemoryRegisterRequest(name="r"), "UNIMPLEMENTED"),
        ("TraceSetting", messages.TraceSettingRequest(settings={"trace_file": {"value": ["/x"]}}), "PERMISSION_DENIED"),
        ("TraceSetting", messages.TraceSettingRequest(model_name="nope"), "NOT_FOUND"),
        ("LogSettings", messages.LogSettingsRequest(settings={"log_file": {"string_param": "/x"}}), "PERMISSION_DENIED"),
        ("NoSuchMethod", messages.ServerLiveRequest(), "UNIMPLEMENTED"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_status_codes_of_the_other_methods(
    channel: grpc.Channel, name: str, message: Any, code: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        method(channel, name)(message.SerializeToString())
    assert caught.value.code() is grpc.StatusCode[code]
    assert caught.value.details()


def test_bytes_that_are_no_message(channel: grpc.Channel) -> None:
    for name in ("ModelInfer", "ModelMetadata", "TraceSetting"):
        with pytest.raises(grpc.RpcError, match="is not a valid inference") as caught:
            method(channel, name)(b"\xff\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("compression", list(grpc.Compression))
def test_too_large_a_message(server: Background, compression: grpc.Compression) -> None:
    """Compressed ones too: what they inflate to is bounded."""
    options = [("grpc.max_send_message_length", -1)]
    message = request(raw_input_contents=[bytes(4 * MAX_BODY)]).SerializeToString()
    with (
        grpc.insecure_channel(address(server), options=options) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        method(channel, "ModelInfer")(message, compression=compression)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_port_in_use_is_an_error(server: Background, bundle: Path) -> None:
    taken = int(address(server).rpartition(":")[2])
    with pytest.raises(EnvironmentProblem, match="cannot listen"):
        Background(settings(bundle, grpc_port=taken))


# time


def slow_request(rows: int = 8) -> bytes:
    data = request(rows, model_name="slow").SerializeToString()
    return bytes(data)


def test_a_deadline_that_passes(slow_server: Background) -> None:
    """What waits behind others when its time is over is not run."""
    with grpc.insecure_channel(address(slow_server)) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        busy = [infer.future(slow_request(), timeout=30) for _ in range(40)]
        hasty = [infer.future(slow_request(), timeout=0.001) for _ in range(20)]
        for call in hasty:
            assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        for call in busy:
            assert call.code() is grpc.StatusCode.OK


def test_the_timeout_parameter_is_a_deadline(slow_server: Background) -> None:
    with grpc.insecure_channel(address(slow_server)) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        busy = [infer.future(slow_request()) for _ in range(40)]
        message = request(8, model_name="slow")
        message.parameters["timeout"].int64_param = 1
        late = infer.future(message.SerializeToString())
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "within 1e-06 s" in late.details()
        for call in busy:
            assert call.code() is grpc.StatusCode.OK


def test_a_deadline_ends_a_call_where_timeouts_only_delay(slow_file: Path) -> None:
    with (
        Background(settings(slow_file, batch_delay=10, timeout_action="delay")) as server,
        grpc.insecure_channel(address(server)) as channel,
    ):
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        hasty = infer.future(slow_request(1), timeout=1)
        assert hasty.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_for(lambda: failures(server, "canceled") == 1)
        assert pending(server) == 0


def test_a_client_that_leaves_cancels_what_has_not_begun(slow_file: Path) -> None:
    with (
        Background(settings(slow_file, threads=1, batching=False)) as server,
        grpc.insecure_channel(address(server)) as channel,
    ):
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        calls = [infer.future(slow_request()) for _ in range(300)]
        calls[0].result()
        for call in calls[1:]:
            call.cancel()
        infer(slow_request())
        with triton.InferenceServerClient(address(server)) as client:
            (stats,) = client.get_inference_statistics("slow").model_stats
        assert stats.execution_count < 300


def test_a_full_queue(slow_file: Path) -> None:
    with (
        Background(settings(slow_file, threads=1, queue=2, batching=False)) as server,
        grpc.insecure_channel(address(server)) as channel,
    ):
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        calls = [infer.future(slow_request()) for _ in range(30)]
        codes = [call.code() for call in calls]
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        infer(slow_request())


# streams


class Recorded:
    """Answers of a tritonclient stream, in order."""

    def __init__(self) -> None:
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __call__(self, result: Any, error: Any) -> None:
        self.answers.put(error if error is not None else result)

    def next(self) -> Any:
        return self.answers.get(timeout=30)


def test_a_stream_goes_on_after_a_bad_request(client: triton.InferenceServerClient) -> None:
    recorded = Recorded()
    client.start_stream(recorded)
    xs = [samples(i + 1, i) for i in range(6)]
    for i, x in enumerate(xs):
        if i == 2:
            client.async_stream_infer("nope", [tensor("x", x)], request_id="bad")
        client.async_stream_infer("linear", [tensor("x", x)], request_id=str(i))
    for i, x in enumerate(xs):
        if i == 2:
            error = recorded.next()
            assert isinstance(error, InferenceServerException)
            assert "unknown model" in str(error)
        result = recorded.next()
        response = result.get_response()
        assert response.id == str(i)
        assert response.parameters["triton_final_response"].bool_param
        close_to(result.as_numpy("y"), x)
    client.stop_stream()


def stream(channel: grpc.Channel, sent: list[messages.ModelInferRequest]) -> Any:
    call = channel.stream_stream(
        f"/{SERVICE}/ModelStreamInfer",
        messages.ModelInferRequest.SerializeToString,
        messages.ModelStreamInferResponse.FromString,
    )
    return call(iter(sent), timeout=30)


def test_stream_errors_echo_the_id(channel: grpc.Channel) -> None:
    answers = list(
        stream(
            channel,
            [
                request(id="a"),
                request(id="b", model_version="x"),
                request(id="c", raw_input_contents=[b"1"]),
                request(
                    id="d", parameters={"triton_enable_empty_final_response": {"bool_param": True}}
                ),
            ],
        )
    )
    assert [a.infer_response.id for a in answers] == ["a", "b", "c", "d"]
    assert [bool(a.error_message) for a in answers] == [False, True, True, False]
    assert all(a.infer_response.parameters["triton_final_response"].bool_param for a in answers)


def test_bytes_that_are_no_request_do_not_end_a_stream(channel: grpc.Channel) -> None:
    call = channel.stream_stream(
        f"/{SERVICE}/ModelStreamInfer",
        response_deserializer=messages.ModelStreamInferResponse.FromString,
    )
    bad, good = call(iter([b"\xff\xff", request(id="2").SerializeToString()]), timeout=30)
    assert "is not a valid inference.ModelInferRequest" in bad.error_message
    assert good.infer_response.id == "2"


def test_many_requests_in_a_stream_stay_in_order(slow_server: Background) -> None:
    sent = [request(1 + i % 3, model_name="slow", id=str(i)) for i in range(200)]
    with grpc.insecure_channel(address(slow_server)) as channel:
        answers = list(stream(channel, sent))
    assert [a.infer_response.id for a in answers] == [str(i) for i in range(200)]
    assert not any(a.error_message for a in answers)


def test_a_stream_that_is_left(slow_server: Background) -> None:
    with grpc.insecure_channel(address(slow_server)) as channel:
        answers = stream(channel, [request(8, model_name="slow", id="1")] * 100)
        next(answers)
        assert READER in [t.name for t in threading.enumerate()]
        answers.cancel()
    wait_for(lambda: pending(slow_server) == 0)
    wait_for(lambda: READER not in [t.name for t in threading.enumerate()])


@pytest.mark.parametrize("most", [2, 40])
def test_too_many_streams(bundle: Path, most: int) -> None:
    """The ones over the limit are refused; calls of other kinds are answered meanwhile."""
    done = threading.Event()

    def quiet() -> Iterator[bytes]:
        done.wait(30)
        yield from ()

    several = settings(bundle, grpc_streams=most)
    with Background(several) as server, grpc.insecure_channel(address(server)) as channel:
        open_stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        calls = [open_stream(quiet()) for _ in range(most + 8)]
        wait_for(lambda: sum(c.done() for c in calls) == 8)
        refused = {c.code() for c in calls if c.done()}
        assert refused == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        (said,) = {c.details() for c in calls if c.done()}
        assert f"at most {most} (--grpc-streams)" in said
        method(channel, "ModelInfer")(request().SerializeToString())
        assert method(channel, "ServerReady")(b"")
        done.set()
        assert {c.code() for c in calls} == refused | {grpc.StatusCode.OK}


def test_without_the_extra_the_error_names_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.startswith("edgeserve.serve.") and "grpc" in n]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(DependencyMissing, match="--grpc-port needs grpc") as caught:
        Background(settings(bundle))
    assert caught.value.hint == "pip install 'edgeserve[grpc]'"
