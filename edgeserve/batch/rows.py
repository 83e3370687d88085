"""One row of a source as the inputs of one request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from edgeserve.errors import InvalidInput
from edgeserve.preprocess import Frame
from edgeserve.tensors import Array, Interface, Tensors, TensorSpec, as_bytes
from edgeserve.values import Misfit, array_of, fitting

RowName = int | str


class Portion(msgspec.Struct, frozen=True):
    """Consecutive rows as a source has them. `names` are file names or row numbers, `values` what `decode` of
    the source takes, `share` the part of the source (0-1) that is read when these rows are, None if unknown."""

    number: int
    names: Sequence[RowName]
    values: Sequence[Any] | Array
    share: float | None = None


class DecodedRow(msgspec.Struct, frozen=True):
    """The inputs of one request, and where a photograph lies in them."""

    inputs: Tensors
    frame: Frame | None = None


class Unread(msgspec.Struct, frozen=True):
    """A row that the source could not read, in place of its value."""

    error: InvalidInput


class RowShapes:
    """Values of one row as the inputs of a request of one row."""

    def __init__(self, interface: Interface) -> None:
        self._interface = interface
        self._batched = interface.max_batch > 0
        self._names = frozenset(s.name for s in interface.inputs)

    def named(self, values: Mapping[str, Any]) -> Tensors:
        """Values by input name; other names are ignored. Raises InvalidInput."""
        inputs: Tensors = {}
        for spec in self._interface.inputs:
            if spec.name not in values:
                got = ", ".join(sorted(map(str, values))[:8]) or "nothing"
                raise InvalidInput(
                    f"input '{spec.name}' is missing: expected {spec.describe()}",
                    cause=f"got {got}",
                )
            inputs[spec.name] = self.of(spec, values[spec.name])
        return inputs

    def lone(self, value: Any) -> Tensors:
        """A value without a name. Raises InvalidInput for a model with several inputs."""
        if len(self._interface.inputs) != 1:
            wanted = ", ".join(sorted(self._names))
            raise InvalidInput(f"the model has several inputs: give them by name ({wanted})")
        spec = self._interface.inputs[0]
        return {spec.name: self.of(spec, value)}

    def of(self, spec: TensorSpec, value: Any) -> Array:
        """An array or plain values in the input's type and shape. Raises InvalidInput."""
        try:
            array = _typed(spec, value)
        except Misfit as error:
            raise InvalidInput(f"input '{spec.name}': {error}") from None
        array = self._shaped(spec, array)
        spec.check(array)
        return array

    def _shaped(self, spec: TensorSpec, array: Array) -> Array:
        """With the axis of rows, which a row may leave out; flat values take a fixed shape."""
        rank = len(spec.shape)
        if array.ndim == rank:
            if self._batched and len(array) != 1:
                raise InvalidInput(
                    f"input '{spec.name}': a row is one sample, got {len(array)}",
                    hint="write each sample as a row of its own",
                )
            return array
        first = spec.shape[0] if rank else None
        if array.ndim == rank - 1 and (self._batched or first == 1 or isinstance(first, str)):
            return array[None]
        fixed = row_shape(spec, self._batched)
        if fixed is not None and array.ndim <= 1 and array.size == math.prod(fixed):
            return array.reshape(fixed)
        return array


def row_shape(spec: TensorSpec, batched: bool) -> tuple[int, ...] | None:
    """The shape of one row's tensor, with the axis of rows; None where a dimension is open."""
    shape = (1, *spec.shape[1:]) if batched and spec.shape else spec.shape
    return shape if all(isinstance(d, int) for d in shape) else None  # type: ignore[return-value] # just checked


def _typed(spec: TensorSpec, value: Any) -> Array:
    if isinstance(value, np.ndarray):
        if spec.dtype != "BYTES":
            return fitting(value, spec.dtype)
        if value.dtype.kind not in "SUO":
            raise Misfit(f"expected texts, got {value.dtype}")
        return as_bytes(value)
    array = array_of(value, spec.dtype)
    return as_bytes(array) if spec.dtype == "BYTES" else array
