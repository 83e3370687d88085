"""Networks that benchmarks need and no package brings: shapes as published, weights random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


def resnet50(destination: Path) -> Path:
    """ResNet-50 v1.5 (He et al. 2015, table 1; stride in the 3x3 convolution), batch norm folded.

    image FP32[batch,3,224,224] -> logits FP32[batch,1000]; 25.5 M parameters, 4.1 GMAC.
    """
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def convolution(source: str, name: str, i: int, o: int, k: int, stride: int) -> str:
        scale = np.sqrt(2.0 / (i * k * k))
        kernel = (random.normal(size=(o, i, k, k)) * scale).astype(np.float32)
        weights.append(numpy_helper.from_array(kernel, f"{name}.w"))
        weights.append(numpy_helper.from_array(np.zeros(o, np.float32), f"{name}.b"))
        nodes.append(
            helper.make_node(
                "Conv", [source, f"{name}.w", f"{name}.b"], [name], name=name,
                kernel_shape=[k, k], strides=[stride] * 2, pads=[k // 2] * 4,
            )
        )  # fmt: skip
        return name

    def relu(source: str) -> str:
        nodes.append(helper.make_node("Relu", [source], [f"{source}.relu"], name=f"{source}.relu"))
        return f"{source}.relu"

    x = relu(convolution("image", "stem", 3, 64, 7, 2))
    nodes.append(
        helper.make_node(
            "MaxPool", [x], ["pool"], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, name="pool"
        )
    )
    x, channels = "pool", 64
    for stage, (width, blocks, stride) in enumerate(_STAGES):
        for block in range(blocks):
            name, step = f"s{stage}b{block}", stride if block == 0 else 1
            y = relu(convolution(x, f"{name}.reduce", channels, width, 1, 1))
            y = relu(convolution(y, f"{name}.conv", width, width, 3, step))
            y = convolution(y, f"{name}.expand", width, 4 * width, 1, 1)
            if block == 0:
                x = convolution(x, f"{name}.project", channels, 4 * width, 1, step)
            nodes.append(helper.make_node("Add", [x, y], [f"{name}.add"], name=f"{name}.add"))
            x, channels = relu(f"{name}.add"), 4 * width
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["mean"], name="mean"))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"], name="flat"))
    head = (random.normal(size=(channels, 1000)) / np.sqrt(channels)).astype(np.float32)
    weights.append(numpy_helper.from_array(head, "head.w"))
    weights.append(numpy_helper.from_array(np.zeros(1000, np.float32), "head.b"))
    nodes.append(helper.make_node("Gemm", ["flat", "head.w", "head.b"], ["logits"], name="head"))
    graph = helper.make_graph(
        nodes,
        "resnet50",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1000])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, destination)
    return destination
