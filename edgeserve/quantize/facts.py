"""What recipes want to know of a network: does it convolve, does it multiply matrices, does it attend."""

from __future__ import annotations

import math
from typing import Any

import msgspec


class ModelFacts(msgspec.Struct, frozen=True):
    """Counts over the whole graph. `matmuls` are those with constant weights, `products` those of two
    activations (attention has them); `parameters` are the elements of all float weights,
    `matmul_parameters` those of `matmuls`."""

    convolutions: int
    matmuls: int
    products: int
    softmaxes: int
    parameters: int
    matmul_parameters: int

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
        sizes = {t.name: math.prod(t.dims) for t in proto.graph.initializer}
        kinds = {t.name: t.data_type for t in proto.graph.initializer}
        constants = set(sizes) | {
            name for n in proto.graph.node if n.op_type == "Constant" for name in n.output
        }
        weights: dict[str, int] = {}
        products = 0
        matmuls = 0
        for node in proto.graph.node:
            if node.op_type not in ("MatMul", "Gemm"):
                continue
            fixed = [name for name in node.input[:2] if name in constants]
            matmuls += bool(fixed)
            products += not fixed
            weights |= {name: sizes.get(name, 0) for name in fixed}
        ops = [n.op_type for n in proto.graph.node]
        floats = (1, 10, 11, 16)  # FLOAT, FLOAT16, DOUBLE, BFLOAT16 in onnx.TensorProto
        return cls(
            convolutions=sum(op in ("Conv", "ConvTranspose") for op in ops),
            matmuls=matmuls,
            products=products,
            softmaxes=ops.count("Softmax"),
            parameters=sum(s for n, s in sizes.items() if kinds[n] in floats),
            matmul_parameters=sum(weights.values()),
        )
