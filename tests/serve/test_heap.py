"""Memory goes back to the system."""

from __future__ import annotations

import ctypes
import platform
import sys

import psutil
import pytest

from edgeserve.serve.heap import trim


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's"
)
def test_holes_in_the_heap_go_back() -> None:
    """What is freed below a block still in use stays resident until somebody trims."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    size, count = 100_000, 1_000
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:
        libc.free(block)
    process = psutil.Process()
    before = process.memory_info().rss
    trim()
    assert before - process.memory_info().rss > size * count // 2
    libc.free(blocks[-1])


def test_it_may_be_called_when_there_is_nothing_to_give() -> None:
    trim()
    trim()
