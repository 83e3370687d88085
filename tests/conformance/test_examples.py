"""What the example clients of Triton's repository send, and look at in the answers.

Each test is named after its example (triton-inference-server/client, src/python/examples) and makes the same
calls in the same order. The examples' own models are here as bundles: sums and differences.
"""

from __future__ import annotations

import os
import queue
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import msgspec
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
import tritonclient.utils.shared_memory as shm
from onnx import TensorProto, helper, numpy_helper
from tritonclient import utils
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from edgeserve.bundle import Preprocess, Task
from edgeserve.bundle.files import file_sha256
from edgeserve.bundle.manifest import FileEntry, decode, encode
from edgeserve.tensors import DTYPES, Interface, TensorSpec
from tests.bundles import write_bundle
from tests.conformance.process import Served, serve

TYPES = {"simple": ("INT32", TensorProto.INT32), "simple_int8": ("INT8", TensorProto.INT8)}
FIRST = np.arange(16, dtype=np.int32)[None]
ONES = np.ones((1, 16), np.int32)
CLASSES = ("tench", "goldfish", "shark")


def sums_bundle(folder: Path, name: str) -> Path:
    """OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1, each [batch,16]."""
    dtype, onnx_type = TYPES[name]
    operands = ["wide0", "wide1"] if dtype == "INT8" else ["INPUT0", "INPUT1"]
    results = ["sum", "difference"] if dtype == "INT8" else ["OUTPUT0", "OUTPUT1"]
    nodes = [
        helper.make_node(op, operands, [y]) for op, y in zip(("Add", "Sub"), results, strict=True)
    ]
    if dtype == "INT8":  # onnxruntime adds no INT8
        casts = [
            helper.make_node("Cast", [f"INPUT{i}"], [f"wide{i}"], to=TensorProto.INT32)
            for i in (0, 1)
        ]
        back = [
            helper.make_node("Cast", [r], [f"OUTPUT{i}"], to=onnx_type)
            for i, r in enumerate(results)
        ]
        nodes = [*casts, *nodes, *back]
    shape = ["batch", 16]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(f"INPUT{i}", onnx_type, shape) for i in (0, 1)],
        [helper.make_tensor_value_info(f"OUTPUT{i}", onnx_type, shape) for i in (0, 1)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    inputs = tuple(TensorSpec(f"INPUT{i}", dtype, ("batch", 16)) for i in (0, 1))
    outputs = tuple(TensorSpec(f"OUTPUT{i}", dtype, ("batch", 16)) for i in (0, 1))
    a, b = FIRST.astype(DTYPES[dtype]), ONES.astype(DTYPES[dtype])
    return write_bundle(
        folder, name, model, Interface(inputs, outputs, 8), {"INPUT0": a, "INPUT1": b},
        {"OUTPUT0": a + b, "OUTPUT1": a - b},
    )  # fmt: skip


def strings_bundle(folder: Path) -> Path:
    """`simple_string`: the two inputs change places; BYTES [batch,16] each."""
    shape, names = ["batch", 16], ["INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1"]
    info = [helper.make_tensor_value_info(n, TensorProto.STRING, shape) for n in names]
    nodes = [helper.make_node("Identity", [f"INPUT{i}"], [f"OUTPUT{1 - i}"]) for i in (0, 1)]
    graph = helper.make_graph(nodes, "simple_string", info[:2], info[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    specs = tuple(TensorSpec(n, "BYTES", ("batch", 16)) for n in names)
    a, b = FIRST.astype(str), ONES.astype(str)
    return write_bundle(
        folder, "simple_string", model, Interface(specs[:2], specs[2:], 8),
        {"INPUT0": a, "INPUT1": b}, {"OUTPUT0": b, "OUTPUT1": a},
    )  # fmt: skip


def classifier_bundle(folder: Path) -> Path:
    """`classifier`: the means of an image's three channels [batch,3,8,8] as scores of three classes."""
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["image", "axes"], ["scores"], keepdims=0)],
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.int64([2, 3]), "axes")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    interface = Interface(
        (TensorSpec("image", "FP32", ("batch", 3, 8, 8)),),
        (TensorSpec("scores", "FP32", ("batch", 3)),),
        8,
    )
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    bundle = write_bundle(
        folder, "classifier", model, interface, {"image": x}, {"scores": x.mean((2, 3))}
    )
    labels = bundle / "labels.txt"
    labels.write_text("\n".join(CLASSES) + "\n")
    entry = FileEntry(labels.name, file_sha256(labels), labels.stat().st_size)
    manifest = decode((bundle / "manifest.json").read_bytes(), "manifest")
    task = Task("classification", Preprocess(8, 8), entry)
    (bundle / "manifest.json").write_bytes(encode(msgspec.structs.replace(manifest, task=task)))
    return bundle


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("examples")
    bundles = [
        *(sums_bundle(folder, n) for n in TYPES),
        strings_bundle(folder),
        classifier_bundle(folder),
    ]
    # The names of the examples' shared memory begin like that; PID keeps two runs apart.
    prefixes = [f"{what}{os.getpid()}" for what in ("input", "output")]
    flags = [word for prefix in prefixes for word in ("--shared-memory", prefix)]
    with serve(*bundles, *flags, "--model-control") as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> Any:
    return httpclient if request.param == "http" else grpcclient


