"""Keeping the memory that a large model takes near that of its weights."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from functools import cache
from typing import Final

# Of a model's files. Sessions of the variants of larger ones are not all open at once: each holds the weights once
# or twice over, as arranged for its kernels. Below, being timed together is worth more than the memory.
APART_BYTES: Final = 200_000_000


def give_back(size_bytes: int) -> None:
    """After `size_bytes` were opened or closed: return what the C library keeps for later allocations to the
    system. It may be as much again: of a file that is parsed, blocks below 32 MB are kept."""
    if size_bytes > APART_BYTES // 4:  # an int8 variant of a large model
        gc.collect()  # models of quantizers that refer to themselves
        _trim()(0)


@cache
def _trim() -> Callable[[int], object]:
    """glibc's; other C libraries keep less, or tell no way."""
    try:
        found: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return lambda _: None
    return found
