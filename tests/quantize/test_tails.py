"""Where parts of different scale are joined stays in fp32; nodes without names get some."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgeserve.evaluate import load_samples
from edgeserve.quantize import StaticQuantizer, head_layers, rank_layers
from edgeserve.targets.schema import Quantization
from edgeserve.tensors import Interface, TensorSpec
from tests.conversion.tiny import F, model, node, noise, value

INTERFACE = Interface(
    (TensorSpec("x", "FP32", ("batch", 3, 16, 16)),), (TensorSpec("y", "FP32", ("batch", 6, 256)),)
)


def detector(pixels: float = 640.0, *, turned: bool = False) -> onnx.ModelProto:
    """Boxes up to `pixels` and scores up to 1 in one tensor [batch,6,256], or [batch,256,6]."""
    tail = [node("Reshape", "joint shape", "flat" if turned else "y")]
    if turned:
        tail.append(node("Transpose", "flat", "y", perm=[0, 2, 1]))
    shape = (256, 6) if turned else (6, 256)
    return model(
        [
            node("Conv", "x w1", "c1", pads=[1] * 4),
            node("Relu", "c1", "r1"),
            node("Conv", "r1 wb", "b0"),
            node("Sigmoid", "b0", "b1"),
            node("Mul", "b1 pixels", "boxes"),
            node("Conv", "r1 ws", "s0"),
            node("Sigmoid", "s0", "scores"),
            node("Concat", "boxes scores", "joint", axis=1),
            *tail,
        ],
        [value("x", F, "batch", 3, 16, 16)],
        [value("y", F, "batch", *shape)],
        {
            "w1": noise(8, 3, 3, 3, scale=0.3),
            "wb": noise(4, 8, 1, 1, scale=0.5, seed=1),
            "ws": noise(2, 8, 1, 1, scale=1.0, seed=2),
            "pixels": np.float32(pixels),
            "shape": np.array([0, 6, 256], np.int64),
        },
    )


def quantizer(folder: Path, made: onnx.ModelProto) -> StaticQuantizer:
    onnx.save(made, folder / "model.onnx")
    np.save(folder / "x.npy", noise(24, 3, 16, 16))
    work = folder / "work"
    work.mkdir()
    samples = load_samples(folder / "x.npy", INTERFACE, None)
    return StaticQuantizer(folder / "model.onnx", samples, Quantization(), work)


def run(file: Path, x: np.ndarray) -> np.ndarray:
    return np.asarray(onnxruntime.InferenceSession(str(file)).run(None, {"x": x})[0])


@pytest.mark.parametrize("turned", [False, True])
def test_scores_beside_boxes_keep_a_scale_of_their_own(tmp_path: Path, turned: bool) -> None:
    tool = quantizer(tmp_path, detector(turned=turned))
    recipe = tool.quantize(tmp_path / "q.onnx")
    (tail,) = tool.tails
    assert tail.output == "y"
    assert tail.wide > 300 * tail.narrow
    assert set(tail.nodes) == set(recipe.kept_fp32)
    assert len(tail.nodes) == (3 if turned else 2)
    x = np.load(tmp_path / "x.npy")
    scores = [run(f, x) for f in (tmp_path / "model.onnx", tmp_path / "q.onnx")]
    want, got = (s[..., 4:] if turned else s[:, 4:] for s in scores)
    assert 20 * np.log10(want.std() / (want - got).std()) > 15


def test_parts_of_one_scale_are_joined_in_int8(tmp_path: Path) -> None:
    tool = quantizer(tmp_path, detector(pixels=1.5))
    assert tool.quantize(tmp_path / "q.onnx").kept_fp32 == ()
    assert tool.tails == ()


@pytest.mark.parametrize("names", ["none", "doubled"])
def test_layers_without_names_are_ranked_as_those_with(tmp_path: Path, names: str) -> None:
    rankings = []
    for named in (True, False):
        folder = tmp_path / str(named)
        folder.mkdir()
        made = detector()
        for index, item in enumerate(made.graph.node):
            item.name = f"n{index}" if named else "" if names == "none" else "same"
        tool = quantizer(folder, made)
        tool.quantize(folder / "q.onnx")
        samples = load_samples(folder / "x.npy", INTERFACE, None).take(4)
        ranking = rank_layers(tool.prepared, folder / "q.onnx", samples, folder)
        known = [n.name for n in onnx.load(tool.prepared).graph.node]
        assert all(known)
        assert len(set(known)) == len(known)
        rankings.append([(e.op, round(e.sqnr_db, 3), len(e.unit)) for e in ranking])
        (head,) = head_layers(tool.prepared, [e.node for e in ranking])
        assert next(e.op for e in ranking if e.node == head) == "Concat"
    assert rankings[0] == rankings[1]
    assert len(rankings[0]) >= 3
