"""A result without rows is a result, in every form that results have."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory as Segment
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from edgeserve.client import Question, connect
from edgeserve.serve.settings.server import Settings
from tests.serve.background import Background
from tests.serve.conftest import RawClient, post
from tests.serve.found import found_bundle

PATH = "/v2/models/found/infer"
ROWS = {"none": np.float32([[-1, 2], [-3, 4]]), "one": np.float32([[-1, 2], [3, 4]])}
ROWS["no input"] = np.zeros((0, 2), np.float32)


@pytest.fixture(scope="module", params=["never", "always"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Background]:
    """Isolated, tensors without bytes go to another process and back. With a cache they are kept, too."""
    settings = Settings(
        bundle=str(found_bundle(tmp_path_factory.mktemp("found"))), http_port=0, grpc_port=0,
        isolate=request.param, cache=1 << 20, shared_memory="edgeserve-test-",
    )  # fmt: skip
    with Background(settings) as running:
        yield running


def clients(server: Background) -> Iterator[tuple[Any, Any]]:
    for triton, address in (
        (triton_http, server.url.removeprefix("http://")),
        (triton_grpc, server.started.grpc),
    ):
        with triton.InferenceServerClient(address) as client:
            yield triton, client


def inputs(triton: Any, x: np.ndarray) -> list[Any]:
    found = []
    for name, array, datatype in (
        ("x", x, "FP32"),
        ("ids", np.arange(len(x), dtype=np.int64), "INT64"),
    ):
        tensor = triton.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        found.append(tensor)
    return found


@pytest.mark.parametrize("case", ROWS)
def test_tritonclient_gets_what_there_is(server: Background, case: str) -> None:
    x = ROWS[case]
    kept = x[:, 0] > 0
    for triton, client in clients(server):
        for _ in range(2):  # computed, then from the cache
            answer = client.infer("found", inputs(triton, x))
            np.testing.assert_array_equal(answer.as_numpy("boxes"), x[kept])
            np.testing.assert_array_equal(answer.as_numpy("kinds")[:, 0], np.flatnonzero(kept))


@pytest.mark.parametrize("case", ROWS)
def test_classes_of_what_there_is(server: Background, case: str) -> None:
    x = ROWS[case]
    some = bool((x[:, 0] > 0).any())
    for triton, client in clients(server):
        wanted = [triton.InferRequestedOutput(n, class_count=3) for n in ("boxes", "kinds")]
        answer = client.infer("found", inputs(triton, x), outputs=wanted)
        boxes, kinds = answer.as_numpy("boxes"), answer.as_numpy("kinds")
        if some:
            assert boxes.tolist() == [[b"4.000000:1", b"3.000000:0"]]
            assert kinds.tolist() == [[b"1:0"]]
        else:
            assert boxes.shape == kinds.shape == (0,)


@pytest.mark.parametrize("classes", [0, 2])
@pytest.mark.parametrize("as_binary", [False, True])
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_every_form_over_http(
    server: Background, classes: int, as_binary: bool, coding: str
) -> None:
    parameters: dict[str, Any] = {"binary_data": as_binary}
    if classes:
        parameters["classification"] = classes
    document = {
        "inputs": [
            {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [[-1, 2]]},
            {"name": "ids", "shape": [1], "datatype": "INT64", "data": [7]},
        ],
        "outputs": [{"name": "boxes", "parameters": parameters}],
    }
    with RawClient(server.url) as client:
        client.send(post(json.dumps(document).encode(), PATH, f"Accept-Encoding: {coding}"))
        status, head, body = client.response()
    assert status == 200
    length = int(head.get("inference-header-content-length", len(body)))
    (output,) = json.loads(body[:length])["outputs"]
    assert output["shape"] == ([0] if classes else [0, 2])
    assert (output.get("data"), body[length:]) == (None if as_binary else [], b"")
    if as_binary:
        assert output["parameters"] == {"binary_data_size": 0}


def test_no_rows_in_json(server: Background) -> None:
    document = {
        "inputs": [
            {"name": "x", "shape": [0, 2], "datatype": "FP32", "data": []},
            {"name": "ids", "shape": [0], "datatype": "INT64", "data": []},
        ]
    }
    with RawClient(server.url) as client:
        client.send(post(json.dumps(document).encode(), PATH))
        status, _, body = client.response()
    assert (status, [o["shape"] for o in json.loads(body)["outputs"]]) == (200, [[0, 2], [0, 1]])


def test_shared_memory_of_nothing(server: Background) -> None:
    segment = Segment(f"edgeserve-test-{uuid.uuid4().hex}", create=True, size=64)
    segment.buf[:] = b"\xee" * 64
    try:
        for triton, client in clients(server):
            client.register_system_shared_memory("r", f"/{segment.name}", 64)
            x, ids = inputs(triton, ROWS["no input"])
            x.set_shared_memory("r", 0)
            wanted = triton.InferRequestedOutput("boxes")
            wanted.set_shared_memory("r", 16, offset=8)
            answer = client.infer("found", [x, ids], outputs=[wanted])
            output = answer.get_output("boxes")
            shape = output["shape"] if triton is triton_http else list(output.shape)
            assert shape == [0, 2]
            client.unregister_system_shared_memory("r")
        assert bytes(segment.buf) == b"\xee" * 64
    finally:
        segment.close()
        segment.unlink()


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_our_own_client(server: Background, scheme: str) -> None:
    url = server.url if scheme == "http" else f"grpc://{server.started.grpc}"
    with connect(url) as client:
        question = Question({"x": ROWS["none"], "ids": np.int64([1, 2])})
        answer = client.infer("found", question)
        assert {n: a.shape for n, a in answer.outputs.items()} == {"boxes": (0, 2), "kinds": (0, 1)}


@pytest.mark.parametrize("flags", [(), ("--top", "3"), ("--json",)])
def test_infer_prints_it(
    server: Background, tmp_path: Path, flags: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    from edgeserve.cli.main import main

    file, saved = tmp_path / "x.npz", tmp_path / "y.npz"
    np.savez(file, x=ROWS["none"], ids=np.int64([1, 2]))
    with pytest.raises(SystemExit) as ended:
        main(["infer", server.url, str(file), "-o", str(saved), *flags])
    assert ended.value.code == 0, capsys.readouterr().err
    assert "boxes" in capsys.readouterr().out
    with np.load(saved) as arrays:
        assert arrays["boxes"].shape == (0, 2)
