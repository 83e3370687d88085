"""Inputs that say how large something is to be, or how often something is done: shapes, counts, axes. Values
that fit are derived from what they are applied to; a large random number would fill the memory, or never end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from edgeserve.conversion.sources.graph import Graph, Reader, attribute
from edgeserve.evaluate.made_up import Span
from edgeserve.tensors import TensorSpec

# The inputs, by number, that are sizes, counts or axes.
_SIZES: Final[dict[str, tuple[int, ...]]] = {
    "Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,), "Tile": (1,), "Range": (0, 1, 2), "Loop": (0,),
    "TopK": (1,), "OneHot": (1,), "Resize": (2, 3), "Upsample": (1,), "Pad": (1,), "Slice": (1, 2, 3, 4),
    "Unsqueeze": (1,), "Squeeze": (1,), "Split": (1,), "CenterCropPad": (1,), "Trilu": (1,),
    "NonMaxSuppression": (2,), "Col2Im": (1, 2), "MaxUnpool": (2,), "HannWindow": (0,), "HammingWindow": (0,),
    "BlackmanWindow": (0,), "MelWeightMatrix": (0, 1, 2, 3, 4), "DFT": (1, 2), "STFT": (1, 3), "CumSum": (1,),
    "SplitToSequence": (1,), "SequenceAt": (1,), "SequenceInsert": (2,), "AffineGrid": (1,),
    "ReduceSum": (1,), "ReduceMean": (1,), "ReduceMax": (1,), "ReduceMin": (1,), "ReduceProd": (1,),
    "ReduceL1": (1,), "ReduceL2": (1,), "ReduceSumSquare": (1,), "ReduceLogSum": (1,), "ReduceLogSumExp": (1,),
}  # fmt: skip
# Operators that turn values into others of no such meaning.
_ENDS: Final = {
    "Shape", "Size", "MatMul", "Gemm", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN", "Softmax",
    "LayerNormalization", "BatchNormalization", "OneHot", "NonZero", "MatMulInteger", "ConvInteger",
}  # fmt: skip
_INDEXED: Final = {"Gather": 1, "GatherElements": 1, "GatherND": 1}
_HANDED_ON: Final = {"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"}
_MANY: Final = 16
_MOST_VISITED: Final = 2000


def fitting_span(graph: Graph, spec: TensorSpec, open_size: int) -> Span | None:
    """Values that fit, for an input that says how large something is; None for all others."""
    if spec.numpy_dtype.kind not in "iuf":
        return None
    direct = _direct(graph, spec.name)
    if direct is None:
        if spec.numpy_dtype.kind == "f" or not is_size_input(graph, spec.name):
            return None
        return Span("uniform", 1, 4)
    return _values(graph, direct, spec, open_size)


def is_size_input(graph: Graph, name: str) -> bool:
    """Whether an input's values reach a size, a count or an axis, or decide how often a loop runs, however they
    are computed with on the way."""
    waiting, seen = [name], {name}
    while waiting and len(seen) < _MOST_VISITED:
        current = waiting.pop()
        for known in (current, *graph.aliases.get(current, ())):
            for reader in graph.readers(known):
                if reader.index in _SIZES.get(reader.op, ()) or _ends_loop(reader):
                    return True
                if reader.op in _ENDS or _INDEXED.get(reader.op) == reader.index:
                    continue
                after = [n for n in reader.node.output if n and n not in seen]
                seen.update(after)
                waiting += after
    return any(n in graph.loop_conditions for n in seen)


def _ends_loop(reader: Reader) -> bool:
    return reader.op == "Loop" and reader.index == 1


def _direct(graph: Graph, name: str) -> Reader | None:
    """The first reader that takes the input as it is for a size."""
    waiting, seen = [name], {name}
    while waiting:
        for reader in graph.readers(waiting.pop()):
            if reader.index in _SIZES.get(reader.op, ()):
                return reader
            if reader.op in _HANDED_ON and reader.index == 0:
                after = [n for n in reader.node.output if n not in seen]
                seen.update(after)
                waiting += after
    return None


def _values(graph: Graph, reader: Reader, spec: TensorSpec, open_size: int) -> Span:
    """What fits at this reader's input."""
    op, index, node = reader.op, reader.index, reader.node
    length = spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else 0
    data = graph.sizes(node.input[0], open_size) if index else None
    result = graph.dims(node.output[0])
    random = np.random.default_rng(len(spec.name))
    tables: list[Sequence[float]] = []
    if op == "Reshape":
        wanted = length or len(result or ()) or 2
        tables = _factorizations(data, wanted, result, random)
    elif op == "Expand":
        tables = _wider(data, length or len(data or (1,)), random)
    elif op == "Resize" and index == 3:
        size = data or (1, 1) + (open_size,) * max(0, length - 2)
        tables = [(*size[:2], *(max(1, int(d * f)) for d in size[2:])) for f in (0.5, 1, 1.5, 2)]
    elif op in ("Resize", "Upsample"):
        count = length or len(data or (1, 1, 1, 1))
        tables = [(1.0, 1.0)[:count] + (f,) * max(0, count - 2) for f in (1.0, 1.5, 2.0)]
    elif op == "Split":
        axis = int(attribute(node, "axis", 0))
        if data and length and data[axis] >= length:
            tables = _parts(data[axis], length, random)
    elif op == "Squeeze":
        ones = [i for i, d in enumerate(data or ()) if d == 1]
        tables = [tuple(ones[: length or 1])] if ones else []
    elif op == "Unsqueeze" or op.startswith("Reduce") or (op == "Slice" and index == 3):
        tables = [tuple(range(length or 1))]
    elif op == "Slice" and index == 2 and data and length:
        axes = _axes(graph, node, length)
        tables = [tuple(int(random.integers(1, data[a] + 1)) for a in axes) for _ in range(_MANY)]
    if tables:
        typed = [np.asarray(t, spec.numpy_dtype) for t in tables]
        if not spec.shape:
            typed = [t.reshape(-1)[0] for t in typed]
        return Span("table", values=tuple(typed))
    return _small(graph, reader, spec, data)


