"""Texts as onnxruntime takes them: it calls `str()` on what it gets, and of bytes that would be their literal."""

from __future__ import annotations

import numpy as np

from edgeserve.errors import InvalidInput
from edgeserve.tensors import Array, Tensors


def decoded(inputs: Tensors) -> Tensors:
    """The inputs with texts in place of bytes. Raises InvalidInput where one is not UTF-8."""
    if not any(a.dtype == object for a in inputs.values()):
        return inputs
    return {n: texts(n, a) if a.dtype == object else a for n, a in inputs.items()}


def texts(name: str, array: Array) -> Array:
    """An object array of str."""
    result = np.empty(array.size, dtype=object)
    try:
        result[:] = [v.decode() if isinstance(v, bytes) else str(v) for v in array.reshape(-1)]
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input '{name}': expected text in UTF-8", cause=str(error)) from None
    return result.reshape(array.shape)
