"""Small real bundles that look at images: a classifier of colours, and a detector of one box."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgeserve.bundle import Classification, Detection, FileEntry, Preprocess, Segmentation, Task
from edgeserve.bundle.manifest import decode, encode
from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import write_bundle

COLOURS = ("red", "green", "blue")
SIDE = 8
_IMAGE = TensorSpec("image", "FP32", ("batch", 3, SIDE, SIDE))
HOW = Preprocess(SIDE, SIDE, scale=1 / 255, resize="stretch")


def photograph(colour: str = "red", width: int = 40, height: int = 30, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, kind)
    return file.getvalue()


def colours_bundle(folder: Path, name: str = "colours", *, max_batch: int = 8) -> Path:
    """Logits of red, green and blue: ten times the mean of each channel. Photographs are stretched to 8 x 8."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),
            helper.make_node("Mul", ["mean", "ten"], ["logits"]),
        ],
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(np.float32(10), "ten")],
    )
    interface = Interface((_IMAGE,), (TensorSpec("logits", "FP32", ("batch", 3)),), max_batch)
    inputs = np.random.default_rng(0).uniform(size=(4, 3, SIDE, SIDE)).astype(np.float32)
    outputs = 10 * inputs.mean(axis=(2, 3))
    path = write_bundle(
        folder, name, _model(graph), interface, {"image": inputs}, {"logits": outputs}
    )
    task = Task("classification", HOW, postprocess=Classification("logits", "softmax", top_k=2))
    return with_task(path, task, COLOURS)


def boxes_bundle(folder: Path, name: str = "boxes") -> Path:
    """Always one box, class 1, the left half of the input, which photographs are letterboxed into."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
            helper.make_node("Unsqueeze", ["nothing", "axes"], ["column"]),
            helper.make_node("Add", ["column", "box"], ["found"]),
        ],
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["batch", 1, 6])],
        [
            numpy_helper.from_array(np.float32(0), "zero"),
            numpy_helper.from_array(np.array([1, 2]), "axes"),
            numpy_helper.from_array(np.array([[[0, 0, 4, 8, 0.75, 1]]], np.float32), "box"),
        ],
    )
    interface = Interface((_IMAGE,), (TensorSpec("found", "FP32", ("batch", 1, 6)),), 8)
    inputs = np.random.default_rng(0).uniform(size=(4, 3, SIDE, SIDE)).astype(np.float32)
    outputs = np.tile(np.array([[[0, 0, 4, 8, 0.75, 1]]], np.float32), (4, 1, 1))
    path = write_bundle(
        folder, name, _model(graph), interface, {"image": inputs}, {"found": outputs}
    )
    how = msgspec.structs.replace(HOW, resize="letterbox")
    return with_task(
        path, Task("detection", how, postprocess=Detection("rows", "found")), ("cat", "dog")
    )


def map_bundle(folder: Path, name: str = "map", labels: tuple[str, ...] = COLOURS) -> Path:
    """The class of each pixel is its strongest channel: red is 0, green 1, blue 2. Photographs are stretched to 8 x 8."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["map"])],
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
    )
    interface = Interface((_IMAGE,), (TensorSpec("map", "FP32", ("batch", 3, SIDE, SIDE)),), 8)
    inputs = np.random.default_rng(0).uniform(size=(4, 3, SIDE, SIDE)).astype(np.float32)
    path = write_bundle(folder, name, _model(graph), interface, {"image": inputs}, {"map": inputs})
    return with_task(path, Task("segmentation", HOW, postprocess=Segmentation("map")), labels)


def _model(graph: Any) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def with_task(bundle: Path, task: Task, labels: tuple[str, ...] = ()) -> Path:
    """The bundle for a task, with these labels."""
    from edgeserve.bundle.files import file_sha256

    file = bundle / "manifest.json"
    if labels:
        names = bundle / "labels.txt"
        names.write_text("".join(f"{label}\n" for label in labels))
        entry = FileEntry("labels.txt", file_sha256(names), names.stat().st_size)
        task = msgspec.structs.replace(task, labels=entry)
    manifest = decode(file.read_bytes(), str(file))
    file.write_bytes(encode(msgspec.structs.replace(manifest, task=task)))
    return bundle
