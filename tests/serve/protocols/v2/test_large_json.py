"""Large JSON is read on a thread, in pieces, and nothing else about it is different."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols import inference as infer
from edgeserve.serve.protocols.v2 import codec as v2
from edgeserve.serve.protocols.v2 import document
from edgeserve.serve.protocols.v2.request import V2Request
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.server import Settings
from edgeserve.tensors import Interface, TensorSpec
from edgeserve.wire import json as json_data
from edgeserve.wire import text as wire_text
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.held import HEALTH, Held, failures, in_flight
from tests.serve.repositories import version
from tests.waiting import wait_for

PADDING = b" " * 40_000


def large(rows: list[list[float]], **extra: Any) -> bytes:
    return infer_body(rows, **extra).replace(b'"inputs": [', b'"inputs": [' + PADDING)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    made = Held(monkeypatch, "decode")
    yield made
    made.may_go_on.set()


@pytest.mark.parametrize("coding", ["plain", "gzip"])
def test_the_server_answers_others_while_large_json_is_read(
    server: Background, held: Held, coding: str
) -> None:
    body, headers = large([[1, 2, 3, 4]]), ("X-Any: 1",)
    if coding == "gzip":
        body, headers = gzip.compress(body), ("Content-Encoding: gzip",)
    with RawClient(server.url) as slow, RawClient(server.url) as probe:
        # Two requests, of which the second must be answered after the first.
        slow.send(post(body, "/v2/models/linear/infer", *headers) + HEALTH)
        held.wait()
        for _ in range(3):
            probe.send(HEALTH)
            assert probe.response()[0] == 200
        held.may_go_on.set()
        status, _, answer = slow.response()
        assert (status, "outputs" in json.loads(answer)) == (200, True)
        assert json.loads(slow.response()[2])["ready"] is True


def test_small_json_is_read_at_once(server: Background, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    decode = v2.V2Codec.decode

    def noted(codec: v2.V2Codec, body: bytes, header_length: int | None) -> V2Request:
        threads.append(threading.current_thread().name)
        return decode(codec, body, header_length)

    monkeypatch.setattr(v2.V2Codec, "decode", noted)
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": 16}}]}).encode()
    length = f"Inference-Header-Content-Length: {len(head)}"
    with RawClient(server.url) as client:
        for request in (
            post(infer_body([[1, 2, 3, 4]])),
            post(head + bytes(16), "/v2/models/linear/infer", length),
            post(large([[1, 2, 3, 4]])),
        ):
            client.send(request)
            assert client.response()[0] == 200
    assert threads[0] == threads[1] != threads[2]


def test_mistakes_in_large_json_are_400(server: Background) -> None:
    before = failures(server, "invalid")
    with RawClient(server.url) as client:
        for body, words in (
            (large([[1, 2, 3, 4]])[:-1], "the body is not JSON"),
            (large([[1, 2, 3]]), "expected 4 elements"),
        ):
            client.send(post(body))
            status, _, answer = client.response()
            assert status == 400
            assert words in json.loads(answer)["error"]
        client.send(post(large([[1, 2, 3, 4]])))
        assert client.response()[0] == 200
    assert failures(server, "invalid") == before + 2


def test_a_client_that_leaves_meanwhile_is_not_served(server: Background, held: Held) -> None:
    before = failures(server, "canceled")
    with RawClient(server.url) as client:
        client.send(post(large([[1, 2, 3, 4]])))
        held.wait()
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    held.may_go_on.set()
    wait_for(lambda: failures(server, "canceled") == before + 1)


def test_reading_takes_of_the_requests_own_time(server: Background, held: Held) -> None:
    with RawClient(server.url) as client:
        client.send(post(large([[1, 2, 3, 4]], parameters={"timeout": 1000})))
        held.wait()
        time.sleep(0.002)
        held.may_go_on.set()
        assert client.response()[0] == 504
        client.send(post(large([[1, 2, 3, 4]], parameters={"timeout": 20_000_000})))
        assert client.response()[0] == 200


def test_what_is_read_counts_as_in_flight(bundle: Path, held: Held) -> None:
    settings = Settings(bundle=str(bundle), http_port=0, limits=Limits(in_flight=2))
    with (
        Background(settings) as server,
        RawClient(server.url) as first,
        RawClient(server.url) as second,
        RawClient(server.url) as third,
    ):
        for client in (first, second):
            client.send(post(large([[1, 2, 3, 4]])))
            held.wait()
        third.send(post(infer_body([[1, 2, 3, 4]])))
        status, headers, _ = third.response()
        assert (status, headers["retry-after"]) == (503, "1")
        held.may_go_on.set()
        assert [c.response()[0] for c in (first, second)] == [200, 200]


def test_a_model_that_is_replaced_meanwhile_answers_as_its_successor(
    tmp_path: Path, held: Held
) -> None:
    folder = tmp_path / "models"
    version(folder, "m", 1, 1)
    settings = Settings(repository=str(folder), http_port=0)
    with Background(settings) as server, RawClient(server.url) as client:
        client.send(post(large([[0, 0, 0, 0]]), "/v2/models/m/infer"))
        held.wait()
        old = server._service._repository.find("m")  # type: ignore[union-attr]
        version(folder, "m", 2, 2)
        server.hang_up()
        wait_for(lambda: old.engine is None)
        held.may_go_on.set()
        status, _, body = client.response()
        assert (status, json.loads(body)["outputs"][0]["data"]) == (200, [2.0] * 4)


# in pieces

SPEC = TensorSpec("x", "FP64", ("a", "b", "c"))
VALUES = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60)


def array_of(text: str, shape: tuple[int, ...], spec: TensorSpec = SPEC) -> Any:
    """Decoded, or what was wrong."""
    codec = v2.V2Codec("m", "1", Interface((spec,), ()))
    body = '{"inputs":[{"name":"x","shape":%s,"datatype":"%s","data":%s}]}'
    try:
        return codec.decode((body % (list(shape), spec.dtype, text)).encode(), None).inputs["x"]
    except InvalidInput as error:
        return str(error)


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 12)),
    st.sampled_from(["flat", "nested"]),
    st.sampled_from([(",", ":"), (" , ", ": "), (",\n\t", ":")]),
    st.data(),
)
def test_pieces_are_read_as_the_whole(
    shape: tuple[int, int, int], form: str, separators: tuple[str, str], data: st.DataObject
) -> None:
    size = int(np.prod(shape))
    values = np.array(data.draw(st.lists(VALUES, min_size=size, max_size=size)), np.float64)
    values = values.reshape(shape)
    plain = values.reshape(-1).tolist() if form == "flat" else values.tolist()
    text = json.dumps(plain, separators=separators)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_data, "_PIECE", data.draw(st.integers(24, 200)))
        np.testing.assert_array_equal(array_of(text, shape), values)


@pytest.mark.parametrize("dtype", ["FP32", "FP64", "INT8", "UINT64", "BOOL"])
@pytest.mark.parametrize(
    "text",
    [
        "[[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]",
        "[[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11]]",
        "[[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11], 12]",
        "[1, 2, 3, 4, 5, 6, [7, 8, 9, 10, 11, 12]]",
        "[[[[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]]]",
        '[1, 2, 3, 4, 5, 6, "7, 8, 9, 10", 11, 12]',
        '["a, b, c, d, e, f, g, h, i, j, k, l, m, n, o"]',
        "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1e999]",
        "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, NaN]",
        "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, null]",
        "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, ]",
        "[1, 2, 3, 4, 5, 6, , 7, 8, 9, 10, 11, 12]",
        "[true, false, true, true, true, true, true, true, false, false, true, true]",
        "[" * 12 + "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12" + "]" * 12,
        "[[], [], [], [], [], [], [], [], [], [], []]",
        "[" + " " * 90 + "]",
        "[1" + " " * 90 + ", 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]",
        "[" + "9" * 80 + ", 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]",
        "{}",
        "17",
    ],
)
def test_what_is_wrong_is_found_in_pieces_too(
    text: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = TensorSpec("x", dtype, ("n",))
    whole = array_of(text, (12,), spec)
    monkeypatch.setattr(json_data, "_PIECE", 10)
    pieces = array_of(text, (12,), spec)
    if isinstance(whole, str):
        assert isinstance(pieces, str)
        assert pieces.startswith(("input 'x' data: ", "the body is not JSON"))
    else:
        np.testing.assert_array_equal(pieces, whole)


def test_large_documents_are_plain_json(monkeypatch: pytest.MonkeyPatch) -> None:
    """What only general objects can be made of is bounded, whatever else is in it."""
    monkeypatch.setattr(document, "GENERAL_BYTES", 2_000)
    assert np.isnan(array_of("[1, NaN]", (2,), TensorSpec("x", "FP32", ("n",)))[1])
    padded = "[1, NaN" + " " * 2_000 + "]"
    said = array_of(padded, (2,), TensorSpec("x", "FP32", ("n",)))
    assert "NaN and Infinity are read in up to 2000 bytes of JSON: send binary data" in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" + "1," * 99 + "1]", "expected 12 elements for shape [12], got 100"),
        ("[" + "[]," * 99 + "[]]", "expected 12 elements for shape [12], got 100"),
        ("[" + "[]," * 11 + "[]" + " " * 40 + "]", "expected 12 FP32 values, in one list or"),
        ("[" + "{}," * 11 + "{}" + " " * 40 + "]", "expected 12 FP32 values, in one list or"),
        ("[" + "1," * 11 + "1e39" + " " * 40 + "]", ""),
    ],
)
def test_large_lists_are_counted_before_they_are_parsed(
    text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("general objects were made of a large list")

    monkeypatch.setattr(json_data, "_PIECE", 30)
    monkeypatch.setattr(json_data, "parse_json", refuse)
    found = array_of(text, (12,), TensorSpec("x", "FP32", ("n",)))
    if words:
        assert words in found
    else:
        np.testing.assert_array_equal(found, np.float32([1] * 11 + [np.inf]))


def test_a_batch_that_is_too_large_is_refused_before_it_is_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(json_data, "_PIECE", 30)
    monkeypatch.setattr(json_data.JsonPort, "_in_pieces", None)
    codec = v2.V2Codec("m", "1", Interface((TensorSpec("x", "FP32", ("n",)),), (), max_batch=8))
    data = json.dumps([1] * 12)
    body = f'{{"inputs":[{{"name":"x","shape":[12],"datatype":"FP32","data":{data}}}]}}'
    with pytest.raises(InvalidInput, match="expected a batch of 1 to 8, got 12"):
        codec.decode(body.encode(), None)


def test_the_depth_of_much_json_is_found_across_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_text, "_STEP", 7)
    wire_text.check_depth(b"[" * 100 + b"]" * 100 + b"[{}]" * 300, 100)
    for text in (b"[]" * 300 + b"[" * 101, b"{[" * 50 + b"[" + b"]" * 80, b"[{" * 60):
        with pytest.raises(InvalidInput, match="deeper than 100"):
            wire_text.check_depth(text, 100)


def test_what_waits_to_be_read_is_not_when_its_client_has_left(
    server: Background, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large JSON is read one at a time."""
    monkeypatch.setattr(infer, "_LARGE_BYTES", 32_768)
    request = post(large([[1, 2, 3, 4]]))
    before = failures(server, "canceled")
    with RawClient(server.url) as first:
        first.send(request)
        held.wait()
        with RawClient(server.url) as second:
            second.send(request)
            wait_for(lambda: in_flight(server) == 2)
            reset = struct.pack("ii", 1, 0)
            second.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        assert not held.begun.acquire(timeout=0.2)
        held.may_go_on.set()
        assert first.response()[0] == 200
        wait_for(lambda: failures(server, "canceled") == before + 1)
        assert not held.begun.acquire(blocking=False)
    assert in_flight(server) == 0