def _small(graph: Graph, reader: Reader, spec: TensorSpec, data: Sequence[int] | None) -> Span:
    """A small number."""
    op, index, node = reader.op, reader.index, reader.node
    if op == "TopK":
        axis = int(attribute(node, "axis", -1))
        return Span("uniform", 1, data[axis] if data else 1)
    if op == "Range":
        return _range_part(graph, index, node)
    low, high = {
        ("OneHot", 1): (4, 8), ("Pad", 1): (0, 1), ("Slice", 1): (0, 0), ("Slice", 2): (1, 4),
        ("Slice", 4): (1, 2), ("CumSum", 1): (0, 0), ("SequenceAt", 1): (0, 0),
        ("SequenceInsert", 2): (0, 0), ("Trilu", 1): (0, 1), ("NonMaxSuppression", 2): (1, 8),
        ("Tile", 1): (1, 3), ("DFT", 2): (1, 1),
    }.get((op, index), (1, 4))  # fmt: skip
    return Span("uniform", low, high)


def _range_part(graph: Graph, index: int, node: object) -> Span:
    inputs: Sequence[str] = node.input  # type: ignore[attr-defined]
    start, delta = graph.constant(inputs[0]), graph.constant(inputs[2])
    if index == 0:
        return Span("uniform", 0, 3)
    if index == 2:
        return Span("uniform", 1, 2)
    first = float(start.reshape(-1)[0]) if start is not None else 3.0
    step = float(delta.reshape(-1)[0]) if delta is not None else 2.0
    return Span("table", values=tuple(np.asarray(first + step * k) for k in range(1, 9)))


def _axes(graph: Graph, node: object, length: int) -> Sequence[int]:
    inputs: Sequence[str] = node.input  # type: ignore[attr-defined]
    given = graph.constant(inputs[3]) if len(inputs) > 3 and inputs[3] else None
    return [int(a) for a in given.reshape(-1)] if given is not None else range(length)


def _factorizations(
    data: Sequence[int] | None,
    count: int,
    result: Sequence[int | str] | None,
    random: np.random.Generator,
) -> list[Sequence[float]]:
    """Shapes of `count` dimensions with as many elements, those that the output fixes as it says; one that
    fits anything where the number is not known."""
    if not count:
        return [()]
    if data is None:
        return [(-1, *[1] * (count - 1))]
    fixed = [d if isinstance(d, int) else None for d in result or ()]
    fixed = fixed if len(fixed) == count else [None] * count
    return _distinct(lambda: _factors(math.prod(data), fixed, random))


def _factors(
    total: int, fixed: Sequence[int | None], random: np.random.Generator
) -> Sequence[float] | None:
    left = total
    for size in fixed:
        if size is not None:
            if size == 0 or left % size:
                return None
            left //= size
    free = [i for i, size in enumerate(fixed) if size is None]
    shape = [size or 1 for size in fixed]
    for place in free[:-1]:
        divisors = [d for d in range(1, min(left, 4096) + 1) if left % d == 0]
        shape[place] = int(random.choice(divisors)) if left else 0
        left = left // shape[place] if shape[place] else 0
    if free:
        shape[free[-1]] = left
    return tuple(shape) if free or left == 1 else None


def _wider(
    data: Sequence[int] | None, count: int, random: np.random.Generator
) -> list[Sequence[float]]:
    """Shapes that the data broadcast to."""
    sizes = list(data or ())[-count:] if count else []

    def one() -> Sequence[float]:
        front = [int(random.integers(1, 4)) for _ in range(count - len(sizes))]
        return (*front, *(d if d != 1 else int(random.integers(1, 4)) for d in sizes))

    return _distinct(one) if data is not None else [(1,) * count]


def _parts(total: int, count: int, random: np.random.Generator) -> list[Sequence[float]]:
    """`count` numbers of 1 or more that make `total`."""

    def one() -> Sequence[float]:
        cuts = np.sort(random.choice(np.arange(1, total), count - 1, replace=False))
        return tuple(int(d) for d in np.diff([0, *cuts, total]))

    return _distinct(one)


def _distinct(make: Callable[[], Sequence[float] | None]) -> list[Sequence[float]]:
    found = [t for _ in range(_MANY) if (t := make()) is not None]
    return list(dict.fromkeys(tuple(t) for t in found))
