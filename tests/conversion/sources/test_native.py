"""TFLite files and IRs as sources: taken as they are, quantized in their own format, proven beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgeserve
from edgeserve.bundle import Bundle
from edgeserve.conversion.tools.registry import converter_called, run_converter
from edgeserve.errors import SourceError, UsageError

FILES = Path(__file__).resolve().parents[2] / "data"
TARGET = """
name = "both"
title = "openvino, then onnxruntime"
arch = ["x86_64", "aarch64", "arm64"]
[[chain]]
runtime = "openvino"
device = "cpu"
precisions = ["int8", "fp32"]
[[chain]]
runtime = "onnxruntime"
device = "cpu"
precisions = ["fp32"]
"""


@pytest.fixture
def target(tmp_path: Path) -> str:
    (tmp_path / "both.toml").write_text(TARGET)
    return str(tmp_path / "both.toml")


@pytest.mark.slow
def test_a_tflite_file_gets_litert_at_the_end_of_the_chain(tmp_path: Path, target: str) -> None:
    pytest.importorskip("ai_edge_litert")
    source = FILES / "small-cnn-fp32.tflite"
    report = edgeserve.convert(source, tmp_path / "m.edge", target=target, calibrate="random",
                               min_fidelity=0.0)  # fmt: skip
    tried = {(r.runtime, r.precision) for r in report.rows if r.measured}
    assert {("litert", "fp32"), ("litert", "int8"), ("openvino", "fp32")} <= tried
    assert {"litert", "openvino"} == {c.runtime for c in report.chain}
    onnx = next(r for r in report.rows if r.runtime == "onnxruntime")
    assert onnx.reason == "onnxruntime reads onnx, and no installed converter makes that of tflite"
    manifest = Bundle.open(tmp_path / "m.edge").manifest
    assert manifest.source.format == "tflite"
    with edgeserve.load(tmp_path / "m.edge") as model:
        (spec,) = model.interface.inputs
        shape = [d if isinstance(d, int) else 1 for d in spec.shape]
        found = model.run({spec.name: np.zeros(shape, np.float32)})
    assert set(found) == {s.name for s in model.interface.outputs}


def test_a_quantized_file_is_taken_as_it_is(tmp_path: Path, target: str) -> None:
    source = FILES / "small-cnn-int8.tflite"
    report = edgeserve.convert(source, tmp_path / "m.edge", target=target)
    (row,) = [r for r in report.rows if r.runtime == "litert"]
    assert (row.variant, row.precision, row.chosen) == ("tflite-int8", "int8", True)
    variant = next(v for v in Bundle.open(tmp_path / "m.edge").manifest.variants
                   if v.format == "tflite")  # fmt: skip
    assert (tmp_path / "m.edge" / variant.main).read_bytes() == source.read_bytes()


def test_an_ir_is_quantized_as_ir(tmp_path: Path, target: str) -> None:
    source = Path(edgeserve.__file__).parent / "demo" / "files" / "digits.onnx"
    (tmp_path / "ir").mkdir()
    run_converter(
        converter_called("onnx-to-openvino"), source, tmp_path / "ir", {},
        tool_env=False, say=lambda what, share: None,
    )  # fmt: skip
    data = source.parent / "digits-calibration.npz"
    report = edgeserve.convert(
        tmp_path / "ir" / "model.xml", tmp_path / "m.edge", target=target, calibrate=data
    )
    assert [r.variant for r in report.rows if r.measured] == ["openvino-int8-nncf", "openvino-fp32"]
    source_record = Bundle.open(tmp_path / "m.edge").manifest.source
    assert source_record.format == "openvino-ir"
    sizes = [(tmp_path / "ir" / f"model.{s}").stat().st_size for s in ("xml", "bin")]
    assert source_record.size_bytes == sum(sizes)


def test_shapes_of_a_native_source_cannot_be_fixed(tmp_path: Path, target: str) -> None:
    with pytest.raises(UsageError, match="--shape"):
        edgeserve.convert(
            FILES / "small-cnn-fp32.tflite", tmp_path / "m.edge", target=target,
            shapes={"image": (1, 1, 1, 1)},
        )  # fmt: skip


def test_a_truncated_tflite_file_is_named(tmp_path: Path, target: str) -> None:
    short = tmp_path / "short.tflite"
    short.write_bytes((FILES / "small-cnn-fp32.tflite").read_bytes()[:2000])
    with pytest.raises(SourceError, match=r"short\.tflite"):
        edgeserve.convert(short, tmp_path / "m.edge", target=target)
