"""Scores of classes for each pixel to a map of classes, as a PNG of the photograph's size."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from edgeserve.bundle import Segmentation
from edgeserve.errors import InvalidInput
from edgeserve.postprocess.answers import AnswerOptions, ClassMap, MaskAnswer, ScoredClass
from edgeserve.postprocess.rows import label_of, sigmoid
from edgeserve.preprocess import Frame
from edgeserve.tensors import Array

_MOST_CLASSES: Final = 256  # that 8 bits number


def mask(
    scores: Array,
    how: Segmentation,
    labels: Sequence[str],
    frame: Frame | None,
    options: AnswerOptions,
) -> MaskAnswer:
    """The map of one row: scores `[C, H, W]`, `[H, W, C]`, or numbers of classes `[H, W]`."""
    if not scores.size:
        raise InvalidInput(f"output '{how.output}' holds no pixels")
    found = _classes(scores, how, options)
    if frame is not None:
        found = _as_seen(found, frame)
    height, width = found.shape
    if how.layout != "index" and len(labels) == 1:  # the one class, which is there or not
        labels = ("background", *labels)
    numbers, counts = np.unique(found, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    shares = tuple(
        ScoredClass(
            label_of(int(numbers[i]), labels), float(counts[i] / found.size), int(numbers[i])
        )
        for i in order.tolist()
    )
    return MaskAnswer(ClassMap(width, height, png(found), shares))


def _classes(scores: Array, how: Segmentation, options: AnswerOptions) -> Array:
    """The number of the class of each pixel `[H, W]`, UINT8."""
    if how.layout == "index":
        if not 0 <= scores.min() <= scores.max() < _MOST_CLASSES:
            raise InvalidInput(f"a class map holds classes 0 to {_MOST_CLASSES - 1}")
        return scores.astype(np.uint8)
    axis = 0 if how.layout == "NCHW" else -1
    if scores.shape[axis] > _MOST_CLASSES:
        raise InvalidInput(f"a class map holds classes 0 to {_MOST_CLASSES - 1}")
    if scores.shape[axis] == 1:
        values = scores.squeeze(axis).astype(np.float32)
        values = sigmoid(values) if how.activation == "sigmoid" else values
        threshold = how.threshold if options.threshold is None else options.threshold
        above: Array = values >= threshold
        return above.astype(np.uint8)
    best: Array = scores.argmax(axis=axis)
    return best.astype(np.uint8)


def _as_seen(found: Array, frame: Frame) -> Array:
    """For each pixel of the image the class at its place in the model's input; nearest. What the input does not show,
    as the edges that were cropped, has the class of the nearest pixel that it shows."""
    height, width = found.shape

    def places(count: int, scale: float, offset: float, of_input: int, there: int) -> Array:
        at = ((np.arange(count) + 0.5) * scale + offset) * (there / of_input)
        cut: Array = np.clip(np.floor(at), 0, there - 1).astype(np.intp)
        return cut

    rows = places(frame.height, frame.scale_y, frame.offset_y, frame.input_height, height)
    columns = places(frame.width, frame.scale_x, frame.offset_x, frame.input_width, width)
    seen: Array = found[rows][:, columns]
    return seen


def png(pixels: Array) -> bytes:
    """An 8-bit greyscale PNG of UINT8 `[height, width]`. Source: the PNG specification, third edition, 5 and 11.2."""
    height, width = pixels.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row begins with its filter: none
    rows[:, 1:] = pixels

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(rows.tobytes(), 3)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
