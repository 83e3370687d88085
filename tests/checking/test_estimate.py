"""Estimates against files that the real converters and quantizers write, and sums made by hand."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from edgeserve.checking import Estimate
from edgeserve.checking.estimate import estimates, peak_activations
from edgeserve.checking.model import onnx_model
from edgeserve.formats.onnx import OnnxFile
from edgeserve.inspecting import inspect_model
from edgeserve_converters.onnx_to_onnx import CONVERTER
from tests.bundles import linear_model
from tests.checking.models import matmul, one_node, saved
from tests.networks import images, small_cnn

CLOSE = 0.15


def of(file: Path) -> dict[str, Estimate]:
    return {
        e.precision: e
        for e in estimates(onnx_model(OnnxFile(file)), inspect_model(file).graph_bytes)
    }


class _Images(CalibrationDataReader):
    def __init__(self) -> None:
        self._rows: Iterator[dict[str, np.ndarray]] = iter([{"image": images(1)}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


@pytest.fixture
def quiet() -> Iterator[None]:
    """onnxruntime's quantizer advises on the root logger."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def test_fp32_is_the_file_itself(tmp_path: Path) -> None:
    file = saved(small_cnn(), tmp_path)
    assert of(file)["fp32"].size_bytes == file.stat().st_size


def test_fp16_is_what_the_converter_writes(tmp_path: Path) -> None:
    file = saved(small_cnn(), tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    real = CONVERTER.convert(file, out, {"precision": "fp16"})[0].stat().st_size
    assert of(file)["fp16"].size_bytes == pytest.approx(real, rel=CLOSE)


@pytest.mark.usefixtures("quiet")
def test_int8_is_what_the_quantizer_writes(tmp_path: Path) -> None:
    file = saved(small_cnn(), tmp_path)
    prepared, result = tmp_path / "prepared.onnx", tmp_path / "int8.onnx"
    quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(result),
        _Images(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    assert of(file)["int8"].size_bytes == pytest.approx(result.stat().st_size, rel=CLOSE)


@pytest.mark.usefixtures("quiet")
def test_int4_is_what_the_weight_only_quantizer_writes(tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    file = saved(matmul(512, 512), tmp_path)
    quantizer = MatMulNBitsQuantizer(onnx.load(file), block_size=32, is_symmetric=False)
    quantizer.process()
    result = tmp_path / "int4.onnx"
    quantizer.model.save_model_to_file(str(result), False)
    assert of(file)["int4"].size_bytes == pytest.approx(result.stat().st_size, rel=CLOSE)


def test_peak_memory_of_a_chain_by_hand(tmp_path: Path) -> None:
    """x[4] -> MatMul -> [3] -> Add -> [3] -> Relu -> [3]: at most two are alive, 16 + 12 bytes first."""
    file = saved(linear_model(), tmp_path)
    assert peak_activations(onnx_model(OnnxFile(file))) == 16 + 12
    found = of(file)
    assert found["fp32"].peak_memory_bytes == (12 + 3) * 4 + 28
    # x comes as it is; what the quantized MatMul writes is int8.
    assert peak_activations(onnx_model(OnnxFile(file)), "int8") == 16 + 3


def test_peak_memory_of_a_branch_by_hand(tmp_path: Path) -> None:
    """`head` (32 x 16 x 16) and its activation, while `features` (8 x 16 x 16), an output, lives on."""
    head, features = 32 * 16 * 16 * 4, 8 * 16 * 16 * 4
    assert (
        peak_activations(onnx_model(OnnxFile(saved(small_cnn(), tmp_path)))) == 2 * head + features
    )


def test_peak_memory_is_unknown_where_shapes_are(tmp_path: Path) -> None:
    file = saved(one_node("Relu", shape=("batch", "length", 4)), tmp_path)
    assert {e.peak_memory_bytes for e in of(file).values()} == {None}
    fixed = onnx_model(OnnxFile(file), {"x": (1, 5, 4)})
    assert peak_activations(fixed) == 2 * 5 * 4 * 4


def test_lower_precisions_are_smaller(tmp_path: Path) -> None:
    found = of(saved(matmul(), tmp_path))
    sizes = [found[p].size_bytes for p in ("fp32", "fp16", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
