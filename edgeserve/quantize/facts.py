"""What recipes need to know of a network: does it convolve, does it multiply matrices, does it attend."""

from __future__ import annotations

import math
from typing import Any

import msgspec


class ModelFacts(msgspec.Struct, frozen=True):
    """Counts over the whole graph. `matmuls` are those with constant weights, `products` those of two
    activations (attention has them); `parameters` are the elements of all float weights."""

    convolutions: int
    matmuls: int
    products: int
    softmaxes: int
    parameters: int

    @property
    def convolves(self) -> bool:
        """Whether convolutions, not matrix products, are what the network is made of."""
        return self.convolutions > 0 and self.convolutions >= self.matmuls

    @property
    def attends(self) -> bool:
        return self.products > 0 and self.softmaxes > 0

    @classmethod
    def of(cls, proto: Any) -> ModelFacts:
        """Of an `onnx.ModelProto`, external data not needed."""
        constants = {t.name for t in proto.graph.initializer} | {
            name for n in proto.graph.node if n.op_type == "Constant" for name in n.output
        }
        products = 0
        matmuls = 0
        for node in proto.graph.node:
            if node.op_type not in ("MatMul", "Gemm"):
                continue
            fixed = any(name in constants for name in node.input[:2])
            matmuls += fixed
            products += not fixed
        ops = [n.op_type for n in proto.graph.node]
        floats = (1, 10, 11, 16)  # FLOAT, FLOAT16, DOUBLE, BFLOAT16 in onnx.TensorProto
        return cls(
            convolutions=sum(op in ("Conv", "ConvTranspose") for op in ops),
            matmuls=matmuls,
            products=products,
            softmaxes=ops.count("Softmax"),
            parameters=sum(
                math.prod(t.dims) for t in proto.graph.initializer if t.data_type in floats
            ),
        )
