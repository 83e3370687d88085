"""What results say of a row: its output tensors, as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np

from edgeserve.batch.running import AnsweredRow
from edgeserve.errors import InferenceFailed
from edgeserve.tensors import Array, Interface, TensorSpec

Values = Mapping[str, Any]


class ResultColumn(msgspec.Struct, frozen=True):
    """One column: `kind` is an element type's name. `shape` is that of one row, None where a dimension is
    open: () is a single value."""

    name: str
    kind: str
    rank: int
    shape: tuple[int, ...] | None


class ResultForm(Protocol):
    """How an answer is written. May be used from several threads."""

    columns: tuple[ResultColumn, ...]
    outputs: tuple[str, ...]  # those that it needs

    def values(self, answer: AnsweredRow) -> Values:
        """By column. Raises InferenceFailed for outputs that are not what the model says."""
        ...


class TensorForm:
    """One column per output."""

    def __init__(self, interface: Interface, outputs: Sequence[str], together: int) -> None:
        """All outputs if none are named. `together` is how many rows may share a call. Raises InvalidInput for
        one that the model lacks."""
        specs = [interface.output(n) for n in outputs] if outputs else interface.outputs
        per_row = per_row_outputs(interface, together)
        self.outputs = tuple(s.name for s in specs)
        self.columns = tuple(_column(s, s.name in per_row) for s in specs)
        self._all = [(c, s, s.name in per_row) for c, s in zip(self.columns, specs, strict=True)]

    def values(self, answer: AnsweredRow) -> Values:
        found: dict[str, Any] = {}
        for column, spec, per_row in self._all:
            array = answer.outputs[spec.name]
            if per_row and array.ndim and len(array) == 1:
                array = array[0]
            if column.shape is not None and array.shape != column.shape:
                raise InferenceFailed(
                    f"output '{spec.name}' has shape {list(array.shape)}",
                    cause=f"the model says {spec.describe()}",
                )
            found[spec.name] = readable(array, spec.dtype)
        return found


def per_row_outputs(interface: Interface, together: int) -> frozenset[str]:
    """The outputs whose first axis is that of the requests' rows: all of them if rows may share calls."""
    if not interface.max_batch:
        return frozenset()
    rows = {spec.shape[0] for spec in interface.inputs if spec.shape}
    return frozenset(
        s.name for s in interface.outputs if s.shape and (together > 1 or s.shape[0] in rows)
    )


def readable(array: Array, dtype: str) -> Any:
    """Values as JSON has them: BF16 as floats, bytes as texts, single values as numbers."""
    if dtype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    elif array.dtype.kind in "OSU":
        return _texts(array.tolist())
    return array if array.ndim else array.item()


def _texts(values: Any) -> Any:
    if isinstance(values, list):
        return [_texts(v) for v in values]
    return values.decode("utf-8", "backslashreplace") if isinstance(values, bytes) else str(values)


def _column(spec: TensorSpec, per_row: bool) -> ResultColumn:
    shape = spec.shape[1:] if per_row else spec.shape
    fixed = tuple(d for d in shape if isinstance(d, int))
    return ResultColumn(
        spec.name, spec.dtype, len(shape), fixed if len(fixed) == len(shape) else None
    )
