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
from edgeserve.runtimes.base import Placement

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
        _two(kind, len(left) / len(layers) if layers else 0.0),
        f"int8+{rest}" if int8 else rest,
        len(compute),
        int8,
        mac_shares=_two(kind, min(1.0, on_cpu / total)) if total else {},
        left_on_cpu=dict(Counter(layer.kind for layer in left)),
    )


def _two(kind: str, cpu: float) -> dict[str, float]:
    return {kind: 1 - cpu, "cpu": cpu} if cpu else {kind: 1.0}


def macs_of(network: Any) -> dict[str, int]:
    """Multiply-accumulates of a model's convolutions and matrix products by name, a dynamic dimension
    counting once."""
    found = {}
    for op in network.get_ops():
        kind = op.get_type_name()
        if kind not in _MACS:
            continue
        out = _shape(op.get_output_partial_shape(0))
        first, second = (_shape(op.get_input_partial_shape(i)) for i in (0, 1))
        found[op.get_friendly_name()] = _MACS[kind](op, out, first, second)
    return found


def _convolution(op: Any, out: list[int], data: list[int], weights: list[int]) -> int:
    return math.prod(out) * math.prod(weights[1:])  # output, input, spatial …


def _group_convolution(op: Any, out: list[int], data: list[int], weights: list[int]) -> int:
    return math.prod(out) * math.prod(weights[2:])  # groups, output, input, spatial …


def _backprop(op: Any, out: list[int], data: list[int], weights: list[int]) -> int:
    return math.prod(data) * math.prod(weights[1:])  # input, output, spatial …


def _group_backprop(op: Any, out: list[int], data: list[int], weights: list[int]) -> int:
    return math.prod(data) * math.prod(weights[2:])


def _matmul(op: Any, out: list[int], first: list[int], second: list[int]) -> int:
    turned = bool(op.get_attributes().get("transpose_a", False))
    return math.prod(out) * first[-2 if turned and len(first) > 1 else -1]


def _attention(op: Any, out: list[int], query: list[int], key: list[int]) -> int:
    # softmax(Q K^T) V, the scaling and the mask not counted
    return math.prod(query[:-1]) * key[-2] * (query[-1] + out[-1])


_MACS: Final = {
    "Convolution": _convolution,
    "GroupConvolution": _group_convolution,
    "ConvolutionBackpropData": _backprop,
    "GroupConvolutionBackpropData": _group_backprop,
    "MatMul": _matmul,
    "ScaledDotProductAttention": _attention,
}


def _shape(partial: Any) -> list[int]:
    if partial.rank.is_dynamic:
        return [1]
    return [1 if d.is_dynamic else int(d.get_length()) for d in partial]
