"""Reports on TFLite files, made here with the schema's own writer."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeserve.errors import SourceError
from edgeserve.formats.report import Share, Weight
from edgeserve.inspecting import inspect_model
from edgeserve.tensors import TensorSpec

flatbuffers = pytest.importorskip("flatbuffers")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")


def tflite_model() -> bytes:
    """y = x + w, then a custom operator; two tensors share the buffer of w."""
    weight = np.arange(3, dtype=np.float32)
    model = schema.ModelT()
    model.version = 3
    model.description = "made by a test"
    empty, data = schema.BufferT(), schema.BufferT()
    data.data = np.frombuffer(weight.tobytes(), np.uint8)
    model.buffers = [empty, data]
    add, custom = schema.OperatorCodeT(), schema.OperatorCodeT()
    add.builtinCode = add.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    custom.builtinCode = custom.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    custom.customCode = "AcmeOp"
    model.operatorCodes = [add, custom]
    graph = schema.SubGraphT()
    graph.tensors = [
        _tensor(n, b) for n, b in (("x", 0), ("w", 1), ("again", 1), ("z", 0), ("y", 0))
    ]
    graph.tensors[0].shapeSignature = [-1, 3]
    graph.operators = [_operator(0, [0, 1], [3]), _operator(1, [3, 2], [4])]
    graph.inputs, graph.outputs = [0], [4]
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _tensor(name: str, buffer: int) -> object:
    tensor = schema.TensorT()
    tensor.name, tensor.buffer = name, buffer
    tensor.shape, tensor.type = [1, 3], schema.TensorType.FLOAT32
    return tensor


def _operator(code: int, inputs: list[int], outputs: list[int]) -> object:
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, inputs, outputs
    return operator


@pytest.fixture
def tflite(tmp_path: Path) -> Path:
    file = tmp_path / "model.tflite"
    file.write_bytes(tflite_model())
    return file


def test_a_model_with_a_custom_operator(tflite: Path) -> None:
    report = inspect_model(tflite)
    assert (report.format, report.version, report.producer) == (
        "tflite",
        "schema 3",
        "made by a test",
    )
    assert report.inputs == (TensorSpec("x", "FP32", ("?", 3)),)
    assert report.outputs == (TensorSpec("y", "FP32", (1, 3)),)
    assert report.operators == {"ADD": 1, "AcmeOp": 1}
    assert report.weights == (Share("FP32", 1, 3, 12),)  # a shared buffer counts once
    assert report.largest == (Weight("w", "FP32", (1, 3), 3, 12),)
    assert report.size_bytes == tflite.stat().st_size


def test_every_truncation_is_refused(tflite: Path) -> None:
    data = tflite.read_bytes()
    for length in range(8, len(data) - 8, 8):
        tflite.write_bytes(data[:length])
        with pytest.raises(SourceError):
            inspect_model(tflite)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.integers(8, 10_000), st.integers(0, 255))
def test_a_damaged_byte_raises_nothing_but_source_error(
    tmp_path: Path, position: int, value: int
) -> None:
    data = bytearray(tflite_model())
    data[8 + (position - 8) % (len(data) - 8)] = value
    file = tmp_path / "damaged.tflite"
    file.write_bytes(data)
    with contextlib.suppress(SourceError):
        inspect_model(file)
