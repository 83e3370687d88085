"""What an ONNX file holds, read once: nodes, tensors, opsets. External data are counted, never loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from edgeserve.errors import (
    DependencyMissing,
    InvalidInput,
    SourceError,
    UsageError,
)
from edgeserve.formats.layers import Layers, onnx_layers
from edgeserve.formats.onnx_weights import (
    all_tensors,
    checkable,
    exceeds_protobuf,
    external_files,
    text_of,
)
from edgeserve.formats.report import ModelReport, Weight, model_report
from edgeserve.formats.state import passed_state
from edgeserve.tensors import TensorSpec, dtype_name

STANDARD_DOMAINS: Final = ("", "ai.onnx")
# Types narrower than a byte are packed.
_PACKED_BITS: Final = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_SOURCES: Final = "docs/sources.md lists what edgeserve reads"


class OnnxFile:
    """A parsed ONNX file whose external data are there, and not loaded.

    `proto` is an onnx.ModelProto, which whoever reads a file may change; `external` are the files that its
    external tensors lie in.
    """

    format: Final = "onnx"

    def __init__(self, path: Path, hint: str = _SOURCES) -> None:
        """Raises SourceError (missing, not ONNX, truncated, external data absent), with `hint` for what is
        not a model; DependencyMissing."""
        try:
            import onnx
        except ImportError:
            raise DependencyMissing("onnx", needed_for="reading ONNX", extra="convert") from None
        if path.is_dir():
            raise SourceError(f"{path} is a folder, not an ONNX file")
        self.path = path
        self.proto = _parse(onnx, path, hint)
        self.external = external_files(path, all_tensors(self.proto))

    @property
    def files(self) -> list[Path]:
        """The file, and those of its external data."""
        return [self.path, *self.external]

    @cached_property
    def opsets(self) -> dict[str, int]:
        """Versions by domain; the standard domain is "" however it is written."""
        return opsets_of(self.proto.opset_import)

    @cached_property
    def layers(self) -> Layers:
        return onnx_layers(self.proto)

    @cached_property
    def passed(self) -> tuple[tuple[str, str], ...]:
        """Pairs of an input and the output that is that input of the next call."""
        return tuple(passed_state(self.proto))

    def inputs(self) -> list[Any]:
        """What a caller feeds, as onnx.ValueInfoProto: older exporters list weights among the inputs."""
        given = {t.name for t in self.proto.graph.initializer}
        return [v for v in self.proto.graph.input if v.name not in given]

    def constants(self) -> Iterator[tuple[str, Any]]:
        """The graph's constant tensors (onnx.TensorProto), with the name that its nodes read them by."""
        for tensor in self.proto.graph.initializer:
            yield text_of(tensor.name), tensor
        for node in self.proto.graph.node:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.name == "value":
                        yield text_of(node.output[0]), attribute.t

    def report(self) -> ModelReport:
        operators, constants = [], [*self.proto.graph.initializer]
        for node in _nodes(self.proto):
            operators.append(op_name(text_of(node.domain), text_of(node.op_type)))
            if node.op_type == "Constant":
                constants += [a.t for a in node.attribute if a.name == "value"]
        opsets = ", ".join(f"{d or 'ai.onnx'} {v}" for d, v in self.opsets.items())
        producer = f"{text_of(self.proto.producer_name)} {text_of(self.proto.producer_version)}"
        return model_report(
            self.files,
            self.format,
            f"IR {self.proto.ir_version}, {opsets}",
            producer.strip() or None,
            map(_spec, self.inputs()),
            map(_spec, self.proto.graph.output),
            operators,
            list(map(_weight, constants)),
            passed=self.passed,
            layers=self.layers,
        )


def op_name(domain: str, op_type: str) -> str:
    """`Conv`, or `domain.Op` for other than the standard domain."""
    return op_type if domain in STANDARD_DOMAINS else f"{domain}.{op_type}"


def opsets_of(imports: Any) -> dict[str, int]:
    """Of a model's or a function's `opset_import`."""
    found = {text_of(o.domain): int(o.version) for o in imports}
    return {"" if d in STANDARD_DOMAINS else d: v for d, v in found.items()}


