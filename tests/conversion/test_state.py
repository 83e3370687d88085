"""Models that keep a state between calls: named everywhere, and never shared by requests."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeserve
from edgeserve.bundle import Bundle, VariantFiles
from edgeserve.checking import check
from edgeserve.inspecting import inspect_model
from edgeserve.runtimes import LoadOptions, runtime
from edgeserve.runtimes.detect import resolve_target
from edgeserve.serve.settings.server import Settings
from edgeserve.tensors import Interface, Tensors, TensorSpec
from tests.serve.background import Background
from tests.stateful import iterated_sum_ir, running_sum_ir, running_sum_tflite, svdf_tflite

ROWS = [np.full((1, 4), value, np.float32) for value in (1.0, 10.0, 100.0)]


def made(kind: str, folder: Path) -> Path:
    """A stateful model of this kind; skips where its engine is missing."""
    if kind.startswith("openvino"):
        pytest.importorskip("openvino")
        return running_sum_ir(folder, int(kind.removeprefix("openvino-opset")))
    pytest.importorskip("ai_edge_litert")
    make = {"tflite-resource": running_sum_tflite, "tflite-tensor": svdf_tflite}[kind]
    return make(folder / "model.tflite")


STATES = {
    "openvino-opset3": TensorSpec("state", "FP32", (1, 4)),
    "openvino-opset6": TensorSpec("state", "FP32", (1, 4)),
    "openvino-opset13": TensorSpec("state", "FP32", (1, 4)),
    "tflite-resource": TensorSpec("total", "FP32", (1, 4)),
    "tflite-tensor": TensorSpec("memory", "FP32", (1, 8)),
}


@pytest.mark.parametrize("kind", STATES)
def test_inspect_and_check_name_the_state(tmp_path: Path, kind: str) -> None:
    path = made(kind, tmp_path)
    assert inspect_model(path).state == (STATES[kind],)
    found = [f for f in check(path, [resolve_target("auto")]).findings if f.rule == "state"]
    name = STATES[kind].name
    assert [f.message for f in found] == [
        f"the model keeps a state between calls: '{name}' {STATES[kind].describe()}"
    ]


@pytest.mark.parametrize("kind", STATES)
def test_each_call_of_a_session_starts_anew(tmp_path: Path, kind: str) -> None:
    path = made(kind, tmp_path)
    interface = Interface(*[(TensorSpec(n, "FP32", (1, 4)),) for n in "xy"])
    name, format_name = (
        ("openvino", "openvino-ir") if kind.startswith("openvino") else ("litert", "tflite")
    )
    files = VariantFiles("m", path, format_name, "fp32", interface)
    session = runtime(name).load(files, "cpu", LoadOptions(threads=1, instances=2))
    for row in (*ROWS, *ROWS):
        np.testing.assert_array_equal(session.run({"x": row})["y"], row)
    right: list[bool] = []

    def call(row: Tensors) -> None:
        right.extend(np.array_equal(session.run(row)["y"], row["x"]) for _ in range(50))

    threads = [threading.Thread(target=call, args=({"x": row},)) for row in ROWS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session.close()
    assert right == [True] * 150


def test_a_variable_in_the_body_of_a_loop(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    path = iterated_sum_ir(tmp_path)
    assert inspect_model(path).state == (TensorSpec("inner", "FP32", (1, 1, 4)),)
    interface = Interface(*[(TensorSpec(n, "FP32", (1, 3, 4)),) for n in "xy"])
    files = VariantFiles("m", path, "openvino-ir", "fp32", interface)
    session = runtime("openvino").load(files, "cpu", LoadOptions(threads=1))
    x = np.ones((1, 3, 4), np.float32)
    for _ in range(3):
        np.testing.assert_array_equal(session.run({"x": x})["y"], np.cumsum(x, axis=1))
    session.close()


@pytest.mark.parametrize("kind", ["openvino-opset13", "tflite-resource", "tflite-tensor"])
def test_convert_proves_from_the_initial_state_and_records_it(tmp_path: Path, kind: str) -> None:
    path = made(kind, tmp_path)
    report = edgeserve.convert(path, tmp_path / "m.edge", precision="fp32")
    spec = STATES[kind]
    said = [r for r in report.remarks if "keeps a state between calls" in r]
    assert len(said) == 1
    assert f"'{spec.name}' {spec.describe()}" in said[0]
    manifest = Bundle.open(tmp_path / "m.edge").manifest
    assert [s.name for s in manifest.state]
    assert manifest.interface.max_batch == 0
    with edgeserve.load(tmp_path / "m.edge") as model:
        for row in ROWS:
            np.testing.assert_array_equal(model.run({"x": row})["y"], row)


def recurrent(folder: Path, names: dict[str, str]) -> Path:
    """An LSTM of size 2 whose h and c come in and go out under these names."""
    random = np.random.default_rng(0)
    shape = [1, 1, 2]
    weights = {
        "w": random.normal(size=(1, 8, 4)), "r": random.normal(size=(1, 8, 2)),
    }  # fmt: skip
    node = helper.make_node(
        "LSTM", ["x", "w", "r", "", "", names["h"], names["c"]],
        ["y", names["h out"], names["c out"]], hidden_size=2,
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4])]
        + [helper.make_tensor_value_info(names[n], TensorProto.FLOAT, shape) for n in "hc"],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 2])]
        + [helper.make_tensor_value_info(names[f"{n} out"], TensorProto.FLOAT, shape) for n in "hc"],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )  # fmt: skip
    path = folder / "recurrent.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return path


def test_a_state_that_the_client_keeps_is_named(tmp_path: Path) -> None:
    path = recurrent(tmp_path, {"h": "a", "c": "b", "h out": "o1", "c out": "o2"})
    assert inspect_model(path).passed == (("a", "o1"), ("b", "o2"))
    assert inspect_model(path).state == ()
    found = [
        f.message
        for f in check(path, [resolve_target("auto")]).findings
        if f.rule == "passed-state"
    ]
    said = (
        "the client keeps the model's state: output 'o1' is input 'a' of the next call, "
        "output 'o2' is input 'b' of the next call"
    )
    assert found == [said]
    report = edgeserve.convert(path, tmp_path / "m.edge", precision="fp32")
    assert said in report.remarks


@pytest.mark.parametrize(
    ("taken", "given", "passed"),
    [
        ("state", "stateN", True),
        ("past_key_values.0.key", "present.0.key", True),
        ("h0", "hn", True),
        ("cache_last_channel", "cache_last_channel_next", True),
        ("image", "image_out", False),  # what an image becomes is no state
        ("state", "scores", False),
    ],
)
def test_names_that_exporters_give_a_state(
    tmp_path: Path, taken: str, given: str, passed: bool
) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", [taken], [given])], "g",
        [helper.make_tensor_value_info(taken, TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info(given, TensorProto.FLOAT, [1, 2])],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    assert inspect_model(path).passed == (((taken, given),) if passed else ())


def test_clients_of_a_server_share_no_state(tmp_path: Path) -> None:
    """Eight clients, each with numbers of its own, and none of them asks for a sequence."""
    path = made("openvino-opset13", tmp_path)
    edgeserve.convert(path, tmp_path / "m.edge", precision="fp32", name="sum")
    with Background(Settings(bundle=str(tmp_path / "m.edge"), http_port=0)) as server:

        def ask(number: int) -> list[bool]:
            row = np.full((1, 4), number, np.float32)
            tensor = {
                "name": "x",
                "datatype": "FP32",
                "shape": [1, 4],
                "data": row.ravel().tolist(),
            }
            found = []
            for _ in range(20):
                status, body = post(server.url, {"inputs": [tensor]})
                found.append(status == 200 and body["outputs"][0]["data"] == row.ravel().tolist())
            return found

        with ThreadPoolExecutor(8) as clients:
            assert list(clients.map(ask, range(1, 9))) == [[True] * 20] * 8
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0.0] * 4}
        status, body = post(server.url, {"inputs": [tensor], "parameters": {"sequence_id": 7}})
        assert status == 400
        assert "sequence_id" in body["error"]


def post(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(f"{url}/v2/models/sum/infer", json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
