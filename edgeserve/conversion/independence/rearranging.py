"""Nodes that move the elements of what no request's data goes into: slices, gathers, reshapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from edgeserve.conversion.independence.constants import counts_any, objects
from edgeserve.conversion.independence.dims import Dim
from edgeserve.conversion.independence.states import Fixed, Op, Rule, State


def _with_numpy(function: Callable[[Op, Any], Any]) -> Rule:
    """What moves elements is done to the elements, and to the shape where those are not known."""

    def rule(op: Op) -> Sequence[State]:
        state = op.state(0)
        assert isinstance(state, Fixed)
        others = [s for s in op.inputs[1:] if s is not None]
        if state.values is not None and not any(s.counts for s in others if isinstance(s, Fixed)):
            return [Fixed.of(function(op, state.values))]
        return [op.made_fixed(counts=counts_any(op))]

    return rule


def _axes(op: Op, rank: int) -> list[int]:
    return op.axes("axes", 1, rank) or []


def _unsqueezed(op: Op, array: Any) -> Any:
    found = op.integers("axes", 1) or []
    return np.expand_dims(array, tuple(a % (array.ndim + len(found)) for a in found))


def _squeezed(op: Op, array: Any) -> Any:
    axes = _axes(op, array.ndim)
    return np.squeeze(array, tuple(axes) if axes else None)


def _gathered(op: Op, array: Any) -> Any:
    indices = op.state(1)
    assert isinstance(indices, Fixed)
    if indices.values is None:
        op.unknown("its indices are computed")
    where_ = indices.values.astype(np.int64)
    result = np.take(array, where_, axis=op.attribute("axis", 0))
    return result if isinstance(result, np.ndarray) else objects(result)


def _sliced(op: Op, array: Any) -> Any:
    starts, ends = op.integers("starts", 1) or [], op.integers("ends", 2) or []
    axes = op.axes("axes", 3, array.ndim) or list(range(len(starts)))
    steps = op.integers("steps", 4) or [1] * len(axes)
    cuts = [slice(None)] * array.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cuts[axis] = slice(start, end if end > -(2**31) else None, step)
    return array[tuple(cuts)]


def _reshaped(op: Op, array: Any) -> Any:
    wanted = op.integers("shape", 1) or []
    if not op.attribute("allowzero", 0):
        wanted = [array.shape[i] if w == 0 else w for i, w in enumerate(wanted)]
    return array.reshape(wanted)


def _transposed(op: Op, array: Any) -> Any:
    return np.transpose(array, op.attribute("perm"))


def slice_of_table(op: Op) -> Sequence[State]:
    """A table cut to a size that is computed: whatever it is, no more is known than that."""
    state = op.state(0)
    assert isinstance(state, Fixed)
    bounds = [op.inputs[i] for i in range(1, len(op.inputs)) if op.inputs[i] is not None]
    numeric = all(
        isinstance(s, Fixed) and s.elements is not None
        and not any(isinstance(v, Dim) for v in s.elements)
        for s in bounds
    )  # fmt: skip
    if state.values is not None and numeric:
        return [Fixed.of(_sliced(op, state.values))]
    if state.shape is None:
        return [op.made_fixed(counts=counts_any(op))]
    axes = op.axes("axes", 3, len(state.shape))
    axes = list(range(len(op.integers_or_sizes("starts", 1)))) if axes is None else axes
    shape = list(state.shape)
    for axis in axes:
        shape[axis] = op.fresh(0, axis)
    return [Fixed(tuple(shape), None, counts_any(op))]


def concat(op: Op) -> Sequence[State]:
    states = [s for s in op.inputs if isinstance(s, Fixed)]
    if any(s.values is None for s in states):
        return [op.made_fixed(counts=counts_any(op))]
    arrays = [s.values for s in states]
    return [Fixed.of(np.concatenate(arrays, axis=op.attribute("axis", 0)))]


def gather_of_table(op: Op) -> Sequence[State]:
    """Of elements; of a table the shape is known."""
    data, indices = op.state(0), op.state(1)
    assert isinstance(data, Fixed)
    assert isinstance(indices, Fixed)
    if data.values is not None and indices.values is not None:
        return [Fixed.of(_gathered(op, data.values))]
    if data.shape is None or indices.shape is None:
        return [op.made_fixed(counts=counts_any(op))]
    axis = op.attribute("axis", 0) % len(data.shape)
    shape = (*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :])
    return [Fixed(shape, None, counts_any(op))]


def unsqueeze_of_table(op: Op) -> Sequence[State]:
    state = op.state(0)
    assert isinstance(state, Fixed)
    if state.shape is None:
        return [op.made_fixed(counts=counts_any(op))]
    found = op.integers("axes", 1) or []
    rank = len(state.shape) + len(found)
    axes = [a % rank for a in found]
    sizes = iter(state.shape)
    shape = tuple(1 if place in axes else next(sizes) for place in range(rank))
    values = None if state.values is None else _unsqueezed(op, state.values)
    return [Fixed(shape, values, state.counts)]


RULES: Final[dict[str, Rule]] = {
    "Concat": concat,
    "Gather": gather_of_table,
    "Reshape": _with_numpy(_reshaped),
    "Slice": slice_of_table,
    "Squeeze": _with_numpy(_squeezed),
    "Transpose": _with_numpy(_transposed),
    "Unsqueeze": unsqueeze_of_table,
}
