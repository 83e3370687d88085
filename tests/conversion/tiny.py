"""Tiny ONNX models drawn by hand, and targets to convert them for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str]
F, I64, I32, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL


def node(op: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    """`node("Add", "a b", "c")`; `_` is an input that is left out."""
    names = ["" if n == "_" else n for n in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attributes)


def value(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 17,
    ml: int = 0,
) -> onnx.ModelProto:
    held = [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "tiny", list(inputs), list(outputs), held)
    opsets = [helper.make_opsetid("", opset)]
    if ml:
        opsets.append(helper.make_opsetid("ai.onnx.ml", ml))
    made = helper.make_model(graph, opset_imports=opsets, ir_version=9 if opset < 23 else 11)
    onnx.checker.check_model(made)
    return made


def saved(made: onnx.ModelProto, folder: Path) -> Path:
    file = folder / "model.onnx"
    onnx.save(made, file)
    return file


def noise(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    values: np.ndarray = scale * np.random.default_rng(seed).normal(size=shape)
    return values.astype(np.float32)


def looping() -> onnx.ModelProto:
    """`x` [batch,8] goes `n` times through a matrix and tanh."""
    body = helper.make_graph(
        [node("MatMul", "h w", "m"), node("Tanh", "m", "t"), node("Identity", "c", "go")],
        "body",
        [value("i", I64), value("c", BOOL), value("h", F, "batch", 8)],
        [value("go", BOOL), value("t", F, "batch", 8)],
    )
    return model(
        [node("Loop", "n yes x", "y", body=body)],
        [value("x", F, "batch", 8), value("n", I64)],
        [value("y", F, "batch", 8)],
        {"w": noise(8, 8), "yes": np.array(True)},
    )


def calendar() -> onnx.ModelProto:
    """Hour of the day of `ts`, milliseconds since 1970 in INT64, plus the mean of `x` [batch,8]."""
    return model(
        [
            node("Div", "ts hour", "hours"),
            node("Mod", "hours day", "h"),
            node("Cast", "h", "f", to=F),
            node("ReduceMean", "x", "mean", axes=[1], keepdims=1),
            node("Add", "f mean", "y"),
        ],
        [value("x", F, "batch", 8), value("ts", I64, "batch", 1)],
        [value("y", F, "batch", 1)],
        {"hour": np.array([3_600_000], np.int64), "day": np.array([24], np.int64)},
    )


def elsewhere(folder: Path, *runtimes: str) -> str:
    """The same of a machine that is not this one: proven here, but not timed for long."""
    return target(folder, *runtimes, arch='"riscv64"')


def target(
    folder: Path,
    *runtimes: str,
    precisions: str = '"fp32"',
    arch: str = '"x86_64", "AMD64", "aarch64", "arm64"',
) -> str:
    """A target of this machine with these runtimes on its CPU."""
    chain = "".join(
        f'[[chain]]\nruntime = "{name}"\ndevice = "cpu"\nprecisions = [{precisions}]\n'
        for name in runtimes
    )
    file = folder / f"{'-'.join(runtimes)}.toml"
    file.write_text(f'name = "tiny"\ntitle = "for tests"\narch = [{arch}]\n' + chain)
    return str(file)
