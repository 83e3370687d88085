"""Which output is a map of classes."""

from __future__ import annotations

from typing import Final, Literal

from edgeserve.bundle import Segmentation
from edgeserve.conversion.answering.facts import (
    Doubt,
    Finding,
    Fit,
    OutputFacts,
    whole,
    wide,
    within,
)
from edgeserve.tensors import Array

# A map of classes beside one that only training needs.
_TRAINING: Final = {frozenset({"out", "aux"}): "out"}
_MOST_CLASSES: Final = 256


def segmentation(facts: OutputFacts, *, asked: bool) -> Finding:
    """A map of class numbers, or a score for each class and pixel of the image that the model takes."""
    if facts.image_size is None:
        return None
    fits: dict[str, Fit] = {}
    doubts: list[str] = []
    for name in facts.names:
        found = _map(facts, name, asked=asked)
        if isinstance(found, Fit):
            fits[name] = found
        elif found is not None:
            doubts.append(name)
    chosen = _TRAINING.get(frozenset(fits))
    if chosen is not None:
        return fits[chosen]
    indices = [
        f for f in fits.values() if isinstance(f.how, Segmentation) and f.how.layout == "index"
    ]
    if len(indices) == 1:  # of the scores beside it
        return indices[0]
    if len(fits) == 1:
        return next(iter(fits.values()))
    if fits or doubts:
        several = " or ".join(facts.shape(n) for n in fits or doubts)
        return Doubt(
            f"output {several} may be a map of classes: --labels, or --task segmentation (with --postprocess and "
            "output = …), says so"
        )
    return None


def _map(facts: OutputFacts, name: str, *, asked: bool) -> Finding:
    if not facts.is_number(name):
        return None
    if facts.kind(name) == "ids" or (not facts.is_float(name) and asked):
        rows = facts.squeezed(name, 2)
        good = rows is not None and _is_map(rows[0]) and within(rows, 0, _MOST_CLASSES - 1)
        return Fit(Segmentation(name, "index"), "it holds a class number for each pixel") if good else None  # fmt: skip
    rows = facts.squeezed(name, 3) if all(r.ndim >= 3 for r in facts.rows(name)) else None
    if rows is None or not facts.is_float(name):
        return None
    layout = _layout(facts, name, rows[0])
    if layout is None:
        return None
    classes = rows[0].shape[0 if layout == "NCHW" else -1]
    kind, axis = facts.kind(name), -3 if layout == "NCHW" else -1
    if classes > _MOST_CLASSES:
        return None
    named = facts.labels is not None and (
        len(facts.labels) == classes if classes > 1 else len(facts.labels) in (1, 2)
    )
    by_softmax = kind == "scores" and classes > 1 and facts.kinds[name].axis == axis
    if named or by_softmax or asked:
        because = (
            (f"its {classes} channels have labels" if classes > 1 else "its channel has a label") if named
            else facts.kinds[name].because if by_softmax
            else "--task says so"
        )  # fmt: skip
        if classes > 1 or kind == "probabilities":
            return Fit(Segmentation(name, layout), because)
        if not facts.has_graph and within(wide(rows), 0, 1):
            return Fit(Segmentation(name, layout), because)
        return Fit(Segmentation(name, layout, "sigmoid"), because)
    # As many channels as the image has are a picture: one that was restored, or painted over.
    picture = facts.image_channels == classes > 1
    return Doubt(name) if not picture and (classes > 1 or kind == "probabilities") else None


def _is_map(pixels: Array) -> bool:
    return pixels.ndim == 2 and min(pixels.shape) > 1 and whole([pixels])


def _layout(facts: OutputFacts, name: str, row: Array) -> Literal["NCHW", "NHWC"] | None:
    """NCHW or NHWC, by which of them has the image's shape; None if none has."""
    size = facts.image_size
    assert size is not None
    a, b, c = row.shape
    first, last = _like((b, c), size), _like((a, b), size)
    if first and last:
        return "NCHW" if facts.channels_first else "NHWC"
    return "NCHW" if first else "NHWC" if last else None


def _like(pixels: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a map has an image's shape, of 1/8 of its size or more."""
    (height, width), (tall, broad) = pixels, size
    within_one = abs(height * broad - width * tall) <= max(tall, broad)
    return min(height, width) > 1 and 8 * height >= tall and height <= 2 * tall and within_one
