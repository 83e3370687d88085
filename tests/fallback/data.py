"""Bundles whose models fail on some inputs: what a device's precision, an index or a loop makes of data."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeserve.bundle import Candidate, Golden, Manifest, Source, Task, Variant
from edgeserve.bundle.manifest import SCHEMA_VERSION
from edgeserve.bundle.writing import bundle_writer
from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import write_bundle

GPU = Candidate("onnx-fp16", "onnxruntime", "gpu")
CPU = Candidate("onnx-fp32", "onnxruntime", "cpu")
LIMIT = 89.0  # exp is infinite in fp32 from there on


def overflow_bundle(folder: Path, name: str = "overflow", max_batch: int = 8) -> Path:
    """y = x, FP32[batch,4]. On the GPU, played by the CPU, finite numbers over 89 become infinite, as
    fp16 makes them from 65504 on; the variant behind it is precise enough."""
    values = helper.make_tensor_value_info
    ports = (
        [values("x", TensorProto.FLOAT, ["batch", 4])],
        [values("y", TensorProto.FLOAT, ["batch", 4])],
    )
    nodes = {
        "fp16": [helper.make_node("Exp", ["x"], ["a"]), helper.make_node("Log", ["a"], ["y"])],
        "fp32": [helper.make_node("Identity", ["x"], ["y"])],
    }
    spec = (TensorSpec("x", "FP32", ("batch", 4)),), (TensorSpec("y", "FP32", ("batch", 4)),)
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    destination = folder / f"{name}.edge"
    with bundle_writer(destination) as writer:
        variants = []
        for precision, made in nodes.items():
            graph = helper.make_graph(made, name, *ports)
            model = helper.make_model(
                graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
            )
            main = f"onnx-{precision}/model.onnx"
            (writer.root / main).parent.mkdir()
            onnx.save(model, writer.root / main)
            entry = writer.entry(main)
            variants.append(
                Variant(
                    f"onnx-{precision}", "onnx", precision, main, (entry,), golden_tolerance=1e-2
                )
            )
        np.savez(writer.root / "golden-inputs.npz", x=x)
        np.savez(writer.root / "golden-outputs.npz", y=x)
        source = writer.entry("onnx-fp32/model.onnx")
        writer.write_manifest(
            Manifest(
                schema_version=SCHEMA_VERSION,
                name=name,
                created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                target="cpu-x86",
                source=Source("onnx", "m.onnx", source.sha256, source.size_bytes, opset=17),
                interface=Interface(*spec, max_batch=max_batch),
                task=Task(),
                variants=tuple(variants),
                chain=(GPU, CPU),
                golden=Golden(
                    writer.entry("golden-inputs.npz"), writer.entry("golden-outputs.npz"), samples=4
                ),
                tools={"edgeserve": "test"},
            )
        )
    return destination


def gather_bundle(folder: Path) -> Path:
    """y = table[i]: i INT64[batch], y FP32[batch,2], of a table with ten rows of i and 2 i."""
    table = np.stack([np.arange(10), 2 * np.arange(10)], axis=1).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "i"], ["y"])],
        "gather",
        [helper.make_tensor_value_info("i", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(table, "table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    interface = Interface(
        (TensorSpec("i", "INT64", ("batch",)),),
        (TensorSpec("y", "FP32", ("batch", 2)),),
        max_batch=8,
    )
    i = np.array([0, 3, 9, 5], np.int64)
    return write_bundle(folder, "gather", model, interface, {"i": i}, {"y": table[i]})


def loop_bundle(folder: Path) -> Path:
    """y = n by counting to it: n INT64[1], y FP32[1]. Large numbers take for ever."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["sum", "one"], ["next"]),
        ],
        "body",
        [
            value("step", TensorProto.INT64, []),
            value("go", TensorProto.BOOL, []),
            value("sum", TensorProto.FLOAT, [1]),
        ],
        [value("go_on", TensorProto.BOOL, []), value("next", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["n"], ["trips"]),
            helper.make_node("Loop", ["trips", "yes", "zero"], ["y"], body=body),
        ],
        "count",
        [value("n", TensorProto.INT64, [1])],
        [value("y", TensorProto.FLOAT, [1])],
        [
            numpy_helper.from_array(np.array(True), "yes"),
            numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    interface = Interface((TensorSpec("n", "INT64", (1,)),), (TensorSpec("y", "FP32", (1,)),))
    n = np.array([[2], [5]], np.int64)
    return write_bundle(folder, "count", model, interface, {"n": n}, {"y": n.astype(np.float32)})


def length_bundle(folder: Path) -> Path:
    """y = the sum of x, FP32[length] of any length, also 0: y FP32[1]."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Reshape", ["sum", "shape"], ["y"]),
        ],
        "length",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["length"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array([1], np.int64), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    interface = Interface((TensorSpec("x", "FP32", ("length",)),), (TensorSpec("y", "FP32", (1,)),))
    x = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    return write_bundle(
        folder, "length", model, interface, {"x": x}, {"y": x.sum(axis=1, keepdims=True)}
    )
