"""Small real bundles for tests, written with the ground layers alone."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeserve.bundle import Candidate, Golden, Manifest, Source, Task, Variant
from edgeserve.bundle.files import file_sha256
from edgeserve.bundle.manifest import SCHEMA_VERSION
from edgeserve.bundle.writing import bundle_writer
from edgeserve.tensors import Interface, Tensors, TensorSpec

WEIGHT = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


def linear_model() -> onnx.ModelProto:
    """y = relu(x @ WEIGHT + 0.5): x FP32[batch,4], y FP32[batch,3]."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"], name="project"),
            helper.make_node("Add", ["xw", "b"], ["sum"], name="shift"),
            helper.make_node("Relu", ["sum"], ["y"], name="clip"),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [
            numpy_helper.from_array(WEIGHT, "w"),
            numpy_helper.from_array(np.full(3, 0.5, np.float32), "b"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def linear(inputs: np.ndarray) -> np.ndarray:
    """What `linear_model` computes."""
    result: np.ndarray = np.maximum(inputs @ WEIGHT + np.float32(0.5), 0)
    return result


LINEAR = Interface(
    (TensorSpec("x", "FP32", ("batch", 4)),), (TensorSpec("y", "FP32", ("batch", 3)),), max_batch=64
)


def write_bundle(
    folder: Path,
    name: str,
    model: onnx.ModelProto,
    interface: Interface,
    golden_inputs: Tensors,
    golden_outputs: Tensors,
    chain: tuple[Candidate, ...] | None = None,
    golden_tolerance: float = 1e-3,
) -> Path:
    """A bundle `folder/NAME.edge` with one fp32 ONNX variant called `onnx-fp32`."""
    destination = folder / f"{name}.edge"
    with bundle_writer(destination) as writer:
        (writer.root / "onnx-fp32").mkdir()
        onnx.save(model, writer.root / "onnx-fp32" / "model.onnx")
        np.savez(writer.root / "golden-inputs.npz", **golden_inputs)
        np.savez(writer.root / "golden-outputs.npz", **golden_outputs)
        entry = writer.entry("onnx-fp32/model.onnx")
        writer.write_manifest(
            Manifest(
                schema_version=SCHEMA_VERSION,
                name=name,
                created=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
                target="cpu-x86",
                source=Source(
                    "onnx",
                    f"{name}.onnx",
                    file_sha256(writer.root / entry.path),
                    entry.size_bytes,
                    opset=17,
                ),
                interface=interface,
                task=Task(),
                variants=(
                    Variant(
                        id="onnx-fp32",
                        format="onnx",
                        precision="fp32",
                        main=entry.path,
                        files=(entry,),
                        golden_tolerance=golden_tolerance,
                    ),
                ),
                chain=chain or (Candidate("onnx-fp32", "onnxruntime", "cpu"),),
                golden=Golden(
                    writer.entry("golden-inputs.npz"),
                    writer.entry("golden-outputs.npz"),
                    len(next(iter(golden_inputs.values()))),
                ),
                tools={"edgeserve": "test"},
            )
        )
    return destination


def linear_bundle(
    folder: Path, name: str = "linear", chain: tuple[Candidate, ...] | None = None
) -> Path:
    """A bundle of `linear_model` with four golden samples."""
    inputs = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    return write_bundle(
        folder, name, linear_model(), LINEAR, {"x": inputs}, {"y": linear(inputs)}, chain
    )
