"""Where an ONNX model keeps its weights: external files, copies without weights, one protobuf or more."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, Final

from edgeserve.errors import SourceError

# What one protobuf file holds, with room for the graph.
PROTOBUF_BYTES: Final = 1_900_000_000
# Of onnx's messages: those that tensors can be in, and the types of attributes that hold them or graphs.
_HOLDERS: Final = (
    "ModelProto", "GraphProto", "FunctionProto", "NodeProto", "AttributeProto",
)  # fmt: skip
_HELD: Final = (4, 5, 9, 10)
_STRING: Final = 8  # of TensorProto.DataType
_EXTERNAL: Final = 1  # of TensorProto.DataLocation
# Elements: tensors with more are weights.
_LARGE: Final = 65_536


def all_tensors(proto: Any) -> list[Any]:
    """Every tensor of a model: its graphs', those of their nodes' attributes, and of local functions."""
    from onnx import external_data_helper

    return list(external_data_helper._get_all_tensors(proto))


def external_files(path: Path, tensors: Iterable[Any]) -> list[Path]:
    """The files that external ones of a model's tensors lie in. Raises SourceError for one that is absent,
    too short or not below the model's folder."""
    needed: dict[str, int] = {}
    for tensor in tensors:
        if not _is_external(tensor):
            continue
        info = {text_of(entry.key): text_of(entry.value) for entry in tensor.external_data}
        location = info.get("location", "")
        if not location or PurePosixPath(location).is_absolute() or ".." in Path(location).parts:
            raise SourceError(
                f"{path} keeps tensor '{text_of(tensor.name)}' outside its folder",
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


def load_external(proto: Any, folder: Path) -> None:
    """Read external data into the model. Links of the files themselves are followed, as onnxruntime does;
    that no location leads out of the folder, `external_files` has checked."""
    for tensor in all_tensors(proto):
        if not _is_external(tensor):
            continue
        info = {text_of(entry.key): text_of(entry.value) for entry in tensor.external_data}
        with (folder / info["location"]).open("rb") as file:
            file.seek(_number(info.get("offset", "0")))
            length = info.get("length", "")
            tensor.raw_data = file.read(_number(length)) if length else file.read()
        tensor.data_location = tensor.DEFAULT
        del tensor.external_data[:]


def save_onnx(proto: Any, destination: Path) -> list[Path]:
    """Write a model; tensors go beside it, and out of `proto`, when the whole exceeds protobuf's 2 GB. The
    files' paths."""
    import onnx

    if not exceeds_protobuf(proto):
        onnx.save_model(proto, str(destination))
        return [destination]
    data = destination.with_suffix(".data")
    onnx.save_model(
        proto, str(destination), save_as_external_data=True, location=data.name, size_threshold=1024
    )
    return [destination, data]


def exceeds_protobuf(proto: Any) -> bool:
    """Whether the model is too large for one file. protobuf cannot even tell the size of those above 2 GB."""
    from google.protobuf.message import EncodeError

    try:
        return bool(proto.ByteSize() > PROTOBUF_BYTES)
    except EncodeError:
        return True


def without_weights(proto: Any, most: int) -> Any:
    """A copy in which tensors of more than `most` elements are external ones that lie nowhere."""
    copy = type(proto)()
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


def checkable(proto: Any) -> Any:
    """What onnx's checker can judge of a model without reading its weights: a copy in which large and external
    ones are scalars.

    The checker opens external files itself otherwise, and refuses links, which the Hugging Face cache is
    made of. What matters of those files, `external_files` has checked. Of weights in the model it looks at
    nothing but which field they are in: those in another than `raw_data` stay.
    """
    tensors = all_tensors(proto)
    large = [t for t in tensors if math.prod(t.dims) > _LARGE]
    if not large and not any(map(_is_external, tensors)):
        return proto
    if all(t.HasField("raw_data") or _is_external(t) for t in large):
        copy = without_weights(proto, _LARGE)
    else:
        copy = type(proto)()
        copy.CopyFrom(proto)
    for tensor in all_tensors(copy):
        if _is_external(tensor):
            tensor.data_location = tensor.DEFAULT
            del tensor.external_data[:]
            del tensor.dims[:]
            tensor.raw_data = bytes(16)
    return copy


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def text_of(value: str | bytes) -> str:
    """protobuf hands out a text field that is not UTF-8 as bytes."""
    return value if isinstance(value, str) else value.decode("utf-8", errors="replace")
