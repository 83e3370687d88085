"""Which values an ONNX model's inputs can plausibly have, read from the graph: what indexes a table is below its
size, what is compared is near the constant, what a shape is made of is small.

Each input is followed through what hands its values on; each reader on the way is one piece of evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.conversion.sources.fitting import fitting_span
from edgeserve.conversion.sources.graph import Graph, Reader, attribute
from edgeserve.evaluate.made_up import (
    Span,
    concrete,
    is_length,
    numbers_as_text,
    usual_span,
)
from edgeserve.tensors import Array, Interface, TensorSpec

# Operators whose output holds the values of their first inputs, elsewhere or in another type.
_PASSING: Final = {
    "Identity": (0,), "Cast": (0,), "Reshape": (0,), "Squeeze": (0,), "Unsqueeze": (0,), "Flatten": (0,),
    "Transpose": (0,), "Slice": (0,), "Split": (0,), "Expand": (0,), "Tile": (0,), "Gather": (0,),
    "GatherElements": (0,), "Where": (1, 2), "Clip": (0,), "Abs": (0,), "Pad": (0,), "CastLike": (0,),
    "ReduceMax": (0,), "ReduceMin": (0,), "Floor": (0,), "Ceil": (0,), "Round": (0,), "Dropout": (0,),
}  # fmt: skip
_MIXING: Final = {"Concat", "Max", "Min", "Add", "Sub", "Mul", "Div"}
_COMPARING: Final = {"Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"}
# (the indices' input, the table's input) of operators that look something up.
_LOOKUPS: Final = {
    "Gather": (1, 0), "GatherElements": (1, 0), "GatherND": (1, 0), "ScatterElements": (1, 0),
    "ScatterND": (1, 0), "Scatter": (1, 0), "ai.onnx.ml.ArrayFeatureExtractor": (1, 0),
}  # fmt: skip
_EMBEDDINGS: Final = {"com.microsoft.EmbedLayerNormalization": {0: 2, 1: 4}}
_TREES: Final = ("TreeEnsembleClassifier", "TreeEnsembleRegressor")
_POSITIVE: Final = {("Log", 0), ("Sqrt", 0), ("BatchNormalization", 4), ("Clip", 2),
                    ("QuantizeLinear", 1), ("DequantizeLinear", 1)}  # fmt: skip
_BETWEEN: Final[dict[tuple[str, int], tuple[float, float]]] = {
    ("Asin", 0): (-1, 1), ("Acos", 0): (-1, 1), ("Atanh", 0): (-0.99, 0.99), ("Acosh", 0): (1, 9),
    ("GridSample", 1): (-1, 1), ("Bernoulli", 0): (0, 1), ("Dropout", 1): (0, 0.5),
    ("NonMaxSuppression", 1): (0, 1), ("NonMaxSuppression", 3): (0, 1),
    ("NonMaxSuppression", 4): (0, 0.5), ("Clip", 1): (-1, 0),
}  # fmt: skip
_DEPTH: Final = 200
_WIDEST_SCALE: Final = 1e12
# Standard deviations that data have; what leads to others is not a normalization.
_SCALES: Final = (1e-4, 1e6)
_SPREAD: Final = 1e3


class Evidence(msgspec.Struct):
    """What an input's readers say. `limits` are of indices; `near` are constants it is compared with; `scale` is
    the largest constant it is divided by, or taken modulo."""

    limits: list[tuple[float, float]] = []
    near: list[float] = []
    keys: list[Any] = []
    scale: float = 0.0
    nonzero: bool = False
    tree: tuple[Array, Array] | None = None
    between: tuple[float, float] | None = None
    positive: bool = False
    numeric_text: bool = False
    off: bool = False
    on: bool = False


class _Place(msgspec.Struct, frozen=True):
    """A tensor on the way: `value // div + add`, roughly, where the input's value was multiplied by `mul`."""

    name: str
    mul: float = 1.0
    div: float = 1.0
    add: float = 0.0


def plausible_spans(proto: Any, interface: Interface, open_size: int) -> dict[str, Span]:
    """A span for each input, for samples whose open dimensions are `open_size`."""
    graph = Graph(proto)
    return {s.name: _span_of(graph, interface, s, open_size) for s in interface.inputs}


