"""A model whose outputs may have no rows, as a detector's that finds nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import write_bundle


def found_bundle(folder: Path) -> Path:
    """`found`: the rows of x FP32[n,2] and of ids INT64[n] whose first number is positive, as boxes FP32[k,2]
    and kinds INT64[k,1]."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Split", ["x"], ["first", "second"], axis=1, num_outputs=2),
            helper.make_node("Greater", ["first", "zero"], ["positive"]),
            helper.make_node("Squeeze", ["positive", "axis"], ["kept"]),
            helper.make_node("Compress", ["x", "kept"], ["boxes"], axis=0),
            helper.make_node("Compress", ["ids", "kept"], ["chosen"], axis=0),
            helper.make_node("Unsqueeze", ["chosen", "axis"], ["kinds"]),
        ],
        "found",
        [info("x", TensorProto.FLOAT, ["n", 2]), info("ids", TensorProto.INT64, ["n"])],
        [info("boxes", TensorProto.FLOAT, ["k", 2]), info("kinds", TensorProto.INT64, ["k", 1])],
        [
            numpy_helper.from_array(np.float32([[0]]), "zero"),
            numpy_helper.from_array(np.int64([1]), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    interface = Interface(
        (TensorSpec("x", "FP32", ("n", 2)), TensorSpec("ids", "INT64", ("n",))),
        (TensorSpec("boxes", "FP32", ("k", 2)), TensorSpec("kinds", "INT64", ("k", 1))),
    )
    x = np.float32([[[1, 2], [3, 4]]])
    ids = np.int64([[5, 6]])
    golden = {"boxes": x, "kinds": ids[..., None]}
    return write_bundle(folder, "found", model, interface, {"x": x, "ids": ids}, golden)
