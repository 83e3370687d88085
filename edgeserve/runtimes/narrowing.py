"""Integers that an engine computes in a narrower type than the model says, silently."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeserve.errors import BeyondEngine
from edgeserve.tensors import Array


def fits_in(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whether all of an integer array's values are the integer type's."""
    if not array.size:
        return True
    limits = np.iinfo(dtype)
    low, high = np.minimum.reduce(array, axis=None), np.maximum.reduce(array, axis=None)
    return bool(low >= limits.min and high <= limits.max)


def beyond(engine: str, name: str, dtype: np.dtype[Any]) -> BeyondEngine:
    """The error for an input whose values `fits_in` refuses."""
    narrow = str(dtype).upper()
    return BeyondEngine(
        f"{engine} computes input '{name}' in {narrow}",
        cause=f"a value is outside {narrow}",
        hint="onnxruntime computes every integer type exactly: add it to the chain (cpu), or send "
        "smaller values",
    )
