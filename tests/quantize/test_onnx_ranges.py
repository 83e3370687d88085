"""Calibration of static int8: methods, ranges computed once, nodes left in fp32, what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeserve.conversion.sources.onnx import read_onnx
from edgeserve.evaluate import Samples, load_samples
from edgeserve.quantize import CalibrationMethod, StaticQuantizer, onnx_static
from edgeserve.targets.schema import Quantization
from tests.networks import bottlenecks, coloured

SAMPLES = 12


class Setup:
    """A quantizer of `bottlenecks`; `calls` counts the samples it iterated over."""

    def __init__(self, folder: Path, factor: float = 1.0, inputs: np.ndarray | None = None) -> None:
        onnx.save(bottlenecks(factor), folder / "model.onnx")
        np.save(folder / "x.npy", coloured(SAMPLES) if inputs is None else inputs)
        source = read_onnx(folder / "model.onnx")
        self.samples: Samples = load_samples(folder / "x.npy", source.interface, None)
        self.calls = 0
        self.work = folder / "work"
        self.work.mkdir()
        self.quantizer = StaticQuantizer(
            source.path, self.samples, Quantization(), self.work, self._count
        )

    def _count(self, done: int, total: int) -> None:
        self.calls += 1
        print(f"sample {done} of {total}")


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path)


def ranges(file: Path) -> dict[str, tuple[float, float]]:
    """The range of each quantized activation, from its scale and zero point."""
    graph = onnx.load(file).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            scale, zero = (constants[name].astype(float) for name in node.input[1:3])
            found[node.input[0]] = float(-zero * scale), float((255 - zero) * scale)
    return found


@pytest.mark.slow
def test_percentile_and_entropy_leave_out_what_minmax_keeps(tmp_path: Path) -> None:
    inputs = coloured(400)
    inputs[7, 0, 3, 3] = 100.0  # one value of 307,200: 0.0003 %; the others are below 15
    setup = Setup(tmp_path, inputs=inputs)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    methods: list[CalibrationMethod] = ["minmax", "percentile", "entropy"]
    for method in methods:
        recipe = setup.quantizer.quantize(tmp_path / f"{method}.onnx", method)
        assert recipe.calibration_method == method
        assert recipe.calibration is not None
        assert recipe.calibration.samples == 400
        found[method] = ranges(tmp_path / f"{method}.onnx")
    assert found["minmax"]["image"][1] == pytest.approx(100.0, rel=0.01)
    assert found["percentile"]["image"][1] < 50.0
    assert found["entropy"]["image"][1] < 50.0
    assert found["percentile"] != found["entropy"]
    session = onnxruntime.InferenceSession(str(tmp_path / "entropy.onnx"))
    assert session.run(None, setup.samples[0])[0].shape == (1, 10)


def test_minmax_ranges_are_those_of_the_activations(setup: Setup, tmp_path: Path) -> None:
    setup.quantizer.quantize(tmp_path / "q.onnx")
    low, high = ranges(tmp_path / "q.onnx")["image"]
    images = np.concatenate([s["image"] for s in setup.samples])
    step = (high - low) / 255
    assert abs(low - images.min()) <= step
    assert abs(high - images.max()) <= step


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_samples_are_read_once_however_often_it_is_quantized(
    setup: Setup, tmp_path: Path, method: CalibrationMethod
) -> None:
    setup.quantizer.quantize(tmp_path / "first.onnx", method)
    assert setup.calls == SAMPLES
    setup.quantizer.quantize(tmp_path / "second.onnx", method, keep=["wide_1"])
    setup.quantizer.quantize(tmp_path / "third.onnx", method)
    assert setup.calls == SAMPLES
    assert (tmp_path / "third.onnx").read_bytes() == (tmp_path / "first.onnx").read_bytes()


def test_nodes_that_are_kept_compute_with_their_own_weights(setup: Setup, tmp_path: Path) -> None:
    recipe = setup.quantizer.quantize(tmp_path / "q.onnx", keep=["wide_1", "narrow_1"])
    assert recipe.kept_fp32 == ("narrow_1", "wide_1")
    graph = onnx.load(tmp_path / "q.onnx").graph
    writers = {name: n.op_type for n in graph.node for name in n.output}
    constants = {t.name for t in graph.initializer}
    convolutions = {n.name: n for n in graph.node if n.op_type == "Conv"}
    assert set(convolutions) == {
        "stem",
        *(f"{k}_{i}" for k in ("narrow", "wide") for i in range(3)),
    }
    for name, node in convolutions.items():
        if name in ("wide_1", "narrow_1"):
            assert node.input[1] in constants
            assert node.input[2] in constants
        else:
            assert writers[node.input[1]] == "DequantizeLinear"
    assert writers[convolutions["wide_1"].input[0]] == "Conv"  # nothing is rounded between the two


def test_nothing_but_progress_is_printed(
    setup: Setup, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    methods: list[CalibrationMethod] = ["minmax", "percentile", "entropy"]
    for method in methods:
        setup.quantizer.quantize(tmp_path / f"{method}.onnx", method)
        printed = capfd.readouterr()
        assert printed.out.splitlines() == [
            f"sample {i} of {SAMPLES}" for i in range(1, SAMPLES + 1)
        ]
        assert printed.err == ""


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_ranges_do_not_depend_on_how_many_samples_are_held_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: CalibrationMethod
) -> None:
    found = []
    for name, size in (("one", 1), ("some", 2_000_000), ("all", 1 << 40)):
        monkeypatch.setattr(onnx_static, "_CHUNK_BYTES", size)
        (tmp_path / name).mkdir()
        setup = Setup(tmp_path / name)
        setup.quantizer.quantize(tmp_path / name / "q.onnx", method)
        assert setup.calls == SAMPLES
        found.append(ranges(tmp_path / name / "q.onnx"))
    assert set(found[0]) == set(found[1]) == set(found[2])
    for tensor, wanted in found[0].items():
        for other in found[1:]:
            np.testing.assert_allclose(other[tensor], wanted, rtol=1e-3, atol=1e-6, err_msg=tensor)


def test_the_equalized_quantizer_has_ranges_of_its_own(tmp_path: Path) -> None:
    setup = Setup(tmp_path, factor=64.0)
    setup.quantizer.quantize(tmp_path / "q.onnx")
    better = setup.quantizer.equalized
    assert better is not None
    assert setup.quantizer.equalized is better
    better.quantize(tmp_path / "e.onnx")
    assert setup.calls == 2 * SAMPLES

    def noise(file: Path) -> float:
        source, got = (
            onnxruntime.InferenceSession(str(f)) for f in (tmp_path / "model.onnx", file)
        )
        return float(
            np.mean(
                [np.square(source.run(None, s)[0] - got.run(None, s)[0]) for s in setup.samples]
            )
        )

    assert noise(tmp_path / "e.onnx") < noise(tmp_path / "q.onnx") / 100


def test_there_is_no_equalized_quantizer_of_an_even_network(tmp_path: Path) -> None:
    setup = Setup(tmp_path, factor=64.0)
    better = setup.quantizer.equalized
    assert better is not None
    assert better.equalized is None


def test_the_cache_holds_every_activation(setup: Setup, tmp_path: Path) -> None:
    setup.quantizer.quantize(tmp_path / "q.onnx")
    text = (setup.work / "ranges-minmax.json").read_text("utf-8")
    assert {"image", "stem", "narrow_1", "wide_2"} <= set(json.loads(text)["data"])
