"""A real model that takes milliseconds, so that requests queue and worker threads are used."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeserve.bundle import Candidate
from edgeserve.tensors import Array, Interface, TensorSpec
from tests.bundles import write_bundle

MAX_BATCH = 16
_WIDTH = 512
_LAYERS = 40

_random = np.random.default_rng(7)
_ENTER = _random.normal(size=(4, _WIDTH)).astype(np.float32)
_TURN = np.linalg.qr(_random.normal(size=(_WIDTH, _WIDTH)))[0].astype(np.float32)
_LEAVE = (_random.normal(size=(_WIDTH, 3)) / np.sqrt(_WIDTH)).astype(np.float32)


def slow(inputs: Array) -> Array:
    """What the model computes: x @ ENTER, turned `_LAYERS` times by a rotation, @ LEAVE."""
    result: Array = (inputs.astype(np.float64) @ _all()).astype(np.float32)
    return result


@cache
def _all() -> Array:
    turns = np.linalg.matrix_power(_TURN.astype(np.float64), _LAYERS)
    result: Array = _ENTER @ turns @ _LEAVE
    return result


def slow_model() -> onnx.ModelProto:
    """x FP32[batch,4], y FP32[batch,3]; rows do not see each other."""
    nodes = [helper.make_node("MatMul", ["x", "enter"], ["h0"])]
    nodes += [helper.make_node("MatMul", [f"h{i}", "turn"], [f"h{i + 1}"]) for i in range(_LAYERS)]
    nodes.append(helper.make_node("MatMul", [f"h{_LAYERS}", "leave"], ["y"]))
    weights = {"enter": _ENTER, "turn": _TURN, "leave": _LEAVE}
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def slow_bundle(folder: Path, chain: tuple[Candidate, ...] | None = None) -> Path:
    """A bundle of `slow_model` called slow.edge."""
    interface = Interface(
        (TensorSpec("x", "FP32", ("batch", 4)),),
        (TensorSpec("y", "FP32", ("batch", 3)),),
        max_batch=MAX_BATCH,
    )
    inputs = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    golden = {"x": inputs}, {"y": slow(inputs)}
    return write_bundle(folder, "slow", slow_model(), interface, *golden, chain)


_WIDE = 200_000
_STEPS = 12


def wide_bundle(folder: Path) -> Path:
    """A bundle called wide.edge of x FP32[batch,200000], y the root of it taken often: it only moves memory, which
    batches do not make quicker."""
    nodes = [
        helper.make_node(op, [f"h{i}"], [f"h{i + 1}"])
        for i, op in enumerate(["Abs"] + ["Sqrt"] * (_STEPS - 1))
    ]
    nodes[0].input[0], nodes[-1].output[0] = "x", "y"
    shapes = {
        n: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", _WIDE]) for n in "xy"
    }
    graph = helper.make_graph(nodes, "wide", [shapes["x"]], [shapes["y"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    interface = Interface(
        (TensorSpec("x", "FP32", ("batch", _WIDE)),),
        (TensorSpec("y", "FP32", ("batch", _WIDE)),),
        max_batch=MAX_BATCH,
    )
    x = np.random.default_rng(3).normal(size=(2, _WIDE)).astype(np.float32)
    y = np.abs(x) ** np.float32(0.5 ** (_STEPS - 1))
    return write_bundle(folder, "wide", model, interface, {"x": x}, {"y": y})