def _span_of(graph: Graph, interface: Interface, spec: TensorSpec, open_size: int) -> Span:
    usual = usual_span(spec)
    if usual.kind == "wide" and not graph.readers(spec.name):
        return Span("uniform", 0, 1)  # nothing reads it: its values prove nothing
    fitting = fitting_span(graph, spec, open_size)
    if fitting is not None:
        return fitting
    if usual.kind == "mask":
        return usual
    found = _evidence(graph, spec, open_size)
    kind = spec.numpy_dtype.kind
    if kind == "O":
        if found.numeric_text:
            return numbers_as_text()
        return Span("choice", values=(*found.keys, "another")) if found.keys else usual
    if kind == "b":
        if found.off or found.on:
            return Span("choice", values=(found.on,))
        return usual
    if found.tree is not None:
        return Span("uniform", *found.tree)
    if spec.dtype == "BF16":
        return usual
    if kind == "f":
        return _float_span(graph, spec, found)
    return _integer_span(interface, spec, found, usual, open_size)


def _float_span(graph: Graph, spec: TensorSpec, found: Evidence) -> Span:
    if found.between is not None:
        return Span("uniform", *found.between)
    if found.limits:
        low, high = _common(found.limits)
        return Span("uniform", low, high)
    if found.positive:
        return Span("positive")
    offset, scale = _normalization(graph, spec)
    return Span("normal", offset=offset, scale=scale, nonzero=found.nonzero)


def _integer_span(
    interface: Interface, spec: TensorSpec, found: Evidence, usual: Span, open_size: int
) -> Span:
    values = tuple(
        dict.fromkeys(int(v) for v in (*found.keys, *_around(found.near)) if _fits(v, spec))
    )
    if found.limits:
        if "position" in spec.name.lower() and len(spec.shape) > 1:
            length = concrete(spec.shape, open_size)[-1]
            if length <= _common(found.limits)[1] + 1:
                return Span("position")
        low, high = _common(found.limits)
        return Span("uniform", low, high, values=tuple(v for v in values if low <= v <= high))
    if is_length(spec):
        return Span("length", high=_longest(interface, open_size))
    if found.keys and not found.scale:
        return Span("choice", values=(*values, max(values) + 1))
    return msgspec.structs.replace(usual, values=values, nonzero=found.nonzero)


def _around(constants: Sequence[float]) -> list[float]:
    return [v + d for v in constants for d in (-1, 0, 1)]


def _fits(value: float, spec: TensorSpec) -> bool:
    limits = np.iinfo(spec.numpy_dtype)
    return bool(limits.min <= value <= min(limits.max, 2**62))


def _common(limits: Sequence[tuple[float, float]]) -> tuple[int, int]:
    low = max(math.ceil(a) for a, _ in limits)
    high = min(math.floor(b) for _, b in limits)
    return (low, high) if low <= high else (min(low, 0), max(low, 0))


def _longest(interface: Interface, open_size: int) -> int:
    """The length of the sequences that a length is of: the second dimension of the largest other input."""
    shapes = [concrete(s.shape, open_size) for s in interface.inputs if len(s.shape) > 1]
    largest = max(shapes, key=math.prod, default=(1, open_size))
    return largest[1] if largest[1] > 1 else open_size


# following


def _evidence(graph: Graph, spec: TensorSpec, open_size: int) -> Evidence:
    found = Evidence()
    waiting, seen = [_Place(spec.name)], {spec.name}
    while waiting and len(seen) < _DEPTH:
        place = waiting.pop()
        names = [place.name, *graph.aliases.get(place.name, ())]
        for name in names:
            for reader in graph.readers(name):
                for after in _read(graph, reader, place, found, open_size):
                    if after.name and after.name not in seen:
                        seen.add(after.name)
                        waiting.append(after)
    return found


