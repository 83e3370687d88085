"""Class names that a model file brings along."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from edgeserve.conversion.sources.class_names import class_names
from edgeserve.tensors import Interface, TensorSpec
from tests.conversion.tiny import F, model, node, value

TFLITE = Path(__file__).parents[2] / "data" / "small-cnn-int8.tflite"


def interface(*shapes: tuple[int | str, ...]) -> Interface:
    outputs = tuple(TensorSpec(f"y{i}", "FP32", shape) for i, shape in enumerate(shapes))
    return Interface((TensorSpec("x", "FP32", ("batch", 3)),), outputs)


def named(text: str) -> onnx.ModelProto:
    made = model([node("Identity", "x", "y")], [value("x", F, 1, 3)], [value("y", F, 1, 3)])
    helper.set_model_props(made, {"names": text, "task": "detect"})
    return made


def found(proto: Any, *shapes: tuple[int | str, ...]) -> tuple[str, ...]:
    return class_names(Path("model.onnx"), "onnx", proto, interface(*shapes))


@pytest.mark.parametrize("shape", [("batch", 3), ("batch", 7, 84), (1, 25200, 8)])
@pytest.mark.parametrize("text", ["{0: 'cat', 1: 'dog', 2: 'Känguru'}", "['cat', 'dog', 'Känguru']"])  # fmt: skip
def test_names_in_the_metadata_as_the_yolo_exporters_write_them(text: str, shape: Any) -> None:
    assert found(named(text), shape) == ("cat", "dog", "Känguru")


@pytest.mark.parametrize(
    "text",
    ["", "{", "{0: 'a', 2: 'b', 3: 'c'}", "{'a': 0}", "__import__('os').getcwd()", "7",
     "['a\\nb', 'c', 'd']", "(" * 10_000],
)  # fmt: skip
def test_metadata_that_are_no_names_are_left(text: str) -> None:
    assert found(named(text), ("batch", 3)) == ()


def test_names_that_fit_no_output_are_left() -> None:
    assert found(named("['a', 'b', 'c']"), ("batch", 1000)) == ()
    assert found(named("['a', 'b']"), ("batch", 1)) == ("a", "b")
    assert found(named("['a', 'b']"), ("n", 4), ("n",), ("n",)) == ("a", "b")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ({"classlabels_strings": ["ham", "spam"]}, ("ham", "spam")),
        ({"classlabels_ints": [3, 7]}, ("3", "7")),
        ({"classlabels_ints": [0, 1]}, ()),
    ],
)
def test_what_a_classifier_answers_with(labels: Any, names: tuple[str, ...]) -> None:
    classifier = helper.make_node(
        "LinearClassifier", ["x"], ["label", "y"], domain="ai.onnx.ml", coefficients=[1.0, 0, 0, -1.0, 0, 0],
        intercepts=[0.0, 0.0], post_transform="LOGISTIC", **labels,
    )  # fmt: skip
    made = model(
        [classifier],
        [value("x", F, "batch", 3)],
        [value("y", F, "batch", 2)],
        {"unused": np.zeros(1)},
        ml=3,
    )
    assert found(made, ("batch",), ("batch", 2)) == names


def test_a_file_of_labels_that_is_packed_with_a_tflite_model(tmp_path: Path) -> None:
    file = tmp_path / "m.tflite"
    shutil.copyfile(TFLITE, file)
    assert class_names(file, "tflite", None, interface(("batch", 3))) == ()
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("readme.txt", "x")
        archive.writestr("labels.txt", "cat\ndog\nfish\n")
    assert class_names(file, "tflite", None, interface(("batch", 3))) == ("cat", "dog", "fish")
