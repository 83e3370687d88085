"""Tensors of an answer, from their wire forms."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeserve.client.problems import unreadable
from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols import binary
from edgeserve.tensors import DTYPES, Array, TensorSpec


def tensor_from_bytes(
    name: str, datatype: str, shape: tuple[int, ...], data: bytes | memoryview
) -> Array:
    """A tensor from binary data. Raises InferenceFailed for data that do not fit."""
    try:
        return binary.from_bytes(TensorSpec(name, datatype, shape), shape, memoryview(data))
    except (InvalidInput, ValueError, KeyError, TypeError) as error:
        raise unreadable(f"output '{name}': {error}") from None


def tensor_from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Array:
    """A tensor from a JSON list. Raises InferenceFailed for data that do not fit."""
    try:
        if datatype == "BYTES":
            texts = np.empty(len(data), dtype=object)
            texts[:] = [str(value).encode() for value in data]
            return texts.reshape(shape)
        return np.asarray(data, DTYPES[datatype]).reshape(shape)
    except (ValueError, KeyError, TypeError) as error:
        raise unreadable(f"output '{name}': {error}") from None


def json_values(array: Array) -> list[Any]:
    """The elements of a tensor, flat, as JSON has them; bytes that are no UTF-8 are escaped."""
    if array.dtype == object or array.dtype.kind in "SU":
        return [
            v.decode("utf-8", "backslashreplace") if isinstance(v, bytes) else str(v)
            for v in array.reshape(-1).tolist()
        ]
    values: list[Any] = array.reshape(-1).tolist()
    return values
