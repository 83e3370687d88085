"""A recipe that changed nothing is not int8, and one that changed a part says which: real quantizers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgeserve
from edgeserve.bundle import Bundle
from edgeserve.devices import machine
from edgeserve.errors import CheckFailed
from edgeserve.formats.reading import read_model
from tests.networks import small_cnn

ELSEWHERE = "aarch64" if machine().arch == "x86_64" else "x86_64"
TARGET = """
name = "one"
title = "onnxruntime"
arch = ["{arch}"]
[[chain]]
runtime = "{runtime}"
device = "cpu"
precisions = ["int8", "int4", "fp16", "fp32"]
"""


def target(folder: Path, runtime: str = "onnxruntime") -> str:
    """For another CPU than this one: what is slower here is not rejected for it."""
    path = folder / f"{runtime}.toml"
    path.write_text(TARGET.format(runtime=runtime, arch=ELSEWHERE))
    return str(path)


def dense(path: Path, *alphas: float) -> Path:
    """A Gemm of 64 x 64 for each of these factors, the last with transB."""
    random = np.random.default_rng(3)
    nodes, weights, at = [], [], "x"
    for i, alpha in enumerate(alphas):
        last = i == len(alphas) - 1
        weight = random.normal(size=(64, 64)).astype(np.float32) / 8
        weights += [numpy_helper.from_array(weight, f"w{i}")]
        weights += [numpy_helper.from_array(random.normal(size=64).astype(np.float32), f"b{i}")]
        out = "y" if last else f"h{i}"
        nodes.append(
            helper.make_node("Gemm", [at, f"w{i}", f"b{i}"], [out], alpha=alpha, transB=int(last))
        )
        at = out
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 64])],
        weights,
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return path


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_weights_of_gemm_are_quantized(tmp_path: Path, precision: str) -> None:
    model = dense(tmp_path / "m.onnx", 1.0, 1.0)
    edgeserve.convert(model, tmp_path / "m.edge", target=target(tmp_path), precision=precision,
                      recipes=["weights"], strict=True, min_fidelity=0.0)  # fmt: skip
    bundle = Bundle.open(tmp_path / "m.edge")
    (variant,) = [v for v in bundle.manifest.variants if v.precision == precision]
    assert variant.layers == {precision: 2}
    assert read_model(bundle.root / variant.main).layers == {precision: 2}
    assert variant.size_bytes < 0.5 * model.stat().st_size  # no weight is left beside its copy


def test_a_recipe_that_changed_nothing_is_not_int8(tmp_path: Path) -> None:
    """MatMulNBits takes no Gemm with a factor."""
    model = dense(tmp_path / "m.onnx", 2.0, 0.5)
    options = {"target": target(tmp_path), "precision": "int8", "recipes": ["weights"]}
    with pytest.raises(CheckFailed, match="nothing was quantized: of the 2 layers in the file"):
        edgeserve.convert(model, tmp_path / "m.edge", strict=True, **options)
    assert not (tmp_path / "m.edge").exists()
    report = edgeserve.convert(model, tmp_path / "m.edge", **options)
    assert [c.variant for c in report.chain] == ["onnx-fp32"]
    (row,) = [r for r in report.rows if r.precision == "int8"]
    assert "finds no MatMul, or of Gemm, with constant weights" in row.reason


def test_convolutions_are_left_by_the_recipe_weights(tmp_path: Path) -> None:
    onnx.save(small_cnn(), tmp_path / "m.onnx")
    report = edgeserve.convert(tmp_path / "m.onnx", tmp_path / "m.edge", target=target(tmp_path),
                               precision="int8", recipes=["weights"], min_fidelity=0.0)  # fmt: skip
    bundle = Bundle.open(tmp_path / "m.edge")
    for variant in bundle.manifest.variants:
        held = read_model(bundle.root / variant.main).layers
        if variant.precision == "int8":
            assert held.get("int8", 0) == variant.layers["int8"] > 0
            assert held["fp32"] > 0
            assert f"{variant.id} is quantized in part: int8: {held['int8']} of" in " ".join(
                report.remarks
            )


def test_a_part_is_said(tmp_path: Path) -> None:
    model = dense(tmp_path / "m.onnx", 1.0, 2.0, 1.0)
    report = edgeserve.convert(model, tmp_path / "m.edge", target=target(tmp_path),
                               precision="int8", recipes=["weights"], min_fidelity=0.0)  # fmt: skip
    assert "onnx-int8-weights is quantized in part: int8: 2 of 3 layers" in report.remarks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "format_name", "recipes"),
    [("onnxruntime", "onnx", ["static"]), ("openvino", "openvino-ir", ["static", "nncf"])],
)
def test_static_files_hold_int8(
    tmp_path: Path, runtime: str, format_name: str, recipes: list[str]
) -> None:
    pytest.importorskip(runtime)
    onnx.save(small_cnn(), tmp_path / "m.onnx")
    report = edgeserve.convert(tmp_path / "m.onnx", tmp_path / "m.edge", precision="int8",
                               target=target(tmp_path, runtime), calibrate="random",
                               recipes=recipes, min_fidelity=0.0)  # fmt: skip
    assert not [r.reason for r in report.rows if "nothing was quantized" in r.reason]
    bundle = Bundle.open(tmp_path / "m.edge")
    for variant in bundle.manifest.variants:
        held = read_model(bundle.root / variant.main).layers
        assert set(held) == {"int8" if variant.precision == "int8" else "fp32"}
