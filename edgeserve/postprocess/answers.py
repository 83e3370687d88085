"""Answers for people, as records that become JSON: what one row, or one image, of a request is."""

from __future__ import annotations

from typing import Any

import msgspec


class AnswerOptions(msgspec.Struct, frozen=True):
    """What a client wants otherwise than the bundle says; None: as it says."""

    top_k: int | None = None
    threshold: float | None = None


class ScoredClass(msgspec.Struct, frozen=True):
    """A class and its score; `label` is its index as text in a bundle without labels."""

    label: str
    score: float
    index: int


class ClassesAnswer(msgspec.Struct, frozen=True):
    """The best classes, the best first."""

    classes: tuple[ScoredClass, ...]


class Box(msgspec.Struct, frozen=True):
    """A found thing. `box` is x0, y0, x1, y1 in pixels of the image that was sent, from its left top corner; of the
    model's input if no image was sent."""

    label: str
    score: float
    index: int
    box: tuple[float, float, float, float]


class BoxesAnswer(msgspec.Struct, frozen=True):
    """The boxes, the best score first."""

    boxes: tuple[Box, ...]


class ClassMap(msgspec.Struct, frozen=True):
    """A map of classes: `png` is an 8-bit greyscale PNG of the image's size (in JSON as base64) whose pixels are the
    numbers of classes. `classes` are those in it, with their shares of the pixels as scores, the largest first."""

    width: int
    height: int
    png: bytes
    classes: tuple[ScoredClass, ...]


class MaskAnswer(msgspec.Struct, frozen=True):
    """Which class each pixel belongs to."""

    mask: ClassMap


class EmbeddingAnswer(msgspec.Struct, frozen=True):
    """A vector."""

    embedding: list[float]


class TensorsAnswer(msgspec.Struct, frozen=True):
    """The outputs by name as nested lists, of a bundle without a postprocess."""

    outputs: dict[str, Any]


Answer = ClassesAnswer | BoxesAnswer | MaskAnswer | EmbeddingAnswer | TensorsAnswer