def checker_problem(proto: Any) -> str | None:
    """What onnx's checker refuses of a model, in a line; None for what is fine, or larger than it takes."""
    import onnx

    proto = checkable(proto)
    if exceeds_protobuf(proto):
        return None  # engines check the graph when they load it
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        return str(error).strip().splitlines()[0]
    return None


def is_unknown_operator(problem: str) -> bool:
    """Whether the checker's problem is an operator that ONNX does not define: engines may know it."""
    return "No Op registered" in problem or "is not registered" in problem


def stored_bytes(dtype: str, elements: int) -> int | None:
    """Bytes of a tensor of an ONNX type (`FLOAT`); None for types without a fixed size."""
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


def type_name(data_type: int) -> str:
    """ONNX's own name of an element type: `FLOAT`."""
    from onnx import TensorProto

    known = data_type in TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(data_type)) if known else f"type {data_type}"


def fix_shapes(proto: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Fix dimensions of inputs by name, in place. Raises UsageError where they do not fit."""
    inputs = {value.name: value for value in proto.graph.input}
    fixed: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in inputs:
            raise UsageError(
                f"--shape names no input of the model: '{name}'",
                hint=f"its inputs are {', '.join(inputs)}",
            )
        dims = inputs[name].type.tensor_type.shape.dim
        if len(dims) != len(shape):
            raise UsageError(
                f"--shape for '{name}' has {len(shape)} dimensions, the model has {len(dims)}"
            )
        for dim, size in zip(dims, shape, strict=True):
            if dim.HasField("dim_value") and dim.dim_value != size:
                raise UsageError(
                    f"--shape for '{name}' wants {size} where the model is fixed at {dim.dim_value}"
                )
            if dim.dim_param:
                fixed[dim.dim_param] = size
            dim.dim_value = size
    # The same symbol elsewhere is the same size; sizes inferred before no longer hold.
    for value in (*proto.graph.input, *proto.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in fixed:
                dim.dim_value = fixed[dim.dim_param]
    del proto.graph.value_info[:]


def _parse(onnx: Any, path: Path, hint: str) -> Any:
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, UnicodeDecodeError) as error:
        # A ModelProto begins with its ir_version: field 1, a varint.
        with path.open("rb") as file:
            truncated = file.read(1) == b"\x08"
        raise SourceError(
            f"{path} is not {'a whole' if truncated else 'an'} ONNX model",
            cause=f"{error} ({path.stat().st_size} bytes)",
            hint="it may be truncated: copy or export it again" if truncated else hint,
        ) from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read", cause=str(error)) from None
    if not proto.graph.node or not proto.opset_import:
        what = "no graph" if not proto.graph.node else "no opset"
        raise SourceError(f"{path} is not an ONNX model", cause=f"it holds {what}", hint=hint)
    return proto


def _nodes(proto: Any) -> Iterator[Any]:
    """All nodes: the graph's, those of its subgraphs (If, Loop, Scan), and of local functions."""
    pending = [*proto.graph.node, *(n for f in proto.functions for n in f.node)]
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                pending.extend(graph.node)


def _weight(tensor: Any) -> Weight:
    dtype = _dtype(tensor.data_type)
    elements = math.prod(tensor.dims)
    size = stored_bytes(type_name(tensor.data_type), elements)
    if size is None:
        texts = sum(len(s) for s in tensor.string_data)
        size = texts if dtype == "BYTES" else len(tensor.raw_data)
    return Weight(text_of(tensor.name), dtype, tuple(tensor.dims), elements, size)


def _dtype(data_type: int) -> str:
    """The inference protocol's name where it has one (FP32), else ONNX's own (INT4)."""
    import onnx

    if data_type == onnx.TensorProto.STRING:
        return "BYTES"
    if data_type == onnx.TensorProto.BFLOAT16:
        return "BF16"
    try:
        return dtype_name(onnx.helper.tensor_dtype_to_np_dtype(data_type))
    except (InvalidInput, TypeError, KeyError):
        return type_name(data_type)


def _spec(value: Any) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorSpec(text_of(value.name), (kind or "untyped").removesuffix("_type"), ())
    tensor = value.type.tensor_type
    dims = tuple(
        int(dim.dim_value) if dim.HasField("dim_value") else text_of(dim.dim_param) or "?"
        for dim in tensor.shape.dim
    )
    return TensorSpec(text_of(value.name), _dtype(tensor.elem_type), dims)
