"""The binary tensor data extension: little-endian, row-major; BYTES as [u32 length][bytes] each.

Source: Triton's protocol/extension_binary_data.md.
"""

from __future__ import annotations

import math
import struct
from typing import Final

import numpy as np

from edgeserve.errors import InvalidInput
from edgeserve.tensors import Array, TensorSpec

# Strings whose length is looked at; it takes some hundred microseconds.
_COUNTED: Final = 4_096


def from_bytes(spec: TensorSpec, shape: tuple[int, ...], data: memoryview) -> Array:
    """A tensor over `data`, without a copy where alignment allows. Raises InvalidInput on any misfit."""
    if spec.dtype == "BYTES":
        return _texts(spec, shape, data)
    dtype = spec.numpy_dtype
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(data):
        raise InvalidInput(
            f"input '{spec.name}': expected {expected} bytes for {spec.dtype} {list(shape)}, "
            f"got {len(data)}"
        )
    array = np.frombuffer(data, dtype.newbyteorder("<"))
    if spec.dtype == "BOOL" and len(data) and int(np.frombuffer(data, np.uint8).max()) > 1:
        raise InvalidInput(f"input '{spec.name}': a BOOL is a byte of 0 or 1")
    if not array.flags.aligned:
        array = array.copy()
    return array.reshape(shape)


def _texts(spec: TensorSpec, shape: tuple[int, ...], data: memoryview) -> Array:
    count = math.prod(shape)
    if count > len(data) // 4:  # each takes at least its length; checked before allocating
        raise InvalidInput(f"input '{spec.name}': {len(data)} bytes cannot hold {count} strings")
    values = np.empty(count, dtype=object)
    offset = 0
    for i in range(count):
        if offset + 4 > len(data):
            raise InvalidInput(f"input '{spec.name}': incomplete string data")
        (length,) = struct.unpack_from("<I", data, offset)
        offset += 4
        if offset + length > len(data):
            raise InvalidInput(f"input '{spec.name}': incomplete string data")
        values[i] = bytes(data[offset : offset + length])
        offset += length
    if offset != len(data):
        raise InvalidInput(f"input '{spec.name}': {len(data) - offset} bytes too many")
    return values.reshape(shape)


def content_bytes(array: Array) -> int:
    """About how many bytes an array holds: of strings, what the first of them let expect."""
    if not array.dtype.hasobject:
        return array.nbytes
    first = array.reshape(-1)[:_COUNTED].tolist()
    known = sum([len(t) if isinstance(t, bytes | str) else 1 for t in first])
    return array.nbytes + known * array.size // max(1, len(first))


def to_bytes(array: Array) -> bytes | memoryview:
    """The wire form of a tensor; a view on the array where it already has that form."""
    if array.dtype == object:
        parts = []
        for value in array.reshape(-1):
            text = value if isinstance(value, bytes) else str(value).encode()
            parts.append(struct.pack("<I", len(text)) + text)
        return b"".join(parts)
    wire = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return wire.reshape(-1).view(np.uint8).data if wire.size else b""
