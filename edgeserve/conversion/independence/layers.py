"""Reductions, normalizations, attention, classic models: which axis they work over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgeserve.conversion.independence.dims import Element
from edgeserve.conversion.independence.pointwise import joined
from edgeserve.conversion.independence.states import Op, Rows, Rule, State

_OVER_ROWS: Final = "it works over the axis of the rows"


def softmax(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    if op.opset < 13:  # everything from the axis on is one axis
        axis = op.attribute("axis", 1)
        axis += rows.rank if axis < 0 else 0
        mixes = rows.axis >= axis
    else:
        mixes = op.attribute("axis", -1) % rows.rank == rows.axis
    if mixes:
        op.interact(_OVER_ROWS)
    return [rows]


def reduction(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    axes = op.axes("axes", 1, rows.rank)
    if not axes:
        if op.attribute("noop_with_empty_axes", 0):
            return [rows]
        op.interact("it works over all axes, and so over the rows")
    if rows.axis in axes:
        op.interact(_OVER_ROWS)
    return [_without(rows, axes, keep=bool(op.attribute("keepdims", 1)))]


def position_of_most(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    axis = op.attribute("axis", 0) % rows.rank
    if axis == rows.axis:
        op.interact(_OVER_ROWS)
    return [_without(rows, [axis], keep=bool(op.attribute("keepdims", 1)))]


def _without(rows: Rows, axes: Sequence[int], *, keep: bool) -> Rows:
    if keep:
        shape = tuple(1 if i in axes else size for i, size in enumerate(rows.shape))
        return Rows(shape, rows.axis, rows.block)
    left = [i for i in range(rows.rank) if i not in axes]
    return Rows(tuple(rows.shape[i] for i in left), left.index(rows.axis), rows.block)


def along(op: Op) -> Sequence[State]:
    """CumSum and LpNormalization: along one axis, as an input or an attribute (by default the last)."""
    rows = op.rows(0)
    axes = op.axes("axis", 1 if op.kind == "CumSum" else None, rows.rank) or [rows.rank - 1]
    if axes[0] == rows.axis:
        op.interact(_OVER_ROWS)
    return [rows]


def top_k(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    op.constants_from(1)
    axis = op.attribute("axis", -1) % rows.rank
    if axis == rows.axis:
        op.interact(_OVER_ROWS)
    shape = list(rows.shape)
    shape[axis] = op.fresh(0, axis)
    found = Rows(tuple(shape), rows.axis, rows.block)
    return [found, found]


def batch_normalization(op: Op) -> Sequence[State]:
    if op.attribute("training_mode", 0) or (op.opset >= 9 and op.uses(1)):
        op.interact("it is in training mode, and normalizes over the batch")
    if op.opset < 7 and not op.attribute("is_test", 0):
        op.interact("it is in training mode, and normalizes over the batch")
    rows = op.rows(0)
    op.constants_from(1)
    if rows.axis == min(1, rows.rank - 1):
        op.interact("the rows are on the axis of its channels")
    return [rows]


def of_instances(op: Op) -> Sequence[State]:
    """Instance and group normalization: each image by itself."""
    rows = op.rows(0)
    op.constants_from(1)
    if rows.axis != 0:
        op.interact("the rows are not on its first axis")
    return [rows]


def mean_variance(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    axes = [a % rows.rank for a in op.attribute("axes", [0, 2, 3])]
    if rows.axis in axes:
        op.interact(_OVER_ROWS)
    return [rows]


def layer_normalization(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    op.constants_from(1)
    if op.attribute("axis", -1) % rows.rank <= rows.axis:
        op.interact(_OVER_ROWS)
    return [
        op.made(rows.axis, rows.block, index, rows.rank) if index and op.uses(index) else rows
        for index in range(len(op.node.output))
    ]


def skip_layer_normalization(op: Op) -> Sequence[State]:
    """The sum of two inputs, normalized over the last axis; the fourth output is the sum."""
    total = joined(op, [op.state(0), op.state(1)])
    op.constants_from(2)
    if total.axis == total.rank - 1:
        op.interact(_OVER_ROWS)
    return [total] * len(op.node.output)


def in_front(op: Op) -> Sequence[State]:
    """Whatever depends on rows has them in front; the outputs, too. One row of each input makes one of
    each output."""
    rows = [s for s in op.inputs if isinstance(s, Rows)]
    block = rows[0].block
    for index, state in enumerate(op.inputs):
        if state is None:
            continue
        if not isinstance(state, Rows):
            op.constant(index)
        elif (state.axis, state.block) != (0, block):
            op.interact("the rows are not on its first axis")
    return [op.made(0, block, i) if op.uses(i) else rows[0] for i in range(len(op.node.output))]


def attention(op: Op) -> Sequence[State]:
    """Attention with queries, keys and values of the same rows; masks have as many axes as those."""
    for state in op.inputs[1:]:
        if isinstance(state, Rows) and state.rank < 2:
            op.interact("lengths of all rows stand in one tensor")
    for index in (1, 2):
        if op.has(index) and not isinstance(op.state(index), Rows) and op.kind != "Attention":
            op.interact("a constant fixes the number of rows")
    return in_front(op)


def table_of_features(op: Op) -> Sequence[State]:
    """Models of scikit-learn and the like: `[rows, features]` in, something of each row out."""
    rows = op.rows(0)
    if rows.rank != 2 or rows.axis != 0:
        op.interact("its input is not one row of features for each request")
    op.constants_from(1)
    return [_ranked(op, rows, i) if op.uses(i) else rows for i in range(len(op.node.output))]


def _ranked(op: Op, rows: Rows, output: int) -> State:
    """Labels are a vector, scores a matrix, where shape inference does not say."""
    found = op.inferred(output)
    if found is not None:
        return op.made(0, rows.block, output)
    labels = output == 0 and op.kind.endswith("Classifier")
    shape: tuple[Element, ...] = (rows.size,) if labels else (rows.size, op.fresh(output, 1))
    return Rows(shape, 0, rows.block)


def elements_by_themselves(op: Op) -> Sequence[State]:
    """LabelEncoder, Scaler, Imputer: the shape stays."""
    rows = op.rows(0)
    if op.kind in ("Scaler", "Imputer") and rows.axis == rows.rank - 1:
        op.interact("the rows are on the axis of its features")
    return [rows]


def normalizer(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    if rows.rank != 2 or rows.axis != 0:
        op.interact(_OVER_ROWS)
    return [rows]


def one_hot_encoder(op: Op) -> Sequence[State]:
    rows = op.rows(0)
    return [Rows((*rows.shape, op.fresh(0, rows.rank)), rows.axis, rows.block)]


def feature_vectorizer(op: Op) -> Sequence[State]:
    states = [op.rows(i) for i in range(len(op.inputs))]
    block = states[0].block
    if any((s.rank, s.axis, s.block) != (2, 0, block) for s in states):
        op.interact("the rows are not on its first axis")
    return [Rows((states[0].size, op.fresh(0, 1)), 0, block)]


def array_feature_extractor(op: Op) -> Sequence[State]:
    data, indices = op.state(0), op.state(1)
    if isinstance(data, Rows):
        where = op.constant(1)
        if data.rank < 2 or data.axis == data.rank - 1:
            op.interact("it picks rows")
        size = where.shape[-1] if where.shape else op.fresh(0, -1)
        return [Rows((*data.shape[:-1], size), data.axis, data.block)]
    table = op.constant(0)
    assert isinstance(indices, Rows)
    if table.shape is None or len(table.shape) > 2 or indices.axis != 0:
        op.unknown("how it looks up rows is not known")
    inner = indices.shape[1:]
    if any(size != 1 for size in inner):
        op.unknown("how it looks up rows is not known")
    leading = table.shape[0] if len(table.shape) == 2 else 1
    return [Rows((leading, indices.size), 1, indices.block)]


def distances(op: Op) -> Sequence[State]:
    """CDist of each row to the same points."""
    rows = op.rows(0)
    points = op.constant(1)
    if rows.rank != 2 or rows.axis != 0:
        op.interact(_OVER_ROWS)
    size = points.shape[0] if points.shape else op.fresh(0, 1)
    return [Rows((rows.size, size), 0, rows.block)]


_REDUCTIONS: Final = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip

RULES: Final[dict[str, Rule]] = {
    **dict.fromkeys(_REDUCTIONS, reduction),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), softmax),
    **dict.fromkeys(("ArgMax", "ArgMin"), position_of_most),
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), of_instances),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layer_normalization),
    "Attention": attention,
    "BatchNormalization": batch_normalization,
    "CumSum": along,
    "GridSample": in_front,
    "LpNormalization": along,
    "MeanVarianceNormalization": mean_variance,
    "TfIdfVectorizer": table_of_features,
    "TopK": top_k,
}

# Those of onnxruntime's own domain.
MICROSOFT: Final[dict[str, Rule]] = {
    **dict.fromkeys(("Attention", "MultiHeadAttention"), attention),
    **dict.fromkeys(
        ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), skip_layer_normalization
    ),
    **dict.fromkeys(("LayerNormalization", "SimplifiedLayerNormalization"), layer_normalization),
    "CDist": distances,
    "EmbedLayerNormalization": in_front,
}

# Those of classic models.
CLASSIC: Final[dict[str, Rule]] = {
    **dict.fromkeys(
        (
            "LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor", "TreeEnsemble",
            "TreeEnsembleClassifier", "TreeEnsembleRegressor",
        ),
        table_of_features,
    ),
    **dict.fromkeys(
        ("Binarizer", "CategoryMapper", "Imputer", "LabelEncoder", "Scaler"), elements_by_themselves
    ),
    "ArrayFeatureExtractor": array_feature_extractor,
    "FeatureVectorizer": feature_vectorizer,
    "Normalizer": normalizer,
    "OneHotEncoder": one_hot_encoder,
}  # fmt: skip
