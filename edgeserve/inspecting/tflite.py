"""What a `.tflite` file holds, read from its FlatBuffer."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, Final

from edgeserve.errors import DependencyMissing, SourceError
from edgeserve.inspecting.report import ModelReport, Weight, model_report
from edgeserve.tensors import TensorSpec

_NAMES: Final = {"FLOAT16": "FP16", "FLOAT32": "FP32", "FLOAT64": "FP64", "BFLOAT16": "BF16",
                 "STRING": "BYTES"}  # fmt: skip


def inspect_tflite(path: Path) -> ModelReport:
    """Report on a TFLite file. Raises SourceError, DependencyMissing."""
    try:
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise DependencyMissing(
            "ai-edge-litert", needed_for="reading .tflite", extra="litert"
        ) from None
    content = path.read_bytes()
    try:
        Interpreter(model_content=content)  # verifies every offset; the reader below does not
    except (ValueError, RuntimeError) as error:
        raise SourceError(
            f"{path} is not a whole TFLite model",
            cause=f"{error} ({len(content)} bytes)",
            hint="it may be truncated: copy or convert it again",
        ) from None
    try:
        return _read(path, schema, schema.Model.GetRootAs(content, 0))
    except (struct.error, IndexError, TypeError, AttributeError, ValueError) as error:
        # A FlatBuffer may be sound while the indices in it lead nowhere.
        raise SourceError(f"{path} is a damaged TFLite model", cause=str(error)) from None


def _read(path: Path, schema: Any, model: Any) -> ModelReport:
    graphs = [model.Subgraphs(i) for i in range(model.SubgraphsLength())]
    types, operators = _by_value(schema.TensorType), _by_value(schema.BuiltinOperator)
    codes = [
        _operator(model.OperatorCodes(i), operators) for i in range(model.OperatorCodesLength())
    ]
    first = graphs[0]
    return model_report(
        [path],
        "tflite",
        f"schema {model.Version()}",
        _text(model.Description()) or None,
        (_spec(first.Tensors(first.Inputs(i)), types) for i in range(first.InputsLength())),
        (_spec(first.Tensors(first.Outputs(i)), types) for i in range(first.OutputsLength())),
        (
            codes[graph.Operators(i).OpcodeIndex()]
            for graph in graphs
            for i in range(graph.OperatorsLength())
        ),
        _weights(model, graphs, types),
    )


def _weights(model: Any, graphs: list[Any], types: dict[int, str]) -> list[Weight]:
    """Tensors with data; several may share a buffer, which is counted once."""
    weights, seen = [], set()
    for graph in graphs:
        for i in range(graph.TensorsLength()):
            tensor = graph.Tensors(i)
            buffer = model.Buffers(tensor.Buffer())
            # Files over 2 GB keep their data behind the FlatBuffer, at an offset.
            size = buffer.DataLength() or int(buffer.Size())
            if not size or tensor.Buffer() in seen:
                continue
            seen.add(tensor.Buffer())
            shape = tuple(tensor.Shape(d) for d in range(tensor.ShapeLength()))
            name, dtype = _text(tensor.Name()), _dtype(tensor, types)
            weights.append(Weight(name, dtype, shape, math.prod(shape), size))
    return weights


def _spec(tensor: Any, types: dict[int, str]) -> TensorSpec:
    shape = [tensor.Shape(d) for d in range(tensor.ShapeLength())]
    if tensor.ShapeSignatureLength() == len(shape):
        shape = [tensor.ShapeSignature(d) for d in range(len(shape))]
    dims = tuple(d if d >= 0 else "?" for d in shape)
    return TensorSpec(_text(tensor.Name()), _dtype(tensor, types), dims)


def _operator(code: Any, names: dict[int, str]) -> str:
    if custom := code.CustomCode():
        return _text(custom)
    # Codes past 127 do not fit the older, one-byte field (schema.fbs, table OperatorCode).
    value = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    return names.get(value, f"operator {value}")


def _dtype(tensor: Any, types: dict[int, str]) -> str:
    name = types.get(tensor.Type(), f"type {tensor.Type()}")
    return _NAMES.get(name, name)


def _by_value(enumeration: type) -> dict[int, str]:
    return {v: k for k, v in vars(enumeration).items() if isinstance(v, int)}


def _text(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", errors="replace")
