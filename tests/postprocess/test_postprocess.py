"""Outputs become classes, boxes, maps and vectors, whatever the head of the model looks like."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from edgeserve.bundle import (
    Classification,
    Detection,
    Embedding,
    Preprocess,
    Scale,
    Segmentation,
    Task,
)
from edgeserve.errors import InvalidInput
from edgeserve.postprocess import (
    AnswerOptions,
    BoxesAnswer,
    ClassesAnswer,
    EmbeddingAnswer,
    MaskAnswer,
    Postprocessor,
    TensorsAnswer,
)
from edgeserve.postprocess.detect import suppressed, to_corners
from edgeserve.preprocess.geometry import placed
from edgeserve.tensors import Array, Interface, TensorSpec

IMAGE = TensorSpec("image", "FP32", ("batch", 3, 100, 100))


def made(how: Any, max_batch: int = 8, **labels: list[str]) -> Postprocessor:
    task = Task("generic", Preprocess(100, 100, resize="letterbox"), postprocess=how)
    interface = Interface((IMAGE,), (TensorSpec("y", "FP32", ("batch", "n")),), max_batch)
    return Postprocessor(task, interface, labels, labels.get("names", []))


def answered(post: Postprocessor, rows: int = 1, **outputs: Any) -> list[Any]:
    arrays_ = {n: np.asarray(a) for n, a in outputs.items()}
    return post.answers(arrays_, rows)


# classes


def test_logits_become_probabilities_and_labels() -> None:
    post = made(Classification("y", "softmax", top_k=2), y=["cat", "dog", "fish"])
    (first, second) = answered(post, 2, y=np.log([[0.2, 0.7, 0.1], [0.5, 0.25, 0.25]]))
    assert [(c.label, c.index) for c in first.classes] == [("dog", 1), ("cat", 0)]
    assert [c.score for c in first.classes] == pytest.approx([0.7, 0.2])
    assert [c.label for c in second.classes] == ["cat", "dog"]


def test_each_class_may_be_an_answer_by_itself() -> None:
    post = made(Classification("y", "sigmoid", threshold=0.5), y=["a", "b", "c"])
    (answer,) = answered(post, y=[[2.0, -3.0, 1.0]])
    assert [c.label for c in answer.classes] == ["a", "c"]
    asked = post.answers({"y": np.array([[2.0, -3.0, 1.0]])}, 1, (), AnswerOptions(1, 0.0))
    assert [c.label for c in asked[0].classes] == ["a"]


@pytest.mark.parametrize(("activation", "value"), [("none", 0.9), ("sigmoid", np.log(9.0))])
def test_one_number_is_the_second_of_two_classes(activation: Any, value: float) -> None:
    post = made(Classification("y", activation), y=["no", "yes"])
    (answer,) = answered(post, y=[[value]])
    assert [c.label for c in answer.classes] == ["yes", "no"]
    assert [c.score for c in answer.classes] == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize("scores", [[0.1, 0.7, 0.2], [1.0, 5.0, 2.0]])
def test_without_a_stored_postprocess_the_values_show_whether_they_are_logits(
    scores: list[float],
) -> None:
    (answer,) = answered(made(None, y=["a", "b", "c"]), y=[scores])
    assert isinstance(answer, ClassesAnswer)
    assert answer.classes[0].label == "b"
    assert sum(c.score for c in answer.classes) == pytest.approx(1.0)


def test_a_model_without_labels_gives_its_tensors() -> None:
    post = made(None)
    found = answered(post, 2, y=np.array([[1, 2], [3, 4]]), z=np.array([[b"a"], [b"\xff"]], object))
    assert found == [
        TensorsAnswer({"y": [1, 2], "z": ["a"]}),
        TensorsAnswer({"y": [3, 4], "z": ["/w=="]}),
    ]


def test_whole_numbers_that_stand_for_others_are_scaled() -> None:
    how = Classification("y", scales={"y": Scale(1 / 256, -128)})
    (answer,) = answered(made(how, y=["a", "b"]), y=np.array([[64, -64]], np.int8))
    assert [(c.label, c.score) for c in answer.classes] == [("a", 0.75), ("b", 0.25)]


def test_bf16_is_read_as_the_numbers_that_it_is() -> None:
    interface = Interface((IMAGE,), (TensorSpec("y", "BF16", ("batch", 2)),), 8)
    raw = (np.array([[-1.0, 2.0]], np.float32).view(np.uint32) >> 16).astype(np.uint16)
    post = Postprocessor(Task(postprocess=Classification("y", "softmax")), interface, {})
    (answer,) = answered(post, y=raw)
    assert [(c.index, round(c.score, 3)) for c in answer.classes] == [(1, 0.953), (0, 0.047)]
    (plain,) = answered(Postprocessor(Task(), interface, {}), y=raw)
    assert plain == TensorsAnswer({"y": [-1.0, 2.0]})


def test_a_score_that_is_not_a_number_is_no_class() -> None:
    post = made(Classification("y"), y=["a", "b", "c"])
    (answer,) = answered(post, y=[[np.nan, 0.5, np.inf]])
    assert [c.label for c in answer.classes] == ["b"]


def test_a_class_without_a_name_has_its_number() -> None:
    (answer,) = answered(made(Classification("y")), y=[[0.25, 0.75]])
    assert [(c.label, c.index) for c in answer.classes] == [("1", 1), ("0", 0)]


# boxes

FRAME = placed(200, 100, Preprocess(100, 100, resize="letterbox")).frame(
    200, 100, Preprocess(100, 100, resize="letterbox")
)
# In the input of 100 x 100 the photograph of 200 x 100 has the rows 25 to 75.
IN_INPUT = [10.0, 35.0, 30.0, 55.0]
IN_PHOTOGRAPH = (20.0, 20.0, 60.0, 60.0)


def heads() -> dict[str, tuple[Detection, dict[str, Any], int]]:
    x0, y0, x1, y1 = IN_INPUT
    centre = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
    yolo = np.zeros((1, 4 + 3, 50), np.float32)
    yolo[0, :4, 7], yolo[0, 6, 7] = centre, 0.9
    yolo[0, :4, 8], yolo[0, 6, 8] = np.add(centre, 1), 0.8
    older = np.zeros((1, 50, 5 + 3), np.float32)
    older[0, 7] = [*centre, 0.9, 0.1, 0.2, 1.0]
    return {
        "TFLite_Detection_PostProcess": (
            Detection("lists", "b", "s", "c", "n", box="yxyx", unit="shares"),
            {
                "b": np.array([[[y0, x0, y1, x1], [0, 0, 0, 0]]]) / 100,
                "c": np.array([[2.0, 0.0]]),
                "s": np.array([[0.9, 0.9]]),
                "n": np.array([1.0]),
            },
            8,
        ),
        "torchvision": (
            Detection("lists", "b", "s", "c", first_class=1),
            {"b": np.array([IN_INPUT]), "c": np.array([3]), "s": np.array([0.9])},
            0,
        ),
        "end to end": (
            Detection("rows", "b"),
            {"b": np.array([[[*IN_INPUT, 0.9, 2.0], [0, 0, 9, 9, 0.1, 1.0]]], np.float32)},
            8,
        ),
        "matrix": (
            Detection("matrix", "b", "s", nms=True, first_class=1),
            {
                "b": np.array([[IN_INPUT, [0, 0, 1, 1]]]),
                "s": np.array([[[0.0, 0.1, 0.0, 0.9], [0.99, 0, 0, 0]]]),
            },
            8,
        ),
        "YOLOv8": (Detection("yolo", "b", box="cxcywh", nms=True), {"b": yolo}, 0),
        "YOLOv5": (Detection("yolo_objectness", "b", box="cxcywh", nms=True), {"b": older}, 8),
    }


@pytest.mark.parametrize("head", sorted(heads()))
def test_boxes_of_common_heads_are_in_the_photograph(head: str) -> None:
    how, outputs, max_batch = heads()[head]
    post = made(how, max_batch, names=["cat", "dog", "fish"])
    assert set(post.outputs) == set(outputs)
    (answer,) = post.answers(outputs, 1, [FRAME])
    assert isinstance(answer, BoxesAnswer)
    (box,) = answer.boxes
    assert (box.label, box.index, box.score) == ("fish", 2, pytest.approx(0.9))
    assert box.box == pytest.approx(IN_PHOTOGRAPH, abs=1e-4)
    (raw,) = post.answers(outputs, 1)
    assert isinstance(raw, BoxesAnswer)
    assert raw.boxes[0].box == pytest.approx(IN_INPUT, abs=1e-4)
    (none,) = post.answers(outputs, 1, [FRAME], AnswerOptions(threshold=0.95))
    assert none == BoxesAnswer(())


@pytest.mark.parametrize("rows", [0, 3])
def test_a_number_of_boxes_that_depends_on_the_data(rows: int) -> None:
    how = Detection("lists", "b", "s", "c", threshold=0.0)
    outputs = {
        "b": np.zeros((rows, 4), np.float32),
        "s": np.ones(rows, np.float32),
        "c": np.ones(rows, np.int64),
    }
    (answer,) = made(how, 0).answers(outputs, 1)
    assert isinstance(answer, BoxesAnswer)
    assert len(answer.boxes) == rows


def test_scores_and_boxes_that_are_not_numbers_are_dropped() -> None:
    boxes = np.array(
        [[0, 0, 1, 1, np.nan, 0], [np.inf, 0, 1, 1, 0.9, 0], [0, 0, 1, 1, np.inf, 0], [0, 0, 1, 1, 0.5, 1]]
    )  # fmt: skip
    (answer,) = answered(made(Detection("rows", "b"), 0), b=boxes)
    assert [b.score for b in answer.boxes] == [0.5]


def test_a_score_that_is_not_a_number_hides_no_other() -> None:
    table = np.zeros((1, 6, 9), np.float32)
    table[0, :, 2] = [5, 5, 2, 2, np.nan, 0.8]
    table[0, :, 3] = [9, 9, 2, 2, np.nan, np.nan]
    (answer,) = answered(made(Detection("yolo", "b", box="cxcywh", nms=True)), b=table)
    assert [(b.index, b.score) for b in answer.boxes] == [(1, pytest.approx(0.8))]


def test_labels_that_begin_with_a_background_which_the_model_does_not_count() -> None:
    boxes = np.array([[0, 0, 1, 1, 0.9, 0.0]])
    post = made(Detection("rows", "b", first_class=-1), 0, names=["???", "cat"])
    (answer,) = answered(post, b=boxes)
    assert [(b.label, b.index) for b in answer.boxes] == [("cat", 1)]


def test_boxes_are_inside_the_photograph() -> None:
    (answer,) = made(Detection("rows", "b"), 0).answers(
        {"b": np.array([[-50.0, 0.0, 300.0, 90.0, 0.9, 0.0]])}, 1, [FRAME]
    )
    assert isinstance(answer, BoxesAnswer)
    assert answer.boxes[0].box == (0, 0, 200, 100)


def test_rows_that_were_sent_together_to_a_model_of_one_row_are_refused() -> None:
    with pytest.raises(InvalidInput, match="one row a request"):
        answered(made(Classification("y"), 0), y=np.zeros((3, 4)))


@pytest.mark.parametrize("shape", [("batch", 84, 8400), ("batch", 3)])
def test_labels_of_what_is_not_a_score_for_each_make_no_classes(shape: Any) -> None:
    interface = Interface((IMAGE,), (TensorSpec("y", "FP32", shape),), 8)
    assert Postprocessor(Task(), interface, {"y": ["a", "b"]}).how is None


@pytest.mark.parametrize(
    ("how", "outputs", "words"),
    [
        (Detection("rows", "b"), {"b": np.zeros(6)}, "expected 2 axes"),
        (Detection("lists", "b", "s"), {"b": np.zeros((1, 4)), "s": np.zeros(1)}, "is missing"),
        (Detection("matrix", "b", "s"), {"b": np.zeros((1, 3)), "s": np.zeros((1, 2))}, "four"),
        (Segmentation("m"), {"m": np.zeros((2, 2))}, "expected 3 axes"),
        (Segmentation("m", "index"), {"m": np.full((2, 2), 300)}, "0 to 255"),
    ],
)
def test_outputs_of_another_shape_are_refused(how: Any, outputs: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        made(how, 0).answers(outputs, 1)


def reference_nms(corners: Array, classes: Array, threshold: float) -> list[int]:
    """One box after the other, one pair at a time."""
    kept: list[int] = []
    for i, (x0, y0, x1, y1) in enumerate(corners):
        good = True
        for j in kept:
            u0, v0, u1, v1 = corners[j]
            width = max(0.0, min(x1, u1) - max(x0, u0))
            height = max(0.0, min(y1, v1) - max(y0, v0))
            shared = width * height
            union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - shared
            if classes[i] == classes[j] and shared > threshold * union:
                good = False
        if good:
            kept.append(i)
    return kept


@given(
    given_boxes=arrays.arrays(np.float64, (20, 4), elements=st.integers(0, 12)),
    classes=arrays.arrays(np.int64, 20, elements=st.integers(0, 2)),
    threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_suppression_is_that_of_the_textbook(
    given_boxes: Array, classes: Array, threshold: float
) -> None:
    corners = to_corners(given_boxes, "xywh")
    assert suppressed(corners, classes, threshold, 100) == reference_nms(
        corners, classes, threshold
    )


SHAPES = st.lists(st.integers(0, 7), min_size=0, max_size=4).map(tuple)
NUMBERS = st.one_of(
    st.floats(width=32), st.sampled_from([0.0, 0.5, 1.0, 3.0, float("nan"), float("inf")])
)
HOWS = [
    *(h for h, _, _ in heads().values()),
    Classification("b", "softmax"),
    Classification("b", "sigmoid"),
    Segmentation("b"),
    Segmentation("b", "NHWC", "sigmoid"),
    Segmentation("b", "index"),
    Embedding("b"),
]


@given(
    how=st.sampled_from(HOWS),
    outputs=st.fixed_dictionaries(
        {n: arrays.arrays(np.float32, SHAPES, elements=NUMBERS) for n in "bscn"}
    ),
    max_batch=st.sampled_from([0, 1]),
)
@settings(max_examples=400, deadline=None)
@pytest.mark.filterwarnings("error")
def test_whatever_a_model_answers_is_answered_or_refused(
    how: Any, outputs: Any, max_batch: int
) -> None:
    specs = tuple(TensorSpec(n, "FP32", a.shape) for n, a in outputs.items())
    post = Postprocessor(Task(postprocess=how), Interface((IMAGE,), specs, max_batch), {})
    if max_batch and any(not a.ndim or not len(a) for a in outputs.values()):
        return  # a batch has a row
    try:
        (answer,) = post.answers(outputs, 1, [FRAME])
    except InvalidInput:
        return
    msgspec.json.encode(answer)
    if isinstance(answer, BoxesAnswer):
        assert all(0 <= b.box[0] <= 200 and 0 <= b.box[3] <= 100 for b in answer.boxes)
        assert all(np.isfinite(b.score) for b in answer.boxes)


# maps and vectors


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "index"])
def test_a_map_of_classes_has_the_size_of_the_photograph(layout: Any) -> None:
    classes = np.zeros((50, 50), np.int64)
    classes[:, 25:] = 2
    scores = np.moveaxis(np.eye(3)[classes], -1, 0)
    array = {"NCHW": scores, "NHWC": np.eye(3)[classes], "index": classes}[layout][None]
    post = made(Segmentation("y", layout), names=["sky", "sea", "sand"])
    (answer,) = post.answers({"y": array}, 1, [FRAME])
    assert isinstance(answer, MaskAnswer)
    assert (answer.mask.width, answer.mask.height) == (200, 100)
    pixels = np.asarray(Image.open(io.BytesIO(answer.mask.png)))
    assert pixels.shape == (100, 200)
    assert (pixels[:, :100] == 0).all()
    assert (pixels[:, 100:] == 2).all()
    assert [(c.label, c.score) for c in answer.mask.classes] == [("sky", 0.5), ("sand", 0.5)]
    assert msgspec.json.decode(msgspec.json.encode(answer))["mask"]["png"].startswith("iVBOR")


def test_one_class_is_there_or_not() -> None:
    scores = np.array([[[[-1.0, 1.0]]]])
    (answer,) = answered(made(Segmentation("y", activation="sigmoid")), y=scores)
    assert [(c.index, c.score) for c in answer.mask.classes] == [(0, 0.5), (1, 0.5)]


def test_the_only_label_names_what_is_there() -> None:
    scores = np.array([[[[-1.0, 1.0]]]])
    post = made(Segmentation("y", activation="sigmoid"), names=["road"])
    (answer,) = answered(post, y=scores)
    assert [c.label for c in answer.mask.classes] == ["background", "road"]


def test_a_vector_has_length_one() -> None:
    found = answered(made(Embedding("y")), 2, y=np.array([[3.0, 4.0], [0.0, 0.0]], np.float16))
    assert found == [EmbeddingAnswer([0.6, 0.8]), EmbeddingAnswer([0.0, 0.0])]
    assert answered(made(Embedding("y", normalize=False)), y=[[3.0, 4.0]]) == [
        EmbeddingAnswer([3.0, 4.0])
    ]


@pytest.mark.parametrize("how", [h for h, _, _ in heads().values()] + [Segmentation("m"), None])
def test_a_postprocess_survives_the_manifest(how: Any) -> None:
    task = Task("detection", postprocess=how)
    assert msgspec.json.decode(msgspec.json.encode(task), type=Task) == task
