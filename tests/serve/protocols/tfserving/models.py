"""The models of the recordings of TF Serving, as bundles: `half` in two versions, `two`, `img`, and one for each type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgeserve.tensors import DTYPES, Interface, TensorSpec
from tests.bundles import write_bundle

_BATCH = 64


def _model(nodes: list[Any], name: str, inputs: Any, outputs: Any, constants: Any = ()) -> Any:
    graph = helper.make_graph(nodes, name, inputs, outputs, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def half(repository: Path, version: int, offset: float) -> Path:
    """y = 0.5 x + offset, element by element; x FP32[batch]."""
    folder = repository / "half" / str(version)
    folder.mkdir(parents=True)
    value = helper.make_tensor_value_info
    model = _model(
        [helper.make_node("Mul", ["x", "a"], ["ax"]), helper.make_node("Add", ["ax", "b"], ["y"])],
        "half",
        [value("x", TensorProto.FLOAT, ["batch"])],
        [value("y", TensorProto.FLOAT, ["batch"])],
        [
            numpy_helper.from_array(np.float32(0.5), "a"),
            numpy_helper.from_array(np.float32(offset), "b"),
        ],
    )
    interface = Interface(
        (TensorSpec("x", "FP32", ("batch",)),), (TensorSpec("y", "FP32", ("batch",)),), 1024
    )
    x = np.arange(4, dtype=np.float32)
    return write_bundle(
        folder, "half", model, interface, {"x": x}, {"y": 0.5 * x + np.float32(offset)}
    )


def two(repository: Path) -> Path:
    """sum = a + b (a FP32[batch,2], b FP32[batch]), twice = 2 b."""
    folder = repository / "two" / "1"
    folder.mkdir(parents=True)
    value = helper.make_tensor_value_info
    model = _model(
        [
            helper.make_node("Unsqueeze", ["b", "one"], ["column"]),
            helper.make_node("Add", ["a", "column"], ["sum"]),
            helper.make_node("Add", ["b", "b"], ["twice"]),
        ],
        "two",
        [value("a", TensorProto.FLOAT, ["batch", 2]), value("b", TensorProto.FLOAT, ["batch"])],
        [
            value("sum", TensorProto.FLOAT, ["batch", 2]),
            value("twice", TensorProto.FLOAT, ["batch"]),
        ],
        [numpy_helper.from_array(np.array([1]), "one")],
    )
    interface = Interface(
        (TensorSpec("a", "FP32", ("batch", 2)), TensorSpec("b", "FP32", ("batch",))),
        (TensorSpec("sum", "FP32", ("batch", 2)), TensorSpec("twice", "FP32", ("batch",))),
        _BATCH,
    )
    a, b = np.ones((2, 2), np.float32), np.arange(2, dtype=np.float32)
    return write_bundle(
        folder, "two", model, interface, {"a": a, "b": b}, {"sum": a + b[:, None], "twice": 2 * b}
    )


def identity(repository: Path, dtype: str) -> Path:
    """A model `types-DTYPE` whose output is its input, of any shape [batch, n]."""
    name = f"types-{dtype.lower()}"
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    kinds = {"FP32": "FLOAT", "FP64": "DOUBLE", "FP16": "FLOAT16", "BYTES": "STRING"}
    kind = getattr(TensorProto, kinds.get(dtype, dtype))
    value = helper.make_tensor_value_info
    model = _model(
        [helper.make_node("Identity", ["x"], ["y"])],
        name,
        [value("x", kind, ["batch", "n"])],
        [value("y", kind, ["batch", "n"])],
    )
    spec = TensorSpec("x", dtype, ("batch", "n")), TensorSpec("y", dtype, ("batch", "n"))
    x: Any = np.ones((2, 2), DTYPES[dtype])
    if dtype == "BYTES":
        x = np.array([[b"a", b"b"]], object)
    stored = x.astype(bytes) if dtype == "BYTES" else x
    return write_bundle(
        folder, name, model, Interface((spec[0],), (spec[1],), _BATCH), {"x": stored}, {"y": stored}
    )


def repository(folder: Path) -> Path:
    """All of them, in a folder."""
    half(folder, 1, 2.0)
    half(folder, 2, 3.0)
    (folder / "half" / "config.pbtxt").write_text("version_policy: { all {} }\n")
    two(folder)
    for dtype in ("INT8", "UINT8", "INT64", "UINT64", "BOOL", "FP64", "BYTES", "FP16"):
        identity(folder, dtype)
    return folder


def doubled(repository: Path, name: str) -> Path:
    """y = 2 x; x FP32[batch, 2]."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    value = helper.make_tensor_value_info
    model = _model(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        name,
        [value("x", TensorProto.FLOAT, ["batch", 2])],
        [value("y", TensorProto.FLOAT, ["batch", 2])],
    )
    spec = TensorSpec("x", "FP32", ("batch", 2)), TensorSpec("y", "FP32", ("batch", 2))
    x = np.ones((2, 2), np.float32)
    return write_bundle(
        folder, name, model, Interface((spec[0],), (spec[1],), _BATCH), {"x": x}, {"y": 2 * x}
    )


