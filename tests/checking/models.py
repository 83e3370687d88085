"""Small models with one thing each that a check must see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def saved(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    file = folder / name
    onnx.save(model, file)
    return file


def one_node(
    op: str,
    domain: str = "",
    opset: int = 17,
    inputs: int = 1,
    dtype: int = TensorProto.FLOAT,
    shape: tuple[int | str, ...] = ("batch", 4),
    ir: int = 8,
) -> onnx.ModelProto:
    """y = op(x, ...), the node called `it`, x and y of one type and shape."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x"] * inputs, ["y"], name="it", domain=domain)],
        "one",
        [helper.make_tensor_value_info("x", dtype, list(shape))],
        [helper.make_tensor_value_info("y", dtype, list(shape))],
    )
    opsets = [helper.make_opsetid("", 17 if domain else opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def inner_unknown() -> onnx.ModelProto:
    """An If whose branches hold `acme.Sparkle`, nodes `then` and `else`."""

    def branch(name: str) -> onnx.GraphProto:
        node = helper.make_node("Sparkle", ["x"], [f"{name}_y"], name=name, domain="acme")
        value = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [1, 4])
        return helper.make_graph([node], name, [], [value])

    node = helper.make_node(
        "If", ["c"], ["y"], name="choose", then_branch=branch("then"), else_branch=branch("else")
    )
    graph = helper.make_graph(
        [node],
        "inner",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def local_function() -> onnx.ModelProto:
    """`mine.Twice`, defined in the model itself: x + x."""
    function = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"], name="sum")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    model = one_node("Twice", domain="mine")
    model.functions.append(function)
    return model


def matmul(rows: int = 256, columns: int = 256, dtype: type = np.float32) -> onnx.ModelProto:
    """y = x @ w, x [batch, rows]."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weight = np.random.default_rng(0).normal(size=(rows, columns)).astype(dtype)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "matmul",
        [helper.make_tensor_value_info("x", kind, ["batch", rows])],
        [helper.make_tensor_value_info("y", kind, ["batch", columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def sequence_output() -> onnx.ModelProto:
    """An output that is a sequence of tensors."""
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"], name="wrap")],
        "sequence",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
