"""Size and peak memory by precision, from shapes and types alone. The formulas are in docs/check.md."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import Final

from edgeserve.checking.model import Constant, Node, OnnxModel
from edgeserve.checking.report import Estimate
from edgeserve.formats.onnx import stored_bytes

PRECISIONS: Final = ("fp32", "fp16", "int8", "int4")
# Operators whose weights quantizers store in int8: QDQRegistry of onnxruntime.quantization.registry,
# those among it that have weights. Weight-only int4 (MatMulNBits) takes matrix products alone.
_INT8_WEIGHTS: Final = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1, "Gather": 0}
_INT4_WEIGHTS: Final = {"Gemm": 1, "MatMul": 1}
_INT4_BLOCK: Final = 32
_BIAS: Final = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
# Operators whose result is a view of their first input.
_VIEWS: Final = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"}
_CONTROL: Final = {"If", "Loop", "Scan"}


def estimates(model: OnnxModel, graph_bytes: int) -> tuple[Estimate, ...]:
    """One for each of PRECISIONS; `graph_bytes` is what the file holds besides its weights."""
    return tuple(_estimate(model, graph_bytes, precision) for precision in PRECISIONS)


@cache
def int8_operators() -> frozenset[str]:
    """What onnxruntime's quantizer has an int8 rule for; without it, what has weights."""
    try:
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    except ImportError:
        return frozenset(_INT8_WEIGHTS)
    return frozenset(QDQRegistry) | frozenset(QLinearOpsRegistry)


def quantizable_weights(model: OnnxModel) -> set[str]:
    """The names of float weights that int8 quantization stores in one byte an element."""
    return _weights_of(model, _INT8_WEIGHTS)


def _estimate(model: OnnxModel, graph_bytes: int, precision: str) -> Estimate:
    weights = sum(_weight_sizes(model, precision))
    added = {"int8": _qdq_bytes, "fp16": _fp16_bytes}.get(precision)
    size = weights + graph_bytes + (added(model) if added else 0)
    activations = peak_activations(model, precision)
    peak = None if activations is None else weights + activations
    return Estimate(precision, size, weights, peak)


def _weight_sizes(model: OnnxModel, precision: str) -> Iterable[int]:
    small: set[str] = set()
    if precision == "int8":
        small = quantizable_weights(model)
    elif precision == "int4":
        small = _weights_of(model, _INT4_WEIGHTS)
    biases = _weights_of(model, _BIAS) if precision == "int8" else set()
    for weight in model.weights.values():
        if weight.name in small:
            yield _int8_size(weight) if precision == "int8" else _int4_size(weight)
        elif weight.name in biases:
            yield 12 * weight.elements  # int32, with a float scale and an int32 zero point for each
        else:
            yield _plain_size(weight, precision)


def _plain_size(weight: Constant, precision: str) -> int:
    if precision == "fp16" and weight.dtype == "FLOAT":
        return 2 * weight.elements
    if precision != "fp16" and weight.dtype in ("FLOAT16", "BFLOAT16"):
        return 4 * weight.elements
    return weight.size_bytes


def _int8_size(weight: Constant) -> int:
    """A byte each, and a float scale with a byte of zero point per channel."""
    channels = weight.shape[0] if len(weight.shape) > 1 else 1
    return weight.elements + 5 * channels


def _int4_size(weight: Constant) -> int:
    """Half a byte each, and per block of 32 a float scale and half a byte of zero point."""
    blocks = math.ceil(weight.elements / _INT4_BLOCK)
    return math.ceil(weight.elements / 2) + 4 * blocks + math.ceil(blocks / 2)


def _weights_of(model: OnnxModel, position: dict[str, int]) -> set[str]:
    """Float weights that stand at an operator's weight input (its index in `position`)."""
    found = set()
    for node in model.nodes:
        index = position.get(node.op)
        if index is None or index >= len(node.inputs):
            continue
        names = node.inputs[:2] if node.op == "MatMul" else (node.inputs[index],)
        for name in names:
            weight = model.weights.get(name)
            if weight is not None and weight.dtype in ("FLOAT", "FLOAT16"):
                found.add(name)
    return found


def _qdq_bytes(model: OnnxModel) -> int:
    """What QuantizeLinear and DequantizeLinear nodes with their scales add to the graph.

    They repeat the tensor's name with suffixes: 12 times for an activation (two nodes, a scale, a zero
    point), 7 times for a weight (one node), as onnxruntime/quantization/qdq_quantizer.py writes them.
    """
    activations: set[str] = set()
    for node in model.nodes:
        if node.op in int8_operators() and not node.inner:
            activations.update(n for n in (*node.inputs[:1], *node.outputs) if n)
    activations -= set(model.weights)
    weights = quantizable_weights(model) | _weights_of(model, _BIAS)
    total = sum(12 * len(n) + 240 for n in activations)
    return total + sum(7 * len(n) + 190 for n in weights)


def _fp16_bytes(model: OnnxModel) -> int:
    """What the converter to FP16 adds: a Cast at every input and output, and `_fp16` to the name of each
    value in between, where it is written and where it is read."""
    border = [*model.inputs, *model.proto.graph.output]
    written = [o for n in model.nodes if not n.inner for o in n.outputs if o]
    read = [i for n in model.nodes if not n.inner for i in n.inputs if i]
    return sum(4 * len(value.name) + 60 for value in border) + 5 * (len(written) + len(read))


def peak_activations(model: OnnxModel, precision: str = "fp32") -> int | None:
    """The largest sum of activations alive at once, in bytes, running the nodes in the file's order.

    A tensor lives from the node that writes it to the last that reads it; inputs from the start,
    outputs to the end; views share their input's memory. An upper bound for engines that compute in
    place. None where a shape is not known, or inner graphs hold activations of their own.
    """
    nodes = [n for n in model.nodes if not n.inner]
    if any(n.op in _CONTROL for n in nodes):
        return None
    root: dict[str, str] = {}
    for node in nodes:
        first = node.inputs[0] if node.inputs else ""
        if node.op in _VIEWS and node.outputs and first and first not in model.weights:
            root[node.outputs[0]] = root.get(first, first)
    writers = {output: node for node in nodes for output in node.outputs if output}
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in (*node.inputs, *node.outputs):
            last[root.get(name, name)] = index
    for output in model.proto.graph.output:
        last[root.get(output.name, output.name)] = len(nodes)
    live: dict[str, int] = {}
    for value in model.inputs:
        size = _activation_size(model, value.name, None, precision)
        if size is None:
            return None
        live[value.name] = size
    peak = sum(live.values())
    for index, node in enumerate(nodes):
        for name in node.outputs:
            if not name or name in model.weights or name in root:
                continue
            size = _activation_size(model, name, writers[name], precision)
            if size is None:
                return None
            live[name] = size
        peak = max(peak, sum(live.values()))
        live = {name: size for name, size in live.items() if last.get(name, -1) > index}
    return peak


def _activation_size(
    model: OnnxModel, name: str, writer: Node | None, precision: str
) -> int | None:
    value = model.values.get(name)
    if value is None or value.elements is None:
        return None
    if value.dtype == "FLOAT":
        if precision == "fp16":
            return 2 * value.elements
        if precision == "int8" and writer is not None and writer.op in int8_operators():
            return value.elements
    return stored_bytes(value.dtype, value.elements)
