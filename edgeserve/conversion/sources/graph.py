"""An ONNX graph as one follows a tensor through it: who reads it, which constants there are, which shapes.

Inner graphs (If, Loop, Scan) are part of it: what they call otherwise is followed by both names.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.evaluate.made_up import concrete
from edgeserve.tensors import Array

# Elements. Larger constants are weights: nothing is read off their values.
SMALL: Final = 65_536
_EXTERNAL: Final = 1  # of TensorProto.DataLocation
_STANDARD: Final = ("", "ai.onnx")

Dims = tuple[int | str, ...]


class Reader(msgspec.Struct, frozen=True):
    """A node that reads a tensor as its input number `index`."""

    node: Any
    index: int

    @property
    def op(self) -> str:
        domain = self.node.domain
        return str(self.node.op_type) if domain in _STANDARD else f"{domain}.{self.node.op_type}"


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """An attribute's value as onnx.helper gives it."""
    from onnx import helper

    for found in node.attribute:
        if found.name == name:
            return helper.get_attribute_value(found)
    return default


class Graph:
    """Read-only; `proto` is an onnx.ModelProto with at least its small constants."""

    def __init__(self, proto: Any) -> None:
        self._proto = _inlined(proto)
        self._readers: dict[str, list[Reader]] = defaultdict(list)
        self.aliases: dict[str, list[str]] = defaultdict(list)
        self.loop_conditions: set[str] = set()
        self._tensors: dict[str, Any] = {}
        self._arrays: dict[str, Array | None] = {}
        for graph in _graphs(self._proto.graph):
            self._tensors |= {t.name: t for t in graph.initializer}
            for node in graph.node:
                for index, name in enumerate(node.input):
                    self._readers[name].append(Reader(node, index))
                if node.op_type == "Constant":
                    self._tensors[node.output[0]] = node
                self._connect(node)

    def readers(self, name: str) -> list[Reader]:
        return self._readers.get(name, [])

    def _connect(self, node: Any) -> None:
        """What the bodies of loops call the loop's inputs."""
        body = attribute(node, "body")
        if body is None:
            return
        first = 0
        if node.op_type == "Loop":
            first = 1
            self.loop_conditions.add(body.output[0].name)
        for outer, inner in zip(node.input[first:], body.input[first:], strict=False):
            self.aliases[outer].append(inner.name)

    def constant(self, name: str) -> Array | None:
        """The values of a small constant; None for what is none, or large."""
        if name not in self._arrays:
            self._arrays[name] = _array_of(self._tensors.get(name))
        return self._arrays[name]

    def dims(self, name: str) -> Dims | None:
        """The shape of a tensor, as far as it is known without running the model."""
        found = self._tensors.get(name)
        if found is not None and found.DESCRIPTOR.name == "TensorProto":
            return tuple(int(d) for d in found.dims)
        constant = self.constant(name)
        return constant.shape if constant is not None else self._shapes.get(name)

    def sizes(self, name: str, open_size: int) -> tuple[int, ...] | None:
        """The shape in samples whose open dimensions have this size; None where it is not known."""
        dims = self.dims(name)
        known = {d for v in self._proto.graph.input for d in _dims(v) or ()}
        if dims is None or any(isinstance(d, str) and d not in known for d in dims):
            return None
        return concrete(dims, open_size)

    @cached_property
    def _shapes(self) -> dict[str, Dims]:
        """By inference, on a copy without the weights."""
        import onnx

        copy, graph = onnx.ModelProto(), self._proto.graph
        copy.ir_version = self._proto.ir_version
        copy.opset_import.extend(self._proto.opset_import)
        copy.graph.name = graph.name
        copy.graph.node.extend(graph.node)
        copy.graph.input.extend(graph.input)
        copy.graph.output.extend(graph.output)
        for tensor in graph.initializer:
            if tensor.data_location != _EXTERNAL and len(tensor.raw_data) <= SMALL:
                copy.graph.initializer.append(tensor)
            else:
                kept = copy.graph.input.add()
                kept.CopyFrom(
                    onnx.helper.make_tensor_value_info(
                        tensor.name, tensor.data_type, list(tensor.dims)
                    )
                )
        try:
            inferred = onnx.shape_inference.infer_shapes(copy)
        except Exception:  # noqa: BLE001 - shapes that contradict each other: then less is known
            inferred = copy
        values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
        return {v.name: dims for v in values if (dims := _dims(v)) is not None}


def _inlined(proto: Any) -> Any:
    """The model without local functions, which rename what goes in and out of them."""
    if not proto.functions:
        return proto
    from onnx import inliner

    try:
        return inliner.inline_local_functions(proto)
    except Exception:  # noqa: BLE001 - too large for it, or of a newer kind
        return proto


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for found in node.attribute:
            for inner in ([found.g] if found.HasField("g") else []) + list(found.graphs):
                yield from _graphs(inner)


def _dims(value: Any) -> Dims | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(
        int(d.dim_value) if d.HasField("dim_value") and d.dim_value >= 0
        else d.dim_param or f"{value.name}_dim{i}"
        for i, d in enumerate(tensor.shape.dim)
    )  # fmt: skip


def _array_of(found: Any) -> Array | None:
    from onnx import helper, numpy_helper

    if found is None:
        return None
    if found.DESCRIPTOR.name == "TensorProto":
        size = int(np.prod(found.dims, dtype=np.int64))
        return None if size > SMALL else np.asarray(numpy_helper.to_array(found))
    (given,) = found.attribute
    value = helper.get_attribute_value(given)
    if given.name == "value":
        size = int(np.prod(value.dims, dtype=np.int64))
        return None if size > SMALL else np.asarray(numpy_helper.to_array(value))
    return np.asarray(value) if given.name in _CONSTANTS else None


_CONSTANTS: Final = ("value_int", "value_ints", "value_float", "value_floats")
