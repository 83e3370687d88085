"""What each output of a source holds: asked for, given by labels, or read from the end of its graph.

Never from a shape: [n, 3] may be three classes, or three numbers that somebody measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np

from edgeserve.bundle import Kind, OutputKind
from edgeserve.errors import UsageError, did_you_mean
from edgeserve.evaluate.metrics import FLOATS, kind_of_type, looks_like_scores
from edgeserve.tensors import Array, Interface, Tensors, TensorSpec

KINDS: Final[tuple[str, ...]] = get_args(Kind)
# Give indices, or yes and no.
_IDS: Final = {"ArgMax", "ArgMin", "TopK", "Gather", "NonZero", "Equal", "Greater", "GreaterOrEqual", "Less",
               "LessOrEqual", "And", "Or", "Not", "Unique"}  # fmt: skip
# Only move values: what they are stays what it was.
_MOVING: Final = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose",
                  "QuantizeLinear", "DequantizeLinear", "Dropout"}  # fmt: skip
_KEEP_AXES: Final = {"Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Dropout"}
_CLASSIFIERS: Final = {"TreeEnsembleClassifier", "LinearClassifier", "SVMClassifier", "Normalizer"}
_EMBEDDING: Final = re.compile(
    r"embed|last_hidden_state|pooler_output|token_embeddings", re.IGNORECASE
)


def output_kinds(
    interface: Interface,
    proto: Any,
    *,
    asked: Mapping[str, str],
    labels: Path | None,
    labelled: bool,
) -> dict[str, OutputKind]:
    """The kind of each output. `proto` is None for sources that are not ONNX; `asked` are kinds by name,
    `labels` names classes, `labelled` says that accuracy will be measured.

    Raises UsageError for unknown outputs and kinds, and for kinds that an output's type does not have.
    """
    kinds = {s.name: _found(s, proto) for s in interface.outputs}
    names = _count_lines(labels) if labels is not None else None
    open_ones = [s for s in interface.outputs if kinds[s.name].kind == "numbers"]
    if names is not None:
        for spec in open_ones:
            if spec.shape and spec.shape[-1] == names and len(spec.shape) > 1 and names > 1:
                kinds[spec.name] = OutputKind("scores", f"its {names} classes have labels")
    elif labelled and not any(k.kind in ("scores", "probabilities") for k in kinds.values()):
        fitting = [s for s in open_ones if looks_like_scores(s)]
        if len(fitting) == 1:
            kinds[fitting[0].name] = OutputKind("scores", "the samples have labels")
    return kinds | _asked(interface, asked)


def _asked(interface: Interface, asked: Mapping[str, str]) -> dict[str, OutputKind]:
    names = [s.name for s in interface.outputs]
    kinds = {}
    for name, kind in asked.items():
        if not name and len(names) == 1:
            name = names[0]
        if name not in names:
            raise UsageError(
                f"--output-kind: the model has no output '{name}'" if name else "--output-kind needs NAME=KIND",
                hint=did_you_mean(name, names, f"its outputs are {', '.join(names)}"),
            )  # fmt: skip
        if kind not in KINDS:
            raise UsageError(
                f"--output-kind {name}={kind}: '{kind}' is not a kind of output",
                hint=f"kinds are {', '.join(KINDS)}",
            )
        spec = interface.output(name)
        possible = (
            {"text"} if spec.dtype == "BYTES" else set(KINDS) - {"text"}
            if spec.dtype in FLOATS else {"ids", "numbers"}
        )  # fmt: skip
        if kind not in possible:
            raise UsageError(
                f"--output-kind {name}={kind}: an output of {spec.dtype} is not {kind}",
                hint=f"it can be {' or '.join(sorted(possible))}",
            )
        found: Any = kind
        kinds[name] = OutputKind(found, "--output-kind says so")
    return kinds


def remarks_on(interface: Interface, kinds: Mapping[str, OutputKind]) -> list[str]:
    """What the report says of how outputs are judged: what was recognised, and what was not."""
    notes = []
    for spec in interface.outputs:
        kind = kinds[spec.name]
        if (
            kind.kind in ("scores", "probabilities", "embedding")
            and "--output-kind" not in kind.because
        ):
            words = {
                "scores": "class scores",
                "probabilities": "probabilities",
                "embedding": "an embedding",
            }
            notes.append(f"output '{spec.name}' is judged as {words[kind.kind]}: {kind.because}")
        elif kind.kind == "numbers" and looks_like_scores(spec):
            notes.append(
                f"output '{spec.name}' is judged as numbers, by its error: nothing says that it holds class "
                f"scores (--output-kind {spec.name}=scores, or --labels)"
            )
    return notes


def unmoved(outputs: Sequence[Tensors]) -> list[str]:
    """What the report says of outputs of the source that are the same in all samples: nothing is proven of
    how they change."""
    if len(outputs) < 2:
        return []
    first, *others = outputs
    return [
        f"output '{name}' is the same in all {len(outputs)} samples: they do not show how it changes with the input"
        for name, value in first.items()
        if all(_same(value, other[name]) for other in others)
    ]


def _same(one: Array, other: Array) -> bool:
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _count_lines(labels: Path) -> int | None:
    try:
        return len(labels.read_text("utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return None  # whoever reads the names says so


def _found(spec: TensorSpec, proto: Any) -> OutputKind:
    """What type, graph and name say of one output."""
    plain = kind_of_type(spec)
    small = spec.dtype in ("INT8", "UINT8", "INT16", "UINT16")
    if proto is None and small:
        return OutputKind("numbers", f"{spec.dtype} of a quantized model is a rounded number")
    if plain.kind == "text" or proto is None:
        named = plain.kind == "numbers" and _EMBEDDING.search(spec.name)
        return OutputKind("embedding", "its name says so") if named else plain
    writers = {name: node for node in proto.graph.node for name in node.output}
    node, behind = _ending(spec.name, writers)
    if plain.kind == "ids":
        made = any(n.op_type in ("QuantizeLinear", "Cast") for n in behind)
        if small and made and (node is None or node.op_type not in _IDS):
            return OutputKind("numbers", "it is a rounded number")
        return plain
    kind = _by_operator(spec, node, behind, writers) if node is not None else None
    if kind is not None:
        return kind
    if _EMBEDDING.search(spec.name):
        return OutputKind("embedding", "its name says so")
    return plain


def _ending(name: str, writers: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """The node that computes an output, and those behind it that only move its values, the last first."""
    behind: list[Any] = []
    node = writers.get(name)
    while node is not None and node.op_type in _MOVING and node.input:
        behind.append(node)
        node = writers.get(node.input[0])
    return node, behind


def _by_operator(
    spec: TensorSpec, node: Any, behind: Sequence[Any], writers: Mapping[str, Any]
) -> OutputKind | None:
    op = node.op_type
    if (
        op == "Log"
        and (inner := writers.get(node.input[0])) is not None
        and _is_softmax(inner, writers)
    ):
        node, op = inner, inner.op_type
    if _is_softmax(node, writers):
        axis = _class_axis(spec, node, behind)
        return None if axis is None else OutputKind("scores", f"it ends in {_called(op)}", axis)
    if op in ("Sigmoid", "HardSigmoid"):
        return OutputKind("probabilities", f"it ends in {op}")
    if op in _CLASSIFIERS and node.domain == "ai.onnx.ml":
        return OutputKind("scores", f"it ends in {op}") if len(spec.shape) == 2 else None
    if op in ("LpNormalization", "Div") and _is_normalized(node, writers):
        return OutputKind("embedding", "it is normalized to unit length")
    return None


def _called(op: str) -> str:
    return op if "oftmax" in op else "a softmax"


def _is_softmax(node: Any, writers: Mapping[str, Any]) -> bool:
    """Softmax, or what exporters spell it as: exp(x) / sum(exp(x))."""
    if node.op_type in ("Softmax", "LogSoftmax"):
        return True
    if node.op_type != "Div":
        return False
    above, below = (writers.get(name) for name in node.input[:2])
    return (
        above is not None
        and below is not None
        and above.op_type == "Exp"
        and below.op_type == "ReduceSum"
        and below.input[0] == above.output[0]
    )


def _class_axis(spec: TensorSpec, node: Any, behind: Sequence[Any]) -> int | None:
    """The axis of the output, from its end, that a softmax was taken over; None where it is lost."""
    rank = len(spec.shape)
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    last = axis in (-1, rank - 1)
    if any(n.op_type not in _KEEP_AXES for n in behind):
        turned = [n for n in behind if n.op_type not in _KEEP_AXES]
        if len(turned) == 1 and turned[0].op_type == "Transpose":
            order = next((list(a.ints) for a in turned[0].attribute if a.name == "perm"), [])
            return order.index(axis % rank) - rank if order else -rank
        return -1 if last or rank == 2 else None
    return axis - rank if axis >= 0 else axis


def _is_normalized(node: Any, writers: Mapping[str, Any]) -> bool:
    """LpNormalization, or a quotient of something and its own length."""
    if node.op_type == "LpNormalization":
        return True
    length = writers.get(node.input[1])
    for _ in range(4):
        if length is None:
            return False
        if length.op_type == "ReduceL2":
            return bool(length.input[0] == node.input[0])
        if length.op_type not in ("Clip", "Expand", "Max", "Add", "Sqrt"):
            return False
        length = writers.get(length.input[0])
    return False
