"""Outputs as their best classes: exact scores, and the names of the output that was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from onnx import TensorProto, helper

from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols.v2.classes import Classes, check_scores
from edgeserve.serve.settings.server import Settings
from edgeserve.tensors import DTYPES, Interface, TensorSpec
from tests.bundles import write_bundle
from tests.serve.background import Background
from tests.serve.conftest import RawClient


def best(
    array: Any, count: int, shape: tuple[int | str, ...], *, dtype: str = "FP32", max_batch: int = 0
) -> np.ndarray:
    spec = TensorSpec("y", dtype, shape)
    classes = Classes(Interface((), (spec,), max_batch), {"y": ["cat", "dog"]})
    return classes.best("y", np.asarray(array, DTYPES[dtype]), count)


def test_score_index_and_the_name_if_there_is_one() -> None:
    texts = best([[0.25, 2, 1]], 2, ("batch", 3), max_batch=8)
    assert texts.tolist() == [[b"2.000000:1:dog", b"1.000000:2"]]


@pytest.mark.parametrize(
    ("dtype", "row", "texts"),
    [
        ("INT64", [2**53, 2**53 + 1, 2**53 - 1], ["9007199254740993:1", "9007199254740992:0"]),
        ("INT64", [-(2**63), 2**63 - 1, 0], ["9223372036854775807:1", "0:2"]),
        ("UINT64", [2**64 - 2, 2**64 - 1, 0], ["18446744073709551615:1", "18446744073709551614:0"]),
        ("INT8", [-128, 127, 0], ["127:1", "0:2"]),
        ("UINT8", [0, 1, 255], ["255:2", "1:1"]),
        ("FP64", [0.1234567891, 1e20, 1], ["100000000000000000000.000000:1", "1.000000:2"]),
        ("FP16", [0.5, 0.25, 1], ["1.000000:2", "0.500000:0"]),
        ("FP32", [np.nan, 1, np.inf], ["inf:2", "1.000000:1"]),
        ("FP32", [1, 1, 1], ["1.000000:0", "1.000000:1"]),
    ],
)
def test_scores_keep_their_type(dtype: str, row: list[Any], texts: list[str]) -> None:
    spec = TensorSpec("y", dtype, ("batch", 3))
    found = Classes(Interface((), (spec,), 8)).best("y", np.array([row], DTYPES[dtype]), 2)
    assert [t.decode() for t in found[0]] == texts


@pytest.mark.parametrize(
    ("shape", "max_batch", "array", "expected"),
    [
        (("batch", 3), 8, np.zeros((2, 3)), (2, 2)),
        (("batch", 3), 8, np.zeros((2, 1)), (2, 1)),  # fewer classes than asked for
        (("batch",), 8, np.zeros(3), (3, 1)),  # one score a row, not three of one row
        (("batch", 2, 3), 8, np.zeros((4, 2, 3)), (4, 2)),
        (("batch", "n"), 8, np.zeros((3, 0)), (3, 0)),
        (("n", 3), 0, np.zeros((2, 3)), (2, 2)),
        ((1, 3), 0, np.zeros((1, 3)), (2,)),
        ((3,), 0, np.zeros(3), (2,)),
        ((), 0, np.zeros(()), (1,)),
        (("n", 3), 0, np.zeros((0, 3)), (0,)),
        (("n",), 0, np.zeros(0), (0,)),
    ],
)
def test_rows_are_those_of_the_model(
    shape: tuple[int | str, ...], max_batch: int, array: np.ndarray, expected: tuple[int, ...]
) -> None:
    assert best(array, 2, shape, max_batch=max_batch).shape == expected


@pytest.mark.parametrize("dtype", ["BOOL", "BYTES", "BF16"])
def test_types_without_an_order_have_no_classes(dtype: str) -> None:
    with pytest.raises(InvalidInput, match="does not hold scores"):
        check_scores(TensorSpec("y", dtype, ("batch", 3)))


# A served model with two outputs

X = np.float32([[1, 3, 2], [6, 5, 4]])


def two_outputs(folder: Path) -> Path:
    """`two`: y = x FP32[batch,3], z = -x FP32[batch,3]."""
    info, shape = helper.make_tensor_value_info, ["batch", 3]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
        "two",
        [info("x", TensorProto.FLOAT, shape)],
        [info("y", TensorProto.FLOAT, shape), info("z", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    specs = {n: TensorSpec(n, "FP32", ("batch", 3)) for n in "xyz"}
    interface = Interface((specs["x"],), (specs["y"], specs["z"]), max_batch=8)
    return write_bundle(folder, "two", model, interface, {"x": X}, {"y": X, "z": -X})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("repository")
    (folder / "two" / "1").mkdir(parents=True)
    two_outputs(folder / "two" / "1")
    (folder / "two" / "config.pbtxt").write_text(
        'max_batch_size: 8 output [{ name: "y" }, { name: "z" label_filename: "names.txt" }]'
    )
    (folder / "two" / "names.txt").write_text("cat\ndog\n")
    settings = Settings(repository=str(folder), http_port=0, grpc_port=0)
    with Background(settings) as running:
        yield running


@pytest.mark.parametrize("binary", [False, True])
def test_names_are_those_of_the_output(server: Background, binary: bool) -> None:
    for triton, address in (
        (triton_http, server.url.removeprefix("http://")),
        (triton_grpc, server.started.grpc),
    ):
        tensor = triton.InferInput("x", [2, 3], "FP32")
        tensor.set_data_from_numpy(X)
        how: dict[str, Any] = {"class_count": 2}
        if triton is triton_http:
            how["binary_data"] = binary
        wanted = [triton.InferRequestedOutput(n, **how) for n in "yz"]
        with triton.InferenceServerClient(address) as client:
            answer = client.infer("two", [tensor], outputs=wanted)
        texts = {
            n: [t if isinstance(t, str) else t.decode() for t in answer.as_numpy(n).reshape(-1)]
            for n in "yz"
        }
        assert texts == {
            "y": ["3.000000:1", "2.000000:2", "6.000000:0", "5.000000:1"],
            "z": ["-1.000000:0:cat", "-2.000000:2", "-4.000000:2", "-5.000000:1:dog"],
        }


def test_the_configuration_says_whose_names_they_are(server: Background) -> None:
    with RawClient(server.url) as client:
        client.send(b"GET /v2/models/two/config HTTP/1.1\r\nHost: localhost\r\n\r\n")
        config = json.loads(client.response()[2])
    with triton_grpc.InferenceServerClient(server.started.grpc) as client:
        told = client.get_model_config("two", as_json=True)["config"]
    for one in (config, told):
        assert [o.get("label_filename", "") for o in one["output"]] == ["", "names.txt"]
        names = json.loads(one["parameters"]["edgeserve_labels"]["string_value"])
        assert names == {"z": ["cat", "dog"]}


def test_names_for_an_output_that_there_is_not_are_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "two" / "1").mkdir(parents=True)
    two_outputs(tmp_path / "two" / "1")
    (tmp_path / "two" / "config.pbtxt").write_text(
        'output [{ name: "gone" label_filename: "names.txt" }]'
    )
    (tmp_path / "two" / "names.txt").write_text("cat\n")
    with Background(Settings(repository=str(tmp_path), http_port=0)):
        pass
    assert "label_filename is for 'gone', which is not an output" in caplog.text
