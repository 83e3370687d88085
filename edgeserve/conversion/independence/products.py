"""Matrix products, convolutions and recurrent networks: which of an operand's axes are summed over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeserve.conversion.independence.dims import Element
from edgeserve.conversion.independence.pointwise import joined
from edgeserve.conversion.independence.states import Fixed, Op, Rows, Rule, State

_SUMMED: Final = "it sums over the axis of the rows"


def matmul(op: Op) -> Sequence[State]:
    return [product_of(op, op.state(0), op.state(1))]


def quantized_matmul(op: Op) -> Sequence[State]:
    """MatMulInteger: zero points are the same for all requests, or have none."""
    op.constants_from(2)
    return [product_of(op, op.state(0), op.state(1))]


def qlinear_matmul(op: Op) -> Sequence[State]:
    for index in (1, 2, 4, 5, 6, 7):
        op.constant(index)
    return [product_of(op, op.state(0), op.state(3))]


def fused_matmul(op: Op) -> Sequence[State]:
    if op.attribute("transBatchA", 0) or op.attribute("transBatchB", 0):
        op.unknown("it turns the axes of its operands")
    left, right = op.state(0), op.state(1)
    if op.attribute("transA", 0):
        left = _turned(op, left)
    if op.attribute("transB", 0):
        right = _turned(op, right)
    return [product_of(op, left, right)]


def _turned(op: Op, state: State) -> State:
    """With its last two axes exchanged."""
    if state.shape is None or len(state.shape) < 2:
        op.unknown("the shape of an operand is not known")
    rank = len(state.shape)
    shape = (*state.shape[:-2], state.shape[-1], state.shape[-2])
    if isinstance(state, Fixed):
        return Fixed(shape, None, state.counts)
    axis = {rank - 1: rank - 2, rank - 2: rank - 1}.get(state.axis, state.axis)
    return Rows(shape, axis, state.block)


def product_of(op: Op, left: State, right: State) -> Rows:
    """NumPy's matmul. The rows may stand in its leading axes, or be rows or columns of one matrix."""
    for state in (left, right):
        if isinstance(state, Fixed) and state.counts:
            op.interact("it computes with the number of rows, or with their positions")
        if state.shape is None:
            op.unknown("the shape of an operand is not known")
    a, b = left.shape, right.shape
    assert a is not None
    assert b is not None
    if isinstance(left, Rows) and left.axis == len(a) - 1:
        op.interact(_SUMMED)
    if isinstance(right, Rows) and right.axis == max(len(b) - 2, 0):
        op.interact(_SUMMED)
    if len(b) == 1:
        assert isinstance(left, Rows)
        return Rows(a[:-1], left.axis, left.block)
    if len(a) == 1:
        assert isinstance(right, Rows)
        axis = right.axis - (right.axis == len(b) - 1)
        return Rows((*b[:-2], b[-1]), axis, right.block)
    matrix: tuple[Element, Element] = (a[-2], b[-1])
    # Each operand as what it is in the result: its own axis of the matrix, and 1 for the other's.
    leading = [_spread(left, (a[-2], 1)), _spread(right, (1, b[-1]))]
    result = joined(op, leading)
    return Rows((*result.shape[:-2], *matrix), result.axis, result.block)


def _spread(state: State, matrix: tuple[Element, Element]) -> State:
    assert state.shape is not None
    shape = (*state.shape[:-2], *matrix)
    if isinstance(state, Fixed):
        return Fixed(shape, None, state.counts)
    return Rows(shape, state.axis, state.block)


def gemm(op: Op) -> Sequence[State]:
    left, right = op.state(0), op.state(1)
    if op.attribute("transA", 0):
        left = _turned(op, left)
    if op.attribute("transB", 0):
        right = _turned(op, right)
    result = product_of(op, left, right)
    return [joined(op, [result, op.state(2)]) if op.has(2) else result]


def weights_of_blocks(op: Op) -> Sequence[State]:
    """MatMulNBits and the like: the weights are constants of a form of their own."""
    rows = op.rows(0)
    op.constants_from(1)
    if rows.axis == rows.rank - 1:
        op.interact(_SUMMED)
    columns = op.attribute("N")
    return [Rows((*rows.shape[:-1], columns or op.fresh(0, -1)), rows.axis, rows.block)]


