"""What runs where in a LiteRT interpreter: its operators, their work, and which of them a delegate took."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.runtimes.base import Placement, shares_of

COMPUTE_OPS: Final = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D",
                      "FULLY_CONNECTED", "BATCH_MATMUL"}  # fmt: skip
_INT8: Final = (np.dtype(np.int8), np.dtype(np.uint8))
# Models compiled for a delegate hold the compiled part as an operator of this name.
COMPILED_OPS: Final = {"edgetpu-custom-op", "DISPATCH_OP"}
_DELEGATE: Final = "DELEGATE"


class LiteRtOperator(msgspec.Struct, frozen=True):
    """One operator of a file. `macs` is None for what is compiled; `int8` is whether its weights are."""

    name: str
    macs: int | None
    int8: bool
    delegated: bool


def operators_of(interpreter: Any) -> list[LiteRtOperator]:
    """All operators, with those marked that stand behind a delegate's node."""
    details = interpreter._get_ops_details()
    tensors = {int(d["index"]): d for d in interpreter.get_tensor_details()}
    plain = [d for d in details if d["op_name"] != _DELEGATE]
    taken = _behind(plain, [d for d in details if d["op_name"] == _DELEGATE])
    return [
        LiteRtOperator(
            name=d["op_name"],
            macs=_macs(d, tensors),
            int8=_has_int8_weights(d, tensors),
            delegated=number in taken,
        )
        for number, d in enumerate(plain)
    ]


def _behind(plain: Sequence[Mapping[str, Any]], delegates: Sequence[Mapping[str, Any]]) -> set[int]:
    """The operators between what a delegate's nodes take and what they give.

    The interpreter keeps the operators that it no longer runs: walk from each node's outputs back to
    its inputs.
    """
    makers = {int(t): n for n, op in enumerate(plain) for t in op["outputs"]}
    taken: set[int] = set()
    for node in delegates:
        known = {int(t) for t in node["inputs"]}
        waiting = [int(t) for t in node["outputs"]]
        while waiting:
            tensor = waiting.pop()
            maker = makers.get(tensor)
            if tensor in known or maker is None:
                continue
            known.add(tensor)
            taken.add(maker)
            waiting += [int(t) for t in plain[maker]["inputs"]]
    return taken


def _has_int8_weights(op: Mapping[str, Any], tensors: Mapping[int, Any]) -> bool:
    # The second input is the weights: int8 there also with float activations (dynamic int8).
    if op["op_name"] not in COMPUTE_OPS:
        return False
    return np.dtype(tensors[int(op["inputs"][1])]["dtype"]) in _INT8


def _macs(op: Mapping[str, Any], tensors: Mapping[int, Any]) -> int | None:
    """Multiply-accumulates at the shapes allocated last; layouts as in TensorFlow Lite's kernels.

    https://github.com/google-ai-edge/LiteRT/tree/main/tflite/kernels
    """
    name = op["op_name"]
    if name in COMPILED_OPS:
        return None
    if name not in COMPUTE_OPS:
        return 0
    out = _shape(tensors, op["outputs"][0])
    first, weights = (_shape(tensors, t) for t in op["inputs"][:2])
    if name == "CONV_2D":  # output, height, width, input
        return math.prod(out) * math.prod(weights[1:])
    if name == "DEPTHWISE_CONV_2D":  # 1, height, width, output
        return math.prod(out) * math.prod(weights[1:3])
    if name == "TRANSPOSE_CONV":  # its inputs: output shape, weights, data
        data = _shape(tensors, op["inputs"][2])
        return math.prod(data) * math.prod(weights[:3])
    if name == "CONV_3D":  # depth, height, width, input, output
        return math.prod(out) * math.prod(weights[:4])
    if name == "FULLY_CONNECTED":  # output, input
        return math.prod(out) * weights[-1]
    return math.prod(out) * first[-1]


def _shape(tensors: Mapping[int, Any], index: Any) -> list[int]:
    return [int(d) for d in tensors[int(index)]["shape"]]


def placement_on(kind: str, operators: Sequence[LiteRtOperator], precision: str) -> Placement:
    """On a device that takes what is marked as delegated or compiled for it."""
    left = [o for o in operators if not o.delegated and o.name not in COMPILED_OPS]
    shares = shares_of(kind, len(left) / len(operators)) if operators else {}
    macs: dict[str, float] = {}
    total = sum(o.macs or 0 for o in operators)
    if total and all(o.macs is not None for o in operators):
        macs = shares_of(kind, sum(o.macs or 0 for o in left) / total)
    found = _placement(operators, shares, macs, precision, dict(Counter(o.name for o in left)))
    if compiled := sum(o.name in COMPILED_OPS for o in operators):
        return msgspec.structs.replace(
            found,
            inference_precision="int8",
            compute_ops=found.compute_ops + compiled,
            int8_compute_ops=found.int8_compute_ops + compiled,
        )
    return found


def placement_fully_on(kind: str, operators: Sequence[LiteRtOperator], precision: str) -> Placement:
    """On a device that takes all of a model or refuses it."""
    macs = {kind: 1.0} if any(o.macs for o in operators) else {}
    return _placement(operators, {kind: 1.0}, macs, precision, {})


def _placement(
    operators: Sequence[LiteRtOperator],
    shares: dict[str, float],
    macs: dict[str, float],
    precision: str,
    left: dict[str, int],
) -> Placement:
    compute = sum(o.name in COMPUTE_OPS for o in operators)
    int8 = sum(o.int8 for o in operators)
    label = "int8" if int8 else "fp16" if precision == "fp16" else "fp32"
    return Placement(shares, label, compute, int8, mac_shares=macs, left_on_cpu=left)
