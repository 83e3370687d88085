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


class Sketch:
    """A network drawn node by node: each method adds a node called `name` and returns its output's name.

    Weights are random; `unevenly` rescales channels afterwards without changing the function.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def op(self, kind: str, name: str, *inputs: str, **attributes: object) -> str:
        self._nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, values: np.ndarray) -> str:
        self.weights[name] = np.asarray(values, np.float32)
        return name

    def conv(self, name: str, x: str, cin: int, cout: int, size: int = 1, group: int = 1) -> str:
        shape = (cout, cin // group, size, size)
        w = self.constant(f"{name}_w", self._weight(shape, fan_in=cin // group * size * size))
        b = self.constant(f"{name}_b", 0.1 * self._random.normal(size=cout))
        return self.op("Conv", name, x, w, b, pads=[size // 2] * 4, group=group)

    def matmul(self, name: str, x: str, rows: int, columns: int) -> str:
        w = self.constant(f"{name}_w", self._weight((rows, columns), fan_in=rows))
        return self.op("MatMul", name, x, w)

    def classify(self, x: str, channels: int, classes: int) -> str:
        """Pooling and a linear layer called `classify`."""
        pooled = self.op("Flatten", "flat", self.op("GlobalAveragePool", "pooled", x))
        w = self.constant("classify_w", self._weight((classes, channels), fan_in=channels))
        return self.op("Gemm", "classify", pooled, w, transB=1)

    def unevenly(self, writers: list[str], readers: list[str], factor: float) -> None:
        """Multiply output channels of the convolutions `writers` by factor**u, u in -1..1, and
        divide the input channels of `readers` by the same."""
        channels = self.weights[f"{writers[0]}_w"].shape[0]
        scale = factor ** np.linspace(-1, 1, channels, dtype=np.float32)
        self._random.shuffle(scale)
        for name in writers:
            self.weights[f"{name}_w"] *= scale[:, None, None, None]
            self.weights[f"{name}_b"] *= scale
        for name in readers:
            weight = self.weights[f"{name}_w"]
            depthwise = weight.shape[1] == 1 and channels > 1
            weight /= scale[:, None, None, None] if depthwise else scale[None, :, None, None]

    def model(
        self, inputs: dict[str, list[int | str]], outputs: dict[str, list[int | str]]
    ) -> onnx.ModelProto:
        def info(values: dict[str, list[int | str]]) -> list[onnx.ValueInfoProto]:
            return [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in values.items()
            ]

        constants = [numpy_helper.from_array(v, n) for n, v in self.weights.items()]
        graph = helper.make_graph(self._nodes, "sketch", info(inputs), info(outputs), constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def _weight(self, shape: tuple[int, ...], fan_in: int) -> np.ndarray:
        values: np.ndarray = self._random.normal(size=shape) * np.sqrt(2 / fan_in)
        return values


def bottlenecks(factor: float = 1.0, stages: int = 3) -> onnx.ModelProto:
    """`stages` linear bottlenecks without residuals: `narrow_i`, `wide_i`, `relu_i`. Channels of
    `narrow_1` differ by `factor` squared. `image` FP32[batch,3,16,16], `classify` FP32[batch,10]."""
    net = Sketch()
    x = net.op("Relu", "stem_relu", net.conv("stem", "image", 3, 32, 3))
    for i in range(stages):
        x = net.conv(f"narrow_{i}", x, 32, 12)
        x = net.op("Relu", f"relu_{i}", net.conv(f"wide_{i}", x, 12, 32, 3))
    net.classify(x, 32, 10)
    net.unevenly(["narrow_1"], ["wide_1"], factor)
    return net.model({"image": ["batch", 3, 16, 16]}, {"classify": ["batch", 10]})


def coloured(count: int, seed: int = 1) -> np.ndarray:
    """Inputs for `bottlenecks`, FP32[count,3,16,16], each with a colour and a contrast of its own."""
    random = np.random.default_rng(seed)
    colour = 2 * random.normal(size=(count, 3, 1, 1))
    contrast = random.uniform(0.2, 2.0, size=(count, 1, 1, 1))
    values: np.ndarray = colour + contrast * random.normal(size=(count, 3, 16, 16))
    return values.astype(np.float32)


def perceptron(width: int = 256) -> onnx.ModelProto:
    """Three matrix products: `x` FP32[batch,width], `third` FP32[batch,10]."""
    net = Sketch()
    x = net.op("Relu", "relu_1", net.matmul("first", "x", width, width))
    x = net.op("Relu", "relu_2", net.matmul("second", x, width, width))
    net.matmul("third", x, width, 10)
    return net.model({"x": ["batch", width]}, {"third": ["batch", 10]})


def attention(width: int = 64, length: int = 8) -> onnx.ModelProto:
    """One head of self-attention: `x` and `out` FP32[batch,length,width]."""
    net = Sketch()
    query, key, value = (net.matmul(n, "x", width, width) for n in ("query", "key", "value"))
    turned = net.op("Transpose", "turned", key, perm=[0, 2, 1])
    scale = net.constant("scale", np.float32(0.3 / np.sqrt(width)))
    scores = net.op("Mul", "scaled", net.op("MatMul", "scores", query, turned), scale)
    weights = net.op("Softmax", "softmax", scores, axis=-1)
    net.matmul("out", net.op("MatMul", "mixed", weights, value), width, width)
    shape: list[int | str] = ["batch", length, width]
    return net.model({"x": shape}, {"out": shape})
