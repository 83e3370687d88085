"""Cross-layer equalization: channels of neighbouring convolutions are rescaled to like ranges.

The function computed stays the same; per-tensor quantization of what flows between them loses less. After
M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019),
section 4.1: where r1 and r2 are the ranges of a channel in the weights before and behind it, the first is
multiplied by sqrt(r2 / r1) and the second divided by it. Residual connections join tensors into groups
that share one scale; tensors that an operator like Clip bends, which scaling would change, are left alone.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeserve.quantize.onnx_tools import as_unsupported, quantization
from edgeserve.tensors import Array

# Operators with f(s * x) = s * f(x) for s > 0, channel by channel.
_HOMOGENEOUS: Final = {"Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity",
                       "Dropout"}  # fmt: skip
_ROUNDS: Final = 20
_SETTLED: Final = 1e-3
# Ranges within a factor of two of each other lose less than a bit: not worth a variant.
_WORTH: Final = 2.0


def equalize(model: Path, destination: Path) -> int:
    """Write the equalized model; the number of groups of tensors that were rescaled noticeably.

    Nothing is written for 0. `model` is pre-processed: batch normalization folded. Raises
    UnsupportedModel, DependencyMissing without `onnx`.
    """
    onnx = quantization().onnx
    with as_unsupported(model):
        proto = onnx.load_model(str(model))
        weights = {
            t.name: onnx.numpy_helper.to_array(t).copy()
            for t in proto.graph.initializer
            if t.data_type == onnx.TensorProto.FLOAT
        }
        groups = _Groups(proto, weights).scalable()
        changed = _balance(groups, weights)
        if changed:
            for tensor in proto.graph.initializer:
                if tensor.name in weights:
                    tensor.CopyFrom(onnx.numpy_helper.from_array(weights[tensor.name], tensor.name))
            onnx.save_model(proto, str(destination))
    return changed


class _Group:
    """Tensors that share one scale a channel, the convolutions that write them and that read them."""

    def __init__(self) -> None:
        self.writers: list[Any] = []
        self.readers: list[Any] = []


class _Groups:
    """Finds the groups of a graph by joining what homogeneous operators and additions connect."""

    def __init__(self, proto: Any, weights: dict[str, Array]) -> None:
        self._weights = weights
        self._nodes = list(proto.graph.node)
        self._uses: dict[str, int] = defaultdict(int)
        for node in self._nodes:
            for name in _reads(node):
                self._uses[name] += name in weights
        self._parent: dict[str, str] = {}
        self._barriers = {v.name for v in (*proto.graph.input, *proto.graph.output)}

    def scalable(self) -> list[_Group]:
        groups: dict[str, _Group] = defaultdict(_Group)
        for node in self._nodes:
            if node.op_type in _HOMOGENEOUS or (
                node.op_type == "Add" and not any(n in self._weights for n in node.input)
            ):
                for name in node.input[:2]:
                    self._join(name, node.output[0])
            elif not self._is_convolution(node):
                self._barriers.update([*_reads(node), *node.output])
        for node in self._nodes:
            if self._is_convolution(node):
                groups[self._root(node.input[0])].readers.append(node)
                groups[self._root(node.output[0])].writers.append(node)
        closed = {self._root(name) for name in self._barriers}
        return [g for r, g in groups.items() if r not in closed and g.writers and g.readers]

    def _is_convolution(self, node: Any) -> bool:
        """A convolution whose weights are its own: ungrouped, or depthwise."""
        if node.op_type != "Conv" or any(n not in self._weights for n in node.input[1:] if n):
            return False
        shared = any(self._uses[n] > 1 for n in node.input[1:] if n)
        shape = self._weights[node.input[1]].shape
        return not shared and (_group(node) == 1 or (_group(node) == shape[0] and shape[1] == 1))

    def _root(self, name: str) -> str:
        parent = self._parent.setdefault(name, name)
        while parent != self._parent[parent]:
            parent = self._parent[parent]
        self._parent[name] = parent
        return parent

    def _join(self, first: str, second: str) -> None:
        self._parent[self._root(first)] = self._root(second)


def _reads(node: Any) -> list[str]:
    """The names of the tensors a node reads, those that branches of If or bodies of loops read, too."""
    inner = [n for a in node.attribute for g in (a.g, *a.graphs) for n in g.node]
    return [*node.input, *(name for n in inner for name in _reads(n))]


def _group(node: Any) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "group"), 1)


def _balance(groups: list[_Group], weights: dict[str, Array]) -> int:
    """Rescale in rounds, for groups share depthwise convolutions; how many groups changed noticeably."""
    total = [np.ones(1, np.float32) for _ in groups]
    for _ in range(_ROUNDS):
        largest = 1.0
        for index, group in enumerate(groups):
            before = _ranges([_by_output(weights[n.input[1]]) for n in group.writers])
            behind = _ranges([_by_input(weights[n.input[1]], n) for n in group.readers])
            if before.shape != behind.shape or not before.size:
                continue  # a reshape or a broadcast we do not see through
            usable = (before > 0) & (behind > 0)
            scale = np.ones_like(before)
            scale[usable] = np.sqrt(behind[usable] / before[usable])
            scale /= np.exp(np.mean(np.log(scale)))  # only relations between channels matter
            _apply(group, scale, weights)
            total[index] = total[index] * scale
            largest = max(largest, float(np.max(scale)), float(1 / np.min(scale)))
        if largest < 1 + _SETTLED:
            break
    return sum(float(np.max(t) / np.min(t)) > _WORTH for t in total)


def _apply(group: _Group, scale: Array, weights: dict[str, Array]) -> None:
    for node in group.writers:
        name = node.input[1]
        weights[name] = weights[name] * _along(scale, weights[name], 0)
        if len(node.input) > 2 and node.input[2]:
            weights[node.input[2]] = weights[node.input[2]] * scale
    for node in group.readers:
        name = node.input[1]
        axis = 1 if _group(node) == 1 else 0
        weights[name] = weights[name] / _along(scale, weights[name], axis)


def _along(scale: Array, weight: Array, axis: int) -> Array:
    shape = [1] * weight.ndim
    shape[axis] = -1
    return scale.reshape(shape)


def _by_output(weight: Array) -> Array:
    result: Array = np.abs(weight).reshape(weight.shape[0], -1).max(axis=1)
    return result


def _by_input(weight: Array, node: Any) -> Array:
    if _group(node) != 1:
        return _by_output(weight)
    result: Array = np.abs(weight).max(axis=(0, *range(2, weight.ndim)))
    return result


def _ranges(parts: list[Array]) -> Array:
    if len({p.shape for p in parts}) > 1:
        return np.zeros(0, np.float32)
    result: Array = np.max(np.stack(parts), axis=0)
    return result
