"""TensorProto to arrays, and back as bytes of the message.

Sources: tensorflow/core/framework/tensor.proto, and `make_ndarray`: one value, or the last one, fills the rest of the shape.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols.tfserving.about import DT
from edgeserve.serve.protocols.tfserving.grpc import messages
from edgeserve.tensors import DTYPES, Array, TensorSpec, as_bytes, dtype_name

if TYPE_CHECKING:
    from edgeserve.serve.protocols.tfserving.grpc.messages import TensorProto

NAMES: Final = {number: dtype for dtype, (_, number) in DT.items()}
_FIELDS: Final = {
    "FP32": "float_val", "FP64": "double_val", "INT32": "int_val", "INT16": "int_val", "INT8": "int_val",
    "UINT8": "int_val", "UINT16": "int_val", "INT64": "int64_val", "BOOL": "bool_val", "FP16": "half_val",
    "BF16": "half_val", "UINT32": "uint32_val", "UINT64": "uint64_val",
}  # fmt: skip
# Tags (field number << 3 | 2) of packed fields whose values are on the wire as they are in memory.
_PACKED: Final = {"FP32": b"\x2a", "FP64": b"\x32", "BOOL": b"\x5a"}
_RANK: Final = 254  # TensorFlow's own limit


def from_proto(
    name: str, proto: TensorProto, most: int, most_bytes: int = 1 << 20
) -> tuple[str, Array]:
    """The datatype and the array of an input, with at most `most` elements. If fewer values than elements came, it has
    at most `most_bytes`, and the array of a single value is a view that repeats it. Raises InvalidInput.
    """
    dtype = NAMES.get(proto.dtype)
    if dtype is None:
        raise InvalidInput(f"input '{name}': dtype {proto.dtype} is not supported")
    shape = _shape(name, proto, most)
    count = math.prod(shape)
    if dtype == "BYTES":
        return dtype, _strings(name, proto, shape, most_bytes)
    kind = DTYPES[dtype]
    content = proto.tensor_content
    if content:
        if len(content) != count * kind.itemsize:
            raise InvalidInput(
                f"input '{name}': expected {count * kind.itemsize} bytes of tensor_content for shape "
                f"{list(shape)}, got {len(content)}"
            )
        return dtype, np.frombuffer(content, kind.newbyteorder("<")).astype(
            kind, copy=False
        ).reshape(shape)
    values = getattr(proto, _FIELDS[dtype])
    if len(values) > count or (count and not len(values)):
        raise InvalidInput(
            f"input '{name}': expected {count} values in {_FIELDS[dtype]} for shape {list(shape)}, got {len(values)}"
        )
    try:
        if dtype in ("FP16", "BF16"):
            array = np.array(values, np.uint16)
            array = array.view(np.float16) if dtype == "FP16" else array
        else:
            array = _numbers(values, kind)
    except (OverflowError, ValueError):
        raise InvalidInput(f"input '{name}': a value is outside {dtype}") from None
    return dtype, _filled(name, array, shape, most_bytes)


def _filled(name: str, values: Array, shape: tuple[int, ...], most_bytes: int) -> Array:
    """In a shape whose rest the last value fills: a short message must not become a large array."""
    count = math.prod(shape)
    if len(values) < count:
        if count * values.itemsize > most_bytes:
            raise InvalidInput(
                f"input '{name}': expected {count} values for shape {list(shape)}, got {len(values)}: the last one "
                f"fills at most {most_bytes} bytes"
            )
        if len(values) == 1:
            return np.broadcast_to(values[0:1].reshape((1,) * len(shape)), shape)
        rest = np.empty(count - len(values), values.dtype)
        rest[:] = values[-1]
        values = np.concatenate([values, rest])
    return values.reshape(shape)


def _numbers(values: Any, kind: np.dtype[Any]) -> Array:
    if kind.kind in "iu" and kind.itemsize < 4:
        wide = np.array(values, np.int64)
        limits = np.iinfo(kind)
        if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
            raise OverflowError
        return wide.astype(kind)
    return np.array(values, kind)


def _shape(name: str, proto: TensorProto, most: int) -> tuple[int, ...]:
    given = proto.tensor_shape
    shape = tuple(dim.size for dim in given.dim)
    if given.unknown_rank or len(shape) > _RANK or any(size < 0 for size in shape):
        raise InvalidInput(f"input '{name}': expected a shape without unknown sizes")
    if math.prod(shape) > most:
        raise InvalidInput(
            f"input '{name}': expected at most {most} elements, got {math.prod(shape)}"
        )
    return shape


def _strings(name: str, proto: TensorProto, shape: tuple[int, ...], most_bytes: int) -> Array:
    if proto.tensor_content:
        raise InvalidInput(f"input '{name}': strings are read from string_val, not tensor_content")
    values = list(proto.string_val)
    count = math.prod(shape)
    if len(values) > count or (count and not values):
        raise InvalidInput(
            f"input '{name}': expected {count} values in string_val for shape {list(shape)}, got {len(values)}"
        )
    array: Array = np.empty(len(values), object)
    array[:] = values
    return _filled(name, array, shape, most_bytes)


def to_proto(array: Array, declared: str) -> bytes:
    """A serialized TensorProto, with typed values, as TF Serving sends them: clients read `float_val` themselves."""
    dtype = declared if declared == "BF16" else dtype_name(array.dtype)
    proto = messages.TensorProto(dtype=DT[dtype][1])
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if not array.ndim:
        proto.tensor_shape.SetInParent()
    flat = np.ascontiguousarray(array).reshape(-1)
    if dtype in _PACKED:
        data = flat.astype(flat.dtype.newbyteorder("<"), copy=False).tobytes()
        head: bytes = proto.SerializeToString()
        return head + field(_PACKED[dtype], data)
    if dtype == "BYTES":
        proto.string_val.extend(as_bytes(flat).tolist())
    elif dtype in ("FP16", "BF16"):
        proto.half_val.extend(flat.view(np.uint16).tolist())
    else:
        getattr(proto, _FIELDS[dtype]).extend(flat.tolist())
    whole: bytes = proto.SerializeToString()
    return whole


def varint(value: int) -> bytes:
    """Protobuf's variable-length integer."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def field(tag: bytes, data: bytes) -> bytes:
    """A length-delimited field."""
    return tag + varint(len(data)) + data


def fitted(spec: TensorSpec, dtype: str, array: Array) -> Array:
    """An input in the model's type. Raises InvalidInput for another one."""
    if dtype != spec.dtype:
        raise InvalidInput(f"input '{spec.name}': expected {spec.dtype}, got {dtype}")
    if (
        not spec.fits(array.shape)
        and spec.shape
        and spec.shape[-1] == 1
        and spec.fits((*array.shape, 1))
    ):
        return array.reshape((*array.shape, 1))
    return array
