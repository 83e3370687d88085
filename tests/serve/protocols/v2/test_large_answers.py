"""Large JSON answers are written on a thread, in pieces, and nothing else about them is different."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeserve.bundle import Candidate
from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols import inference as infer
from edgeserve.serve.protocols.v2 import answers
from edgeserve.serve.protocols.v2 import codec as v2
from edgeserve.serve.protocols.v2.request import RequestedOutput, V2Request
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.server import Settings
from edgeserve.tensors import Array, Interface, Tensors, TensorSpec
from tests.bundles import write_bundle
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.held import HEALTH, Held, failures, in_flight
from tests.waiting import wait_for

WIDTH = 20_000  # 80 KB as an array
STEPS = np.arange(WIDTH, dtype=np.float32) / 7
ROW = [0.5, 1, 2, 3]
PATH = "/v2/models/steps/infer"
REQUEST = post(infer_body([ROW]), PATH)


def steps_bundle(folder: Path) -> Path:
    """A bundle called steps.edge of y = STEPS plus the sum of x: x FP32[batch,4], y FP32[batch,20000]."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["sum"], keepdims=1),
        helper.make_node("Add", ["sum", "steps"], ["y"]),
    ]
    weights = {"axes": np.array([1], np.int64), "steps": STEPS}
    graph = helper.make_graph(
        nodes,
        "steps",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    interface = Interface(
        (TensorSpec("x", "FP32", ("batch", 4)),),
        (TensorSpec("y", "FP32", ("batch", WIDTH)),),
        max_batch=8,
    )
    x = np.ones((2, 4), np.float32)
    return write_bundle(folder, "steps", model, interface, {"x": x}, {"y": 4 + STEPS[None].repeat(2, 0)})  # fmt: skip


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return steps_bundle(tmp_path_factory.mktemp("steps"))


@pytest.fixture(scope="module")
def server(edge: Path) -> Iterator[Background]:
    with Background(Settings(bundle=str(edge), http_port=0)) as running:
        yield running


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held(monkeypatch, "encode")
    yield made
    made.may_go_on.set()


def assert_steps(body: bytes) -> None:
    (output,) = json.loads(body)["outputs"]
    assert output["shape"] == [1, WIDTH]
    np.testing.assert_array_equal(np.float32(output["data"]), STEPS + np.float32(sum(ROW)))


@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_the_server_answers_others_while_a_large_answer_is_written(
    server: Background, held: Held, coding: str
) -> None:
    with RawClient(server.url) as slow, RawClient(server.url) as probe:
        # Two requests, of which the second must be answered after the first.
        slow.send(post(infer_body([ROW]), PATH, f"Accept-Encoding: {coding}") + HEALTH)
        held.wait()
        for _ in range(3):
            probe.send(HEALTH)
            assert probe.response()[0] == 200
        held.may_go_on.set()
        status, headers, body = slow.response()
        assert (status, headers["x-edgeserve-device"]) == (200, "cpu")
        assert headers.get("content-encoding", "identity") == coding
        assert_steps(body if coding == "identity" else gzip.decompress(body))
        assert json.loads(slow.response()[2])["ready"] is True


def test_what_is_not_much_json_is_written_at_once(
    server: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    encode = v2.V2Codec.encode

    def noted(codec: v2.V2Codec, *others: Any) -> v2.Encoded:
        threads.append(threading.current_thread().name)
        return encode(codec, *others)

    monkeypatch.setattr(v2.V2Codec, "encode", noted)
    with RawClient(server.url) as client:
        for extra in (
            {"parameters": {"binary_data_output": True}},
            {},
            {"outputs": [{"name": "y", "parameters": {"classification": 3}}]},
        ):
            client.send(post(infer_body([ROW], **extra), PATH))
            assert client.response()[0] == 200
        monkeypatch.setattr(infer, "_INLINE_BYTES", 4 * WIDTH)
        client.send(REQUEST)
        assert_steps(client.response()[2])
        monkeypatch.setattr(infer, "_INLINE_BYTES", 32_768)
        monkeypatch.setattr(infer, "_LONG_BYTES", 40_000)
        client.send(REQUEST)
        assert_steps(client.response()[2])
    loop, writer, classes, again, long = threads
    assert loop == again
    assert writer == classes != loop
    assert long not in (loop, writer)


def test_the_binary_part_follows_json_in_pieces() -> None:
    codec = v2.V2Codec("m", "1", Interface((), TWO))
    wanted = (RequestedOutput("a", binary=True), RequestedOutput("b", binary=False))
    outputs: Tensors = {"a": np.float32([1, 2]), "b": STEPS}
    encoded = codec.encode(
        V2Request({}, 1, ("a", "b"), wanted=wanted), outputs, Candidate("v", "r", "cpu")
    )
    body = b"".join(encoded.parts)
    split = int(encoded.lines.removeprefix(b"\r\nInference-Header-Content-Length: "))
    document = json.loads(body[:split])
    assert body[split:] == outputs["a"].tobytes()
    np.testing.assert_array_equal(np.float32(document["outputs"][1]["data"]), STEPS)


def test_nan_in_a_large_answer_is_400_or_tokens(server: Background) -> None:
    def request(**extra: Any) -> bytes:
        parameters = {"parameters": {"binary_data_size": 16}}
        entry = {"name": "x", "shape": [1, 4], "datatype": "FP32", **parameters}
        head = json.dumps({"inputs": [entry], **extra}).encode()
        length = f"Inference-Header-Content-Length: {len(head)}"
        return post(head + np.float32([np.nan, 0, 0, 0]).tobytes(), PATH, length)

    with RawClient(server.url) as client:
        client.send(request())
        status, _, body = client.response()
        assert (status, "holds NaN or infinity" in json.loads(body)["error"]) == (400, True)
        client.send(request(parameters={"allow_nan": True}))
        status, _, body = client.response()
        assert (status, np.isnan(json.loads(body)["outputs"][0]["data"]).all()) == (200, True)


def test_what_nobody_foresaw_is_500_and_logged(
    server: Background, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> bytes:
        raise RuntimeError("no JSON today")

    monkeypatch.setattr(answers, "json_data", broken)
    with RawClient(server.url) as client:
        client.send(REQUEST + HEALTH)
        assert client.response()[0] == 500
        assert client.response()[0] == 200
    assert "no JSON today" in caplog.text


def test_a_client_that_leaves_meanwhile_is_answered_by_nobody(
    server: Background, held: Held
) -> None:
    before = failures(server, "canceled")
    with RawClient(server.url) as first, RawClient(server.url) as second:
        first.send(REQUEST)
        held.wait()
        second.send(REQUEST)
        wait_for(lambda: in_flight(server) == 2)
        for client in (first, second):
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with RawClient(server.url) as probe:
        probe.send(HEALTH)
        assert probe.response()[0] == 200
    held.may_go_on.set()
    wait_for(lambda: in_flight(server) == 0)
    assert not held.begun.acquire(blocking=False), "the second was written for nobody"
    assert failures(server, "canceled") == before  # both were answered by the model


def test_what_is_written_counts_as_in_flight(edge: Path, held: Held) -> None:
    settings = Settings(bundle=str(edge), http_port=0, limits=Limits(in_flight=2))
    with (
        Background(settings) as server,
        RawClient(server.url) as first,
        RawClient(server.url) as second,
        RawClient(server.url) as third,
    ):
        first.send(REQUEST)
        second.send(REQUEST)
        wait_for(lambda: in_flight(server) == 2)
        third.send(REQUEST)
        assert third.response()[0] == 503
        held.may_go_on.set()
        for client in (first, second):
            assert_steps(client.response()[2])


def test_a_server_that_ends_owes_what_is_being_written(edge: Path, held: Held) -> None:
    with Background(Settings(bundle=str(edge), http_port=0)) as server:
        with RawClient(server.url) as client:
            client.send(REQUEST)
            held.wait()
            threading.Timer(0.3, held.may_go_on.set).start()
            ends = threading.Thread(target=server.stop)
            ends.start()
            status, headers, body = client.response()
            ends.join()
        assert (status, headers["connection"]) == (200, "close")
        assert_steps(body)


# in pieces

TWO = (TensorSpec("a", "FP32", ("n",)), TensorSpec("b", "FP32", ("n",)))
CANDIDATE = Candidate("v", "r", "cpu")


def encoded(array: Array, dtype: str, limits: Limits | None = None, **how: Any) -> bytes:
    spec = TensorSpec("y", dtype, tuple("abcd"[: array.ndim]))
    codec = v2.V2Codec("m", "1", Interface((), (spec,)), limits=limits)
    request = V2Request({}, 1, ("y",), wanted=(RequestedOutput("y", binary=False),), **how)
    return b"".join(codec.encode(request, {"y": array}, CANDIDATE).parts)


ARRAYS = {
    "FP32": st.floats(width=32) | st.just(float("nan")),
    "FP64": st.floats(),
    "UINT8": st.integers(0, 255),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "BOOL": st.booleans(),
    "BYTES": st.text(max_size=5).map(str.encode),
}


@given(st.sampled_from(sorted(ARRAYS)), st.integers(2, 9), st.data())
def test_pieces_are_the_whole(dtype: str, rows: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(ARRAYS[dtype], min_size=3 * rows, max_size=3 * rows))
    array = np.array(values, TensorSpec("y", dtype, ()).numpy_dtype).reshape(3, rows).T
    whole = encoded(array, dtype, allow_nan=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "_PIECE", data.draw(st.integers(8, 40)))
        patch.setattr(answers, "_TEXT", data.draw(st.integers(1, 8)))
        assert encoded(array, dtype, allow_nan=True) == whole
    (output,) = json.loads(whole)["outputs"]
    if dtype == "BYTES":
        assert output["data"] == [text.decode() for text in array.reshape(-1)]
    else:
        np.testing.assert_array_equal(np.array(output["data"], array.dtype), array.reshape(-1))


@pytest.mark.parametrize(
    ("texts", "size"), [(3, 10), (2_000, 20_000), (10_000, 10), (10_000, 2_000)]
)
def test_texts_count_with_their_length(
    texts: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.array([b"a" * size] * texts, object)
    spec = TensorSpec("y", "BYTES", ("n",))
    codec = v2.V2Codec("m", "1", Interface((), (spec,)))
    request = V2Request({}, 1, ("y",), wanted=(RequestedOutput("y", binary=False),))
    found = codec.written_bytes(request, {"y": array})
    assert texts * size <= found <= texts * (size + 9)
    written = []
    json_data = answers.json_data

    def noted(name: str, array: Array, *others: Any, **how: Any) -> bytes:
        written.append(sum(map(len, array)))
        return json_data(name, array, *others, **how)

    monkeypatch.setattr(answers, "json_data", noted)
    body = b"".join(codec.encode(request, {"y": array}, CANDIDATE).parts)
    assert json.loads(body)["outputs"][0]["data"] == ["a" * size] * texts
    assert max(written) < 65_536 + size
    assert sum(written) == texts * size


def test_an_answer_in_pieces_is_bounded_while_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = []
    json_data = answers.json_data

    def noted(name: str, array: Array, *others: Any, **how: Any) -> bytes:
        written.append(array.nbytes)
        return json_data(name, array, *others, **how)

    monkeypatch.setattr(answers, "json_data", noted)
    array = np.linspace(0, 1, 500_000, dtype=np.float32)
    with pytest.raises(InvalidInput, match="the answer is larger than 2500000 bytes"):
        encoded(array, "FP32", Limits(output_bytes=2_500_000))
    assert sum(written) < array.nbytes
    encoded(array, "FP32")
    assert max(written) <= 65_536