def scalar(repository: Path, name: str, dtype: str) -> Path:
    """The output is the input, which is one value without a batch axis."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    kinds = {"FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING"}
    kind = getattr(TensorProto, kinds.get(dtype, dtype))
    value = helper.make_tensor_value_info
    node = helper.make_node("Identity", ["x"], ["y"])
    model = _model([node], name, [value("x", kind, [])], [value("y", kind, [])])
    spec = TensorSpec("x", dtype, ()), TensorSpec("y", dtype, ())
    stored = np.array([b"a"] if dtype == "BYTES" else [1])
    stored = stored if dtype == "BYTES" else stored.astype(DTYPES[dtype])
    return write_bundle(
        folder, name, model, Interface((spec[0],), (spec[1],), 0), {"x": stored}, {"y": stored}
    )


def texts(repository: Path) -> Path:
    """TF Serving's `two`: sum = a + b, label = "n" + b, img_bytes = 10 b as text (a FP32[batch,2], b INT32[batch])."""
    folder = repository / "texts" / "1"
    folder.mkdir(parents=True)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["b"], ["number"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["number", "one"], ["column"]),
            helper.make_node("Add", ["a", "column"], ["sum"]),
            helper.make_node("Cast", ["b"], ["text"], to=TensorProto.STRING),
            helper.make_node("StringConcat", ["n", "text"], ["label"]),
            helper.make_node("Mul", ["b", "ten"], ["tens"]),
            helper.make_node("Cast", ["tens"], ["img_bytes"], to=TensorProto.STRING),
        ],
        "texts",
        [value("a", TensorProto.FLOAT, ["batch", 2]), value("b", TensorProto.INT32, ["batch"])],
        [
            value("sum", TensorProto.FLOAT, ["batch", 2]),
            value("label", TensorProto.STRING, ["batch"]),
            value("img_bytes", TensorProto.STRING, ["batch"]),
        ],
        [
            numpy_helper.from_array(np.array([1]), "one"),
            numpy_helper.from_array(np.array(10, np.int32), "ten"),
            helper.make_tensor("n", TensorProto.STRING, [], [b"n"]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    interface = Interface(
        (TensorSpec("a", "FP32", ("batch", 2)), TensorSpec("b", "INT32", ("batch",))),
        (
            TensorSpec("sum", "FP32", ("batch", 2)),
            TensorSpec("label", "BYTES", ("batch",)),
            TensorSpec("img_bytes", "BYTES", ("batch",)),
        ),
        _BATCH,
    )
    a, b = np.ones((2, 2), np.float32), np.arange(2, dtype=np.int32)
    outputs: Any = {
        "sum": a + b[:, None],
        "label": np.array([b"n0", b"n1"]),
        "img_bytes": np.array([b"0", b"10"]),
    }
    return write_bundle(folder, "texts", model, interface, {"a": a, "b": b}, outputs)


def parity(repository: Path) -> Path:
    """The classes of the recorded `half`: even 0.5 x + 3, odd 0.25 more."""
    folder = repository / "parity" / "1"
    folder.mkdir(parents=True)
    value = helper.make_tensor_value_info
    model = _model(
        [
            helper.make_node("Mul", ["x", "a"], ["ax"]),
            helper.make_node("Unsqueeze", ["ax", "one"], ["column"]),
            helper.make_node("Add", ["column", "b"], ["scores"]),
        ],
        "parity",
        [value("x", TensorProto.FLOAT, ["batch"])],
        [value("scores", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.float32(0.5), "a"),
            numpy_helper.from_array(np.array([1]), "one"),
            numpy_helper.from_array(np.array([3, 3.25], np.float32), "b"),
        ],
    )
    interface = Interface(
        (TensorSpec("x", "FP32", ("batch",)),),
        (TensorSpec("scores", "FP32", ("batch", 2)),),
        _BATCH,
    )
    (repository / "parity" / "labels.txt").write_text("even\nodd\n")
    (repository / "parity" / "config.pbtxt").write_text(
        "output [ { name: 'scores' label_filename: 'labels.txt' } ]\n"
    )
    x = np.arange(2, dtype=np.float32)
    scores = 0.5 * x[:, None] + np.array([3, 3.25], np.float32)
    return write_bundle(folder, "parity", model, interface, {"x": x}, {"scores": scores})


def encoded(repository: Path) -> Path:
    """For TF Serving's `img`, which has the length of bytes: the bytes."""
    folder = repository / "img" / "1"
    folder.mkdir(parents=True)
    value = helper.make_tensor_value_info
    model = _model(
        [helper.make_node("Identity", ["image_bytes"], ["out_bytes"])],
        "img",
        [value("image_bytes", TensorProto.STRING, ["batch"])],
        [value("out_bytes", TensorProto.STRING, ["batch"])],
    )
    interface = Interface(
        (TensorSpec("image_bytes", "BYTES", ("batch",)),),
        (TensorSpec("out_bytes", "BYTES", ("batch",)),),
        _BATCH,
    )
    x: Any = np.array([b"a", b"b"])
    return write_bundle(folder, "img", model, interface, {"image_bytes": x}, {"out_bytes": x})
