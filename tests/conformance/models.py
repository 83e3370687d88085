"""The models that clients ask: one for each thing a protocol can carry."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from edgeserve.bundle import Task
from edgeserve.bundle.files import file_sha256
from edgeserve.bundle.manifest import FileEntry, decode, encode
from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import linear_bundle, write_bundle

LABELS = ("cat", "dog", "date")
SHARED = "edgeserve-conformance-"  # what names of shared memory begin with
ECHOED = {
    "half": (TensorProto.FLOAT16, "FP16"),
    "long": (TensorProto.INT64, "INT64"),
    "byte": (TensorProto.UINT8, "UINT8"),
    "flag": (TensorProto.BOOL, "BOOL"),
    "text": (TensorProto.STRING, "BYTES"),
}


def echo_bundle(folder: Path) -> Path:
    """`echo`: every input comes back as the output `NAME_out`; each is [batch,2]."""
    names = list(ECHOED)
    graph = helper.make_graph(
        [helper.make_node("Identity", [n], [f"{n}_out"]) for n in names],
        "echo",
        [helper.make_tensor_value_info(n, ECHOED[n][0], ["batch", 2]) for n in names],
        [helper.make_tensor_value_info(f"{n}_out", ECHOED[n][0], ["batch", 2]) for n in names],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    interface = Interface(
        tuple(TensorSpec(n, ECHOED[n][1], ("batch", 2)) for n in names),
        tuple(TensorSpec(f"{n}_out", ECHOED[n][1], ("batch", 2)) for n in names),
        max_batch=8,
    )
    golden = {
        "half": np.float16([[1, 2]]),
        "long": np.int64([[1, -2]]),
        "byte": np.uint8([[1, 2]]),
        "flag": np.array([[True, False]]),
        "text": np.array([["a", "b"]]),
    }
    outputs = {f"{n}_out": array for n, array in golden.items()}
    return write_bundle(folder, "echo", model, interface, golden, outputs)


def labelled_bundle(folder: Path) -> Path:
    """`linear` as a classifier of three classes with names."""
    bundle = linear_bundle(folder)
    file = bundle / "labels.txt"
    file.write_text("\n".join(LABELS) + "\n")
    entry = FileEntry(file.name, file_sha256(file), file.stat().st_size)
    manifest = decode((bundle / "manifest.json").read_bytes(), "manifest")
    task = Task("classification", labels=entry)
    (bundle / "manifest.json").write_bytes(encode(msgspec.structs.replace(manifest, task=task)))
    return bundle
