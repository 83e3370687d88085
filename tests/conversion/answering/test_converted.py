"""Real conversions whose bundles answer with classes and boxes; the files that the documentation shows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image
from typer.testing import CliRunner

from edgeserve import api
from edgeserve.bundle import Bundle, Classification, Detection, Postprocess, Preprocess
from edgeserve.cli.commands import command_line
from edgeserve.errors import UsageError
from tests.conversion.tiny import F, model, node, saved, value
from tests.detector import ssd_tflite

DOCS = Path(__file__).parents[3] / "docs"
SIZE = 64


def cell_boxes() -> np.ndarray:
    """Centre and size of each cell of a YOLO's three grids `[1, 4, 84]`."""
    found = []
    for step in (8, 16, 32):
        places = (np.arange(SIZE // step) + 0.5) * step
        y, x = (g.ravel() for g in np.meshgrid(places, places, indexing="ij"))
        found.append(np.stack([x, y, np.full_like(x, step), np.full_like(x, step)]))
    return np.concatenate(found, axis=1)[None].astype(np.float32)


def colour_finder() -> onnx.ModelProto:
    """A detector with the head of YOLOv8: the classes red, green and blue, and the colour of each cell as scores."""
    nodes = []
    for step in (8, 16, 32):
        nodes += [
            node("AveragePool", "images", f"p{step}", kernel_shape=[step] * 2, strides=[step] * 2),
            node("Reshape", f"p{step} flat", f"f{step}"),
        ]
    nodes += [
        node("Concat", "f8 f16 f32", "means", axis=2),
        node("Clip", "means zero one", "scores"),
        node("Mul", "scores zero", "nothing"),
        node("Slice", "nothing first last axis", "one_row"),
        node("Add", "one_row cells", "boxes"),
        node("Concat", "boxes scores", "output0", axis=1),
    ]
    return model(
        nodes,
        [value("images", F, "batch", 3, SIZE, SIZE)],
        [value("output0", F, "batch", 7, 84)],
        {
            "flat": np.array([0, 3, -1]),
            "zero": np.zeros((), np.float32),
            "one": np.ones((), np.float32),
            "first": np.array([0]),
            "last": np.array([1]),
            "axis": np.array([1]),
            "cells": cell_boxes(),
        },
    )


@pytest.fixture(scope="module")
def found_by(tmp_path_factory: pytest.TempPathFactory, onnxruntime_target: str) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    detector = colour_finder()
    helper.set_model_props(detector, {"names": "{0: 'red', 1: 'green', 2: 'blue'}"})
    report = api.convert(
        saved(detector, folder),
        folder / "d.edge",
        target=onnxruntime_target,
        precision="fp32",
        preprocess=Preprocess(SIZE, SIZE, scale=1 / 255, resize="letterbox", pad=0),
        postprocess={"threshold": 0.6},
    )
    assert "class names come from the model's own file: 3" in " ".join(report.remarks)
    return folder / "d.edge"


def test_a_detector_is_recognised_and_finds_things_in_the_photograph(found_by: Path) -> None:
    task = Bundle.open(found_by).manifest.task
    assert task.kind == "detection"
    assert task.postprocess == Detection("yolo", "output0", box="cxcywh", nms=True, threshold=0.6)
    photograph = np.zeros((128, 256, 3), np.uint8)  # in the input: a quarter, from row 16 to 48
    photograph[32:64, 96:128, 1] = 255
    with api.load(found_by) as loaded:
        answer = loaded.predict(Image.fromarray(photograph))
    (box,) = answer.boxes
    assert (box.label, box.index) == ("green", 1)
    assert box.score == pytest.approx(1.0, abs=0.1)  # resizing blurs edges
    assert box.box == pytest.approx((96, 32, 128, 64), abs=1e-3)


@pytest.mark.parametrize("shapes", [True, False])
def test_tflite_with_its_own_head_finds_things_in_the_photograph(
    shapes: bool, tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_text("???\nred\ngreen\nblue\n", "utf-8")
    (tmp_path / "t.toml").write_text(
        'name = "tflite"\ntitle = "LiteRT"\narch = ["x86_64", "aarch64", "arm64"]\n'
        '[[chain]]\nruntime = "litert"\ndevice = "cpu"\nprecisions = ["fp32"]\n'
    )
    api.convert(
        ssd_tflite(tmp_path / "ssd.tflite", shapes=shapes),
        tmp_path / "s.edge",
        target=str(tmp_path / "t.toml"),
        labels=tmp_path / "labels.txt",
        preprocess=Preprocess(SIZE, SIZE, scale=1 / 255, resize="stretch", layout="NHWC"),
    )
    how = Bundle.open(tmp_path / "s.edge").manifest.task.postprocess
    assert isinstance(how, Detection)
    assert (how.layout, how.box, how.unit, how.first_class) == ("lists", "yxyx", "shares", -1)
    photograph = np.zeros((128, 256, 3), np.uint8)
    photograph[32:48, 96:128, 1] = 255
    with api.load(tmp_path / "s.edge") as loaded:
        (box,) = loaded.predict(Image.fromarray(photograph)).boxes
        nothing = loaded.predict(np.zeros_like(photograph))
    assert box.label == "green"
    assert box.box == pytest.approx((96, 32, 128, 48), abs=1e-3)
    assert nothing.boxes == ()


def test_inspect_says_what_it_is_for(found_by: Path) -> None:
    shown = CliRunner().invoke(command_line(), ["inspect", str(found_by)]).output
    assert "task        detection\n" in shown
    assert re.search(r"preprocess +RGB image fitted and padded to 64x64, NCHW", shown)
    assert re.search(
        r"postprocess +boxes of 'output0' \(yolo: cxcywh in pixels\), class-wise NMS", shown
    )
    assert re.search(r"labels +3 classes: red, green, blue\n", shown)


def test_a_file_on_the_command_line(onnxruntime_target: str, tmp_path: Path) -> None:
    made = model(
        [node("ReduceMean", "x", "y", axes=[2, 3], keepdims=0)],
        [value("x", F, "batch", 3, 8, 8)],
        [value("y", F, "batch", 3)],
    )
    (tmp_path / "post.toml").write_text(
        '[preprocess]\nheight = 8\nwidth = 8\n[postprocess]\nkind = "classification"\ntop_k = 2\n', "utf-8"
    )  # fmt: skip
    run = CliRunner().invoke(
        command_line(),
        ["convert", str(saved(made, tmp_path)), "--precision", "fp32", "--target", onnxruntime_target,
         "--preprocess", str(tmp_path / "post.toml"), "--postprocess", str(tmp_path / "post.toml"),
         "-o", str(tmp_path / "c.edge")],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert "note: task classification: classes of 'y' after softmax, the best 2" in run.output
    task = Bundle.open(tmp_path / "c.edge").manifest.task
    assert task.postprocess == Classification("y", "softmax", top_k=2)
    assert task.preprocess == Preprocess(8, 8)


@pytest.mark.parametrize(
    ("task", "words"),
    [("detection", "--task detection: the outputs do not fit"), ("detecton", "not a task of this")],
)
def test_a_task_that_does_not_fit_writes_nothing(
    task: str, words: str, digits: Path, onnxruntime_target: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        api.convert(digits, tmp_path / "d.edge", target=onnxruntime_target, task=task)
    assert list(tmp_path.iterdir()) == []


def test_the_files_in_the_documentation_are_valid() -> None:
    blocks = re.findall(
        r"```toml\n(.*?)```", (DOCS / "postprocess.md").read_text("utf-8"), re.DOTALL
    )
    read = [msgspec.convert(tomllib.loads(block), type=Postprocess) for block in blocks]
    assert {r.__struct_config__.tag for r in read} == {
        "classification", "detection", "segmentation", "embedding",
    }  # fmt: skip


@pytest.mark.parametrize(("resize", "told"), [("letterbox", False), ("crop", True)])
def test_a_crop_before_detection_is_said(
    resize: str, told: bool, onnxruntime_target: str, tmp_path: Path
) -> None:
    run = CliRunner().invoke(
        command_line(),
        ["convert", str(saved(colour_finder(), tmp_path)), "--precision", "fp32", "--target", onnxruntime_target,
         "--image-size", str(SIZE), "--resize", resize, "--scale", "0.00392157", "-o", str(tmp_path / "c.edge")],
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert ("the edges of photographs are cut off" in run.output) is told
    preprocess = Bundle.open(tmp_path / "c.edge").manifest.task.preprocess
    assert preprocess is not None
    assert preprocess.resize == resize