def _read(
    graph: Graph, reader: Reader, place: _Place, found: Evidence, open_size: int
) -> list[_Place]:
    """Note what this reader says; the places where the values go on."""
    op, index, node = reader.op, reader.index, reader.node
    outputs = [msgspec.structs.replace(place, name=name) for name in node.output]
    if op in _LOOKUPS and _LOOKUPS[op][0] == index:
        size = _table_size(graph, op, node, open_size)
        if size is not None:
            found.limits.append(_before(place, 0, size - 1))
        return []
    if op in _EMBEDDINGS and index in _EMBEDDINGS[op]:
        dims = graph.sizes(node.input[_EMBEDDINGS[op][index]], open_size)
        if dims:
            found.limits.append(_before(place, 0, dims[0] - 1))
        return []
    if (op, index) in _BETWEEN:
        found.between = _BETWEEN[op, index]
        return []
    if (op, index) in _POSITIVE:
        found.positive = True
        return []
    if op == "Dropout" and index == 2:
        found.off = True
        return []
    if op == "Loop" and index == 1:
        found.on = True
        return []
    if op in ("LSTM", "GRU", "RNN") and index == 4:
        dims = graph.sizes(node.input[0], open_size)
        found.limits.append((1, dims[1 if attribute(node, "layout", 0) else 0] if dims else 1))
        return []
    if op == "ReverseSequence" and index == 1:
        dims = graph.sizes(node.input[0], open_size)
        found.limits.append((1, dims[attribute(node, "time_axis", 0)] if dims else 1))
        return []
    if op == "OneHot" and index == 0:
        depth = graph.constant(node.input[1])
        if depth is not None:
            found.limits.append(_before(place, 0, float(depth.reshape(-1)[0]) - 1))
        return []
    if op.startswith("ai.onnx.ml."):
        return _read_classical(node, found, outputs)
    if op in _COMPARING:
        other = graph.constant(node.input[1 - index])
        if other is not None and other.dtype.kind in "iuf" and other.size:
            found.near += [
                _before(place, float(e), float(e))[0] for e in (other.min(), other.max())
            ]
        return []
    if op == "Cast" and attribute(node, "to") not in (None, 8):  # 8: STRING
        found.numeric_text = True
    if op in ("Mod", "Div") and index == 1:
        found.nonzero = True
        return outputs
    if op in ("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min"):
        return _through_arithmetic(graph, op, index, node, place, found, outputs)
    if index in _PASSING.get(op, ()) or op in _MIXING:
        return outputs
    return []


def _read_classical(node: Any, found: Evidence, outputs: list[_Place]) -> list[_Place]:
    """Operators of classical models, which hold what they were trained on."""
    kind = node.op_type
    if kind in _TREES:
        found.tree = _tree_ranges(node)
        return []
    for name in ("keys_int64s", "cats_int64s", "pool_int64s", "keys_strings", "cats_strings",
                 "pool_strings"):  # fmt: skip
        for key in attribute(node, name, ()):
            found.keys.append(key.decode("utf-8", "replace") if isinstance(key, bytes) else key)
    if kind in ("Imputer", "FeatureVectorizer", "Scaler", "Normalizer"):
        return outputs
    return []


def _tree_ranges(node: Any) -> tuple[Array, Array] | None:
    """Below the lowest and above the highest threshold of each feature."""
    features = np.asarray(attribute(node, "nodes_featureids", ()), np.int64)
    values = np.asarray(attribute(node, "nodes_values", ()), np.float64)
    modes = attribute(node, "nodes_modes", ())
    branch = np.asarray([m != b"LEAF" for m in modes], bool)
    if not branch.any() or len(features) != len(values) or len(values) != len(branch):
        return None
    low, high = np.full(features[branch].max() + 1, np.inf), None
    high = -low
    np.minimum.at(low, features[branch], values[branch])
    np.maximum.at(high, features[branch], values[branch])
    low, high = np.where(np.isfinite(low), low, -1.0), np.where(np.isfinite(high), high, 1.0)
    room = np.maximum(0.25 * (high - low), 0.1 * np.maximum(1.0, np.abs(high)))
    return low - room, high + room


