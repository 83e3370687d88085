"""An ONNX file as a check needs it: nodes, types and shapes. Weights are measured, never loaded from
external data, and nothing is run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from edgeserve.conversion.sources.onnx import fix_shapes
from edgeserve.errors import SourceError
from edgeserve.formats.onnx import checkable, external_files

# A protobuf message, and with it a model without external data, ends at 2 GB.
PROTOBUF_LIMIT: Final = 1_900_000_000
# Shape inference reads the values of small tensors (shapes, axes); larger ones are weights.
_SHAPE_DATA_BYTES: Final = 1024
_STANDARD: Final = ("", "ai.onnx")
_ONNX_DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")
_PACKED_BITS: Final = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}

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


class Weight(msgspec.Struct, frozen=True):
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
    weights: dict[str, Weight]
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


def open_onnx(path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None) -> OnnxModel:
    """Read a file that `inspect_model` found to be ONNX; `shapes` fixes dimensions of inputs by name.

    Raises SourceError (onnx's checker refuses it), UsageError (`shapes` do not fit).
    """
    try:
        return _open(path, shapes)
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path} is not a whole ONNX model",
            cause=f"a name in it is not UTF-8: {error.reason}",
            hint="it may be damaged: copy or export it again",
        ) from None


def _open(path: Path, shapes: Mapping[str, tuple[int, ...]] | None) -> OnnxModel:
    import onnx

    proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    if shapes:
        fix_shapes(proto, shapes)
    opsets = _opsets(proto.opset_import)
    functions = frozenset(_op(f.domain, f.name) for f in proto.functions)
    nodes = tuple(_all_nodes(proto, opsets))
    weights = {w.name: w for w in _weights(onnx, proto)}
    external = any(t.data_location == onnx.TensorProto.EXTERNAL for t in proto.graph.initializer)
    if external:
        external_files(path, onnx.external_data_helper._get_all_tensors(proto))
    _check(onnx, proto, path, opset=opsets.get(""))
    batched = _batched(proto, weights)
    values, problem = _infer(onnx, proto, batched=batched)
    return OnnxModel(
        path, proto, opsets, nodes, values, weights, functions, batched, external,
        bool(shapes), problem,
    )  # fmt: skip


def is_standard(domain: str) -> bool:
    """Whether a node's domain is one of ONNX's own."""
    return domain in _ONNX_DOMAINS


def weight_bytes(dtype: str, elements: int) -> int | None:
    """Bytes of a tensor of an ONNX type; None for types without a fixed size (strings)."""
    import onnx

    if dtype in _PACKED_BITS:
        return math.ceil(elements * _PACKED_BITS[dtype] / 8)
    try:
        number = onnx.TensorProto.DataType.Value(dtype)
        if number in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
            return None
        return elements * int(onnx.helper.tensor_dtype_to_np_dtype(number).itemsize)
    except (KeyError, ValueError):
        return None


def _check(onnx: Any, proto: Any, path: Path, *, opset: int | None) -> None:
    """What onnx's checker refuses is no valid model; unknown operators are findings, not errors."""
    if opset is None or opset > onnx.defs.onnx_opset_version():
        return
    try:
        if proto.ByteSize() < PROTOBUF_LIMIT:
            onnx.checker.check_model(checkable(onnx, proto))
    except onnx.checker.ValidationError as error:
        text = str(error).strip().splitlines()[0]
        # Operators and IR versions it does not know are findings: engines may know them.
        if any(known in text for known in ("No Op registered", "is not registered", "ir_version")):
            return
        raise SourceError(f"{path} is not a valid ONNX model", cause=text) from None


def _opsets(imports: Any) -> dict[str, int]:
    return {"" if o.domain in _STANDARD else o.domain: int(o.version) for o in imports}


def _op(domain: str, op_type: str) -> str:
    return op_type if domain in _STANDARD else f"{domain}.{op_type}"


def _all_nodes(proto: Any, opsets: Mapping[str, int]) -> Iterator[Node]:
    yield from _nodes(proto.graph.node, opsets, inner=False, in_function=False)
    for function in proto.functions:
        own = _opsets(function.opset_import)
        yield from _nodes(function.node, own, inner=True, in_function=True)


def _nodes(
    nodes: Any, opsets: Mapping[str, int], *, inner: bool, in_function: bool
) -> Iterator[Node]:
    for node in nodes:
        domain = "" if node.domain in _STANDARD else node.domain
        yield Node(
            op=_op(domain, node.op_type),
            domain=domain,
            op_type=node.op_type,
            name=_text(node.name) or (f"output {node.output[0]}" if node.output else node.op_type),
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            opset=opsets.get(domain),
            inner=inner,
            in_function=in_function,
        )
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _nodes(graph.node, opsets, inner=True, in_function=in_function)


def _text(value: str | bytes) -> str:
    """protobuf hands out a text field that is not UTF-8 as bytes."""
    return value if isinstance(value, str) else value.decode("utf-8", errors="replace")


def _weights(onnx: Any, proto: Any) -> Iterator[Weight]:
    for tensor in proto.graph.initializer:
        yield _weight(onnx, tensor, tensor.name)
    for node in proto.graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield _weight(onnx, attribute.t, node.output[0])


def _weight(onnx: Any, tensor: Any, name: str) -> Weight:
    dtype = _dtype(onnx, tensor.data_type)
    shape = tuple(int(d) for d in tensor.dims)
    size = weight_bytes(dtype, math.prod(shape))
    return Weight(name, dtype, shape, tensor.ByteSize() if size is None else size)


def _dtype(onnx: Any, number: int) -> str:
    known = number in onnx.TensorProto.DataType.values()
    return str(onnx.TensorProto.DataType.Name(number)) if known else f"type {number}"


def _batched(proto: Any, weights: Mapping[str, Weight]) -> bool:
    """The first dimension of every input and output varies, and by one symbol where it has a name."""
    values = [*(v for v in proto.graph.input if v.name not in weights), *proto.graph.output]
    for value in values:
        dims = value.type.tensor_type.shape.dim
        if not len(dims) or dims[0].HasField("dim_value"):
            return False
    return bool(values)


def _infer(onnx: Any, proto: Any, *, batched: bool) -> tuple[dict[str, Value], str | None]:
    """Types and shapes of all values at batch 1, by onnx's shape inference on a model without weights."""
    skeleton = _skeleton(onnx, proto)
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
    _collect(onnx, skeleton.graph, values)
    return values, problem


def _skeleton(onnx: Any, proto: Any) -> Any:
    """The model without the data of its weights, whatever its size."""
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


def _collect(onnx: Any, graph: Any, values: dict[str, Value]) -> None:
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
        values[value.name] = Value(_dtype(onnx, tensor.elem_type), shape)
    for tensor in graph.initializer:
        values[tensor.name] = Value(
            _dtype(onnx, tensor.data_type), tuple(int(d) for d in tensor.dims)
        )
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                _collect(onnx, inner, values)
