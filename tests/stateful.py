"""Small models that keep a state between calls: each adds its input to a running sum, x and y FP32[1,4]."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def running_sum_ir(folder: Path, opset: int = 13) -> Path:
    """An IR with one variable, `state`."""
    import openvino as ov

    op: Any = __import__("openvino", fromlist=[f"opset{opset}"])
    op = getattr(op, f"opset{opset}")
    x = op.parameter([1, 4], np.float32, name="x")
    x.output(0).set_names({"x"})
    zero = op.constant(np.zeros((1, 4), np.float32))
    total = op.add(op.read_value(zero, "state"), x)
    kept = op.assign(total, "state")
    result = op.result(op.matmul(total, op.constant(np.eye(4, dtype=np.float32)), False, False))
    result.output(0).set_names({"y"})
    path = folder / "running-sum.xml"
    ov.save_model(ov.Model([result], [kept], [x], "running_sum"), path, compress_to_fp16=False)
    return path


def iterated_sum_ir(folder: Path) -> Path:
    """An IR with a variable, `inner`, in the body of a TensorIterator: x and y are FP32[1,3,4]."""
    import openvino as ov
    from openvino import opset13 as op

    step = op.parameter([1, 1, 4], np.float32)
    zero = op.constant(np.zeros((1, 1, 4), np.float32))
    total = op.add(op.read_value(zero, "inner"), step)
    kept, end = op.assign(total, "inner"), op.result(total)
    x = op.parameter([1, 3, 4], np.float32, name="x")
    x.output(0).set_names({"x"})
    iterator: Any = op.tensor_iterator()
    iterator.set_body(ov.Model([end], [kept], [step], "body"))
    iterator.set_sliced_input(step, x.output(0), 0, 1, 1, -1, 1)
    result = op.result(iterator.get_concatenated_slices(end.output(0), 0, 1, 1, -1, 1))
    result.output(0).set_names({"y"})
    path = folder / "iterated-sum.xml"
    ov.save_model(ov.Model([result], [x], "iterated_sum"), path, compress_to_fp16=False)
    return path


def running_sum_tflite(path: Path) -> Path:
    """A TFLite file with a resource variable, `total`, that another subgraph sets to 0 at the first call."""
    from ai_edge_litert import schema_py_generated as schema

    builtin = schema.BuiltinOperator
    kinds = [builtin.CALL_ONCE, builtin.VAR_HANDLE, builtin.READ_VARIABLE, builtin.ADD,
             builtin.ASSIGN_VARIABLE]  # fmt: skip
    call_once, var_handle, read, add, assign = range(5)

    def handle(output: int) -> Any:
        options = schema.VarHandleOptionsT()
        options.sharedName = "total"
        return _operator(var_handle, [], [output], schema.BuiltinOptions.VarHandleOptions, options)

    once = schema.CallOnceOptionsT()
    once.initSubgraphIndex = 1
    main = schema.SubGraphT()
    main.tensors = [_tensor("x"), _resource("h"), _tensor("before"), _tensor("y")]
    main.inputs, main.outputs = [0], [3]
    main.operators = [
        _operator(call_once, [], [], schema.BuiltinOptions.CallOnceOptions, once),
        handle(1),
        _operator(read, [1], [2]),
        _operator(add, [2, 0], [3]),
        _operator(assign, [1, 3], []),
    ]
    start = schema.SubGraphT()
    start.tensors = [_resource("h"), _tensor("zero", buffer=1)]
    start.inputs, start.outputs = [], []
    start.operators = [handle(0), _operator(assign, [0, 1], [])]
    return _write(path, kinds, [main, start], np.zeros(4, np.float32))


def svdf_tflite(path: Path) -> Path:
    """A TFLite file with a variable tensor, `memory`: an SVDF of rank 1 and two steps, whose output is the
    sum of the inputs of this call and the one before. Units: 4, as many as inputs."""
    from ai_edge_litert import schema_py_generated as schema

    options = schema.SVDFOptionsT()
    options.rank = 1
    graph = schema.SubGraphT()
    memory = _tensor("memory", shape=[1, 8])
    memory.isVariable = True
    graph.tensors = [
        _tensor("x"), _tensor("features", shape=[4, 4], buffer=1),
        _tensor("times", shape=[4, 2], buffer=2), memory, _tensor("y"),
    ]  # fmt: skip
    graph.inputs, graph.outputs = [0], [4]
    graph.operators = [
        _operator(0, [0, 1, 2, -1, 3], [4], schema.BuiltinOptions.SVDFOptions, options)
    ]
    return _write(
        path, [schema.BuiltinOperator.SVDF], [graph],
        np.eye(4, dtype=np.float32), np.ones((4, 2), np.float32),
    )  # fmt: skip


def _write(path: Path, kinds: list[int], graphs: list[Any], *constants: Any) -> Path:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT()
    model.version = 3
    model.operatorCodes = []
    for kind in kinds:
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = kind, min(kind, 127), 1
        model.operatorCodes.append(code)
    model.buffers = [schema.BufferT()]
    for constant in constants:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(constant.tobytes(), np.uint8)
        model.buffers.append(buffer)
    model.subgraphs = graphs
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _tensor(name: str, shape: list[int] | None = None, buffer: int = 0) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    tensor = schema.TensorT()
    tensor.name, tensor.buffer = name, buffer
    tensor.shape = [1, 4] if shape is None else shape
    tensor.type = schema.TensorType.FLOAT32
    return tensor


def _resource(name: str) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    tensor = _tensor(name, shape=[])
    tensor.type = schema.TensorType.RESOURCE
    return tensor


def _operator(
    code: int, inputs: list[int], outputs: list[int], kind: int = 0, options: Any = None
) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = code, inputs, outputs
    operator.builtinOptionsType, operator.builtinOptions = kind, options
    return operator