def _through_arithmetic(
    graph: Graph,
    op: str,
    index: int,
    node: Any,
    place: _Place,
    found: Evidence,
    after: list[_Place],
) -> list[_Place]:
    if op in ("Max", "Min") or len(node.input) != 2:
        return after
    other = graph.constant(node.input[1 - index])
    if other is None or not other.size or other.dtype.kind not in "iuf":
        return [msgspec.structs.replace(a, mul=1.0, div=1.0, add=0.0) for a in after]
    value = float(np.max(np.abs(other)))
    if not 0 < value < _WIDEST_SCALE:
        return after
    if op == "Mod":
        found.scale = max(found.scale, value * place.div)
        return []  # whatever went in, what comes out is below the constant
    if op == "Div":
        found.scale = max(found.scale, value * place.div)
        return [msgspec.structs.replace(a, div=place.div * value) for a in after]
    if op == "Mul":
        return [msgspec.structs.replace(a, mul=place.mul * value) for a in after]
    sign = 1.0 if op == "Add" else -1.0
    if op == "Sub" and index == 1:
        return [_Place(a.name) for a in after]
    shift = sign * float(np.max(other) if op == "Add" else np.min(other))
    return [msgspec.structs.replace(a, add=place.add + shift) for a in after]


def _before(place: _Place, low: float, high: float) -> tuple[float, float]:
    """The input's values that arrive at a place as `low` to `high`."""
    factor = place.div / place.mul
    first = (low - place.add) * factor
    last = (high - place.add) * factor + (place.div - 1 if place.div > 1 else 0)
    return first, last


def _table_size(graph: Graph, op: str, node: Any, open_size: int) -> int | None:
    dims = graph.sizes(node.input[_LOOKUPS[op][1]], open_size)
    if not dims:
        return None
    if op in ("GatherND", "ScatterND"):
        first = int(attribute(node, "batch_dims", 0))
        indices = graph.dims(node.input[1])
        last = indices[-1] if indices and isinstance(indices[-1], int) else 1
        return min(dims[first : first + last], default=None)
    axis = -1 if op.endswith("ArrayFeatureExtractor") else int(attribute(node, "axis", 0))
    return dims[axis] if -len(dims) <= axis < len(dims) else None


# normalization


def _normalization(graph: Graph, spec: TensorSpec) -> tuple[Any, Any]:
    """Offset and scale of values that the model's own first operations bring to mean 0 and variance 1."""
    offset: Array = np.zeros(())
    scale: Array = np.ones(())
    name = spec.name
    for _ in range(_DEPTH):
        readers = graph.readers(name)
        if len(readers) != 1 or not readers[0].node.output:
            break
        reader = readers[0]
        step = _linear(graph, reader)
        if step is None:
            break
        # What follows is N = k (x + a): so x = N / k - a.
        a, k = step
        if not _broadcasts(a, spec) or not _broadcasts(k, spec):
            break
        offset, scale = offset - scale * a, scale / k
        name = reader.node.output[0]
    least, most = np.min(np.abs(scale)), np.max(np.abs(scale))
    sane = bool(
        np.all(np.isfinite(offset))
        and _SCALES[0] <= least <= most <= min(_SCALES[1], _SPREAD * least)
        and np.max(np.abs(offset)) <= _SPREAD * most
    )
    return (offset, np.abs(scale)) if sane else (0.0, 1.0)


def _linear(graph: Graph, reader: Reader) -> tuple[Array, Array] | None:
    """(a, k) of an operation k (x + a) with constants; None for others."""
    op, node = reader.op, reader.node
    zero, one = np.zeros(()), np.ones(())
    if op in ("Identity", "Cast"):
        return zero, one
    if op == "ai.onnx.ml.Scaler":
        return (
            -np.asarray(attribute(node, "offset", (0.0,)), np.float64),
            np.asarray(attribute(node, "scale", (1.0,)), np.float64),
        )
    if op not in ("Add", "Sub", "Mul", "Div") or (reader.index and op in ("Sub", "Div")):
        return None
    other = graph.constant(node.input[1 - reader.index])
    if other is None or other.dtype.kind not in "fiu":
        return None
    wide = other.astype(np.float64)
    if op == "Add":
        return wide, one
    if op == "Sub":
        return -wide, one
    if not np.all(wide):
        return None
    return zero, wide if op == "Mul" else 1 / wide


def _broadcasts(array: Array, spec: TensorSpec) -> bool:
    """Whether a constant fits one sample without making it larger."""
    if array.ndim > len(spec.shape):
        return False
    pairs = zip(reversed(array.shape), reversed(spec.shape), strict=False)
    return all(mine in (1, theirs) for mine, theirs in pairs)
