"""Nodes that no request's data goes into: shapes are computed here, and tensors made as large as the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from edgeserve.conversion.independence.dims import (
    Dim,
    Element,
    counts_rows,
    equal,
    minus,
    opaque,
    plus,
    product,
    quotient,
    rows_in,
    times,
)
from edgeserve.conversion.independence.states import MOST_VALUES, Fixed, Op, Rows, Rule, State

# Of TensorProto.DataType.
_BOOL: Final = 9
_INTEGERS: Final = (2, 3, 4, 5, 6, 7, 12, 13)
RANDOM: Final = (
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
)  # fmt: skip


def shape_of(op: Op) -> Sequence[State]:
    """Also of a tensor with rows."""
    state = op.state(0)
    if state.shape is None:
        assert isinstance(state, Fixed)
        return [Fixed(None, None, state.counts)]
    start, end = op.attribute("start", 0), op.attribute("end")
    return [Fixed.of(objects(state.shape[start:end]))]


def size_of(op: Op) -> Sequence[State]:
    state = op.state(0)
    if state.shape is None:
        assert isinstance(state, Fixed)
        return [Fixed((), None, state.counts)]
    return [Fixed.of(objects(product(state.shape)))]


def constant(op: Op) -> Sequence[State]:
    for name, value in op.attributes.items():
        if name.startswith("value"):
            return [of_array(value)]
    return [op.made_fixed()]


def of_array(value: Any) -> Fixed:
    """A constant; with its values where they are few and numbers. `value` may be a TensorProto."""
    if hasattr(value, "dims"):
        from onnx import numpy_helper

        size = int(np.prod(value.dims)) if value.dims else 1
        if size > MOST_VALUES or value.data_location == 1:  # EXTERNAL
            return Fixed(tuple(value.dims))
        array = numpy_helper.to_array(value)
    else:
        array = np.asarray(value)
    if array.size > MOST_VALUES or array.dtype.kind not in "iufb":
        return Fixed(tuple(array.shape))
    objects = np.empty(array.shape, object)
    objects[...] = array.tolist()
    return Fixed(tuple(array.shape), objects)


def constant_of_shape(op: Op) -> Sequence[State]:
    state = op.state(0)
    assert isinstance(state, Fixed)
    shape = state.elements
    if shape is None:
        if state.counts:
            op.unknown("its shape is computed from the number of rows")
        return [op.made_fixed()]
    filled = _as_rows(op, shape)
    if filled is not None:
        return [filled]
    value = op.attribute("value")
    number = of_array(value).elements if value is not None else [0.0]
    numeric = all(not isinstance(s, Dim) for s in shape)
    if numeric and number and product(shape) <= MOST_VALUES:  # type: ignore[operator]
        return [Fixed.of(np.full([int(s) for s in shape], number[0], object))]  # type: ignore[arg-type]
    return [Fixed(tuple(shape))]


def _as_rows(op: Op, shape: Sequence[Element]) -> Rows | None:
    """A tensor of this shape, the same in each row; None where the number of rows is not in it."""
    places = [i for i, size in enumerate(shape) if counts_rows(size)]
    if not places:
        return None
    block = rows_in(shape[places[0]])
    if len(places) > 1 or block is None:
        op.interact("its shape depends on the number of rows in more than one axis")
    return Rows(tuple(shape), places[0], block)


def expand(op: Op) -> Sequence[State]:
    """Also Tile: a constant repeated for each row is one more tensor with rows."""
    state, wanted = op.state(0), op.state(1)
    assert isinstance(state, Fixed)
    assert isinstance(wanted, Fixed)
    elements = wanted.elements
    if elements is None or state.shape is None:
        if wanted.counts or state.counts:
            op.unknown("its shape is computed from the number of rows")
        return [op.made_fixed()]
    places = [i for i, size in enumerate(elements) if counts_rows(size)]
    rank = max(len(elements), len(state.shape))
    shape = [1] * (rank - len(state.shape)) + list(state.shape)
    factors = [1] * (rank - len(elements)) + list(elements)
    if not places:
        return [Fixed(tuple(map(_expanded(op), shape, factors)), None, state.counts)]
    place = places[0] + rank - len(elements)
    if state.counts or shape[place] != 1:
        op.interact("what it repeats differs from row to row by position")
    return [_as_rows(op, list(map(_expanded(op), shape, factors))) or op.made_fixed()]


def _expanded(op: Op) -> Callable[[Element, Element], Element]:
    if op.kind == "Tile":
        return times
    return lambda size, wanted: size if wanted == 1 else wanted


def range_(op: Op) -> Sequence[State]:
    start, limit, delta = (op.state(i) for i in range(3))
    numbers = [s.elements for s in (start, limit, delta) if isinstance(s, Fixed)]
    counts = any(s.counts for s in (start, limit, delta) if isinstance(s, Fixed))
    if any(n is None for n in numbers):
        return [Fixed(None if counts else (op.fresh(0, 0),), None, counts)]
    (first,), (last,), (step,) = (n for n in numbers if n is not None)
    if (first, step) == (0, 1):
        if not isinstance(last, Dim) and last <= MOST_VALUES:
            return [Fixed.of(objects(list(range(int(last)))))]
        return [Fixed((last,), None, counts)]
    if not (isinstance(first, Dim) or isinstance(last, Dim) or isinstance(step, Dim)):
        return [Fixed.of(objects(np.arange(first, last, step).tolist()))]
    return [Fixed((opaque("range", first, last, step),), None, counts)]


# arithmetic of small tensors


def objects(value: Any) -> Any:
    """An array of objects, of the shape that nested lists have. Dim is not a sequence, so it is an element."""
    if isinstance(value, list | tuple):
        array = np.empty(len(value), object)
        for index, element in enumerate(value):
            array[index] = element
        return array
    array = np.empty((), object)
    array[()] = value
    return array


def _arithmetic(function: Callable[[Any, Any], Any]) -> Rule:
    elementwise = np.frompyfunc(function, 2, 1)

    def rule(op: Op) -> Sequence[State]:
        arrays = [s.values if isinstance(s, Fixed) else None for s in op.inputs]
        if any(a is None for a in arrays):
            return [_shaped(op)]
        result = arrays[0]
        for other in arrays[1:]:
            result = elementwise(result, other)
        return [_checked(result, op)]

    return rule


def _each(function: Callable[[Any], Any]) -> Rule:
    elementwise = np.frompyfunc(function, 1, 1)

    def rule(op: Op) -> Sequence[State]:
        state = op.state(0)
        assert isinstance(state, Fixed)
        if state.values is None:
            return [Fixed(state.shape, None, state.counts)]
        return [_checked(elementwise(state.values), op)]

    return rule


def _checked(result: Any, op: Op) -> Fixed:
    """`result` unless an element of it is None, which is not known."""
    array = result if isinstance(result, np.ndarray) else objects(result)
    if any(v is None for v in array.reshape(-1)):
        return Fixed(tuple(array.shape), None, counts_any(op))
    return Fixed.of(array)


def _shaped(op: Op) -> Fixed:
    """What broadcasting makes of operands whose values are not known."""
    shapes = [s.shape for s in op.inputs if s is not None]
    known = [shape for shape in shapes if shape is not None]
    counts = counts_any(op)
    if len(known) < len(shapes):
        return op.made_fixed(counts=counts)
    rank = max(map(len, known))
    result: list[Element] = []
    for place in range(rank):
        sizes = {s[place - rank + len(s)] for s in known if place - rank + len(s) >= 0} - {1}
        result.append(sizes.pop() if len(sizes) == 1 else op.fresh(0, place) if sizes else 1)
    return Fixed(tuple(result), None, counts)


def counts_any(op: Op) -> bool:
    """Whether the number of rows went into an input."""
    return any(
        s.counts or any(map(counts_rows, s.shape or ())) for s in op.inputs if isinstance(s, Fixed)
    )


def _choose(condition: Any, a: Any, b: Any) -> Any:
    if a == b:
        return a
    if condition is None or isinstance(condition, Dim):
        return None
    return a if condition else b


def where(op: Op) -> Sequence[State]:
    arrays: list[Any] = [s.values if isinstance(s, Fixed) else None for s in op.inputs]
    if any(a is None for a in arrays):
        return [_shaped(op)]
    return [_checked(np.frompyfunc(_choose, 3, 1)(*arrays), op)]


def equals(op: Op) -> Sequence[State]:
    """Elements whose equality is not known stay that, for Where to see."""
    arrays: list[Any] = [s.values if isinstance(s, Fixed) else None for s in op.inputs]
    if any(a is None for a in arrays):
        return [_shaped(op)]
    result = np.frompyfunc(equal, 2, 1)(*arrays)
    array = result if isinstance(result, np.ndarray) else objects(result)
    unknown = any(v is None for v in array.reshape(-1))
    return [Fixed(tuple(array.shape), array, counts_any(op)) if unknown else Fixed.of(array)]


def cast(op: Op) -> Sequence[State]:
    state = op.state(0)
    assert isinstance(state, Fixed)
    to = op.attribute("to")
    if state.values is None or to == _BOOL:
        return [Fixed(state.shape, None, state.counts)]
    integer = to in _INTEGERS

    def one(element: Any) -> Any:
        return int(element) if integer and isinstance(element, float | bool) else element

    return [_checked(np.frompyfunc(one, 1, 1)(state.values), op)]


def product_of(op: Op) -> Sequence[State]:
    state = op.state(0)
    assert isinstance(state, Fixed)
    if state.values is None or state.values.ndim != 1:
        return [op.made_fixed(counts=counts_any(op))]
    total = product(state.elements or [])
    return [Fixed.of(objects([total] if op.attribute("keepdims", 1) else total))]


def anything(op: Op) -> Sequence[State]:
    """What else is made of constants is one."""
    counts = counts_any(op)
    return [op.made_fixed(i, counts=counts) for i in range(len(op.node.output))]


RULES: Final[dict[str, Rule]] = {
    "Add": _arithmetic(plus),
    "Cast": cast,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Div": _arithmetic(quotient),
    "Equal": equals,
    "Expand": expand,
    "Identity": _each(lambda v: v),
    "Mul": _arithmetic(times),
    "Neg": _each(lambda v: times(v, -1)),
    "Range": range_,
    "ReduceProd": product_of,
    "Shape": shape_of,
    "Size": size_of,
    "Sub": _arithmetic(minus),
    "Tile": expand,
    "Where": where,
}
