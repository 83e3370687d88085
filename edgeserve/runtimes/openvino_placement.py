"""What runs where in an OpenVINO model, read from its compiled graph.

A device runs all of a model or refuses it (edgeserve never asks for HETERO); but the GPU plug-in has some
operations computed on the CPU, and says so in the name of the implementation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from edgeserve.devices.names import device_kind
from edgeserve.runtimes.base import Placement, shares_of

# Layer types of the compiled model that are convolutions or matrix products.
_COMPUTE_LAYERS: Final = {"Convolution", "GroupConvolution", "Deconvolution", "FullyConnected",
                          "MatMul", "fully_connected", "convolution", "gemm", "Gemm"}  # fmt: skip
_INT8_PRECISIONS: Final = {"i8", "u8", "int8_t", "uint8_t"}
_NAMES: Final = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}


class Layer(msgspec.Struct, frozen=True):
    """One layer of the compiled model; `originals` are the model's operations it was made from."""

    kind: str
    precision: str
    implementation: str
    originals: tuple[str, ...]


def placement_of(
    layers: Sequence[Layer], device: str, precision: str, work: Mapping[str, int]
) -> Placement:
    """`precision` is the engine's name for what floats are computed in; `work` is MACs by operation."""
    kind = device_kind(device)
    compute = [layer for layer in layers if layer.kind in _COMPUTE_LAYERS]
    int8 = sum(layer.precision in _INT8_PRECISIONS for layer in compute)
    rest = _NAMES.get(precision, precision)
    left = [] if kind == "cpu" else [la for la in layers if la.implementation.startswith("cpu")]
    total = sum(work.values())
    on_cpu = sum(work.get(name, 0) for layer in left for name in layer.originals)
    return Placement(
        shares_of(kind, len(left) / len(layers) if layers else 0.0),
        f"int8+{rest}" if int8 else rest,
        len(compute),
        int8,
        mac_shares=shares_of(kind, min(1.0, on_cpu / total)) if total else {},
        left_on_cpu=dict(Counter(layer.kind for layer in left)),
    )


# Convolutions: whether the weights are applied to each element of the output or, going backwards, of the data; and
# their first axis that counts: before it stand their groups, and the output's or the data's channels.
_CONVOLUTIONS: Final = {
    "Convolution": ("output", 1),
    "GroupConvolution": ("output", 2),
    "ConvolutionBackpropData": ("data", 1),
    "GroupConvolutionBackpropData": ("data", 2),
}


def macs_of(network: Any) -> dict[str, int]:
    """Multiply-accumulates of a model's convolutions and matrix products by name, a dynamic dimension
    counting once."""
    found = {}
    for op in network.get_ops():
        kind = op.get_type_name()
        if kind not in (*_CONVOLUTIONS, "MatMul", "ScaledDotProductAttention"):
            continue
        out = _shape(op.get_output_partial_shape(0))
        first, second = (_shape(op.get_input_partial_shape(i)) for i in (0, 1))
        if kind == "MatMul":
            turned = bool(op.get_attributes().get("transpose_a", False))
            macs = math.prod(out) * first[-2 if turned and len(first) > 1 else -1]
        elif kind == "ScaledDotProductAttention":
            # softmax(Q K^T) V, the scaling and the mask not counted
            macs = math.prod(first[:-1]) * second[-2] * (first[-1] + out[-1])
        else:
            applied, axis = _CONVOLUTIONS[kind]
            macs = math.prod(out if applied == "output" else first) * math.prod(second[axis:])
        found[op.get_friendly_name()] = macs
    return found


def _shape(partial: Any) -> list[int]:
    if partial.rank.is_dynamic:
        return [1]
    return [1 if d.is_dynamic else int(d.get_length()) for d in partial]
