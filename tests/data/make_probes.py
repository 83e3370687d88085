"""Writes edgeserve/runtimes/probes/double.{onnx,xml,tflite}: y = x + x, FP32[4], for probing devices.

python -m tests.data.make_probes
"""

from __future__ import annotations

from pathlib import Path

import ai_edge_litert.schema_py_generated as tfl
import flatbuffers
import numpy as np
import openvino
from onnx import TensorProto, helper

import edgeserve.runtimes

FOLDER = Path(edgeserve.runtimes.__file__).parent / "probes"


def onnx_model() -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"], name="double")],
        "double",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4])],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def openvino_model() -> openvino.Model:
    x = openvino.opset8.parameter([4], np.float32, name="x")
    x.output(0).set_names({"x"})
    y = openvino.opset8.add(x, x, name="double")
    y.output(0).set_names({"y"})
    return openvino.Model([y], [x], "double")


def tflite_model() -> bytes:
    def tensor(name: str, buffer: int) -> tfl.TensorT:
        made = tfl.TensorT()
        made.name, made.shape, made.buffer = name, [4], buffer
        made.type = tfl.TensorType.FLOAT32
        return made

    def named(name: str, index: int) -> tfl.TensorMapT:
        made = tfl.TensorMapT()
        made.name, made.tensorIndex = name, index
        return made

    operator = tfl.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 0], [1]
    operator.builtinOptionsType, operator.builtinOptions = (
        tfl.BuiltinOptions.AddOptions,
        tfl.AddOptionsT(),
    )
    code = tfl.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = tfl.BuiltinOperator.ADD
    graph = tfl.SubGraphT()
    graph.name, graph.tensors = "double", [tensor("x", 1), tensor("y", 2)]
    graph.inputs, graph.outputs, graph.operators = [0], [1], [operator]
    signature = tfl.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs, signature.outputs = [named("x", 0)], [named("y", 1)]
    model = tfl.ModelT()
    model.version, model.description = 3, "double"
    model.operatorCodes, model.subgraphs = [code], [graph]
    model.buffers, model.signatureDefs = [tfl.BufferT() for _ in range(3)], [signature]
    builder = flatbuffers.Builder(512)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "double.onnx").write_bytes(onnx_model())
    (FOLDER / "double.tflite").write_bytes(tflite_model())
    openvino.save_model(openvino_model(), FOLDER / "double.xml", compress_to_fp16=False)
    (FOLDER / "double.bin").unlink()  # no weights


if __name__ == "__main__":
    main()