@pytest.fixture
def client(protocol: Any, served: Served) -> Iterator[Any]:
    address = served.http if protocol is httpclient else served.grpc
    with protocol.InferenceServerClient(address) as client:
        yield client


def inputs(protocol: Any, arrays: list[np.ndarray], datatype: str) -> list[Any]:
    found = []
    for i, array in enumerate(arrays):
        tensor = protocol.InferInput(f"INPUT{i}", list(array.shape), datatype)
        if protocol is httpclient:
            tensor.set_data_from_numpy(array, binary_data=i == 1)
        else:
            tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


def check_sums(answer: Any) -> None:
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), FIRST + ONES)
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT1"), FIRST - ONES)


def test_simple_infer_client(protocol: Any, client: Any) -> None:
    """simple_http_infer_client.py, simple_grpc_infer_client.py."""
    given = inputs(protocol, [FIRST, ONES], "INT32")
    more: dict[str, Any] = {"headers": {"test": "1"}}
    if protocol is httpclient:
        more["query_params"] = {"test_1": 1, "test_2": 2}
        wanted = [
            protocol.InferRequestedOutput("OUTPUT0", binary_data=True),
            protocol.InferRequestedOutput("OUTPUT1", binary_data=False),
        ]
    else:
        wanted = [protocol.InferRequestedOutput(f"OUTPUT{i}") for i in (0, 1)]
    check_sums(client.infer("simple", given, outputs=wanted, **more))
    statistics = client.get_inference_statistics(model_name="simple")
    found = statistics["model_stats"] if protocol is httpclient else statistics.model_stats
    assert len(found) == 1
    check_sums(client.infer("simple", given, outputs=None))
    with pytest.raises(InferenceServerException) as caught:
        client.infer("wrong_model_name", given, outputs=wanted)
    assert caught.value.message().startswith("Request for unknown model")


def test_simple_health_metadata(protocol: Any, client: Any) -> None:
    """simple_http_health_metadata.py; the server calls itself edgeserve, not triton."""
    more = {"query_params": {"test_1": 1}} if protocol is httpclient else {"headers": {"test": "1"}}
    assert client.is_server_live(**more)
    assert client.is_server_ready()
    assert client.is_model_ready("simple")
    server, model = client.get_server_metadata(), client.get_model_metadata("simple", **more)
    names = [m["name"] if protocol is httpclient else m.name for m in (server, model)]
    assert names == ["edgeserve", "simple"]
    with pytest.raises(InferenceServerException, match="Request for unknown model"):
        client.get_model_metadata("wrong_model_name")


