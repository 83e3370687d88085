"""A TFLite detector with the head of TensorFlow's SSDs: four outputs, NMS inside. It finds what is red, green or blue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SIZE, CELLS = 64, 8
_HEAD = "TFLite_Detection_PostProcess"


def ssd_tflite(path: Path, *, shapes: bool = True) -> Path:
    """`image` FP32[1,64,64,3] from 0 to 1; classes are counted without the background. Without `shapes` the file does
    not say those of the outputs, as TensorFlow's exporter leaves them out."""
    from ai_edge_litert import schema_py_generated as schema
    from flatbuffers import flexbuffers

    builtin, padding = schema.BuiltinOperator, schema.Padding
    pool = schema.Pool2DOptionsT()
    pool.strideH = pool.strideW = pool.filterHeight = pool.filterWidth = SIZE // CELLS
    pool.padding = padding.VALID
    joined = schema.ConcatenationOptionsT()
    joined.axis = 2
    count = CELLS * CELLS
    places = (np.arange(CELLS) + 0.5) / CELLS
    y, x = (g.ravel() for g in np.meshgrid(places, places, indexing="ij"))
    size = np.full_like(x, 1 / CELLS)
    anchors = np.stack([y, x, size, size], axis=1).astype(np.float32)

    found = [[1, 10, 4], [1, 10], [1, 10], [1]] if shapes else [[]] * 4
    graph = schema.SubGraphT()
    graph.tensors = [
        _tensor("image", [1, SIZE, SIZE, 3]),
        _tensor("pooled", [1, CELLS, CELLS, 3]),
        _tensor("shape", [3], buffer=1, kind=schema.TensorType.INT32),
        _tensor("colours", [1, count, 3]),
        _tensor("background", [1, count, 1], buffer=2),
        _tensor("scores", [1, count, 4]),
        _tensor("offsets", [1, count, 4], buffer=3),
        _tensor("anchors", [count, 4], buffer=4),
        *(_tensor(_HEAD + (f":{i}" if i else ""), dims) for i, dims in enumerate(found)),
    ]
    graph.inputs, graph.outputs = [0], [8, 9, 10, 11]
    head = _operator(3, [6, 5, 7], [8, 9, 10, 11])
    settings = flexbuffers.Dumps(
        {
            "max_detections": 10,
            "max_classes_per_detection": 1,
            "detections_per_class": 10,
            "use_regular_nms": False,
            "nms_score_threshold": 0.3,
            "nms_iou_threshold": 0.5,
            "num_classes": 3,
            "y_scale": 10.0,
            "x_scale": 10.0,
            "h_scale": 5.0,
            "w_scale": 5.0,
        }
    )
    head.customOptions = np.frombuffer(bytes(settings), np.uint8)
    graph.operators = [
        _operator(0, [0], [1], schema.BuiltinOptions.Pool2DOptions, pool),
        _operator(1, [1, 2], [3]),
        _operator(2, [4, 3], [5], schema.BuiltinOptions.ConcatenationOptions, joined),
        head,
    ]
    kinds = [builtin.AVERAGE_POOL_2D, builtin.RESHAPE, builtin.CONCATENATION, builtin.CUSTOM]
    constants = [
        np.array([1, count, 3], np.int32),
        np.zeros((1, count, 1), np.float32),
        np.zeros((1, count, 4), np.float32),
        anchors,
    ]
    return _write(path, kinds, graph, constants)


def _tensor(name: str, shape: list[int], buffer: int = 0, kind: int | None = None) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    tensor = schema.TensorT()
    tensor.name, tensor.buffer, tensor.shape = name, buffer, shape
    tensor.type = schema.TensorType.FLOAT32 if kind is None else kind
    return tensor


def _operator(
    code: int, inputs: list[int], outputs: list[int], kind: int = 0, options: Any = None
) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, inputs, outputs
    operator.builtinOptionsType, operator.builtinOptions = kind, options
    return operator


def _write(path: Path, kinds: list[int], graph: Any, constants: list[Any]) -> Path:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT()
    model.version, model.operatorCodes, model.buffers = 3, [], [schema.BufferT()]
    for kind in kinds:
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = kind, min(kind, 127), 1
        if kind == schema.BuiltinOperator.CUSTOM:
            code.customCode = _HEAD
        model.operatorCodes.append(code)
    for constant in constants:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(constant.tobytes(), np.uint8)
        model.buffers.append(buffer)
    model.subgraphs = [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path
