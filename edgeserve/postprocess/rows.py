"""One row of outputs, and what several kinds of answers compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgeserve.errors import InvalidInput
from edgeserve.tensors import Array


def row_of(array: Array, row: int, *, batched: bool, rank: int, name: str) -> Array:
    """One row of an output, as an array of `rank` axes; other leading axes of 1 are dropped.

    Raises InvalidInput for an output of another rank.
    """
    if batched and array.ndim:
        array = array[row]
    while array.ndim > rank and array.shape[0] == 1:
        array = array[0]
    if array.ndim == rank + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != rank:
        raise InvalidInput(f"output '{name}' has shape {list(array.shape)}: expected {rank} axes")
    return array


def numbers(array: Array) -> Array:
    """In FP64; half precision included."""
    if array.dtype.kind not in "iufb":
        raise InvalidInput("expected numbers")
    return array.astype(np.float64)


def softmax(values: Array) -> Array:
    """Along the last axis."""
    with np.errstate(invalid="ignore"):  # of infinite values
        shifted = np.exp(values - np.max(values, axis=-1, keepdims=True, initial=-np.inf))
        result: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def sigmoid(values: Array) -> Array:
    """Without overflow."""
    with np.errstate(over="ignore"):
        result: Array = 1.0 / (1.0 + np.exp(-values))
    return result


def label_of(index: int, labels: Sequence[str]) -> str:
    """The name of a class, or its number as text."""
    return labels[index] if 0 <= index < len(labels) else str(index)
