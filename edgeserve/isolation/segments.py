"""Anonymous shared memory: files without a name, mapped by both sides, freed when both have unmapped them.

A segment belongs to one slot, which runs one call at a time, so nothing here locks.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.isolation.messages import Place
from edgeserve.tensors import DTYPES, Array, Tensors, dtype_name

_ALIGNMENT: Final = 64
# Copying less than this costs less than lending the segment.
LEND_BYTES: Final = 1 << 16
_FLAGS: Final = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)


class Segment:
    """One mapping. Unmapped when nothing refers to it any more: arrays on it keep it alive."""

    def __init__(self, number: int, size: int, descriptor: int) -> None:
        self.number = number
        self.size = size
        self.memory = mmap.mmap(descriptor, size, flags=_FLAGS)


def create(number: int, size: int) -> tuple[Segment, int]:
    """A new segment of at least `size` bytes, and its descriptor, which the caller closes."""
    rounded = max(mmap.PAGESIZE, 1 << (size - 1).bit_length())
    descriptor = _anonymous_file()
    try:
        os.ftruncate(descriptor, rounded)
        return Segment(number, rounded, descriptor), descriptor
    except BaseException:
        os.close(descriptor)
        raise


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("edgeserve")
    with tempfile.TemporaryFile() as file:  # other systems than Linux
        return os.dup(file.fileno())


def attach(number: int, size: int, descriptor: int) -> Segment:
    """The segment behind a descriptor that came from the other side; closes the descriptor."""
    try:
        return Segment(number, size, descriptor)
    finally:
        os.close(descriptor)


class Layout(msgspec.Struct, frozen=True):
    """Where tensors go in a segment, before they are written; texts are packed already."""

    places: tuple[Place, ...]
    arrays: tuple[Array, ...]
    size: int


def lay_out(tensors: Tensors) -> Layout:
    """Places for `tensors`, one after the other, aligned for vector instructions."""
    places, arrays, end = [], [], 0
    for name, array in tensors.items():
        packed = array.dtype.kind in "OSU"
        shape = array.shape
        dtype = "BYTES" if packed else _name(array)
        if packed:
            array = np.frombuffer(msgspec.msgpack.encode(array.ravel().tolist()), np.uint8)
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = offset + array.nbytes
        places.append(Place(name, dtype, shape, offset, array.nbytes, packed))
        arrays.append(array)
    return Layout(tuple(places), tuple(arrays), end)


def _name(array: Array) -> str:
    known = _NAMES.get(array.dtype)
    return known if known is not None else dtype_name(array.dtype)


_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def write(segment: Segment, layout: Layout) -> None:
    for place, array in zip(layout.places, layout.arrays, strict=True):
        if not array.nbytes:
            continue
        dtype = np.dtype(np.uint8) if place.packed else DTYPES[place.dtype]
        shape = array.shape
        np.ndarray(shape, dtype, segment.memory, place.offset)[...] = array


def views(buffer: Any, places: Sequence[Place]) -> Tensors:
    """Arrays on the buffer, without a copy (texts are unpacked)."""
    return {p.name: _view(buffer, p) for p in places}


def copies(segment: Segment, places: Sequence[Place]) -> Tensors:
    return {
        p.name: _view(segment.memory, p) if p.packed else _view(segment.memory, p).copy()
        for p in places
    }


def _view(buffer: Any, place: Place) -> Array:
    if place.packed:
        data = bytes(memoryview(buffer)[place.offset : place.offset + place.size])
        array = np.empty(place.shape, np.object_)
        array.reshape(-1)[:] = msgspec.msgpack.decode(data)
        return array
    if not place.size:
        return np.empty(place.shape, DTYPES[place.dtype])
    return np.ndarray(place.shape, DTYPES[place.dtype], buffer, place.offset)


class Loan:
    """Keeps a segment out of its pool for as long as an array on it is alive."""

    def __init__(self, segment: Segment, pool: deque[Segment]) -> None:
        self._segment = segment
        self._pool = pool
        self.__array_interface__ = {
            "version": 3,
            "shape": (segment.size,),
            "typestr": "|u1",
            "data": (np.frombuffer(segment.memory, np.uint8).ctypes.data, False),
        }

    def __del__(self) -> None:
        self._pool.append(self._segment)


def lend(segment: Segment, places: Sequence[Place], pool: deque[Segment]) -> Tensors:
    """Arrays on the segment; it goes back to `pool` when the last of them is gone."""
    whole = np.asarray(Loan(segment, pool))
    return {
        p.name: _view(segment.memory, p)
        if p.packed
        else whole[p.offset : p.offset + p.size].view(DTYPES[p.dtype]).reshape(p.shape)
        for p in places
    }