def test_simple_model_control(protocol: Any, client: Any) -> None:
    """simple_http_model_control.py but for its configuration of a client's own, which is refused."""
    client.load_model("simple_int8")
    assert client.is_model_ready("simple_int8")
    with pytest.raises(InferenceServerException, match="config"):
        client.load_model("simple_int8", config='{"max_batch_size":"16"}')
    client.unload_model("simple_int8")
    assert not client.is_model_ready("simple_int8")
    with pytest.raises(InferenceServerException, match="failed to load"):
        client.load_model("wrong_model_name")
    client.load_model("simple_int8")
    assert client.is_model_ready("simple_int8")


@pytest.mark.parametrize("kind", ["integers", "strings"])
def test_simple_shm_client(protocol: Any, client: Any, kind: str) -> None:
    """simple_http_shm_client.py, simple_grpc_shm_string_client.py and the like."""
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    if kind == "integers":
        model, datatype, arrays = "simple", "INT32", [FIRST, ONES]
        expected = [FIRST + ONES, FIRST - ONES]
        blobs, out_sizes = arrays, [64, 64]
    else:
        model, datatype = "simple_string", "BYTES"
        arrays = [np.array([str(v).encode() for v in a[0]], object) for a in (FIRST, ONES)]
        expected = [arrays[1][None], arrays[0][None]]
        blobs = [utils.serialize_byte_tensor(a) for a in arrays]
        out_sizes = [utils.serialized_byte_size(b) for b in reversed(blobs)]
    in_sizes = [utils.serialized_byte_size(b) if kind == "strings" else b.nbytes for b in blobs]
    pid = os.getpid()
    handles = {}
    try:
        for what, sizes in (("output", out_sizes), ("input", in_sizes)):
            for i, size in enumerate(sizes):
                key = f"/{what}{pid}_{i}_simple"
                handles[what, i] = shm.create_shared_memory_region(f"{what}{i}_data", key, size)
                client.register_system_shared_memory(f"{what}{i}_data", key, size)
        given, wanted = [], []
        for i, blob in enumerate(blobs):
            shm.set_shared_memory_region(handles["input", i], [blob])
            given.append(protocol.InferInput(f"INPUT{i}", [1, 16], datatype))
            given[-1].set_shared_memory(f"input{i}_data", in_sizes[i])
            wanted.append(protocol.InferRequestedOutput(f"OUTPUT{i}"))
            wanted[-1].set_shared_memory(f"output{i}_data", out_sizes[i])
        answer = client.infer(model_name=model, inputs=given, outputs=wanted)
        for i in (0, 1):
            output = answer.get_output(f"OUTPUT{i}")
            told = (
                output
                if isinstance(output, dict)
                else {"datatype": output.datatype, "shape": output.shape}
            )
            got = shm.get_contents_as_numpy(
                handles["output", i], utils.triton_to_np_dtype(told["datatype"]), told["shape"]
            )
            np.testing.assert_array_equal(got, expected[i])
        status = client.get_system_shared_memory_status()
        assert len(status if protocol is httpclient else status.regions) == 4
        client.unregister_system_shared_memory()
    finally:
        for handle in handles.values():
            shm.destroy_shared_memory_region(handle)


def test_reuse_infer_objects_client(protocol: Any, client: Any) -> None:
    """The same objects with shared memory, without, and with it again."""
    given = [protocol.InferInput(f"INPUT{i}", [1, 16], "INT32") for i in (0, 1)]
    wanted = [protocol.InferRequestedOutput(f"OUTPUT{i}") for i in (0, 1)]
    handles = {}
    try:
        for what in ("input", "output"):
            for i in (0, 1):
                name, key = f"{what}{i}_data", f"/{what}{os.getpid()}_{i}_reused"
                handles[what, i] = shm.create_shared_memory_region(name, key, 64)
                client.register_system_shared_memory(name, key, 64)
        for shared in (True, False, True):
            for i, array in enumerate((FIRST, ONES)):
                if shared:
                    shm.set_shared_memory_region(handles["input", i], [array])
                    given[i].set_shared_memory(f"input{i}_data", 64)
                    wanted[i].set_shared_memory(f"output{i}_data", 64)
                else:
                    given[i].set_data_from_numpy(array)
                    wanted[i].unset_shared_memory()
            answer = client.infer("simple", given, outputs=wanted)
            if not shared:
                check_sums(answer)
                continue
            got = [
                shm.get_contents_as_numpy(handles["output", i], np.int32, [1, 16]) for i in (0, 1)
            ]
            np.testing.assert_array_equal(got, [FIRST + ONES, FIRST - ONES])
            for i in (0, 1):
                shm.set_shared_memory_region(handles["output", i], [np.zeros(16, np.int32)])
    finally:
        client.unregister_system_shared_memory()
        for handle in handles.values():
            shm.destroy_shared_memory_region(handle)