def convolution(op: Op) -> Sequence[State]:
    """Also poolings and what else works on images one by one: only the first input has rows, in front."""
    rows = op.rows(0)
    op.constants_from(1)
    if rows.axis != 0:
        op.interact("the rows are not on its first axis")
    return [op.made(0, rows.block, rank=rows.rank)]


def fused_convolution(op: Op) -> Sequence[State]:
    """With a summand."""
    summand = op.inputs[3] if len(op.inputs) > 3 else None
    rows = op.rows(0)
    op.constant(1)
    if op.has(2):
        op.constant(2)
    if rows.axis != 0:
        op.interact("the rows are not on its first axis")
    result = op.made(0, rows.block, rank=rows.rank)
    return [result if summand is None else joined(op, [result, summand])]


def pooling(op: Op) -> Sequence[State]:
    if op.uses(1):
        op.interact("its indices count the places of all rows")
    return convolution(op)


def recurrent(op: Op) -> Sequence[State | None]:
    """RNN, GRU and LSTM: `layout` 0 has the batch on the second axis."""
    rows = op.rows(0)
    batch = 0 if op.attribute("layout", 0) else 1
    if rows.axis != batch:
        op.interact(f"axis {batch} is its batch, and the rows are on another one")
    for index in range(1, len(op.inputs)):
        if not op.has(index):
            continue
        state = op.state(index)
        if not isinstance(state, Rows):
            op.constant(index)
            if index in (4, 5, 6):
                op.interact("a constant fixes the number of rows")
            continue
        if index not in (4, 5, 6):
            op.interact(f"input {index} depends on the rows, and holds for all of them")
        wanted = 0 if index == 4 or batch == 0 else 1
        if (state.axis, state.block) != (wanted, rows.block):
            op.interact("it brings together rows on different axes")
    whole = 0 if batch == 0 else 2
    places = [whole, batch, batch]
    return [
        op.made(place, rows.block, i, 3 if i else 4) if op.uses(i) else None
        for i, place in enumerate(places[: len(op.node.output)])
    ]


def einsum(op: Op) -> Sequence[State]:
    """The letter of the rows is each operand's own, and is kept."""
    equation = op.attribute("equation")
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    given, arrow, result = text.replace(" ", "").partition("->")
    terms = given.split(",")
    if not arrow or "." in text:
        op.unknown("its equation is not explicit")
    letters = set()
    block: Element = 1
    for index, term in enumerate(terms):
        state = op.state(index)
        if isinstance(state, Rows):
            letters.add(term[state.axis])
            block = state.block
        else:
            op.constant(index)
    letter = letters.pop()
    shared = any(
        letter in term for index, term in enumerate(terms) if not isinstance(op.state(index), Rows)
    )
    several = any(term.count(letter) > 1 for term in (*terms, result))
    blocks = {s.block for s in op.inputs if isinstance(s, Rows)}
    if letters or shared or several or letter not in result or len(blocks) > 1:
        op.interact(_SUMMED)
    return [op.made(result.index(letter), block, rank=len(result))]


RULES: Final[dict[str, Rule]] = {
    "AveragePool": pooling,
    "Conv": convolution,
    "ConvInteger": convolution,
    "ConvTranspose": convolution,
    "Einsum": einsum,
    "GRU": recurrent,
    "Gemm": gemm,
    "GlobalAveragePool": convolution,
    "GlobalLpPool": convolution,
    "GlobalMaxPool": convolution,
    "LRN": convolution,
    "LSTM": recurrent,
    "LpPool": convolution,
    "MatMul": matmul,
    "MatMulInteger": quantized_matmul,
    "MaxPool": pooling,
    "QLinearConv": convolution,
    "QLinearMatMul": qlinear_matmul,
    "RNN": recurrent,
}

# Those of onnxruntime's own domain.
MICROSOFT: Final[dict[str, Rule]] = {
    "FusedConv": fused_convolution,
    "FusedGemm": gemm,
    "FusedMatMul": fused_matmul,
    "MatMulBnb4": weights_of_blocks,
    "MatMulNBits": weights_of_blocks,
}
