"""An ONNX file as a check needs it: nodes, types and shapes. Weights are measured, never loaded from
external data, and nothing is run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeserve.errors import SourceError
from edgeserve.formats.onnx import (
    STANDARD_DOMAINS,
    OnnxFile,
    checker_problem,
    fix_shapes,
    is_unknown_operator,
    op_name,
    opsets_of,
    stored_bytes,
    type_name,
)
from edgeserve.formats.onnx_weights import text_of

# Shape inference reads the values of small tensors (shapes, axes); larger ones are weights.
_SHAPE_DATA_BYTES: Final = 1024
_ONNX_DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")

Dim = int | str | None


class Value(msgspec.Struct, frozen=True):
    """A tensor's element type as ONNX names it (`FLOAT`), and its shape; None where not known."""

    dtype: str
    shape: tuple[Dim, ...] | None

    @property
    def elements(self) -> int | None:
        if self.shape is None or not all(isinstance(d, int) for d in self.shape):
            return None
        return math.prod(int(d) for d in self.shape if d is not None)


class Node(msgspec.Struct, frozen=True):
    """A node of the graph, of an inner graph, or of a local function (`inner` for the latter two).

    `op` is `Conv` or `domain.Op`; `opset` the version of its domain that holds where it stands.
    """

    op: str
    domain: str
    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int | None
    inner: bool
    in_function: bool = False


class Constant(msgspec.Struct, frozen=True):
    """A constant tensor; `size_bytes` as it is stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class OnnxModel(msgspec.Struct, frozen=True):
    """A readable ONNX model. `proto` lacks its external data; `values` hold at batch 1.

    `batched` says that the first dimension of every input and output varies: only running the model
    shows whether it is a batch. `shape_problem` is what shape inference complained about.
    """

    path: Path
    proto: Any  # onnx.ModelProto
    opsets: dict[str, int]
    nodes: tuple[Node, ...]
    values: dict[str, Value]
    weights: dict[str, Constant]
    functions: frozenset[str]
    batched: bool
    external: bool
    changed: bool
    shape_problem: str | None

    @property
    def opset(self) -> int | None:
        return self.opsets.get("")

    @property
    def inputs(self) -> list[Any]:
        """The values a caller feeds: older exporters list weights among the graph's inputs."""
        return [v for v in self.proto.graph.input if v.name not in self.weights]

    @property
    def size_bytes(self) -> int:
        """The model in memory: its protobuf and its external data."""
        own = int(self.proto.ByteSize())
        return own + (sum(w.size_bytes for w in self.weights.values()) if self.external else 0)

    def named(self, op: str) -> tuple[str, ...]:
        """The names of all nodes of an operator."""
        return tuple(n.name for n in self.nodes if n.op == op)


def onnx_model(file: OnnxFile, shapes: Mapping[str, tuple[int, ...]] | None = None) -> OnnxModel:
    """A file as a check needs it; `shapes` fixes dimensions of inputs by name, in the file's `proto`.

    Raises SourceError (onnx's checker refuses it), UsageError (`shapes` do not fit).
    """
    try:
        return _model(file, shapes)
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{file.path} is not a whole ONNX model",
            cause=f"a name in it is not UTF-8: {error.reason}",
            hint="it may be damaged: copy or export it again",
        ) from None


def _model(file: OnnxFile, shapes: Mapping[str, tuple[int, ...]] | None) -> OnnxModel:
    proto = file.proto
    if shapes:
        fix_shapes(proto, shapes)
    nodes = tuple(_all_nodes(proto, file.opsets))
    weights = {name: _weight(tensor, name) for name, tensor in file.constants()}
    _check(file)
    batched = _batched(file)
    values, problem = _infer(proto, batched=batched)
    return OnnxModel(
        file.path, proto, file.opsets, nodes, values, weights,
        frozenset(op_name(f.domain, f.name) for f in proto.functions),
        batched, bool(file.external), bool(shapes), problem,
    )  # fmt: skip


def is_standard(domain: str) -> bool:
    """Whether a node's domain is one of ONNX's own."""
    return domain in _ONNX_DOMAINS


