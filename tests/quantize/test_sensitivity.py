"""Which layers lose precision: the one that was made to comes first, and exact ones are told so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeserve.conversion.sources.onnx import read_onnx
from edgeserve.errors import UnsupportedModel
from edgeserve.evaluate import load_samples
from edgeserve.quantize import LayerError, StaticQuantizer, rank_layers
from edgeserve.targets.schema import Quantization
from tests.networks import bottlenecks, coloured, perceptron


def ranked(
    proto: onnx.ModelProto, inputs: np.ndarray, folder: Path, **options: list[str]
) -> list[LayerError]:
    onnx.save(proto, folder / "model.onnx")
    np.save(folder / "x.npy", inputs)
    source = read_onnx(folder / "model.onnx")
    samples = load_samples(folder / "x.npy", source.interface, None)
    quantizer = StaticQuantizer(source.path, samples, Quantization(), folder)
    quantizer.quantize(folder / "q.onnx", **options)  # type: ignore[arg-type]
    return rank_layers(quantizer.prepared, folder / "q.onnx", samples.take(4), folder)


def test_the_layer_behind_uneven_channels_is_the_worst_with_its_producer(tmp_path: Path) -> None:
    found = ranked(bottlenecks(64.0), coloured(16), tmp_path)
    assert [e.sqnr_db for e in found] == sorted(e.sqnr_db for e in found)
    worst, second = found[:2]
    assert (worst.node, worst.op) == ("wide_1", "Conv")
    assert worst.unit == ("wide_1", "narrow_1")
    # Those behind it are judged on their own fp32 inputs: they are as good as in any network.
    assert second.sqnr_db > worst.sqnr_db + 20
    assert all(e.sqnr_db > 30 for e in found[1:])


def test_units_look_through_activations_and_stop_at_the_input(tmp_path: Path) -> None:
    units = {e.node: e.unit for e in ranked(bottlenecks(), coloured(16), tmp_path)}
    assert units["stem"] == ("stem",)
    assert units["narrow_2"] == ("narrow_2", "wide_1")
    assert {"classify", "narrow_0", "wide_2"} <= set(units)


def test_layers_left_in_fp32_are_not_ranked(tmp_path: Path) -> None:
    found = ranked(bottlenecks(64.0), coloured(16), tmp_path, keep=["wide_1", "narrow_1"])
    assert "wide_1" not in {e.node for e in found}
    assert found
    assert all(e.sqnr_db > 30 for e in found)


def test_a_model_beside_itself_has_no_quantized_layers(tmp_path: Path) -> None:
    onnx.save(bottlenecks(), tmp_path / "model.onnx")
    file = tmp_path / "model.onnx"
    assert rank_layers(file, file, [{"image": coloured(1)}], tmp_path) == []


def test_weights_that_int8_holds_exactly_are_exact(tmp_path: Path) -> None:
    """All inputs, weights and scales on a grid of powers of two: nothing is lost in a layer."""
    proto = perceptron(8)
    random = np.random.default_rng(0)
    for tensor in proto.graph.initializer:
        values = random.integers(-127, 128, size=tuple(tensor.dims)).astype(np.float32)
        values[0] = 127  # every column uses the whole range: its scale is 1
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    inputs = random.integers(0, 256, size=(16, 8)).astype(np.float32)
    inputs[0], inputs[1] = 0, 255  # the scale of the input is 1, too
    found = {e.node: e.sqnr_db for e in ranked(proto, inputs, tmp_path)}
    assert found["first"] > 100
    assert found["second"] < 60  # its input no longer fits 256 steps


def test_models_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    found = ranked(bottlenecks(), coloured(4), tmp_path)
    assert found
    with pytest.raises(UnsupportedModel):
        rank_layers(tmp_path / "model.onnx", tmp_path / "q.onnx", [{"x": coloured(1)}], tmp_path)
