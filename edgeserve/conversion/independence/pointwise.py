"""Operators that compute each element from those in the same place, and what NumPy's broadcasting adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeserve.conversion.independence.dims import Dim, Element, opaque
from edgeserve.conversion.independence.states import Fixed, Op, Rows, Rule, State

UNARY: Final = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Cos",
    "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "RegexFullMatch", "Relu", "Round", "Selu",
    "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh",
    "ThresholdedRelu",
)  # fmt: skip
BROADCAST: Final = (
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow",
    "StringConcat", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip


def same(op: Op) -> Sequence[State]:
    """The first input's elements one by one; whatever else goes in is the same for all requests."""
    rows = op.rows(0)
    op.constants_from(1)
    return [rows]


def cast_like(op: Op) -> Sequence[State]:
    return [op.rows(0)]


def dropout(op: Op) -> Sequence[State]:
    """Nothing at all, unless it is in training."""
    rows = op.rows(0)
    training = op.numbers(2)
    if training is not None and bool(training[0]):
        op.interact("it is in training mode, and drops at random")
    return [rows, rows]


def broadcast(op: Op) -> Sequence[State]:
    return [joined(op, [s for s in op.inputs if s is not None])]


def joined(op: Op, states: Sequence[State]) -> Rows:
    """What operands make that are broadcast against each other, as rows of one and the same axis."""
    shapes = [s.shape for s in states]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        op.unknown("the shape of an operand is not known")
    rank = max(map(len, known))
    rows = [s for s in states if isinstance(s, Rows)]
    places = {(s.axis + rank - s.rank, s.block) for s in rows}
    if len(places) > 1:
        op.interact("it brings together rows on different axes")
    axis, block = places.pop()
    for state in states:
        if isinstance(state, Fixed):
            _beside_rows(op, state, axis - rank + len(state.shape or ()))
    shape: list[Element] = []
    for place in range(rank):
        sizes = [s[place - rank + len(s)] for s in known if place - rank + len(s) >= 0]
        shape.append(_wider(sizes, op, place))
    shape[axis] = rows[0].size
    return Rows(tuple(shape), axis, block)


def _beside_rows(op: Op, state: Fixed, axis: int) -> None:
    """A constant operand must be the same for each row: a size of one, or no such axis at all."""
    if state.counts:
        op.interact("it computes with the number of rows, or with their positions")
    assert state.shape is not None
    if axis >= 0 and state.shape[axis] != 1:
        op.interact(
            f"a constant has {_described(state.shape[axis])} places on the axis of the rows"
        )


def _wider(sizes: list[Element], op: Op, place: int) -> Element:
    wide = [s for s in dict.fromkeys(sizes) if s != 1]
    if not wide:
        return 1
    numbers = [s for s in wide if not isinstance(s, Dim)]
    if numbers:
        return numbers[0]  # a size that is not known is the same, or one
    return wide[0] if len(wide) == 1 else opaque("wider", op.node.output[0], place)


def _described(size: Element) -> str:
    return "other" if isinstance(size, Dim) else str(size)


def quantize(op: Op) -> Sequence[State]:
    """QuantizeLinear and its way back: scales for the whole tensor or for an axis that is not the rows'."""
    rows = op.rows(0)
    op.constants_from(1)
    scale = op.constant(1)
    if scale.shape is None:
        op.unknown("the shape of its scale is not known")
    several = any(size != 1 for size in scale.shape)
    axis = op.attribute("axis", 1)
    if several and (len(scale.shape) > 1 or axis % rows.rank == rows.axis):
        op.interact("its scales differ from row to row by their position")
    return [rows]


RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(UNARY, same),
    **dict.fromkeys(BROADCAST, broadcast),
    "Clip": same,
    "CastLike": cast_like,
    "Dropout": dropout,
    "QuantizeLinear": quantize,
    "DequantizeLinear": quantize,
}

# Those of onnxruntime's own domain.
MICROSOFT: Final[dict[str, Rule]] = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu"), same),
    "QuantizeLinear": quantize,
    "DequantizeLinear": quantize,
}
