"""A served model that takes strings: by JSON, by binary data, over gRPC, and batched."""

from __future__ import annotations

import concurrent.futures
import json
import struct
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from onnx import TensorProto, helper

from edgeserve.serve.settings.server import Settings
from edgeserve.tensors import Interface, TensorSpec
from edgeserve.wire import SERVICE, messages
from tests.bundles import write_bundle
from tests.serve.background import Background
from tests.serve.conftest import RawClient, post

PATH = "/v2/models/texts/infer"
TEXTS = np.array([["caf\u00e9".encode(), b""], [b"it's", b"\x00 \n"]], dtype=object)


def texts_bundle(folder: Path) -> Path:
    """`texts`: y is x, both BYTES [batch,2]."""
    shape = ["batch", 2]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "texts",
        [info("x", TensorProto.STRING, shape)],
        [info("y", TensorProto.STRING, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    specs = [(TensorSpec(n, "BYTES", ("batch", 2)),) for n in "xy"]
    golden = np.array([["a", "b"]])
    interface = Interface(*specs, max_batch=8)
    return write_bundle(folder, "texts", model, interface, {"x": golden}, {"y": golden})


@pytest.fixture(scope="module", params=["never", "always"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Background]:
    """Isolated, a model is called in another process, and never on the event loop."""
    bundle = texts_bundle(tmp_path_factory.mktemp("texts"))
    settings = Settings(
        bundle=str(bundle), http_port=0, grpc_port=0, isolate=request.param, batch_delay=0.2,
        preferred_batches=(3,), instances=1,
    )  # fmt: skip
    with Background(settings) as running:
        yield running


def wire(texts: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(t)) + t for t in texts)


def message(texts: list[bytes], *, raw: bool) -> bytes:
    found = messages.ModelInferRequest(model_name="texts")
    tensor = found.inputs.add(name="x", datatype="BYTES", shape=[len(texts) // 2, 2])
    if raw:
        found.raw_input_contents.append(wire(texts))
    else:
        tensor.contents.bytes_contents.extend(texts)
    return bytes(found.SerializeToString())


def binary(texts: list[bytes]) -> bytes:
    blob = wire(texts)
    tensor: dict[str, Any] = {"name": "x", "shape": [len(texts) // 2, 2], "datatype": "BYTES"}
    tensor["parameters"] = {"binary_data_size": len(blob)}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return post(head + blob, PATH, f"Inference-Header-Content-Length: {len(head)}")


def test_tritonclient_gets_them_back_over_http_and_grpc(server: Background) -> None:
    for triton, address in (
        (triton_http, server.url.removeprefix("http://")),
        (triton_grpc, server.started.grpc),
    ):
        tensor = triton.InferInput("x", [2, 2], "BYTES")
        tensor.set_data_from_numpy(TEXTS)
        with triton.InferenceServerClient(address) as client:
            result = client.infer("texts", [tensor])
        assert result.as_numpy("y").tolist() == TEXTS.tolist()


@pytest.mark.parametrize("raw", [True, False])
def test_both_forms_over_grpc(server: Background, raw: bool) -> None:
    assert server.started.grpc is not None
    sent = TEXTS.reshape(-1).tolist()
    with grpc.insecure_channel(server.started.grpc) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        answer = messages.ModelInferResponse.FromString(infer(message(sent, raw=raw)))
    assert (answer.outputs[0].datatype, list(answer.outputs[0].shape)) == ("BYTES", [2, 2])
    assert list(answer.raw_output_contents) == [wire(sent)]


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (wire([b"a", b"b"])[:-1], "incomplete string data"),
        (struct.pack("<I", 2**32 - 1) + b"abcdefgh", "incomplete string data"),
        (wire([b"a", b"b", b"c"]), "bytes too many"),
        (b"", "cannot hold 2 strings"),
    ],
)
def test_broken_lengths_over_grpc(server: Background, blob: bytes, words: str) -> None:
    assert server.started.grpc is not None
    found = messages.ModelInferRequest(model_name="texts", raw_input_contents=[blob])
    found.inputs.add(name="x", datatype="BYTES", shape=[1, 2])
    with grpc.insecure_channel(server.started.grpc) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(found.SerializeToString())
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert words in call.details()


def test_one_that_is_no_text_fails_alone(server: Background) -> None:
    """Three that come together run as one batch, which the engine refuses as a whole."""
    assert server.started.grpc is not None
    good, bad = [b"good", b"text"], [b"bad", b"\xff\xfe"]

    def by_http(texts: list[bytes]) -> tuple[int | str, bytes]:
        with RawClient(server.url) as client:
            client.send(binary(texts))
            status, _, body = client.response()
            return status, body

    def by_grpc(texts: list[bytes]) -> tuple[int | str, bytes]:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer").future(message(texts, raw=True))
        name = call.code().name
        return name, call.result() if name == "OK" else call.details().encode()

    before = counted(server)
    with (
        grpc.insecure_channel(server.started.grpc) as channel,
        concurrent.futures.ThreadPoolExecutor(6) as pool,
    ):
        for ask, fine, refused in (
            (by_http, 200, 400),
            (by_grpc, "OK", "INVALID_ARGUMENT"),
        ):
            first, middle, last = pool.map(ask, (good, bad, good))
            assert (first[0], middle[0], last[0]) == (fine, refused, fine)
            assert b"input 'x': expected text in UTF-8" in middle[1]
            assert all(wire(good) in answer for _, answer in (first, last))
    after = counted(server)
    assert after["invalid"] == before["invalid"] + 2
    assert after["engine"] == before["engine"] == 0
    assert after["fallback"] == before["fallback"] == 0


def counted(server: Background) -> dict[str, int]:
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    values = {
        reason: sum(
            int(float(x.rpartition(" ")[2]))
            for x in lines
            if x.startswith("edgeserve_request_failures_total{") and f'reason="{reason}"' in x
        )
        for reason in ("invalid", "engine")
    }
    values["fallback"] = sum(x.startswith("edgeserve_fallback_total{") for x in lines)
    return values