def test_simple_cudashm_client(protocol: Any, client: Any) -> None:
    """simple_http_cudashm_client.py: everything up to the first region, which there is no device for."""
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    status = client.get_cuda_shared_memory_status()
    assert not (status if protocol is httpclient else status.regions)
    client.unregister_cuda_shared_memory("output_data")
    with pytest.raises(InferenceServerException, match="CUDA shared memory"):
        client.register_cuda_shared_memory("output_data", b"aGFuZGxl", 0, 64)


def test_simple_sequence_sync_infer_client(protocol: Any, client: Any) -> None:
    """simple_http_sequence_sync_infer_client.py: a model without a state answers each request by itself."""
    given = inputs(protocol, [FIRST, ONES], "INT32")
    for identity in (1000, str(uuid.uuid4())):
        for count in (1, 2, 3):
            answer = client.infer(
                "simple", given, request_id=f"{identity}_{count}", sequence_id=identity,
                sequence_start=count == 1, sequence_end=count == 3,
            )  # fmt: skip
            check_sums(answer)


def test_priority_and_timeout(protocol: Any, client: Any) -> None:
    """What the examples and perf_analyzer's flags pass on."""
    given = inputs(protocol, [FIRST, ONES], "INT32")
    answer = client.infer("simple", given, priority=3, timeout=5_000_000, parameters={"my": "own"})
    check_sums(answer)


def test_simple_string_infer_client(protocol: Any, client: Any) -> None:
    """simple_http_string_infer_client.py: one input as JSON, one as binary data; a NUL inside."""
    first = np.array([[f"{v}\0x".encode() for v in FIRST[0]]], object)
    ones = np.array([[str(v).encode() for v in ONES[0]]], object)
    answer = client.infer("simple_string", inputs(protocol, [first, ones], "BYTES"))
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT0"), ones)
    np.testing.assert_array_equal(answer.as_numpy("OUTPUT1"), first)


def test_simple_async_infer_client(served: Served) -> None:
    """simple_http_async_infer_client.py, simple_grpc_async_infer_client.py."""
    with httpclient.InferenceServerClient(served.http, concurrency=2) as client:
        given = inputs(httpclient, [FIRST, ONES], "INT32")
        for asked in [client.async_infer("simple", given) for _ in range(2)]:
            check_sums(asked.get_result())
    done: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with grpcclient.InferenceServerClient(served.grpc) as client:
        given = inputs(grpcclient, [FIRST, ONES], "INT32")
        client.async_infer("simple", given, lambda result, error: done.put((result, error)))
        result, error = done.get(timeout=10)
        assert error is None
        check_sums(result)


def test_simple_grpc_sequence_stream_infer_client(served: Served) -> None:
    done: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with grpcclient.InferenceServerClient(served.grpc) as client:
        client.start_stream(callback=lambda result, error: done.put((result, error)))
        for identity in (1000, 1001, "a-string"):
            for count in (1, 2):
                client.async_stream_infer(
                    model_name="simple", inputs=inputs(grpcclient, [FIRST, ONES], "INT32"),
                    request_id=f"{identity}_{count}", sequence_id=identity,
                    sequence_start=count == 1, sequence_end=count == 2,
                )  # fmt: skip
        ids = []
        for _ in range(6):
            result, error = done.get(timeout=10)
            assert error is None
            check_sums(result)
            ids.append(result.get_response().id)
        client.stop_stream()
    assert set(ids) == {f"{i}_{c}" for i in (1000, 1001, "a-string") for c in (1, 2)}


