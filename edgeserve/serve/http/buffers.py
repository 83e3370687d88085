"""Buffers for large bodies, bounded in total. A buffer is reused once nothing has a view on it."""

from __future__ import annotations

import sys
from typing import Final

import numpy as np

from edgeserve.tensors import Array

_KEPT_BUFFERS: Final = 16
_KEPT_BYTES: Final = 4 << 20
_ALIGNMENT: Final = 64


class BodyBuffers:
    """Lends buffers, and counts what has been received into them. Lives on the event loop.

    A new buffer's pages are cleared by the kernel one by one, which for a body of 600 KB costs as much
    as receiving it; so a few are kept. A kept buffer is lent again only while nothing else refers to it:
    tensors are views on it, and hold it as long as they live, in whatever thread.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._held = 0
        self._kept: list[Array] = []

    def lend(self, length: int, aligned_at: int) -> memoryview:
        """A view of `length` bytes whose byte `aligned_at` is aligned."""
        buffer = self._take(length + _ALIGNMENT)
        # `buffer.ctypes` would cost more than everything else here.
        address: int = buffer.__array_interface__["data"][0]
        pad = -(address + aligned_at) % _ALIGNMENT
        return buffer.data[pad : pad + length]

    def hold(self, count: int) -> bool:
        """`count` more bytes have been received; False if that is more than fits."""
        self._held += count
        return self._held <= self._total

    def release(self, count: int) -> None:
        """A request with `count` bytes has been answered, or its client is gone."""
        self._held -= count

    def shrink(self) -> None:
        """Give the kept buffers back to the system."""
        self._kept.clear()

    def _take(self, size: int) -> Array:
        for index in range(len(self._kept) - 1, -1, -1):  # the warmest first
            buffer = self._kept[index]
            # Referred to by the list, by `buffer` and by getrefcount's own argument.
            if size <= len(buffer) <= 2 * size and sys.getrefcount(buffer) == 3:
                self._kept.append(self._kept.pop(index))
                return buffer
        buffer = np.empty(size, np.uint8)
        if size <= _KEPT_BYTES:
            self._kept.append(buffer)
            if len(self._kept) > _KEPT_BUFFERS:
                del self._kept[0]
        return buffer