def _check(file: OnnxFile) -> None:
    """What onnx's checker refuses is not a valid model; unknown operators are findings, not errors."""
    import onnx

    opset = file.opsets.get("")
    if opset is None or opset > onnx.defs.onnx_opset_version():
        return
    problem = checker_problem(file.proto)
    # Operators and IR versions it does not know are findings: engines may know them.
    if problem is None or is_unknown_operator(problem) or "ir_version" in problem:
        return
    raise SourceError(f"{file.path} is not a valid ONNX model", cause=problem)


def _weight(tensor: Any, name: str) -> Constant:
    shape = tuple(int(d) for d in tensor.dims)
    dtype = type_name(tensor.data_type)
    size = stored_bytes(dtype, math.prod(shape))
    return Constant(name, dtype, shape, tensor.ByteSize() if size is None else size)


def _batched(file: OnnxFile) -> bool:
    """The first dimension of every input and output varies, and by one symbol where it has a name."""
    values = [*file.inputs(), *file.proto.graph.output]
    for value in values:
        dims = value.type.tensor_type.shape.dim
        if not len(dims) or dims[0].HasField("dim_value"):
            return False
    return bool(values)


def _all_nodes(proto: Any, opsets: Mapping[str, int]) -> Iterator[Node]:
    yield from _nodes(proto.graph.node, opsets, inner=False, in_function=False)
    for function in proto.functions:
        own = opsets_of(function.opset_import)
        yield from _nodes(function.node, own, inner=True, in_function=True)


def _nodes(
    nodes: Any, opsets: Mapping[str, int], *, inner: bool, in_function: bool
) -> Iterator[Node]:
    for node in nodes:
        domain = "" if node.domain in STANDARD_DOMAINS else node.domain
        yield Node(
            op=op_name(domain, node.op_type),
            domain=domain,
            op_type=node.op_type,
            name=text_of(node.name)
            or (f"output {node.output[0]}" if node.output else node.op_type),
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            opset=opsets.get(domain),
            inner=inner,
            in_function=in_function,
        )
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node, opsets, inner=True, in_function=in_function)


def _infer(proto: Any, *, batched: bool) -> tuple[dict[str, Value], str | None]:
    """Types and shapes of all values at batch 1, by onnx's shape inference on a model without weights."""
    import onnx

    skeleton = _skeleton(proto)
    if batched:
        _set_batch(skeleton)
    problem = None
    try:
        onnx.shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True)
    except Exception as error:  # noqa: BLE001 - it raises whatever its C++ throws
        problem = " ".join(str(error).split())
    try:
        skeleton = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception as error:  # noqa: BLE001 - so does this
        problem = " ".join(str(error).split())
    values: dict[str, Value] = {}
    _collect(skeleton.graph, values)
    return values, problem


def _skeleton(proto: Any) -> Any:
    """The model without the data of its weights, whatever its size."""
    import onnx

    graph = onnx.GraphProto(name=proto.graph.name)
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    for tensor in proto.graph.initializer:
        if tensor.ByteSize() <= _SHAPE_DATA_BYTES and tensor.data_location != tensor.EXTERNAL:
            graph.initializer.append(tensor)
        else:
            graph.initializer.append(
                onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
            )
    model = onnx.ModelProto(ir_version=proto.ir_version, graph=graph)
    model.opset_import.extend(proto.opset_import)
    model.functions.extend(proto.functions)
    return model


def _set_batch(model: Any) -> None:
    """Fix the first dimension of inputs, and its symbol wherever it occurs, at 1."""
    weights = {t.name for t in model.graph.initializer}
    symbols = set()
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in weights or not len(dims):
            continue
        if dims[0].dim_param:
            symbols.add(dims[0].dim_param)
        dims[0].dim_value = 1
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = 1


def _collect(graph: Any, values: dict[str, Value]) -> None:
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.WhichOneof("value") != "tensor_type":
            continue
        tensor = value.type.tensor_type
        shape: tuple[Dim, ...] | None = None
        if tensor.HasField("shape"):
            shape = tuple(
                int(d.dim_value) if d.HasField("dim_value") else d.dim_param or None
                for d in tensor.shape.dim
            )
        values[value.name] = Value(type_name(tensor.elem_type), shape)
    for tensor in graph.initializer:
        values[tensor.name] = Value(type_name(tensor.data_type), tuple(int(d) for d in tensor.dims))
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _collect(inner, values)