def test_simple_grpc_custom_args_and_keepalive_client(served: Served) -> None:
    options = grpcclient.KeepAliveOptions(2**31 - 1, 20_000, False, 2)
    arguments = [("grpc.max_send_message_length", -1), ("grpc.primary_user_agent", "custom")]
    for how in ({"keepalive_options": options}, {"channel_args": arguments}):
        with grpcclient.InferenceServerClient(served.grpc, **how) as client:
            check_sums(client.infer("simple", inputs(grpcclient, [FIRST, ONES], "INT32")))


def test_grpc_explicit_int8_content_client(served: Served) -> None:
    request = service_pb2.ModelInferRequest(model_name="simple_int8", model_version="")
    for i, values in enumerate((range(16), [1] * 16)):
        tensor = request.inputs.add(name=f"INPUT{i}", datatype="INT8", shape=[1, 16])
        tensor.contents.int_contents[:] = list(values)
        request.outputs.add(name=f"OUTPUT{i}")
    with grpc.insecure_channel(served.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answer = stub.ModelInfer(request)
        got = [np.frombuffer(blob, np.int8) for blob in answer.raw_output_contents]
        np.testing.assert_array_equal(got[0], FIRST[0] + 1)
        np.testing.assert_array_equal(got[1], FIRST[0] - 1)
        request.inputs[1].contents.int_contents[0] = 300
        with pytest.raises(grpc.RpcError, match="a value is outside INT8"):
            stub.ModelInfer(request)
        request.model_version = "wrong_specification"
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_grpc_explicit_byte_content_client(served: Served) -> None:
    request = service_pb2.ModelInferRequest(model_name="simple_string")
    for i, values in enumerate((FIRST[0], ONES[0])):
        tensor = request.inputs.add(name=f"INPUT{i}", datatype="BYTES", shape=[1, 16])
        tensor.contents.bytes_contents[:] = [str(v).encode() for v in values]
        request.outputs.add(name=f"OUTPUT{i}")
    with grpc.insecure_channel(served.grpc) as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    got = [utils.deserialize_bytes_tensor(blob).astype(int) for blob in answer.raw_output_contents]
    np.testing.assert_array_equal(got, [ONES[0], FIRST[0]])


def test_image_client(protocol: Any, client: Any) -> None:
    """image_client.py: finds out how an image goes in, and reads the classes that come out."""
    metadata, config = (
        client.get_model_metadata("classifier"),
        client.get_model_config("classifier"),
    )
    if protocol is httpclient:
        format_, size = config["input"][0]["format"], config["max_batch_size"]
        shape, datatype = metadata["inputs"][0]["shape"], metadata["outputs"][0]["datatype"]
    else:
        format_ = model_config_pb2.ModelInput.Format.Name(config.config.input[0].format)
        size = config.config.max_batch_size
        shape, datatype = list(metadata.inputs[0].shape), metadata.outputs[0].datatype
    assert (format_, size, shape, datatype) == ("FORMAT_NCHW", 8, [-1, 3, 8, 8], "FP32")
    image = np.zeros((2, 3, 8, 8), np.float32)
    image[0, 1], image[1, 2] = 5, 7
    tensor = protocol.InferInput("image", image.shape, "FP32")
    tensor.set_data_from_numpy(image)
    wanted = [protocol.InferRequestedOutput("scores", class_count=1)]
    answer = client.infer("classifier", [tensor], request_id="1", outputs=wanted)
    output = answer.as_numpy("scores")
    assert len(output) == 2
    best = ["".join(chr(x) for x in result).split(":") for results in output for result in results]
    assert best == [["5.000000", "1", "goldfish"], ["7.000000", "2", "shark"]]
