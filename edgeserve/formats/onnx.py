"""What an ONNX file holds. External data are counted, never loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

from edgeserve.errors import DependencyMissing, InvalidInput, SourceError
from edgeserve.formats.layers import onnx_layers
from edgeserve.formats.report import ModelReport, Weight, model_report
from edgeserve.formats.state import passed_state
from edgeserve.tensors import TensorSpec, dtype_name

# Types narrower than a byte are packed.
_PACKED_BITS: Final = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_UNDEFINED: Final = "UNDEFINED"
# Of onnx's messages: those that tensors can be in, and the types of attributes that hold them or graphs.
_HOLDERS: Final = (
    "ModelProto", "GraphProto", "FunctionProto", "NodeProto", "AttributeProto",
)  # fmt: skip
_HELD: Final = (4, 5, 9, 10)
_STRING: Final = 8  # of TensorProto.DataType
_EXTERNAL: Final = 1  # of TensorProto.DataLocation
# Elements: tensors with more are weights.
_LARGE: Final = 65_536


def inspect_onnx(path: Path, hint: str | None = None) -> ModelReport:
    """Report on an ONNX file. Raises SourceError, DependencyMissing; `hint` is for what is no model."""
    try:
        import onnx
    except ImportError:
        raise DependencyMissing("onnx", needed_for="reading ONNX", extra="convert") from None
    proto = _parse(onnx, path, hint)
    constants = [*proto.graph.initializer]
    operators: list[str] = []
    for node in _nodes(proto):
        domain, kind = _text(node.domain), _text(node.op_type)
        operators.append(kind if domain in ("", "ai.onnx") else f"{domain}.{kind}")
        if kind == "Constant":
            constants += [a.t for a in node.attribute if a.name == "value"]
    given = {t.name for t in proto.graph.initializer}
    opsets = {_text(o.domain) or "ai.onnx": o.version for o in proto.opset_import}
    return model_report(
        [path, *external_files(path, constants)],
        "onnx",
        f"IR {proto.ir_version}, "
        + ", ".join(f"{domain} {version}" for domain, version in opsets.items()),
        f"{_text(proto.producer_name)} {_text(proto.producer_version)}".strip() or None,
        (_spec(onnx, v) for v in proto.graph.input if v.name not in given),
        (_spec(onnx, v) for v in proto.graph.output),
        operators,
        [_weight(onnx, tensor) for tensor in constants],
        passed=passed_state(proto),
        layers=onnx_layers(proto),
    )


def _parse(onnx: Any, path: Path, hint: str | None) -> Any:
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except (DecodeError, UnicodeDecodeError) as error:
        # A ModelProto begins with its ir_version: field 1, a varint.
        with path.open("rb") as file:
            truncated = file.read(1) == b"\x08"
        raise SourceError(
            f"{path} is {'not a whole' if truncated else 'no'} ONNX model",
            cause=f"{error} ({path.stat().st_size} bytes)",
            hint="it may be truncated: copy or export it again" if truncated else hint,
        ) from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read", cause=str(error)) from None
    if not proto.graph.node or not proto.opset_import:
        what = "no graph" if not proto.graph.node else "no opset"
        raise SourceError(f"{path} is no ONNX model", cause=f"it holds {what}", hint=hint)
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


def without_weights(onnx: Any, proto: Any, most: int) -> Any:
    """A copy in which tensors of more than `most` elements are external ones that lie nowhere."""
    copy = onnx.ModelProto()
    _copy_without(proto, copy, most)
    return copy


def _copy_without(source: Any, copy: Any, most: int) -> None:
    kind = source.DESCRIPTOR.name
    if kind == "TensorProto" and math.prod(source.dims) > most and source.data_type != _STRING:
        copy.name, copy.data_type, copy.data_location = source.name, source.data_type, _EXTERNAL
        copy.dims.extend(source.dims)
        return
    if kind not in _HOLDERS or (
        kind == "NodeProto" and not any(a.type in _HELD for a in source.attribute)
    ):
        copy.CopyFrom(source)
        return
    for field, value in source.ListFields():
        if field.message_type is None:
            if hasattr(value, "extend"):
                getattr(copy, field.name).extend(value)
            else:
                setattr(copy, field.name, value)
        elif hasattr(value, "add"):
            for item in value:
                _copy_without(item, getattr(copy, field.name).add(), most)
        else:
            getattr(copy, field.name).SetInParent()
            _copy_without(value, getattr(copy, field.name), most)


def checkable(onnx: Any, proto: Any) -> Any:
    """What onnx's checker can judge of a model without reading its weights: a copy in which large and external
    ones are scalars.

    The checker opens external files itself otherwise, and refuses links, which the Hugging Face cache is
    made of. What matters of those files, `external_files` has checked. Of weights in the model it looks at
    nothing but which field they are in: those in another than `raw_data` stay.
    """
    tensors = list(onnx.external_data_helper._get_all_tensors(proto))
    large = [t for t in tensors if math.prod(t.dims) > _LARGE]
    if not large and not any(map(_is_external, tensors)):
        return proto
    if all(t.HasField("raw_data") or _is_external(t) for t in large):
        copy = without_weights(onnx, proto, _LARGE)
    else:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
    for tensor in onnx.external_data_helper._get_all_tensors(copy):
        if _is_external(tensor):
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
            del tensor.dims[:]
            tensor.raw_data = bytes(16)
    return copy


def load_external(onnx: Any, proto: Any, folder: Path) -> None:
    """Read external data into the model. Links of the files themselves are followed, as onnxruntime does;
    that no location leads out of the folder, `external_files` has checked."""
    for tensor in onnx.external_data_helper._get_all_tensors(proto):
        if not _is_external(tensor):
            continue
        info = {_text(entry.key): _text(entry.value) for entry in tensor.external_data}
        with (folder / info["location"]).open("rb") as file:
            file.seek(_number(info.get("offset", "0")))
            length = info.get("length", "")
            tensor.raw_data = file.read(_number(length)) if length else file.read()
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL)


def external_files(path: Path, tensors: Iterable[Any]) -> list[Path]:
    """The files that external ones of a model's tensors lie in. Raises SourceError for one that is absent,
    too short or not below the model's folder."""
    needed: dict[str, int] = {}
    for tensor in tensors:
        if not _is_external(tensor):
            continue
        info = {_text(entry.key): _text(entry.value) for entry in tensor.external_data}
        location = info.get("location", "")
        if not location or PurePosixPath(location).is_absolute() or ".." in Path(location).parts:
            raise SourceError(
                f"{path} keeps tensor '{_text(tensor.name)}' outside its folder",
                cause=repr(location),
            )
        offset, length = (_number(info.get(key, "0")) for key in ("offset", "length"))
        needed[location] = max(needed.get(location, 0), offset + length)
    for location, size in needed.items():
        file = path.parent / location
        if not file.is_file():
            raise SourceError(
                f"{path} lacks its external data",
                cause=f"{location} is not beside it",
                hint=f"copy {location} into {path.parent}",
            )
        if file.stat().st_size < size:
            raise SourceError(
                f"{file} is truncated",
                cause=f"expected at least {size} bytes, got {file.stat().st_size}",
                hint="copy or export the model again",
            )
    return [path.parent / location for location in sorted(needed)]


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _weight(onnx: Any, tensor: Any) -> Weight:
    dtype = _dtype(onnx, tensor.data_type)
    elements = math.prod(tensor.dims)
    if dtype == "BYTES":
        size = sum(len(s) for s in tensor.string_data)
    elif dtype in _PACKED_BITS:
        size = math.ceil(elements * _PACKED_BITS[dtype] / 8)
    elif dtype == _UNDEFINED or dtype.startswith("type "):
        size = len(tensor.raw_data)
    else:
        size = elements * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return Weight(_text(tensor.name), dtype, tuple(tensor.dims), elements, size)


def _dtype(onnx: Any, data_type: int) -> str:
    """The inference protocol's name where it has one (FP32), else ONNX's own (INT4)."""
    if data_type == onnx.TensorProto.STRING:
        return "BYTES"
    if data_type == onnx.TensorProto.BFLOAT16:
        return "BF16"
    try:
        return dtype_name(onnx.helper.tensor_dtype_to_np_dtype(data_type))
    except (InvalidInput, TypeError, KeyError):
        known = data_type in onnx.TensorProto.DataType.values()
        return onnx.TensorProto.DataType.Name(data_type) if known else f"type {data_type}"


def _spec(onnx: Any, value: Any) -> TensorSpec:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return TensorSpec(_text(value.name), (kind or "untyped").removesuffix("_type"), ())
    tensor = value.type.tensor_type
    dims = tuple(
        int(dim.dim_value) if dim.HasField("dim_value") else _text(dim.dim_param) or "?"
        for dim in tensor.shape.dim
    )
    return TensorSpec(_text(value.name), _dtype(onnx, tensor.elem_type), dims)


def _text(value: str | bytes) -> str:
    """protobuf hands out a text field that is not UTF-8 as bytes."""
    return value if isinstance(value, str) else value.decode("utf-8", errors="replace")
