"""Where an image's pixels land in a model's input: crop, letterbox or stretch, and the way back."""

from __future__ import annotations

import msgspec
import numpy as np

from edgeserve.bundle import Preprocess
from edgeserve.tensors import Array


class Frame(msgspec.Struct, frozen=True):
    """One image in a model's input. `width` and `height` are the image's own, in pixels, as it is looked at.

    A point of the image at `x` is at `x * scale_x + offset_x` of the input, which is `input_width` pixels wide;
    likewise `y`.
    """

    width: int
    height: int
    input_width: int
    input_height: int
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float

    def to_image(self, boxes: Array) -> Array:
        """Boxes `[n, 4]` as x0, y0, x1, y1 in pixels of the input, in pixels of the image and inside it."""
        offset = np.array([self.offset_x, self.offset_y] * 2)
        scale = np.array([self.scale_x, self.scale_y] * 2)
        most = np.array([self.width, self.height] * 2)
        moved: Array = (np.asarray(boxes, np.float64) - offset) / scale
        return moved.clip(0.0, most)


class Placing(msgspec.Struct, frozen=True):
    """An image is resized to `width` and `height`; its left top corner is then at (`left`, `top`) of the input,
    negative where it is cropped."""

    width: int
    height: int
    left: int
    top: int

    def frame(self, width: int, height: int, how: Preprocess) -> Frame:
        """Of an image with these pixels."""
        return Frame(
            width,
            height,
            how.width,
            how.height,
            self.width / width,
            self.height / height,
            self.left,
            self.top,
        )


def placed(width: int, height: int, how: Preprocess) -> Placing:
    """How an image of `width` and `height` pixels is placed."""
    if how.resize == "stretch":
        return Placing(how.width, how.height, 0, 0)
    if how.resize == "letterbox":
        return _letterboxed(width, height, how)
    return _cropped(width, height, how)


def _cropped(width: int, height: int, how: Preprocess) -> Placing:
    """As torchvision's Resize and CenterCrop: the shorter side is exact, the other one is cut to whole pixels."""
    side = round(min(how.height, how.width) / how.crop_ratio)
    if width <= height:
        new_width, new_height = side, int(side * height / width)
    else:
        new_width, new_height = int(side * width / height), side
    scale = max(how.width / new_width, how.height / new_height)
    if scale > 1:  # an input that is not square
        new_width = max(how.width, round(new_width * scale))
        new_height = max(how.height, round(new_height * scale))
    left = round((new_width - how.width) / 2)
    top = round((new_height - how.height) / 2)
    return Placing(new_width, new_height, -left, -top)


def _letterboxed(width: int, height: int, how: Preprocess) -> Placing:
    """As the YOLO families do: the image keeps its shape, and what is left of the input is filled evenly."""
    scale = min(how.width / width, how.height / height)
    new_width = min(how.width, max(1, round(width * scale)))
    new_height = min(how.height, max(1, round(height * scale)))
    # Their rounding: half a pixel goes to the right and to the bottom.
    left = round((how.width - new_width) / 2 - 0.1)
    top = round((how.height - new_height) / 2 - 0.1)
    return Placing(new_width, new_height, left, top)
