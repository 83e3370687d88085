"""Reports on ONNX files: what is counted, and what is refused."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeserve.errors import SourceError
from edgeserve.formats.report import Share, Weight
from edgeserve.inspecting import inspect_model
from edgeserve.tensors import TensorSpec
from tests.bundles import linear_model


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    file = folder / "model.onnx"
    onnx.save(model, file)
    return file


def test_the_linear_model(tmp_path: Path) -> None:
    file = saved(tmp_path, linear_model())
    report = inspect_model(file)
    assert (report.format, report.version) == ("onnx", "IR 8, ai.onnx 17")
    assert report.inputs == (TensorSpec("x", "FP32", ("batch", 4)),)
    assert report.outputs == (TensorSpec("y", "FP32", ("batch", 3)),)
    assert report.operators == {"Add": 1, "MatMul": 1, "Relu": 1}
    assert report.parameters == 15
    assert report.weights == (Share("FP32", 2, 15, 60),)
    assert report.largest[0] == Weight("w", "FP32", (4, 3), 12, 48)
    assert report.size_bytes == file.stat().st_size
    assert report.graph_bytes == file.stat().st_size - 60
    assert report.files[0].sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_subgraphs_constants_and_other_domains_are_counted(tmp_path: Path) -> None:
    def branch(name: str, op: str) -> onnx.GraphProto:
        constant = helper.make_node(
            "Constant", [], ["c"], value=numpy_helper.from_array(np.ones(5, np.float32), "c")
        )
        return helper.make_graph(
            [constant, helper.make_node(op, ["x", "c"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [5])],
        )

    graph = helper.make_graph(
        [
            helper.make_node(
                "If",
                ["on"],
                ["z"],
                then_branch=branch("a", "Add"),
                else_branch=branch("b", "Mul"),
            ),
            helper.make_node("FusedGelu", ["z"], ["y"], domain="com.acme"),
        ],
        "choice",
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [5]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    )
    report = inspect_model(saved(tmp_path, model))
    assert report.operators == {"Constant": 2, "Add": 1, "If": 1, "Mul": 1, "com.acme.FusedGelu": 1}
    assert report.parameters == 10
    assert report.outputs == (TensorSpec("y", "FP32", ("?",)),)
    assert report.version.endswith("ai.onnx 17, com.acme 1")


@pytest.mark.parametrize(
    ("data_type", "dims", "name", "size"),
    [
        (TensorProto.FLOAT16, [3, 4], "FP16", 24),
        (TensorProto.BFLOAT16, [3], "BF16", 6),
        (TensorProto.INT8, [7], "INT8", 7),
        (TensorProto.INT64, [], "INT64", 8),
        (TensorProto.INT4, [5], "INT4", 3),
        (TensorProto.UINT4, [4], "UINT4", 2),
        (TensorProto.FLOAT8E4M3FN, [3], "FLOAT8E4M3FN", 3),
        (TensorProto.BOOL, [2], "BOOL", 2),
    ],
)
def test_sizes_of_types(
    tmp_path: Path, data_type: int, dims: list[int], name: str, size: int
) -> None:
    model = linear_model()
    model.graph.initializer.add(name="t", data_type=data_type, dims=dims, raw_data=b"\0" * size)
    report = inspect_model(saved(tmp_path, model))
    elements = int(np.prod(dims))
    assert Share(name, 1, elements, size) in report.weights


def test_strings_and_sequences(tmp_path: Path) -> None:
    model = linear_model()
    model.graph.initializer.append(
        helper.make_tensor("labels", TensorProto.STRING, [2], [b"cat", b"horse"])
    )
    model.graph.output.append(
        helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None)
    )
    report = inspect_model(saved(tmp_path, model))
    assert Share("BYTES", 1, 2, 8) in report.weights
    assert report.outputs[1] == TensorSpec("list", "sequence", ())


@pytest.fixture
def external(tmp_path: Path) -> Path:
    file = tmp_path / "model.onnx"
    (tmp_path / "weights").mkdir()
    onnx.save_model(
        linear_model(),
        file,
        save_as_external_data=True,
        location="weights/model.data",
        size_threshold=0,
    )
    return file


def test_external_data_are_counted_and_not_loaded(external: Path) -> None:
    report = inspect_model(external)
    data = external.parent / "weights" / "model.data"
    assert [f.name for f in report.files] == ["model.onnx", "weights/model.data"]
    assert report.size_bytes == external.stat().st_size + data.stat().st_size
    assert report.weights == (Share("FP32", 2, 15, 60),)


def test_missing_external_data_are_named(external: Path) -> None:
    (external.parent / "weights" / "model.data").unlink()
    with pytest.raises(SourceError, match="lacks its external data") as caught:
        inspect_model(external)
    assert caught.value.cause == "weights/model.data is not beside it"


def test_truncated_external_data_are_named(external: Path) -> None:
    data = external.parent / "weights" / "model.data"
    data.write_bytes(data.read_bytes()[:20])
    with pytest.raises(SourceError, match=r"model\.data is truncated") as caught:
        inspect_model(external)
    assert "got 20" in str(caught.value.cause)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", ""])
def test_external_data_outside_the_folder_are_refused(external: Path, location: str) -> None:
    model = onnx.load(external, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    external.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="outside its folder"):
        inspect_model(external)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = linear_model().SerializeToString()
    file = tmp_path / "cut.onnx"
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(SourceError):
            inspect_model(file)


def test_a_truncated_model_is_told_from_another_file(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(linear_model().SerializeToString()[:100])
    with pytest.raises(SourceError, match="not a whole ONNX model") as caught:
        inspect_model(file)
    assert caught.value.hint == "it may be truncated: copy or export it again"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "is not an ONNX model"),
        (b"PK\x03\x04" + b"\0" * 100, "is not an ONNX model"),
        (b"hello, world\n", "is not an ONNX model"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "is not an ONNX model"),
    ],
)
def test_what_is_no_model(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        inspect_model(file)
    assert "edgeserve inspect reads" in str(caught.value.hint)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300))
def test_any_bytes_raise_nothing_but_source_error(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "any"
    file.write_bytes(data)
    with contextlib.suppress(SourceError):
        inspect_model(file)


def flipped(data: bytes, position: int, value: int) -> bytes:
    position %= len(data)
    return data[:position] + bytes([value]) + data[position + 1 :]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_byte_raises_nothing_but_source_error(
    tmp_path: Path, position: int, value: int
) -> None:
    file = tmp_path / "any.onnx"
    file.write_bytes(flipped(linear_model().SerializeToString(), position, value))
    with contextlib.suppress(SourceError):
        inspect_model(file)
