"""The model of the recordings: twice its input, rows of any length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import write_bundle


def doubling_bundle(folder: Path, name: str = "double") -> Path:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "n"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "n"])],
        [numpy_helper.from_array(np.float32(2), "two")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    spec = TensorSpec("x", "FP32", ("batch", "n")), TensorSpec("y", "FP32", ("batch", "n"))
    inputs = np.arange(6, dtype=np.float32).reshape(2, 3)
    interface = Interface((spec[0],), (spec[1],), 512)
    return write_bundle(folder, name, model, interface, {"x": inputs}, {"y": 2 * inputs})
