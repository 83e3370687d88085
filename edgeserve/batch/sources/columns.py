"""Which columns of a table are which input."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from edgeserve.batch.rows import row_shape
from edgeserve.errors import DataError
from edgeserve.tensors import Interface, TensorSpec

_OTHERS = ("label", "labels")  # what labelled tables hold beside the inputs
_SHOWN = 8


class InputColumns(msgspec.Struct, frozen=True):
    """The columns of one input, by position. `whole`: one column has all of the input, else each has one
    element."""

    spec: TensorSpec
    positions: tuple[int, ...]
    whole: bool


class TableColumns(msgspec.Struct, frozen=True):
    """The columns of every input, and the names of those that are none."""

    inputs: tuple[InputColumns, ...]
    ignored: tuple[str, ...]

    @property
    def remarks(self) -> tuple[str, ...]:
        if not self.ignored:
            return ()
        more = f" and {len(self.ignored) - _SHOWN} more" if len(self.ignored) > _SHOWN else ""
        return (f"ignored columns: {', '.join(self.ignored[:_SHOWN])}{more}",)


def table_columns(where: str, header: Sequence[str], interface: Interface) -> TableColumns:
    """Find each input: a column of its name, or columns `NAME_0`, `NAME_1`, … with one element each; for a
    model with one input, all columns in their order if there are as many as it has elements.

    Raises DataError with what is expected.
    """
    places = {name: i for i, name in reversed(list(enumerate(header)))}
    exact = {s.name for s in interface.inputs} & places.keys()
    found = [_of(where, spec, places, exact, interface) for spec in interface.inputs]
    inputs = tuple(f for f in found if f is not None)
    if len(inputs) < len(found):
        positional = _positional(header, interface)
        if positional is None:
            missing = next(s for s, f in zip(interface.inputs, found, strict=True) if f is None)
            raise DataError(
                f"{where} has no column for input '{missing.name}' ({missing.describe()})",
                cause=f"its columns are {_listed(header)}",
                hint=f"name the columns {_wanted(missing, interface)}",
            )
        inputs = (positional,)
    used = {p for i in inputs for p in i.positions}
    return TableColumns(inputs, tuple(n for i, n in enumerate(header) if i not in used))


def elements(spec: TensorSpec, interface: Interface) -> int | None:
    """How many elements a row of the input has; None where a dimension is open."""
    shape = row_shape(spec, interface.max_batch > 0)
    return None if shape is None else math.prod(shape)


def _of(
    where: str, spec: TensorSpec, places: dict[str, int], exact: set[str], interface: Interface
) -> InputColumns | None:
    if spec.name in places:
        return InputColumns(spec, (places[spec.name],), whole=True)
    numbered: list[int] = []
    while (name := f"{spec.name}_{len(numbered)}") in places and name not in exact:
        numbered.append(places[name])
    if not numbered:
        return None
    count = elements(spec, interface)
    if count is not None and count != len(numbered):
        raise DataError(
            f"{where} has {len(numbered)} columns for input '{spec.name}', expected {count}",
            cause=f"a row of {spec.describe()} has {count} elements",
        )
    return InputColumns(spec, tuple(numbered), whole=False)


def _positional(header: Sequence[str], interface: Interface) -> InputColumns | None:
    if len(interface.inputs) != 1:
        return None
    (spec,) = interface.inputs
    positions = tuple(i for i, n in enumerate(header) if n.strip().lower() not in _OTHERS)
    if elements(spec, interface) != len(positions):
        return None
    return InputColumns(spec, positions, whole=len(positions) == 1)


def _wanted(spec: TensorSpec, interface: Interface) -> str:
    count = elements(spec, interface)
    if count == 1:
        return f"'{spec.name}'"
    last = "…" if count is None else str(count - 1)
    return f"'{spec.name}_0' to '{spec.name}_{last}', or '{spec.name}' with a JSON list in each row"


def _listed(header: Sequence[str]) -> str:
    more = f" and {len(header) - _SHOWN} more" if len(header) > _SHOWN else ""
    return ", ".join(f"'{n}'" for n in header[:_SHOWN]) + more
