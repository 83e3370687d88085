"""What the analysis of rows knows of one tensor, and of one node of the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

import msgspec
import numpy as np

from edgeserve.conversion.independence.dims import (
    ROWS,
    Dim,
    Element,
    counts_rows,
    opaque,
    times,
)

# Constants with more elements are not the shapes or axes of anything.
MOST_VALUES: Final = 1024


class Interact(Exception):
    """An operator lets one row change another's answer."""


class NotKnown(Exception):
    """Nothing is known of what an operator does to rows."""


class Rows(msgspec.Struct, frozen=True):
    """A tensor of which `axis` is that of the rows, each with `block` places of its own, one row after the
    other. What stands in a row's places depends on that row of the inputs alone."""

    shape: tuple[Element, ...]
    axis: int = 0
    block: Element = 1

    @property
    def size(self) -> Element:
        """That of `axis`."""
        return times(ROWS, self.block)

    @property
    def rank(self) -> int:
        return len(self.shape)


class Fixed(msgspec.Struct, frozen=True):
    """A tensor that no request's data went into; None where shape or values are not known.

    With `counts` the number of rows went into it, or may have.
    """

    shape: tuple[Element, ...] | None = None
    values: Any = None
    counts: bool = False

    @classmethod
    def of(cls, values: object) -> Fixed:
        """With these values, as an array of objects has them."""
        array = np.asarray(values, object)
        return cls(tuple(array.shape), array, any(counts_rows(v) for v in array.reshape(-1)))

    @property
    def elements(self) -> list[Element] | None:
        """The values in order."""
        return None if self.values is None else list(self.values.reshape(-1))


State = Rows | Fixed


class Op:
    """One node with the states of its inputs; None for those that are left out."""

    def __init__(
        self,
        node: Any,
        inputs: Sequence[State | None],
        attributes: dict[str, Any],
        opset: int,
        inferred: Callable[[str], list[int | None] | None],
    ) -> None:
        self.node = node
        self.kind: str = node.op_type
        self.inputs = inputs
        self.attributes = attributes
        self.opset = opset
        self._inferred = inferred

    @property
    def name(self) -> str:
        named = self.node.name or next((o for o in self.node.output if o), "")
        return f"{self.kind} '{named}'"

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def interact(self, why: str) -> NoReturn:
        raise Interact(f"{self.name}: {why}")

    def unknown(self, why: str) -> NoReturn:
        raise NotKnown(f"{self.name}: {why}")

    # inputs

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def state(self, index: int) -> State:
        state = self.inputs[index] if index < len(self.inputs) else None
        if state is None:
            self.unknown(f"it lacks input {index}")
        return state

    def rows(self, index: int) -> Rows:
        state = self.state(index)
        if not isinstance(state, Rows):
            self.unknown(f"input {index} does not depend on the rows")
        return state

    def constant(self, index: int) -> Fixed:
        """An input that must be the same for all requests."""
        state = self.state(index)
        if isinstance(state, Rows):
            self.interact(f"input {index} depends on the rows, and holds for all of them")
        if state.counts:
            self.interact(f"input {index} depends on the number of rows")
        return state

    def constants_from(self, first: int) -> None:
        """All further inputs must be the same for all requests."""
        for index in range(first, len(self.inputs)):
            if self.has(index):
                self.constant(index)

    def numbers(self, index: int) -> list[Element] | None:
        """The elements of a small input, None where it is left out. Raises NotKnown when not known."""
        if not self.has(index):
            return None
        state = self.state(index)
        elements = state.elements if isinstance(state, Fixed) else None
        if elements is None:
            self.unknown(f"input {index} is computed")
        return elements

    def integers(self, name: str, index: int | None) -> list[int] | None:
        """An attribute, or in newer opsets an input; None where neither is there."""
        if name in self.attributes:
            value = self.attributes[name]
            return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
        found = self.numbers(index) if index is not None else None
        if found is None:
            return None
        if any(isinstance(v, Dim) for v in found):
            self.unknown(f"its {name} are computed")
        return [int(v) for v in found if not isinstance(v, Dim)]

    def integers_or_sizes(self, name: str, index: int) -> list[Element]:
        """As `integers`, but elements may be sizes that are not numbers."""
        if name in self.attributes:
            return list(self.attributes[name])
        return self.numbers(index) or []

    def axes(self, name: str, index: int | None, rank: int) -> list[int] | None:
        found = self.integers(name, index)
        return None if found is None else [a + rank if a < 0 else a for a in found]

    # outputs

    def uses(self, index: int) -> bool:
        return index < len(self.node.output) and bool(self.node.output[index])

    def fresh(self, output: int, axis: int) -> Dim:
        """A size of which nothing is known but that no request's data went into it."""
        return opaque("size", self.node.output[output], axis)

    def inferred(self, output: int) -> list[int | None] | None:
        """The sizes of an output by ONNX's shape inference; None where not even the rank is known."""
        return self._inferred(self.node.output[output])

    def made(
        self, axis: int = 0, block: Element = 1, output: int = 0, rank: int | None = None
    ) -> Rows:
        """An output with the rows there, the other sizes as far as ONNX's shape inference knows them.
        `rank` is what the operator's definition says."""
        found = self._inferred(self.node.output[output])
        if found is None and rank is not None:
            found = [None] * rank
        if found is None:
            self.unknown("the rank of what it makes is not known")
        shape: list[Element] = [
            self.fresh(output, i) if size is None else size for i, size in enumerate(found)
        ]
        shape[axis] = times(ROWS, block)
        return Rows(tuple(shape), axis, block)

    def made_fixed(self, output: int = 0, *, counts: bool = False) -> Fixed:
        found = self._inferred(self.node.output[output])
        shape = None
        if found is not None and not counts:
            shape = tuple(
                self.fresh(output, i) if size is None else size for i, size in enumerate(found)
            )
        return Fixed(shape, None, counts)


Rule = Callable[[Op], Sequence[State | None]]
