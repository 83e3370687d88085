"""The outputs of detectors to boxes in the photograph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from edgeserve.bundle import Detection
from edgeserve.errors import InvalidInput
from edgeserve.postprocess.answers import AnswerOptions, Box, BoxesAnswer
from edgeserve.postprocess.rows import label_of, numbers, row_of, sigmoid
from edgeserve.preprocess import Frame
from edgeserve.tensors import Array, Tensors

# So many boxes with the best scores are compared with each other.
_COMPARED: Final = 2_000


def boxes(
    outputs: Tensors,
    row: int,
    how: Detection,
    labels: Sequence[str],
    frame: Frame | None,
    options: AnswerOptions,
    *,
    batched: bool,
    size: tuple[int, int],
) -> BoxesAnswer:
    """The boxes of one row of the outputs. `size` is the width and height of the model's input.

    Raises InvalidInput for outputs that are not of the layout.
    """
    corners, scores, found = _candidates(outputs, row, how, batched=batched)
    threshold = how.threshold if options.threshold is None else options.threshold
    most = how.max_detections if options.top_k is None else options.top_k
    if not len(corners) == len(scores) == len(found):
        raise InvalidInput(f"there are {len(corners)} boxes and {len(scores)} scores")
    corners = to_corners(corners, how.box)
    if how.unit == "shares":
        corners = corners * np.array([*size, *size], np.float64)
    good = (scores >= threshold) & np.isfinite(scores)
    kept = np.flatnonzero(good & np.isfinite(corners).all(axis=1))
    order = kept[np.argsort(-scores[kept], kind="stable")]
    if how.nms:
        order = order[:_COMPARED]
        order = order[suppressed(corners[order], found[order], how.iou_threshold, most)]
    order = order[:most]
    placed = corners[order] if frame is None else frame.to_image(corners[order])
    return BoxesAnswer(
        tuple(
            Box(
                label_of(int(index), labels),
                float(score),
                int(index),
                (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
            )
            for box, score, index in zip(
                placed, scores[order], found[order] - how.first_class, strict=True
            )
        )
    )


def _candidates(
    outputs: Tensors, row: int, how: Detection, *, batched: bool
) -> tuple[Array, Array, Array]:
    """Boxes `[n, 4]` as the model has them, their scores `[n]`, and the numbers of their classes `[n]`."""

    def read(name: str | None, rank: int) -> Array:
        if name is None or name not in outputs:
            raise InvalidInput(f"output '{name}' is missing: a detector's '{how.layout}' needs it")
        array = row_of(outputs[name], row, batched=batched, rank=rank, name=name)
        return array if array.dtype == np.float32 else numbers(array)  # FP32 of 80 x 8,400 is quick

    given = read(how.boxes, 2)
    least = {"rows": 6, "yolo_objectness": 5}.get(how.layout, 0)
    if given.shape[1] < least:
        raise InvalidInput(
            f"output '{how.boxes}' has {given.shape[1]} numbers for each box: a detector's '{how.layout}' has {least}"
        )
    if how.layout == "lists":
        scores, found = read(how.scores, 1), read(how.classes, 1)
        count = min(len(given), len(scores), len(found))
        if how.count is not None:
            count = min(count, max(0, int(np.nan_to_num(read(how.count, 0)))))
        given, scores, found = given[:count], scores[:count], found[:count]
    elif how.layout == "matrix":
        scores, found = _best(_activated(read(how.scores, 2), how).T, how)
        return _boxes(given, how), scores, found
    elif how.layout == "rows":
        given, scores, found = given[:, :4], given[:, 4], given[:, 5]
    elif how.layout == "yolo":
        scores, found = _best(_activated(given[4:], how), how)
        return _boxes(given[:4].T, how), scores, found
    else:
        likely, each = _activated(given[:, 4], how), _activated(given[:, 5:], how)
        scores, found = (
            (likely, np.zeros(len(given), int)) if not each.shape[1] else _best(each.T, how)
        )
        if each.shape[1]:
            scores = scores * likely
        return _boxes(given[:, :4], how), scores, found
    # A class that is not a number is none.
    known = np.isfinite(found)
    scores = np.where(known, _activated(scores, how), np.nan)
    return _boxes(given, how), scores, np.rint(np.where(known, found, -1)).astype(int)


def _boxes(given: Array, how: Detection) -> Array:
    if given.ndim != 2 or given.shape[1] != 4:
        raise InvalidInput(f"output '{how.boxes}' does not hold boxes of four numbers")
    return given


def _activated(scores: Array, how: Detection) -> Array:
    return sigmoid(scores) if how.activation == "sigmoid" else scores


def _best(scores: Array, how: Detection) -> tuple[Array, Array]:
    """The best score of each column of a matrix `[classes, n]`, and its class. Of a model whose class 0 is the
    background, that one is nothing."""
    first = max(0, how.first_class)
    classes = scores[first:]
    if not classes.size:
        return np.zeros(scores.shape[1]), np.zeros(scores.shape[1], int)
    found = classes.argmax(axis=0)
    best = np.take_along_axis(classes, found[None], axis=0)[0]
    if np.isnan(best).any():  # argmax takes NaN for the largest
        cleaned = np.where(np.isnan(classes), -np.inf, classes)
        found = cleaned.argmax(axis=0)
        best = np.take_along_axis(cleaned, found[None], axis=0)[0]
    return best, found + first


def to_corners(given: Array, box: str) -> Array:
    """Boxes `[n, 4]` as x0, y0, x1, y1."""
    a, b, c, d = given.T
    if box == "yxyx":
        a, b, c, d = b, a, d, c
    elif box == "xywh":
        c, d = a + c, b + d
    elif box == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return np.stack([a, b, c, d], axis=1)


def suppressed(corners: Array, classes: Array, threshold: float, most: int) -> list[int]:
    """Non-maximum suppression, class by class: the indices of the boxes to keep, at most `most`.

    `corners` `[n, 4]` are x0, y0, x1, y1, the best first. A box that overlaps a kept one of its class by more than
    `threshold` (intersection over union) is dropped.
    """
    kept: list[int] = []
    alive = np.ones(len(corners), bool)
    sizes = np.clip(corners[:, 2:] - corners[:, :2], 0, None)
    areas = sizes[:, 0] * sizes[:, 1]
    for at in range(len(corners)):
        if not alive[at]:
            continue
        kept.append(at)
        if len(kept) >= most:
            break
        rest = slice(at + 1, None)
        low = np.maximum(corners[rest, :2], corners[at, :2])
        high = np.minimum(corners[rest, 2:], corners[at, 2:])
        shared = np.clip(high - low, 0, None).prod(axis=1)
        union = areas[rest] + areas[at] - shared
        overlaps = shared > threshold * union
        alive[rest] &= ~(overlaps & (classes[rest] == classes[at]))
    return kept
