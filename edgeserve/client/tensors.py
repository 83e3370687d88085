"""Tensors of an answer, from their wire forms."""

from __future__ import annotations

import math
from typing import Any

from edgeserve.client.problems import unreadable
from edgeserve.errors import InvalidInput
from edgeserve.tensors import DTYPES, Array, TensorSpec
from edgeserve.values import Misfit, checked, unnested
from edgeserve.wire import binary


def tensor_from_bytes(
    name: str, datatype: str, shape: tuple[int, ...], data: bytes | memoryview
) -> Array:
    """A tensor from binary data. Raises InferenceFailed for data that do not fit."""
    try:
        return binary.from_bytes(TensorSpec(name, datatype, shape), shape, memoryview(data))
    except (InvalidInput, ValueError, KeyError, TypeError) as error:
        raise unreadable(f"output '{name}': {error}") from None


def tensor_from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Array:
    """A tensor from a JSON list, where null is NaN, as other servers write it. Raises InferenceFailed for
    data that do not fit."""
    try:
        if not isinstance(data, list):
            raise Misfit("expected a list")
        values, _ = unnested(data)
        if datatype == "BYTES":
            values = [v.encode() if isinstance(v, str) else v for v in values]
        elif DTYPES[datatype].kind == "f":
            values = [math.nan if v is None else v for v in values]
        return checked(values, datatype).reshape(shape)
    except (ValueError, KeyError) as error:
        raise unreadable(f"output '{name}': {error}") from None


def json_values(array: Array) -> list[Any]:
    """The elements of a tensor, flat, as JSON has them; bytes that are not UTF-8 are escaped."""
    if array.dtype == object or array.dtype.kind in "SU":
        return [
            v.decode("utf-8", "backslashreplace") if isinstance(v, bytes) else str(v)
            for v in array.reshape(-1).tolist()
        ]
    values: list[Any] = array.reshape(-1).tolist()
    return values
