"""Small networks with the structures that converters get wrong."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeserve.tensors import Interface, TensorSpec

SMALL_CNN = Interface(
    (TensorSpec("image", "FP32", ("batch", 3, 32, 32)),),
    (
        TensorSpec("logits", "FP32", ("batch", 10)),
        TensorSpec("features", "FP32", ("batch", 8, 16, 16)),
    ),
    max_batch=32,
)


def small_cnn(batch: int | str = "batch") -> onnx.ModelProto:
    """Convolution with stride, depthwise convolution, ReLU6, residual, pooling, linear: EfficientNet-Lite
    in small. `features` is an output and read inside, too."""
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights = [
        numpy_helper.from_array(np.float32(0), "zero"),
        numpy_helper.from_array(np.float32(6), "six"),
    ]

    def weight(name: str, *shape: int) -> str:
        scale = np.float32(1 / np.sqrt(np.prod(shape[1:], dtype=np.float32)))
        values = random.normal(size=shape).astype(np.float32) * scale
        weights.append(numpy_helper.from_array(values, name))
        return name

    def conv(
        x: str, name: str, cin: int, cout: int, size: int, stride: int = 1, group: int = 1
    ) -> str:
        kernel = weight(f"{name}_w", cout, cin // group, size, size)
        nodes.append(
            helper.make_node(
                "Conv",
                [x, kernel, weight(f"{name}_b", cout)],
                [name],
                name=name,
                kernel_shape=[size, size],
                strides=[stride, stride],
                pads=[size // 2] * 4,
                group=group,
            )
        )
        return name

    def relu6(x: str) -> str:
        nodes.append(helper.make_node("Clip", [x, "zero", "six"], [f"{x}_act"], name=f"{x}_relu6"))
        return f"{x}_act"

    stem = relu6(conv("image", "stem", 3, 8, 3, stride=2))
    wide = relu6(conv(stem, "expand", 8, 24, 1))
    deep = relu6(conv(wide, "depthwise", 24, 24, 3, group=24))
    narrow = conv(deep, "project", 24, 8, 1)
    nodes.append(helper.make_node("Add", [narrow, stem], ["features"], name="residual"))
    head = relu6(conv("features", "head", 8, 32, 1))
    nodes.append(helper.make_node("GlobalAveragePool", [head], ["pooled"], name="pool"))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"))
    nodes.append(
        helper.make_node(
            "Gemm",
            ["flat", weight("fc_w", 10, 32), weight("fc_b", 10)],
            ["logits"],
            name="classify",
            transB=1,
        )
    )
    graph = helper.make_graph(
        nodes,
        "small-cnn",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 32, 32])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, 10]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, 8, 16, 16]),
        ],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def with_unknown_op() -> onnx.ModelProto:
    """A model with an operator nobody has: `acme.Sparkle`, node `weird`."""
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["a"], name="fine"),
            helper.make_node("Sparkle", ["a"], ["y"], name="weird", domain="acme"),
        ],
        "unknown",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def images(count: int, seed: int = 1) -> np.ndarray:
    """Inputs for `small_cnn`, FP32[count,3,32,32]."""
    values: np.ndarray = np.random.default_rng(seed).normal(size=(count, 3, 32, 32))
    return values.astype(np.float32)
