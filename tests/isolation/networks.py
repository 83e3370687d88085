"""Models whose tensors are large, and one that needs memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgeserve.bundle import Bundle
from edgeserve.isolation import IsolatedSession, ProcessLimits, open_isolated
from edgeserve.runtimes import LoadOptions
from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import write_bundle

WIDTH = 150_528  # 602 KB: a photograph of 3 x 224 x 224 in FP32


def wide_bundle(folder: Path, width: int = WIDTH) -> Bundle:
    """y = relu(x), FP32[batch,width]."""
    shape: list[int | str] = ["batch", width]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    interface = Interface(
        (TensorSpec("x", "FP32", ("batch", width)),),
        (TensorSpec("y", "FP32", ("batch", width)),),
        max_batch=64,
    )
    x = np.random.default_rng(3).normal(size=(2, width)).astype(np.float32)
    path = write_bundle(folder, "wide", onnx.shape_inference.infer_shapes(model), interface,
                        {"x": x}, {"y": np.maximum(x, 0)})  # fmt: skip
    return Bundle.open(path)


def isolated_for(
    bundle: Bundle, *faults: str, state: Path | None = None, instances: int = 1, **limits: float
) -> IsolatedSession:
    """The bundle's only variant on the CPU, in an isolated process called `it`."""
    chosen = ProcessLimits(
        open_s=limits.get("open_s", 60.0),
        call_s=limits.get("call_s", 20.0),
        memory_bytes=int(limits.get("memory_bytes", 0)),
    )
    return open_isolated(
        "onnxruntime",
        bundle.variant_files("onnx-fp32"),
        "cpu",
        LoadOptions(threads=1, instances=instances, spin=False),
        label="it",
        limits=chosen,
        faults=faults,
        fault_state=str(state) if state is not None else "",
    )
