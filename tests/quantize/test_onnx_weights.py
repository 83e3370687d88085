"""Quantization without calibration data: smaller files, close outputs, run by onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeserve.errors import UnsupportedModel
from edgeserve.quantize import quantize_onnx_dynamic, quantize_onnx_weights
from tests.networks import attention, perceptron, small_cnn

WIDTH = 256


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(perceptron(WIDTH), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def run(model: Path) -> np.ndarray:
    inputs = np.random.default_rng(3).normal(size=(16, WIDTH)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(model))
    found: np.ndarray = session.run(None, {"x": inputs})[0]
    return found


def sqnr_db(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


def operators(model: Path) -> list[str]:
    return [n.op_type for n in onnx.load(model).graph.node]


def test_dynamic_int8_is_a_quarter_and_close(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    recipe = quantize_onnx_dynamic(model, tmp_path / "q.onnx", tmp_path / "work")
    assert (recipe.method, recipe.per_channel) == ("dynamic int8", True)
    assert (tmp_path / "q.onnx").stat().st_size < 0.3 * model.stat().st_size
    assert operators(tmp_path / "q.onnx").count("MatMulInteger") == 3
    assert sqnr_db(run(model), run(tmp_path / "q.onnx")) > 25
    assert list((tmp_path / "work").iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_dynamic_int8_leaves_products_of_activations_and_convolutions(tmp_path: Path) -> None:
    for name, proto in (("attention", attention()), ("cnn", small_cnn())):
        onnx.save(proto, tmp_path / f"{name}.onnx")
        quantize_onnx_dynamic(tmp_path / f"{name}.onnx", tmp_path / f"{name}-q.onnx", tmp_path)
    found = operators(tmp_path / "attention-q.onnx")
    assert (found.count("MatMulInteger"), found.count("MatMul")) == (4, 2)
    assert operators(tmp_path / "cnn-q.onnx").count("Conv") == 5
    assert "ConvInteger" not in operators(tmp_path / "cnn-q.onnx")


@pytest.mark.parametrize(("bits", "share", "decibels"), [(8, 0.35, 25), (4, 0.2, 10)])
def test_weights_in_blocks_are_smaller_and_close(
    model: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    bits: int,
    share: float,
    decibels: float,
) -> None:
    recipe = quantize_onnx_weights(model, tmp_path / "q.onnx", bits)
    assert recipe.method == f"weights int{bits}"
    assert recipe.scheme == f"S{bits} weights in blocks of 32"
    assert (tmp_path / "q.onnx").stat().st_size < share * model.stat().st_size
    blocks = [n for n in onnx.load(tmp_path / "q.onnx").graph.node if n.op_type == "MatMulNBits"]
    attributes = [{a.name: a.i for a in n.attribute} for n in blocks]
    assert [(a["bits"], a["block_size"]) for a in attributes] == [(bits, 32)] * 3
    assert sqnr_db(run(model), run(tmp_path / "q.onnx")) > decibels
    assert capfd.readouterr() == ("", "")


def test_weights_leave_products_of_activations(tmp_path: Path) -> None:
    onnx.save(attention(), tmp_path / "model.onnx")
    quantize_onnx_weights(tmp_path / "model.onnx", tmp_path / "q.onnx", 4)
    found = operators(tmp_path / "q.onnx")
    assert (found.count("MatMulNBits"), found.count("MatMul")) == (4, 2)


def test_a_model_the_quantizer_cannot_handle_is_named(tmp_path: Path) -> None:
    proto = perceptron(8)
    proto.graph.node[2].input[0] = "nowhere"
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises(UnsupportedModel, match=r"cannot handle odd\.onnx") as caught:
        quantize_onnx_dynamic(tmp_path / "odd.onnx", tmp_path / "q.onnx", tmp_path)
    assert caught.value.cause
    assert not (tmp_path / "q.onnx").exists()
