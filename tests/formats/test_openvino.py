"""Reports on OpenVINO IR."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgeserve.errors import SourceError
from edgeserve.formats.report import Share
from edgeserve.inspecting import inspect_model
from edgeserve.tensors import TensorSpec
from tests.bundles import linear_model

openvino = pytest.importorskip("openvino")


@pytest.fixture
def ir(tmp_path: Path) -> Path:
    onnx.save(linear_model(), tmp_path / "model.onnx")
    file = tmp_path / "model.xml"
    model = openvino.convert_model(tmp_path / "model.onnx")
    openvino.save_model(model, file, compress_to_fp16=False)
    return file


def test_the_linear_model(ir: Path) -> None:
    report = inspect_model(ir)
    assert (report.format, report.version) == ("openvino-ir", "IR 11")
    assert report.inputs == (TensorSpec("x", "FP32", ("?", 4)),)
    assert report.outputs == (TensorSpec("y", "FP32", ("?", 3)),)
    assert report.operators["MatMul"] == 1
    assert report.parameters == 15
    assert report.weights == (Share("FP32", 2, 15, 60),)
    assert [f.name for f in report.files] == ["model.xml", "model.bin"]
    assert report.size_bytes == sum(f.stat().st_size for f in (ir, ir.with_suffix(".bin")))


def test_a_truncated_bin_is_refused(ir: Path) -> None:
    binary = ir.with_suffix(".bin")
    binary.write_bytes(binary.read_bytes()[:10])
    with pytest.raises(SourceError, match="not a whole OpenVINO model") as caught:
        inspect_model(ir)
    assert caught.value.cause == "Incorrect weights in bin file!"


def test_a_missing_bin_is_refused(ir: Path) -> None:
    ir.with_suffix(".bin").unlink()
    with pytest.raises(SourceError, match="not a whole OpenVINO model"):
        inspect_model(ir)


def test_a_truncated_xml_is_refused(ir: Path) -> None:
    ir.write_text(ir.read_text("utf-8")[:900], "utf-8")
    with pytest.raises(SourceError, match="not a whole OpenVINO model"):
        inspect_model(ir)


def test_another_xml_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "feed.xml"
    file.write_text('<?xml version="1.0"?><rss version="2.0"></rss>')
    with pytest.raises(SourceError, match="not a whole OpenVINO model"):
        inspect_model(file)
