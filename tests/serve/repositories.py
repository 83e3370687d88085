"""Model repositories on disk, of real bundles whose versions give different answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeserve.tensors import Array, Interface, TensorSpec
from tests.bundles import write_bundle

MAX_BATCH = 8
_SPEC = Interface(
    (TensorSpec("x", "FP32", ("batch", 4)),),
    (TensorSpec("y", "FP32", ("batch", 4)),),
    max_batch=MAX_BATCH,
)


def shifted_model(shift: float, pad_kb: int = 0, work: int = 0) -> onnx.ModelProto:
    """y = x + shift. `pad_kb` makes the file larger, `work` adds matrix products that cancel out."""
    nodes = [helper.make_node("Add", ["x", "shift"], ["h0"])]
    weights = {"shift": np.full(4, shift, np.float32)}
    if pad_kb:
        weights["pad"] = np.zeros(256 * pad_kb, np.float32)
        nodes.append(helper.make_node("ReduceMax", ["pad"], ["most"], keepdims=0))
        nodes.append(helper.make_node("Add", ["h0", "most"], ["p0"]))
        nodes[-1].output[0], nodes[0].output[0] = "h0", "before"
        nodes[-1].input[0] = "before"
    if work:
        rng = np.random.default_rng(0)
        turn = np.linalg.qr(rng.normal(size=(256, 256)))[0].astype(np.float32)
        weights |= {"enter": np.eye(4, 256, dtype=np.float32), "turn": turn}
        weights |= {"back": turn.T.copy(), "leave": np.eye(256, 4, dtype=np.float32)}
        nodes.append(helper.make_node("MatMul", ["h0", "enter"], ["w0"]))
        for i in range(work):
            nodes.append(helper.make_node("MatMul", [f"w{i}", "turn"], [f"t{i}"]))
            nodes.append(helper.make_node("MatMul", [f"t{i}", "back"], [f"w{i + 1}"]))
        nodes.append(helper.make_node("MatMul", [f"w{work}", "leave"], ["y"]))
    else:
        nodes.append(helper.make_node("Identity", ["h0"], ["y"]))
    graph = helper.make_graph(
        nodes,
        "shifted",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def shifted_bundle(
    folder: Path, name: str, shift: float, *, pad_kb: int = 0, work: int = 0
) -> Path:
    """A bundle `folder/NAME.edge` that adds `shift`."""
    folder.mkdir(parents=True, exist_ok=True)
    x: Array = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
    golden = x + np.float32(shift)
    return write_bundle(
        folder, name, shifted_model(shift, pad_kb, work), _SPEC, {"x": x}, {"y": golden}
    )


def version(repository: Path, name: str, number: int, shift: float, work: int = 0) -> Path:
    """`repository/NAME/NUMBER/NAME.edge`, put there at once, as a deployment would."""
    staging = repository.parent / f".{name}-{number}"
    shifted_bundle(staging, name, shift, work=work)
    destination = repository / name / str(number)
    destination.parent.mkdir(parents=True, exist_ok=True)
    staging.rename(destination)
    return destination
