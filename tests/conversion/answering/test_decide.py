"""Which task a model's outputs show, and which they do not."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.bundle import (
    Classification,
    Detection,
    Embedding,
    OutputKind,
    Scale,
    Segmentation,
    TaskKind,
)
from edgeserve.conversion.answering import Decided, OutputFacts, decide
from edgeserve.errors import UsageError
from edgeserve.tensors import DTYPES, Interface, TensorSpec

RANDOM = np.random.default_rng(3)
SAMPLES = 5
SOFTMAX = OutputKind("scores", "it ends in Softmax")
CHANNELS = OutputKind("scores", "it ends in Softmax", -3)
SIGMOID = OutputKind("probabilities", "it ends in Sigmoid")
VECTOR = OutputKind("embedding", "its name says so")
IDS = OutputKind("ids", "its type is INT64")
Shape = tuple[int | str, ...]


def facts(
    outputs: dict[str, Any],
    *,
    image: tuple[int, ...] | None = (1, 3, 64, 64),
    max_batch: int = 8,
    labels: int | list[str] | None = None,
    kinds: dict[str, OutputKind] | None = None,
    has_graph: bool = True,
    shapes: dict[str, Shape] | None = None,
    labelled: bool = False,
    scales: dict[str, Scale] | None = None,
) -> OutputFacts:
    """Outputs of one row, each as one array for all samples or as a list of one for each."""
    answers = [
        {n: v[i] if isinstance(v, list) else v for n, v in outputs.items()} for i in range(SAMPLES)
    ]
    names = {dtype.str[1:]: name for name, dtype in DTYPES.items() if name != "BF16"}
    specs = []
    for name, array in answers[0].items():
        text = array.dtype.kind in "OU"
        dims: Shape = ("batch", *array.shape[1:]) if max_batch else array.shape
        shape = (shapes or {}).get(name, dims)
        specs.append(TensorSpec(name, "BYTES" if text else names[array.dtype.str[1:]], shape))
    inputs = [] if image is None else [{"x": np.zeros(image, np.float32)}] * SAMPLES
    dims = ("batch", 7) if image is None else ("batch", *image[1:])
    given = [f"label {i}" for i in range(labels)] if isinstance(labels, int) else labels
    return OutputFacts(
        Interface((TensorSpec("x", "FP32", dims),), tuple(specs), max_batch),
        {s.name: OutputKind("numbers", "nothing says so") for s in specs} | (kinds or {}),
        answers,
        inputs or [{"x": np.zeros((1, 7), np.float32)}] * SAMPLES,
        labels=None if given is None else tuple(given),
        labelled=labelled,
        has_graph=has_graph,
        scales=scales or {},
    )


def decided(given: OutputFacts, task: TaskKind | None = None, **fields: object) -> Decided:
    return decide(given, task, fields)


def found(given: OutputFacts, task: TaskKind | None = None, **fields: object) -> Any:
    return decided(given, task, **fields).postprocess


def logits(*shape: int) -> list[Any]:
    return [RANDOM.normal(0, 3, shape).astype(np.float32) for _ in range(SAMPLES)]


def shares(*shape: int, axis: int = -1) -> list[Any]:
    raised = [np.exp(x) for x in logits(*shape)]
    return [(x / x.sum(axis=axis, keepdims=True)).astype(np.float32) for x in raised]


def chances(*shape: int) -> list[Any]:
    return [RANDOM.uniform(0, 1, shape).astype(np.float32) for _ in range(SAMPLES)]


# classes


@pytest.mark.parametrize(
    ("given", "output", "activation"),
    [
        (facts({"y": logits(1, 10)}, labels=10), "y", "softmax"),
        (facts({"y": shares(1, 10)}, kinds={"y": SOFTMAX}), "y", "none"),
        (facts({"y": shares(1, 10)}, labels=10), "y", "none"),
        (facts({"y": logits(1, 10, 1, 1)}, labels=10), "y", "softmax"),
        (facts({"y": shares(1, 10, 1, 1, axis=1)}, kinds={"y": CHANNELS}), "y", "none"),
        (facts({"y": chances(1, 4)}, labels=4, kinds={"y": SIGMOID}), "y", "none"),
        (facts({"y": chances(1, 1)}, labels=2, kinds={"y": SIGMOID}), "y", "none"),
        (facts({"y": logits(1, 1)}, labels=2), "y", "sigmoid"),
        (facts({"y": shares(1, 2)}, labels=2), "y", "none"),
        (facts({"y": [np.log(s) for s in shares(1, 5)]}, labels=5), "y", "softmax"),
        (facts({"y": shares(1, 12)}, has_graph=False, max_batch=0), "y", "none"),
        (facts({"y": logits(1, 12)}, has_graph=False, max_batch=0, labels=12), "y", "softmax"),
        (facts({"y": chances(1, 12)}, has_graph=False, max_batch=0, labels=12), "y", "none"),
        (facts({"y": logits(12)}, max_batch=0, labels=12), "y", "softmax"),
        (facts({"y": logits(1, 3)}, labelled=True, kinds={"y": SOFTMAX}), "y", "softmax"),
        (facts({"y": logits(1, 10), "features": logits(1, 8, 4, 4)}, labels=10), "y", "softmax"),
        (facts({"value": logits(1, 1), "y": logits(1, 10)}, labels=10), "y", "softmax"),
        (facts({"raw": logits(1, 10), "y": shares(1, 10)}, labels=10), "y", "none"),
        (facts({"y": logits(1, 10), "z": logits(1, 10)}, labels=10, kinds={"y": SOFTMAX}), "y", "softmax"),
        (facts({"naïve": np.array([1]), "y": shares(1, 3)}, kinds={"naïve": IDS, "y": SOFTMAX}), "y", "none"),
        (
            facts(
                {"label": np.array(["a"], object), "y": shares(1, 3)},
                kinds={"label": OutputKind("text", ""), "y": SOFTMAX},
                image=None,
            ),
            "y",
            "none",
        ),
    ],
)  # fmt: skip
def test_class_scores_and_what_makes_probabilities_of_them(
    given: OutputFacts, output: str, activation: str
) -> None:
    how = found(given)
    assert isinstance(how, Classification)
    assert (how.output, how.activation) == (output, activation)


def test_quantized_scores_are_classes_with_their_scale() -> None:
    scale = Scale(1 / 256, -128)
    rounded = [np.rint(s * 256 - 128).clip(-128, 127).astype(np.int8) for s in shares(1, 5)]
    given = facts({"y": rounded}, max_batch=0, has_graph=False, scales={"y": scale})
    assert found(given) == Classification("y", scales={"y": scale})


@pytest.mark.parametrize(
    "given",
    [
        facts({"y": logits(1, 1)}, image=None),  # a regression
        facts({"y": logits(1, 10)}),
        facts({"y": logits(1, 4)}, image=None, labelled=False),
        facts({"y": logits(1, 7, 10)}, kinds={"y": SOFTMAX}, image=None),  # of each token
        facts({"y": shares(1, 1, 10)}, kinds={"y": SOFTMAX}, image=None, shapes={"y": ("batch", "length", 10)}),
        facts({"y": logits(1, 3, 64, 64)}),  # super-resolution
        facts({"y": logits(1, 4)}),  # a box, perhaps
        facts({"y": shares(1, 10)}),  # with a graph that does not end in a softmax
        facts({"y": np.zeros((1, 9), np.int64)}, image=None, kinds={"y": IDS}),
    ],
    ids=[
        "number", "numbers", "four numbers", "tokens", "one token", "picture", "box", "attention", "ids",
    ],
)  # fmt: skip
def test_numbers_are_no_classes(given: OutputFacts) -> None:
    assert decided(given) == Decided()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (facts({"y": chances(1, 1)}, kinds={"y": SIGMOID}), "ends in a sigmoid.*--labels"),
        (facts({"policy": shares(1, 4), "value": logits(1, 1)}, kinds={"policy": SOFTMAX}), "other outputs"),
        (facts({"age": shares(1, 9), "sex": shares(1, 2)}, kinds={"age": SOFTMAX, "sex": SOFTMAX}), "'age'.* or 'sex'"),
        (facts({"y": logits(1, 10), "z": logits(1, 10)}, labels=10), "'y'.*or 'z'.*output = "),
        (facts({"y": logits(1, 10)}, labels=9), "the 9 classes that --labels names.*\\[1,10\\]"),
        (facts({"a": logits(1, 8), "b": logits(1, 8)}, kinds={"a": VECTOR, "b": VECTOR}), "embedding may be 'a'"),
        (facts({"h": logits(1, 7, 8)}, kinds={"h": VECTOR}), "must pool"),
        (facts({"y": logits(1, 5), "e": logits(1, 8)}, kinds={"e": VECTOR}), "embedding may be 'e'"),
        (facts({"y": logits(1, 5), "cam": logits(1, 5, 16, 16)}, labels=5), "a class map of 'cam'.*or classes of 'y'"),
        (facts({"y": logits(1, 5, 32, 32)}), "may be a map of classes: --labels"),
        (facts({"y": chances(1, 1, 64, 64)}, kinds={"y": SIGMOID}), "may be a map of classes"),
    ],
)  # fmt: skip
def test_what_is_not_certain_is_said_and_not_guessed(given: OutputFacts, words: str) -> None:
    result = decided(given)
    assert result.postprocess is None
    assert result.kind is None
    (remark,) = result.remarks
    assert remark.startswith("task not recognised: ")
    assert re.search(words, remark)


# boxes


def yolo(classes: int, boxes: int = 84, *, objectness: bool = False, unit: float = 64.0) -> Any:
    found = []
    for _ in range(SAMPLES):
        numbers = RANDOM.uniform(0, unit, (1, boxes, 4))
        scores = RANDOM.uniform(0, 1, (1, boxes, classes + objectness))
        table = np.concatenate([numbers, scores], axis=2).astype(np.float32)
        found.append(table if objectness else table.transpose(0, 2, 1))
    return found


def tflite(names: list[str]) -> dict[str, Any]:
    boxes = [np.sort(RANDOM.uniform(0, 1, (1, 10, 4)).astype(np.float32)) for _ in range(SAMPLES)]
    classes = [RANDOM.integers(0, 5, (1, 10)).astype(np.float32) for _ in range(SAMPLES)]
    scores = [np.sort(c)[:, ::-1] for c in chances(1, 10)]
    return dict(
        zip(names, (boxes, classes, scores, np.array([10], np.float32)), strict=True)
    )  # fmt: skip


def torchvision(rows: tuple[int, ...] = (3, 1, 0, 2, 5)) -> dict[str, Any]:
    return {
        "boxes": [np.sort(RANDOM.uniform(0, 64, (n, 4)).astype(np.float32)) for n in rows],
        "labels": [RANDOM.integers(1, 6, n) for n in rows],
        "scores": [RANDOM.uniform(0, 1, n).astype(np.float32) for n in rows],
    }


HEAD = [f"StatefulPartitionedCall:{i}" for i in range(4)]
OP = ["TFLite_Detection_PostProcess", *(f"TFLite_Detection_PostProcess:{i}" for i in (1, 2, 3))]
DYNAMIC: dict[str, Shape] = {"boxes": ("n", 4), "labels": ("n",), "scores": ("n",)}


def six(rows: int = 20, kind: str = "rows") -> Any:
    found = []
    for _ in range(SAMPLES):
        corners = np.sort(RANDOM.uniform(0, 64, (1, rows, 2, 2)), axis=2).reshape(1, rows, 4)
        rest = RANDOM.uniform(0, 1, (1, rows, 2))
        if kind == "rows":
            rest[..., 1] = RANDOM.integers(0, 80, (1, rows))
        found.append(np.concatenate([corners, rest], axis=2).astype(np.float32))
    return found


def corners(rows: int, most: float) -> list[Any]:
    pairs = [RANDOM.uniform(0, most, (1, rows, 2, 2)) for _ in range(SAMPLES)]
    return [np.sort(p, axis=2).reshape(1, rows, 4).astype(np.float32) for p in pairs]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (facts({"o": yolo(80)}), Detection("yolo", "o", box="cxcywh", nms=True)),
        (facts({"o": yolo(1)}), Detection("yolo", "o", box="cxcywh", nms=True)),
        (
            facts({"o": yolo(80, unit=1.0)}, has_graph=False, max_batch=0, image=(1, 64, 64, 3)),
            Detection("yolo", "o", box="cxcywh", unit="shares", nms=True),
        ),
        (
            facts({"o": yolo(3, 50)}, labels=3),
            Detection("yolo", "o", box="cxcywh", nms=True),
        ),
        (
            facts({"o": yolo(80, 252, objectness=True)}),
            Detection("yolo_objectness", "o", box="cxcywh", nms=True),
        ),
        (
            facts({"o": yolo(1, 252, objectness=True), "map": logits(1, 3, 8, 8, 6)}),
            Detection("yolo_objectness", "o", box="cxcywh", nms=True),
        ),
        (
            facts({"o": yolo(20, 84, objectness=True)}, labels=20),
            Detection("yolo_objectness", "o", box="cxcywh", nms=True),
        ),
        (facts({"o": six()}), Detection("rows", "o")),
        (
            facts(tflite(OP), has_graph=False, max_batch=0),
            Detection("lists", OP[0], OP[2], OP[1], OP[3], box="yxyx", unit="shares"),
        ),
        (
            facts(tflite(HEAD), has_graph=False, max_batch=0, labels=["???", "cat", "dog"]),
            Detection("lists", HEAD[0], HEAD[2], HEAD[1], HEAD[3], box="yxyx", unit="shares", first_class=-1),
        ),
        (
            facts(torchvision(), max_batch=0, shapes=DYNAMIC, labels=5),
            Detection("lists", "boxes", "scores", "labels", first_class=1),
        ),
        (
            facts(torchvision((0, 0, 0, 0, 0)), max_batch=0, shapes=DYNAMIC, labels=["__background__", "cat"]),
            Detection("lists", "boxes", "scores", "labels"),
        ),
        (
            facts({"b": corners(30, 64), "s": chances(1, 30, 4)}, labels=4),
            Detection("matrix", "b", "s", nms=True),
        ),
        (
            facts({"s": shares(1, 30, 2), "b": corners(30, 1)}, labels=["face"]),
            Detection("matrix", "b", "s", unit="shares", nms=True, first_class=1),
        ),
    ],
    ids=[
        "YOLOv8", "YOLOv8, one class", "YOLOv8, TFLite", "by labels", "YOLOv5", "YOLOv5, one class", "YOLOX",
        "YOLOv10", "TFLite", "TFLite with ???", "torchvision", "torchvision, nothing found", "YOLO-NAS", "faces",
    ],
)  # fmt: skip
def test_the_heads_of_detectors(given: OutputFacts, expected: Detection) -> None:
    assert found(given) == expected


def test_the_outputs_that_tensorflow_names_among_others() -> None:
    boxes = corners(10, 1)
    outputs = {
        "detection_anchor_indices": [RANDOM.integers(0, 99, (1, 10)).astype(np.float32) for _ in boxes],
        "detection_boxes:0": boxes,
        "detection_classes:0": [RANDOM.integers(1, 6, (1, 10)).astype(np.float32) for _ in boxes],
        "detection_multiclass_scores": chances(1, 10, 6),
        "detection_scores:0": chances(1, 10),
        "num_detections": np.array([10], np.float32),
        "raw_detection_boxes": corners(50, 1),
        "raw_detection_scores": chances(1, 50, 6),
    }  # fmt: skip
    assert found(facts(outputs, labels=5, max_batch=0)) == Detection(
        "lists", "detection_boxes:0", "detection_scores:0", "detection_classes:0", "num_detections",
        box="yxyx", unit="shares", first_class=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        facts({"o": logits(1, 84, 84)}),  # raw offsets
        facts({"o": yolo(80)}, labels=12),
        facts({"o": yolo(80, objectness=True)}),  # [84, 85]: with a score for each box, or with 81 classes
        facts({"o": yolo(48), "masks": logits(1, 32, 16, 16)}, labels=16),
        facts({"b": corners(30, 64), "s": logits(1, 30, 92)}),  # DETR
        facts({"b": np.zeros((1, 9, 4), np.float32), "l": np.zeros((1, 9), np.int64),
               "s": np.zeros((1, 9), np.float32)}),
    ],
    ids=["raw", "other labels", "either", "masks", "logits", "nothing found"],
)  # fmt: skip
def test_boxes_of_another_form_are_said_and_not_guessed(given: OutputFacts) -> None:
    result = decided(given)
    assert result.postprocess is None
    assert "--postprocess says" in result.remarks[0] or "labels" in result.remarks[0]


@pytest.mark.parametrize(
    "given",
    [
        facts({"o": yolo(80, 91)}),  # no YOLO has 91 boxes here
        facts({"o": logits(1, 12, 84)}, image=None),
        facts({"b": logits(1, 4), "s": logits(1, 1), "l": logits(1, 1)}),
    ],
)
def test_tables_of_numbers_are_no_boxes(given: OutputFacts) -> None:
    assert decided(given) == Decided()


# maps and vectors


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (facts({"y": logits(1, 5, 32, 32)}, labels=5), Segmentation("y")),
        (facts({"y": shares(1, 5, 64, 64, axis=1)}, kinds={"y": CHANNELS}), Segmentation("y")),
        (
            facts({"y": shares(1, 64, 64, 5)}, image=(1, 64, 64, 3), kinds={"y": SOFTMAX}),
            Segmentation("y", "NHWC"),
        ),
        (
            facts({"y": np.ones((1, 64, 64), np.int64)}, kinds={"y": IDS}),
            Segmentation("y", "index"),
        ),
        (
            facts({"y": np.ones((1, 1, 64, 64), np.int64)}, kinds={"y": IDS}),
            Segmentation("y", "index"),
        ),
        (facts({"out": logits(1, 21, 64, 64), "aux": logits(1, 21, 64, 64)}, labels=21), Segmentation("out")),
        (
            facts({"s": logits(1, 5, 64, 64), "y": np.ones((1, 64, 64), np.int64)}, labels=5, kinds={"y": IDS}),
            Segmentation("y", "index"),
        ),
        (facts({"y": logits(1, 1, 64, 64)}, labels=1), Segmentation("y", activation="sigmoid")),
        (facts({"y": logits(1, 8)}, kinds={"y": VECTOR}), Embedding("y")),
        (facts({"h": logits(1, 7, 8), "y": logits(1, 8)}, kinds={"h": VECTOR, "y": VECTOR}), Embedding("y")),
    ],
)  # fmt: skip
def test_maps_and_vectors(given: OutputFacts, expected: Any) -> None:
    assert found(given) == expected


# asked for


@pytest.mark.parametrize(
    ("given", "task", "expected"),
    [
        (facts({"y": logits(1, 10)}), "classification", Classification("y", "softmax")),
        (facts({"y": chances(1, 1)}, kinds={"y": SIGMOID}), "classification", Classification("y")),
        (facts({"y": logits(1, 10)}), "embedding", Embedding("y")),
        (
            facts({"y": logits(1, 1, 64, 64)}),
            "segmentation",
            Segmentation("y", activation="sigmoid"),
        ),
        (
            facts({"o": yolo(3, 50)}),
            "detection",
            Detection("yolo", "o", box="cxcywh", nms=True),
        ),
    ],
)
def test_a_task_that_is_asked_for(given: OutputFacts, task: Any, expected: Any) -> None:
    assert decided(given).postprocess is None
    assert found(given, task) == expected


@pytest.mark.parametrize(
    ("given", "task"),
    [
        (facts({"scores": logits(1, 10)}, labels=10), "detection"),
        (facts({"scores": logits(1, 10)}, labels=10), "segmentation"),
        (facts({"y": logits(1, 7, 8)}), "embedding"),
        (facts({"y": logits(1, 8, 4, 4)}), "classification"),
    ],
)
def test_a_task_that_does_not_fit_names_what_does_not(given: OutputFacts, task: Any) -> None:
    with pytest.raises(UsageError, match=f"--task {task}") as error:
        decided(given, task)
    assert given.shapes() in str(error.value.cause)
    assert "--postprocess" in str(error.value.hint)


def test_a_file_overrides_what_is_recognised() -> None:
    given = facts({"y": logits(1, 10)}, labels=10)
    assert found(given, top_k=3, threshold=0.5) == Classification("y", "softmax", 3, 0.5)
    assert found(given, kind="embedding") == Embedding("y")
    assert found(facts({"o": yolo(80)}), iou_threshold=0.7).iou_threshold == 0.7


def test_a_file_says_what_cannot_be_recognised() -> None:
    given = facts({"age": shares(1, 9), "sex": shares(1, 2)}, labels=2)
    assert found(given, kind="classification", output="age") == Classification("age")
    detr = facts({"b": chances(1, 30, 4), "s": logits(1, 30, 5)})
    fields = {"layout": "matrix", "boxes": "b", "scores": "s", "activation": "sigmoid"}
    assert found(detr, "detection", **fields) == Detection(
        "matrix", "b", "s", activation="sigmoid", nms=True
    )  # fmt: skip


def test_a_layout_comes_with_what_is_usual_for_it() -> None:
    either = facts({"o": yolo(80, objectness=True)})
    assert found(either, "detection", layout="yolo_objectness") == Detection(
        "yolo_objectness", "o", box="cxcywh", nms=True
    )
    assert found(either, "detection", layout="yolo_objectness", box="xyxy").box == "xyxy"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "classify"}, "kind = 'classify'"),
        ({"top": 5}, "no field 'top'"),
        ({"output": "z"}, "no output 'z'"),
        ({"top_k": 0}, "does not describe"),
        ({"kind": "detection", "layout": "table"}, "does not describe"),
        ({"kind": "detection", "layout": "rows", "boxes": "y"}, "do not fit a detection"),
        ({"kind": "segmentation", "output": "y"}, "do not fit a segmentation"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(fields: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        found(facts({"y": logits(1, 10)}, labels=10), **fields)


def test_a_file_and_a_task_that_disagree_are_refused() -> None:
    with pytest.raises(UsageError, match="disagree"):
        found(facts({"y": logits(1, 10)}), "embedding", kind="classification")


def test_a_file_without_a_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="needs a kind"):
        found(facts({"y": logits(1, 10)}), top_k=3)


def test_the_report_says_what_was_recognised_and_why() -> None:
    result = decided(facts({"y": logits(1, 10)}, labels=10))
    assert result.kind == "classification"
    assert result.remarks == (
        "task classification: classes of 'y' after softmax, the best 5 (its classes have 10 labels; they are logits)",
    )
    unnamed = decided(facts({"y": shares(1, 10)}, kinds={"y": SOFTMAX}))
    assert "--labels" in unnamed.remarks[1]


SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 6, 8, 9, 64, 84]), max_size=4).map(tuple)
KINDS = st.sampled_from([SOFTMAX, CHANNELS, SIGMOID, VECTOR, IDS, OutputKind("numbers", "")])


@given(
    shapes=st.dictionaries(st.sampled_from(["boxes", "scores", "c", "num", "é"]), SHAPES, min_size=1),
    kinds=st.fixed_dictionaries(dict.fromkeys(("boxes", "scores", "c", "num", "é"), KINDS)),
    dtype=st.sampled_from([np.float32, np.float16, np.int64, np.uint8]),
    values=st.sampled_from(["zero", "random", "nan", "large"]),
    labels=st.sampled_from([None, 1, 2, 4]),
    max_batch=st.sampled_from([0, 8]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("error")
def test_outputs_of_any_shape_are_recognised_or_left(
    shapes: Any, kinds: Any, dtype: Any, values: str, labels: int | None, max_batch: int
) -> None:
    fill = {"zero": 0.0, "nan": np.nan if np.dtype(dtype).kind == "f" else 7, "large": 200.0}
    outputs = {}
    for name, shape in shapes.items():
        whole = (1, *shape) if max_batch else shape
        drawn = RANDOM.uniform(0, 1, whole)
        outputs[name] = np.asarray(drawn if values == "random" else np.full(whole, fill[values]), dtype)  # fmt: skip
    known = {n: kinds[n] for n in outputs}
    decided(facts(outputs, max_batch=max_batch, labels=labels, kinds=known))
