"""Static int8: what the schemes of targets make of a real model."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeserve.conversion.sources.onnx import read_onnx
from edgeserve.errors import DataError
from edgeserve.evaluate import load_samples
from edgeserve.quantize import StaticQuantizer
from edgeserve.targets.schema import Quantization

DATA = Path(__file__).resolve().parents[2] / "edgeserve" / "demo" / "files"


@pytest.mark.parametrize(
    ("scheme", "name", "zero_points"),
    [
        (Quantization(), "QDQ U8S8", onnx.TensorProto.UINT8),
        (Quantization(activation_type="int8"), "QDQ S8S8", onnx.TensorProto.INT8),
        (
            Quantization(activation_type="int8", symmetric_activations=True, per_channel=False),
            "QDQ S8S8",
            onnx.TensorProto.INT8,
        ),
    ],
)
def test_the_scheme_of_the_target_is_what_is_written(
    tmp_path: Path, scheme: Quantization, name: str, zero_points: int
) -> None:
    source = read_onnx(DATA / "digits.onnx")
    samples = load_samples(DATA / "digits-calibration.npz", source.interface, None).take(16)
    seen: list[tuple[int, int]] = []
    work = tmp_path / "work"
    work.mkdir()
    quantizer = StaticQuantizer(source.path, samples, scheme, work, lambda *s: seen.append(s))
    recipe = quantizer.quantize(tmp_path / "q.onnx")
    assert recipe.scheme == name
    assert recipe.per_channel == scheme.per_channel
    assert seen[-1] == (16, 16)
    model = onnx.load(tmp_path / "q.onnx")
    constants = {t.name: t for t in model.graph.initializer}
    activations = [constants[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert {t.data_type for t in activations} == {zero_points}
    scales = [
        onnx.numpy_helper.to_array(constants[n.input[1]])
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in constants
    ]
    assert any(s.size > 1 for s in scales) == scheme.per_channel
    assert {p.name for p in tmp_path.iterdir()} == {"q.onnx", "work"}


def test_old_opsets_are_brought_up_to_date(tmp_path: Path) -> None:
    from tests.bundles import linear_model

    model = linear_model()
    model.opset_import[0].version = 11
    onnx.save(model, tmp_path / "old.onnx")
    source = read_onnx(tmp_path / "old.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    samples = load_samples(tmp_path / "x.npy", source.interface, None)
    StaticQuantizer(source.path, samples, Quantization(), tmp_path).quantize(tmp_path / "q.onnx")
    assert onnx.load(tmp_path / "q.onnx").opset_import[0].version >= 13


def test_logging_is_as_it_was_afterwards(tmp_path: Path) -> None:
    source = read_onnx(DATA / "digits.onnx")
    samples = load_samples(DATA / "digits-calibration.npz", source.interface, None).take(2)
    StaticQuantizer(source.path, samples, Quantization(), tmp_path).quantize(tmp_path / "q.onnx")
    assert logging.root.manager.disable == 0


def test_a_bad_sample_stops_with_its_own_error(tmp_path: Path) -> None:
    from PIL import Image

    from edgeserve.bundle import Preprocess

    source = read_onnx(DATA / "digits.onnx")
    for i in range(3):
        Image.new("L", (8, 8)).save(tmp_path / f"{i}.png")
    samples = load_samples(tmp_path, source.interface, Preprocess(8, 8, channels="L"))
    (tmp_path / "2.png").write_bytes(b"rotten")
    with pytest.raises(DataError, match=r"2\.png"):
        StaticQuantizer(source.path, samples, Quantization(), tmp_path).quantize(
            tmp_path / "q.onnx"
        )
