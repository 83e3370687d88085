"""The binary tensor data extension: little-endian, row-major; BYTES as [u32 length][bytes] each.

Source: Triton's protocol/extension_binary_data.md.
"""

from __future__ import annotations

import math
import struct
from typing import Final

import numpy as np

from edgeserve.errors import InvalidInput
from edgeserve.tensors import Array, Interface, TensorSpec

# Strings whose length is looked at; it takes some hundred microseconds.
_COUNTED: Final = 4_096


def from_bytes(spec: TensorSpec, shape: tuple[int, ...], data: memoryview) -> Array:
    """A tensor over `data`, without a copy where alignment allows. Raises InvalidInput on any misfit."""
    if spec.dtype == "BYTES":
        return _texts(spec, shape, data)
    check_size(spec, shape, len(data))
    array = np.frombuffer(data, spec.numpy_dtype.newbyteorder("<"))
    if spec.dtype == "BOOL" and len(data) and int(np.frombuffer(data, np.uint8).max()) > 1:
        raise InvalidInput(f"input '{spec.name}': a BOOL is a byte of 0 or 1")
    if not array.flags.aligned:
        array = array.copy()
    return array.reshape(shape)


def check_size(spec: TensorSpec, shape: tuple[int, ...], size: int) -> None:
    """Whether `size` bytes can be a tensor, before they are read. Raises InvalidInput."""
    count = math.prod(shape)
    if spec.dtype == "BYTES":
        if count > size // 4:  # each takes at least its length
            raise InvalidInput(f"input '{spec.name}': {size} bytes cannot hold {count} strings")
        return
    expected = count * spec.numpy_dtype.itemsize
    if expected != size:
        raise InvalidInput(
            f"input '{spec.name}': expected {expected} bytes for {spec.dtype} {list(shape)}, "
            f"got {size}"
        )


def most_bytes(interface: Interface) -> int | None:
    """The most bytes that the inputs of one request can take; None where their sizes are the client's
    choice."""
    total = 0
    for spec in interface.inputs:
        shape = spec.shape
        rows = 1
        if interface.max_batch:
            rows, shape = interface.max_batch, shape[1:]
        if spec.dtype == "BYTES" or not all(isinstance(size, int) for size in shape):
            return None
        total += rows * math.prod(int(size) for size in shape) * spec.numpy_dtype.itemsize
    return total


def _texts(spec: TensorSpec, shape: tuple[int, ...], data: memoryview) -> Array:
    check_size(spec, shape, len(data))
    count = math.prod(shape)
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
