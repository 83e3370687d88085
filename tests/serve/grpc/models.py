"""A real model with an input of every element type that ONNX and the protocol share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper

from edgeserve.tensors import DTYPES, Interface, TensorSpec
from tests.bundles import write_bundle

NUMERIC: Final = sorted(set(DTYPES) - {"BYTES", "BF16"})


def echo_bundle(folder: Path) -> Path:
    """echo.edge: for each element type an input `in_TYPE` of [batch,2], returned as `out_TYPE`."""
    inputs, outputs, nodes, golden = [], [], [], {}
    random = np.random.default_rng(3)
    for dtype in NUMERIC:
        kind = helper.np_dtype_to_tensor_dtype(DTYPES[dtype])
        inputs.append(helper.make_tensor_value_info(f"in_{dtype}", kind, ["batch", 2]))
        outputs.append(helper.make_tensor_value_info(f"out_{dtype}", kind, ["batch", 2]))
        nodes.append(helper.make_node("Identity", [f"in_{dtype}"], [f"out_{dtype}"]))
        golden[dtype] = random.integers(0, 2, (3, 2)).astype(DTYPES[dtype])
    graph = helper.make_graph(nodes, "echo", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    interface = Interface(
        tuple(TensorSpec(f"in_{d}", d, ("batch", 2)) for d in NUMERIC),
        tuple(TensorSpec(f"out_{d}", d, ("batch", 2)) for d in NUMERIC),
        max_batch=16,
    )
    return write_bundle(
        folder,
        "echo",
        model,
        interface,
        {f"in_{d}": a for d, a in golden.items()},
        {f"out_{d}": a for d, a in golden.items()},
    )
