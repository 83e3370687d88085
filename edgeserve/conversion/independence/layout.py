"""Operators that move elements: the rows stay apart as long as their axis is followed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeserve.conversion.independence.dims import (
    Dim,
    Element,
    counts_rows,
    divide,
    equal,
    product,
    rows_in,
    times,
)
from edgeserve.conversion.independence.pointwise import joined
from edgeserve.conversion.independence.states import Fixed, Op, Rows, Rule, State

# Exporters write such a number, or a larger one, for the end of an axis.
_ENDLESS: Final = 1_000_000_000
_OVER_ROWS: Final = "it works along the axis of the rows"


def transpose(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    order = op.attribute("perm") or list(reversed(range(rows.rank)))
    return [Rows(tuple(rows.shape[i] for i in order), list(order).index(rows.axis), rows.block)]


def reshape(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    wanted = op.integers_or_sizes("shape", 1)
    if not op.attribute("allowzero", 0):
        if len(wanted) > rows.rank and any(w == 0 for w in wanted[rows.rank :]):
            op.unknown("its shape copies an axis that is not there")
        wanted = [rows.shape[i] if w == 0 else w for i, w in enumerate(wanted)]
    return [reshaped(op, rows, wanted)]


def reshaped(op: Op, rows: Rows, wanted: Sequence[Element]) -> Rows:
    """The same elements in order with another shape, in which one -1 may stand for the rest."""
    shape = list(wanted)
    if -1 in shape:
        place = shape.index(-1)
        others = product(size for i, size in enumerate(shape) if i != place)
        rest = divide(product(rows.shape), others)
        if rest is None:
            # The rows may have been found before it: then it is some size inside of one row.
            inside = any(rows_in(size) is not None for size in shape[:place])
            if not inside:
                op.interact("whether its rows are still the requests' is not known")
            rest = op.fresh(0, place)
        shape[place] = rest
    outside = product(rows.shape[: rows.axis])
    for axis, size in enumerate(shape):
        block = rows_in(size)
        if block is not None:
            behind = shape[axis + 1 :]
            if product(shape[:axis]) == outside and not any(map(counts_rows, behind)):
                return Rows(tuple(shape), axis, block)
            break
        if counts_rows(size):
            break
    return op.interact("it merges the axis of the rows with others, or fixes its size")


def flatten(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    axis = op.attribute("axis", 1)
    axis += rows.rank if axis < 0 else 0
    return [reshaped(op, rows, [product(rows.shape[:axis]), product(rows.shape[axis:])])]


def squeeze(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    axes = op.axes("axes", 1, rows.rank)
    if axes is None:
        op.interact("it drops the axis of the rows when there is one row")
    if rows.axis in axes:
        op.interact("it drops the axis of the rows")
    left = [i for i in range(rows.rank) if i not in axes]
    return [Rows(tuple(rows.shape[i] for i in left), left.index(rows.axis), rows.block)]


def unsqueeze(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    found = op.integers("axes", 1)
    assert found is not None
    rank = rows.rank + len(found)
    axes = [a + rank if a < 0 else a for a in found]
    sizes = iter(enumerate(rows.shape))
    shape: list[Element] = []
    axis = 0
    for place in range(rank):
        if place in axes:
            shape.append(1)
            continue
        old, size = next(sizes)
        if old == rows.axis:
            axis = place
        shape.append(size)
    return [Rows(tuple(shape), axis, rows.block)]


def concat(op: Op) -> Sequence[State]:
    states = [s for s in op.inputs if s is not None]
    rows = [s for s in states if isinstance(s, Rows)]
    first = rows[0]
    along = op.attribute("axis", 1) % first.rank
    if along == first.axis:
        op.interact(_OVER_ROWS)
    if len(rows) < len(states):
        op.interact("it puts a constant beside the rows, which fixes their number")
    if any((s.rank, s.axis, s.block) != (first.rank, first.axis, first.block) for s in rows):
        op.interact("it brings together rows on different axes")
    sizes = [s.shape[along] for s in rows]
    shape = list(first.shape)
    known = all(not isinstance(s, Dim) for s in sizes)
    shape[along] = sum(s for s in sizes if not isinstance(s, Dim)) if known else op.fresh(0, along)
    return [Rows(tuple(shape), first.axis, first.block)]


def split(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    axis = op.attribute("axis", 0) % rows.rank
    if axis == rows.axis:
        op.interact(_OVER_ROWS)
    return [
        _resized(rows, axis, op.made(rows.axis, rows.block, i, rows.rank).shape[axis])
        for i in range(len(op.node.output))
    ]


def slice_(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    for index in range(1, len(op.inputs)):
        if op.has(index) and isinstance(op.state(index), Rows):
            op.interact("where it cuts depends on the data")
    starts = op.integers_or_sizes("starts", 1)
    ends = op.integers_or_sizes("ends", 2)
    axes = op.axes("axes", 3, rows.rank)
    axes = list(range(len(starts))) if axes is None else axes
    steps = op.integers("steps", 4) or [1] * len(axes)
    shape = list(rows.shape)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        whole = start == 0 and step == 1
        endless = end == shape[axis] or (not isinstance(end, Dim) and end >= _ENDLESS)
        if axis == rows.axis:
            if not (whole and endless):
                op.interact("it cuts rows off")
            continue
        if any(map(counts_rows, (start, end))):
            op.interact("where it cuts depends on the number of rows")
        if whole and endless:
            continue
        size = shape[axis]
        if any(isinstance(v, Dim) for v in (size, start, end)):
            shape[axis] = end if whole and isinstance(end, Dim) else op.fresh(0, axis)
        else:
            assert not isinstance(size, Dim)
            assert not isinstance(start, Dim)
            assert not isinstance(end, Dim)
            cut = slice(int(start), int(end) if end > -_ENDLESS else None, step)
            shape[axis] = len(range(*cut.indices(int(size))))
    return [Rows(tuple(shape), rows.axis, rows.block)]


def gather(op: Op) -> Sequence[State]:
    data, indices = op.state(0), op.state(1)
    if isinstance(data, Rows) and isinstance(indices, Rows):
        op.interact("it looks up rows by indices from the data")
    axis = op.attribute("axis", 0)
    if isinstance(data, Rows):
        axis %= data.rank
        where = op.constant(1)
        if axis == data.axis:
            op.interact("it picks rows")
        if where.shape is None:
            op.unknown("the shape of its indices is not known")
        shape = (*data.shape[:axis], *where.shape, *data.shape[axis + 1 :])
        moved = len(where.shape) - 1 if axis < data.axis else 0
        return [Rows(shape, data.axis + moved, data.block)]
    table = op.constant(0)
    rows = op.rows(1)
    if table.shape is None:
        op.unknown("the shape of its table is not known")
    axis %= len(table.shape)
    shape = (*table.shape[:axis], *rows.shape, *table.shape[axis + 1 :])
    return [Rows(shape, axis + rows.axis, rows.block)]


def gather_elements(op: Op) -> Sequence[State]:
    """Also ScatterElements: all of its tensors have their rows on the same axis."""
    tensors = [op.state(i) for i in range(len(op.inputs))]
    rows = [s for s in tensors if isinstance(s, Rows)]
    first = rows[0]
    if len(rows) < len(tensors):
        op.interact("a constant tells it where to look, which fixes the number of rows")
    if any((s.rank, s.axis, s.block) != (first.rank, first.axis, first.block) for s in rows):
        op.interact("it brings together rows on different axes")
    if op.attribute("axis", 0) % first.rank == first.axis:
        op.interact(_OVER_ROWS)
    return [rows[1] if op.kind == "GatherElements" else first]


def gather_nd(op: Op) -> Sequence[State]:
    data, indices = op.state(0), op.state(1)
    several = op.attribute("batch_dims", 0)
    if isinstance(data, Rows) and isinstance(indices, Rows):
        if not data.axis == indices.axis < several or data.block != indices.block:
            op.interact("it looks up rows by indices from the data")
        return [op.made(data.axis, data.block)]  # the rank is inferred, or not known
    if isinstance(data, Rows) or several:
        op.interact("it picks rows")
    op.constant(0)
    rows = op.rows(1)
    if rows.axis == rows.rank - 1:
        op.interact("each index is made of several rows")
    return [op.made(rows.axis, rows.block)]


def expand(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    wanted = op.numbers(1) or []
    return [joined(op, [rows, _like(rows, wanted)])]


def _like(rows: Rows, wanted: Sequence[Element]) -> State:
    """An operand of this shape, as far as broadcasting goes."""
    shape = list(wanted)
    place = rows.axis - rows.rank + len(shape)
    if place >= 0 and (shape[place] == rows.size or equal(shape[place], 1)):
        shape[place] = 1
    return Fixed(tuple(shape), None, any(map(counts_rows, shape)))


def tile(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    repeats = op.numbers(1) or []
    if repeats[rows.axis] != 1 or any(map(counts_rows, repeats)):
        op.interact("it repeats rows")
    shape = [times(size, n) for size, n in zip(rows.shape, repeats, strict=True)]
    return [Rows(tuple(shape), rows.axis, rows.block)]


def pad(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    pads = op.integers_or_sizes("pads", 1)
    if op.has(2):
        op.constant(2)
    axes = op.axes("axes", 3, rows.rank) or list(range(rows.rank))
    for place, axis in enumerate(axes):
        if axis == rows.axis and (pads[place] != 0 or pads[place + len(axes)] != 0):
            op.interact("it pads the axis of the rows")
    if any(map(counts_rows, pads)):
        op.interact("it pads by the number of rows")
    return [op.made(rows.axis, rows.block, rank=rows.rank)]


def resize(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    for index in range(1, len(op.inputs)):
        if op.has(index) and isinstance(op.state(index), Rows):
            op.interact("its scale depends on the data")
    axes = op.axes("axes", None, rows.rank) or list(range(rows.rank))
    place = axes.index(rows.axis) if rows.axis in axes else None
    old = op.kind == "Upsample" or op.opset < 11
    if "scales" in op.attributes:
        scales: Sequence[Element] | None = op.attributes["scales"]
    else:
        scales = _given(op, 1 if old else 2)
    sizes = None if old else _given(op, 3)
    for axis, size in enumerate(sizes or scales or []):
        if axis == place:
            if size != (rows.size if sizes else 1):
                op.interact("it resizes the axis of the rows")
        elif counts_rows(size):
            op.interact("it resizes by the number of rows")
    if not (sizes or scales):
        op.unknown("its scale is not known")
    return [op.made(rows.axis, rows.block, rank=rows.rank)]


def _given(op: Op, index: int) -> list[Element] | None:
    """The elements of an input; None for one that is left out, which may also be an empty one."""
    return op.numbers(index) or None


def one_hot(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    op.constants_from(1)
    axis = op.attribute("axis", -1)
    axis += rows.rank + 1 if axis < 0 else 0
    depth = (op.constant(1).elements or [op.fresh(0, axis)])[0]
    shape = (*rows.shape[:axis], depth, *rows.shape[axis:])
    return [Rows(shape, rows.axis + (axis <= rows.axis), rows.block)]


def trilu(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    op.constants_from(1)
    if rows.axis >= rows.rank - 2:
        op.interact(_OVER_ROWS)
    return [rows]


def reverse_sequence(op: Op) -> Sequence[State]:
    rows, lengths = op.rows(0), op.rows(1)
    if op.attribute("batch_axis", 1) != rows.axis or lengths.block != rows.block:
        op.interact(_OVER_ROWS)
    return [rows]


def blocks_of_space(op: Op) -> Sequence[State]:
    """SpaceToDepth and its way back."""
    rows = op.rows(0)
    if rows.axis != 0:
        op.interact("the rows are not on its first axis")
    return [op.made(0, rows.block, rank=rows.rank)]


def _resized(rows: Rows, axis: int, size: Element) -> Rows:
    shape = list(rows.shape)
    shape[axis] = size
    return Rows(tuple(shape), rows.axis, rows.block)


RULES: Final[dict[str, Rule]] = {
    "Concat": concat,
    "DepthToSpace": blocks_of_space,
    "Expand": expand,
    "Flatten": flatten,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "OneHot": one_hot,
    "Pad": pad,
    "Reshape": reshape,
    "Resize": resize,
    "ReverseSequence": reverse_sequence,
    "ScatterElements": gather_elements,
    "Slice": slice_,
    "SpaceToDepth": blocks_of_space,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
    "Upsample": resize,
}
