"""How a bundle's outputs become an answer for people: classes, boxes, a map of classes, or a vector. As records only;
`edgeserve.postprocess` computes the answers."""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

import msgspec

from edgeserve.bundle.fidelity import Record

TaskKind = Literal["classification", "detection", "segmentation", "embedding"]
TASKS: Final[tuple[str, ...]] = get_args(TaskKind)
Activation = Literal["none", "softmax", "sigmoid"]
_Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Count = Annotated[int, msgspec.Meta(ge=1, le=10_000)]


class Scale(Record, frozen=True):
    """Of an output of whole numbers which stand for others: `(number - zero) * scale`."""

    scale: Annotated[float, msgspec.Meta(gt=0)]
    zero: int = 0


class _Answering(Record, frozen=True, kw_only=True):
    """`scales` are those of quantized outputs, by name."""

    scales: dict[str, Scale] = msgspec.field(default_factory=dict)


class Classification(_Answering, frozen=True, tag="classification", tag_field="kind"):
    """`output` holds a number for each class in each row. `activation` makes probabilities of them: "softmax" of
    logits of which one class is the answer, "sigmoid" of logits of which each is an answer by itself, "none" where they
    are probabilities already. One number a row is the probability of the second of two classes.

    At most `top_k` classes are answered, the best first, and only those of `threshold` or more.
    """

    output: str
    activation: Activation = "none"
    top_k: _Count = 5
    threshold: _Share = 0.0

    def describe(self) -> str:
        """In words: `classes of 'logits' after softmax, the best 5`."""
        after = f" after {self.activation}" if self.activation != "none" else ""
        of = f" with a score of {self.threshold:g} or more" if self.threshold else ""
        return f"classes of '{self.output}'{after}, the best {self.top_k}{of}"


class Detection(_Answering, frozen=True, tag="detection", tag_field="kind"):
    """Boxes with a class and a score each.

    `layout`:
    - "lists": an output each for `boxes` `[n, 4]`, `scores` `[n]` and `classes` `[n]`, and maybe their `count`, as heads
      with NMS inside have them;
    - "matrix": `boxes` `[n, 4]` and `scores` `[n, classes]`;
    - "rows": `boxes` `[n, 6]`: a box, its score, its class;
    - "yolo": `boxes` `[4 + classes, n]`; "yolo_objectness": `boxes` `[n, 5 + classes]`, where the fifth number is the
      score that there is anything.

    All may have an axis for the rows of a batch before. `box` names the four numbers, x from the left and y from the
    top: `xyxy` are two corners, `yxyx` likewise, `xywh` a corner and a size, `cxcywh` a centre and a size. `unit`: pixels
    of the model's input, or shares of its width and height. `activation` is applied to scores. `nms`: boxes of one
    class which overlap by more than `iou_threshold` (intersection over union) are one. `first_class` is the number of
    the class that the first label names: 1 where 0 is the background, -1 where only the labels begin with it.
    """

    layout: Literal["lists", "matrix", "rows", "yolo", "yolo_objectness"]
    boxes: str
    scores: str | None = None
    classes: str | None = None
    count: str | None = None
    box: Literal["xyxy", "yxyx", "xywh", "cxcywh"] = "xyxy"
    unit: Literal["pixels", "shares"] = "pixels"
    activation: Literal["none", "sigmoid"] = "none"
    nms: bool = False
    threshold: _Share = 0.25
    iou_threshold: _Share = 0.45
    max_detections: _Count = 100
    first_class: Literal[-1, 0, 1] = 0

    def describe(self) -> str:
        """In words: `boxes of 'output0' (yolo: cxcywh in pixels), NMS above 0.45, score 0.25 or more, at most 100`."""
        names = (self.boxes, self.scores, self.classes, self.count)
        of = ", ".join(f"'{n}'" for n in names if n is not None)
        after = f", scores after {self.activation}" if self.activation != "none" else ""
        nms = f", class-wise NMS above {self.iou_threshold:g}" if self.nms else ""
        return (
            f"boxes of {of} ({self.layout}: {self.box} in {self.unit}){after}{nms}, "
            f"score {self.threshold:g} or more, at most {self.max_detections}"
        )


class Segmentation(_Answering, frozen=True, tag="segmentation", tag_field="kind"):
    """`output` holds a number for each class and pixel; the class with the largest is the pixel's. `layout`: "NCHW",
    "NHWC", or "index" where it holds the numbers of the classes. With one class, what is `threshold` or more after
    `activation` belongs to class 1, which the only label names."""

    output: str
    layout: Literal["NCHW", "NHWC", "index"] = "NCHW"
    activation: Literal["none", "sigmoid"] = "none"
    threshold: _Share = 0.5

    def describe(self) -> str:
        """In words: `a class map of 'out' (NCHW)`."""
        after = f" after {self.activation}" if self.activation != "none" else ""
        return f"a class map of '{self.output}' ({self.layout}){after}"


class Embedding(_Answering, frozen=True, tag="embedding", tag_field="kind"):
    """`output` holds a vector for each row; `normalize` divides it by its length (L2)."""

    output: str
    normalize: bool = True

    def describe(self) -> str:
        """In words: `the vector 'embedding', divided by its length`."""
        return f"the vector '{self.output}'" + (", divided by its length" if self.normalize else "")


Postprocess = Classification | Detection | Segmentation | Embedding
