"""Forms of requests and answers over real sockets: compression, NaN, half precision, sizes."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeserve.serve.http.buffers import BodyBuffers
from edgeserve.serve.http.content import accepted_coding
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.server import Settings
from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import linear, write_bundle
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post

ROWS = [[float(i % 7), 1.0, -1.0, float(i)] for i in range(60)]


def unpacked(headers: dict[str, str], body: bytes) -> bytes:
    coding = headers.get("content-encoding")
    return {"gzip": gzip.decompress, "deflate": zlib.decompress, None: bytes}[coding](body)


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"), ("deflate", "deflate"), ("gzip, deflate", "gzip"), ("*", "gzip"),
        ("gzip;q=0.2, deflate;q=0.9", "deflate"), ("gzip;q=0", None), ("identity", None),
        ("br", None), ("gzip;q=0.5, identity", None), ("gzip;q=x", None), ("", None),
        ("GZIP", "gzip"), ("gzip;q=0, *", "deflate"),
    ],
)  # fmt: skip
def test_answers_are_compressed_as_the_client_prefers(
    client: RawClient, accept: str, coding: str | None
) -> None:
    client.send(post(infer_body(ROWS), "/v2/models/linear/infer", f"Accept-Encoding: {accept}"))
    status, headers, body = client.response()
    assert (status, headers.get("content-encoding")) == (200, coding)
    assert ("vary" in headers) == (coding is not None)
    got = np.float32(json.loads(unpacked(headers, body))["outputs"][0]["data"]).reshape(-1, 3)
    np.testing.assert_allclose(got, linear(np.float32(ROWS)), rtol=1e-4, atol=1e-5)


def test_small_answers_are_not_compressed(client: RawClient) -> None:
    client.send(post(infer_body(ROWS[:1]), "/v2/models/linear/infer", "Accept-Encoding: gzip"))
    assert "content-encoding" not in client.response()[1]


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("answer_coding", [None, "gzip", "deflate"])
def test_tritonclient_compresses_both_ways(
    server: Background, request_coding: str | None, answer_coding: str | None
) -> None:
    """Inference-Header-Content-Length counts what is not compressed, in both directions."""
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    x = np.float32(ROWS)
    given_input = triton.InferInput("x", x.shape, "FP32")
    given_input.set_data_from_numpy(x)
    result = client.infer(
        "linear", [given_input], request_compression_algorithm=request_coding,
        response_compression_algorithm=answer_coding,
    )  # fmt: skip
    np.testing.assert_allclose(result.as_numpy("y"), linear(x), rtol=1e-4, atol=1e-5)
    client.close()


@given(st.binary(max_size=80))
def test_any_accept_encoding_is_understood(header: bytes) -> None:
    assert accepted_coding(header) in (None, "gzip", "deflate")


def test_nan_is_told_or_given_as_a_token_or_as_bytes(client: RawClient) -> None:
    """JSON has no NaN. Triton's clients send and take the bare tokens: sent ones are read, and given
    to those who ask for them."""

    def ask(**extra: Any) -> tuple[int, bytes]:
        client.send(post(infer_body([[0, 0, 0, float("inf")]], **extra)))
        status, _, body = client.response()
        return status, body

    status, body = ask()
    assert status == 400
    assert "allow_nan" in json.loads(body)["error"]
    status, body = ask(parameters={"allow_nan": True})
    assert status == 200
    assert b"Infinity" in body or b"NaN" in body
    status, body = ask(parameters={"binary_data_output": True})
    assert status == 200
    assert not np.isfinite(np.frombuffer(body[-12:], np.float32)).all()


def typed_model(kind: int, name: str) -> onnx.ModelProto:
    """y = x + x, of one element type, computed in float."""
    shape = ["batch", 2]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["wide", "wide"], ["sum"]),
            helper.make_node("Cast", ["sum"], ["y"], to=kind),
        ],
        name,
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def bits(values: list[float]) -> np.ndarray:
    """bfloat16: the upper halves of float32."""
    halves: np.ndarray = (np.float32([values]).view(np.uint32) >> 16).astype(np.uint16)
    return halves


HALVES = {
    "BF16": (TensorProto.BFLOAT16, bits([1.5, -2]), bits([3, -4])),
    "FP16": (TensorProto.FLOAT16, np.float16([[1.5, -2]]), np.float16([[3, -4]])),
}


@pytest.fixture(scope="module", params=sorted(HALVES))
def halves(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Background]]:
    kind, x, y = HALVES[request.param]
    interface = Interface(
        (TensorSpec("x", request.param, ("batch", 2)),),
        (TensorSpec("y", request.param, ("batch", 2)),),
        max_batch=8,
    )
    folder = tmp_path_factory.mktemp("halves")
    bundle = write_bundle(folder, "half", typed_model(kind, "half"), interface, {"x": x}, {"y": y})
    with Background(Settings(bundle=str(bundle), http_port=0)) as running:
        yield request.param, running


def test_half_precision_goes_as_binary_only(halves: tuple[str, Background]) -> None:
    datatype, server = halves
    _, x, y = HALVES[datatype]
    entry: dict[str, Any] = {"name": "x", "shape": [1, 2], "datatype": datatype}
    head = json.dumps(
        {
            "inputs": [{**entry, "parameters": {"binary_data_size": 4}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    path = "/v2/models/half/infer"
    length = "Inference-Header-Content-Length"
    with RawClient(server.url) as client:
        client.send(post(head + x.tobytes(), path, f"{length}: {len(head)}"))
        status, headers, body = client.response()
        assert status == 200, body
        told = json.loads(body[: int(headers[length.lower()])])["outputs"][0]
        assert (told["datatype"], told["shape"]) == (datatype, [1, 2])
        assert body.endswith(y.tobytes())
        client.send(post(x.tobytes(), path, f"{length}: 0"))
        assert client.response()[2].endswith(y.tobytes())
        client.send(post(json.dumps({"inputs": [{**entry, "data": [1, 2]}]}).encode(), path))
        assert "no JSON form" in json.loads(client.response()[2])["error"]
        head = head.replace(b', "parameters": {"binary_data_output": true}', b"")
        client.send(post(head + x.tobytes(), path, f"{length}: {len(head)}"))
        assert "no JSON form" in json.loads(client.response()[2])["error"]
        client.send(b"GET /v2/models/half HTTP/1.1\r\nHost: t\r\n\r\n")
        assert json.loads(client.response()[2])["inputs"][0]["datatype"] == datatype


def test_answers_are_bounded(bundle: Path) -> None:
    limits = Limits(output_bytes=400)
    settings = Settings(bundle=str(bundle), http_port=0, limits=limits)
    with Background(settings) as server, RawClient(server.url) as client:
        for rows, status in ((1, 200), (20, 400), (50, 400), (1, 200)):
            client.send(post(infer_body(ROWS[:rows])))
            got, _, body = client.response()
            assert got == status
            assert status == 200 or "400" in json.loads(body)["error"]


def test_a_lent_buffer_is_nobody_elses_while_it_is_looked_at() -> None:
    buffers = BodyBuffers(1 << 20)
    first = buffers.lend(100_000, 7)
    tensor = np.frombuffer(first[7:50_007], np.uint8)
    assert tensor.ctypes.data % 64 == 0
    address = tensor.ctypes.data
    del first
    second = buffers.lend(100_000, 7)
    assert np.frombuffer(second[7:], np.uint8).ctypes.data != address
    del tensor, second
    again = [np.frombuffer(buffers.lend(100_000, 7)[7:], np.uint8).ctypes.data for _ in range(3)]
    assert len(set(again)) == 1
    buffers.shrink()
    assert buffers.hold(1 << 20)
    assert not buffers.hold(1)
    buffers.release(1)
    assert buffers.hold(0)
