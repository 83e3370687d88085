"""Cross-layer equalization: the same function, channels of like ranges, or nothing at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from edgeserve.quantize.equalize import equalize
from tests.networks import Sketch, bottlenecks, coloured


def weights(model: Path | onnx.ModelProto) -> dict[str, np.ndarray]:
    proto = onnx.load(model) if isinstance(model, Path) else model
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


def spread(weight: np.ndarray) -> float:
    """How many times the widest output channel's range is the narrowest's."""
    ranges = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    return float(ranges.max() / ranges.min())


def run(model: Path, image: np.ndarray) -> list[np.ndarray]:
    found: list[np.ndarray] = onnxruntime.InferenceSession(str(model)).run(None, {"image": image})
    return found


def equalized(proto: onnx.ModelProto, folder: Path) -> tuple[int, Path]:
    onnx.checker.check_model(proto)
    onnx.save(proto, folder / "model.onnx")
    return equalize(folder / "model.onnx", folder / "equalized.onnx"), folder / "equalized.onnx"


def assert_same_function(folder: Path) -> None:
    image = coloured(4)
    for want, got in zip(
        run(folder / "model.onnx", image), run(folder / "equalized.onnx", image), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def residuals(factor: float) -> onnx.ModelProto:
    """Two stages with a residual connection and a depthwise convolution between: their linear ends
    `end_0`, `end_1` and what reads them, `wide_1` and `wide_2`, must share one scale."""
    net = Sketch()
    x = net.op("Relu", "stem_relu", net.conv("stem", "image", 3, 16, 3))
    end = net.conv("end_0", x, 16, 8)
    x = net.op("Relu", "relu_1", net.conv("wide_1", end, 8, 16))
    x = net.op("LeakyRelu", "relu_deep", net.conv("deep", x, 16, 16, 3, group=16), alpha=0.1)
    total = net.op("Add", "total", net.conv("end_1", x, 16, 8), end)
    x = net.op("Relu", "relu_2", net.conv("wide_2", total, 8, 16))
    x = net.op("MaxPool", "smaller", x, kernel_shape=[2, 2], strides=[2, 2])
    net.classify(net.conv("last", x, 16, 16), 16, 10)
    net.unevenly(["end_0", "end_1"], ["wide_1", "wide_2"], factor)
    net.unevenly(["wide_1"], ["deep"], factor)
    net.unevenly(["deep"], ["end_1"], factor)
    return net.model({"image": ["batch", 3, 16, 16]}, {"classify": ["batch", 10]})


def test_ranges_are_evened_and_the_function_stays(tmp_path: Path) -> None:
    changed, file = equalized(bottlenecks(64.0), tmp_path)
    assert changed >= 1
    assert_same_function(tmp_path)
    before, after = weights(tmp_path / "model.onnx"), weights(file)
    assert spread(before["narrow_1_w"]) > 1000
    assert spread(after["narrow_1_w"]) < 10
    onnx.checker.check_model(str(file))


def test_residual_branches_share_one_scale_and_depthwise_ones_pass_it_on(tmp_path: Path) -> None:
    changed, file = equalized(residuals(64.0), tmp_path)
    assert changed >= 3  # the residual group, before and behind the depthwise convolution
    assert_same_function(tmp_path)
    before, after = weights(tmp_path / "model.onnx"), weights(file)
    for name in ("end_0_w", "end_1_w", "wide_1_w"):
        assert spread(after[name]) < spread(before[name]) / 50
    # Biases take the scale of their own layer alone; weights that of the layer before, too.
    first, second = (after[f"end_{i}_b"] / before[f"end_{i}_b"] for i in (0, 1))
    np.testing.assert_allclose(first, second, rtol=1e-4)
    assert first.max() / first.min() > 1000


def test_what_is_even_already_is_left_alone(tmp_path: Path) -> None:
    _, file = equalized(residuals(64.0), tmp_path)
    assert equalize(file, tmp_path / "again.onnx") == 0
    assert not (tmp_path / "again.onnx").exists()


def pair() -> Sketch:
    """Two convolutions, the channels of `narrow` between them very uneven."""
    net = Sketch()
    net.conv("wide", net.conv("narrow", "image", 3, 8), 8, 8)
    net.unevenly(["narrow"], ["wide"], 64.0)
    return net


def clipped() -> onnx.ModelProto:
    net = Sketch()
    net.constant("zero", np.float32(0))
    net.constant("six", np.float32(6))
    x = "image"
    for i, cin in enumerate((3, 8, 8)):
        x = net.op("Clip", f"clip_{i}", net.conv(f"conv_{i}", x, cin, 8), "zero", "six")
    net.weights["conv_1_w"] *= np.logspace(-2, 2, 8)[:, None, None, None]
    return net.model({"image": [4, 3, 16, 16]}, {"clip_2": [4, 8, 16, 16]})


def read_outside() -> onnx.ModelProto:
    """The uneven tensor is an output, too: scaling it would change what the user gets."""
    shape = [4, 8, 16, 16]
    return pair().model({"image": [4, 3, 16, 16]}, {"narrow": shape, "wide": shape})


def shared_weights() -> onnx.ModelProto:
    net = Sketch()
    x = net.conv("first", "image", 3, 8)
    y = net.conv("second", x, 8, 8)
    z = net.op("Conv", "third", net.op("Relu", "relu", y), "second_w")
    net.unevenly(["first"], ["second"], 64.0)
    return net.model({"image": [4, 3, 16, 16]}, {z: [4, 8, 16, 16]})


@pytest.mark.parametrize("make", [clipped, read_outside, shared_weights])
def test_what_cannot_be_scaled_is_left_alone(tmp_path: Path, make: object) -> None:
    changed, file = equalized(make(), tmp_path)  # type: ignore[operator]
    assert changed == 0
    assert not file.exists()


def test_a_tensor_that_a_branch_reads_is_left_alone(tmp_path: Path) -> None:
    """The branches of If see tensors of the graph around them that are no inputs of the node."""
    shape = [4, 8, 16, 16]
    proto = pair().model({"image": [4, 3, 16, 16]}, {"wide": shape})
    assert equalized(proto, tmp_path)[0] == 1  # without the branches
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    seen = helper.make_tensor_value_info("seen", onnx.TensorProto.FLOAT, None)
    then, otherwise = (
        helper.make_graph([helper.make_node(kind, ["narrow"], ["seen"])], kind, [], [seen])
        for kind in ("Abs", "Neg")
    )
    proto.graph.node.append(
        helper.make_node("If", ["always"], ["y"], then_branch=then, else_branch=otherwise)
    )
    proto.graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape))
    (tmp_path / "equalized.onnx").unlink()
    changed, file = equalized(proto, tmp_path)
    assert changed == 0
    assert not file.exists()


def test_additions_that_broadcast_over_channels_are_left_alone(tmp_path: Path) -> None:
    net = Sketch()
    wide, single = net.conv("wide", "image", 3, 8), net.conv("single", "image", 3, 1)
    total = net.op("Add", "total", wide, single)
    behind, beside = net.conv("behind", total, 8, 4), net.conv("beside", single, 1, 4)
    net.weights["wide_w"] *= np.logspace(-2, 2, 8)[:, None, None, None]
    changed, _ = equalized(
        net.model({"image": [4, 3, 16, 16]}, {behind: [4, 4, 16, 16], beside: [4, 4, 16, 16]}),
        tmp_path,
    )
    assert changed == 0


def test_a_dead_channel_does_not_spoil_the_others(tmp_path: Path) -> None:
    proto = bottlenecks(64.0)
    for tensor in proto.graph.initializer:
        if tensor.name in ("narrow_1_w", "narrow_1_b"):
            values = numpy_helper.to_array(tensor).copy()
            values[3] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    changed, file = equalized(proto, tmp_path)
    assert changed >= 1
    assert_same_function(tmp_path)
    alive = np.delete(weights(file)["narrow_1_w"], 3, axis=0)
    assert spread(alive) < 10
    assert all(np.isfinite(w).all() for w in weights(file).values())
