"""Reads images into one model's input."""

from __future__ import annotations

from typing import Any, Final, Self

import msgspec
import numpy as np

from edgeserve.bundle import Preprocess
from edgeserve.errors import InvalidInput
from edgeserve.preprocess.decoding import (
    IMAGE_TYPES,
    NETWORK_FORMATS,
    ImageLimits,
    UnreadableImage,
    decode_bytes,
    pillow,
)
from edgeserve.preprocess.geometry import Frame, Placing, placed
from edgeserve.tensors import Array, Interface, TensorSpec

_NUMBERS: Final = frozenset({"FP32", "FP16", "FP64", "UINT8", "INT8"})


class ReadImage(msgspec.Struct, frozen=True):
    """An image as the input of a model: the tensor, with a first axis of one row if the input has one for rows, and
    where the image is in it."""

    tensor: Array
    frame: Frame


class ImageReader:
    """Images of a network's clients as one model's input. May be used from several threads; decoding gives Python's
    lock away."""

    def __init__(
        self, how: Preprocess, spec: TensorSpec, limits: ImageLimits | None = None
    ) -> None:
        """Raises InvalidInput for an input that images of this preprocessing do not fit."""
        self.how = how
        self.spec = spec
        self.limits = limits or ImageLimits()
        self._shape = _shape(how, spec)
        self._mode = "L" if how.channels == "L" else "RGB"
        self._numbers = Normalisation(how)

    @classmethod
    def of(
        cls, how: Preprocess | None, interface: Interface, limits: ImageLimits | None = None
    ) -> Self | None:
        """The reader of a model's only input; None for a model that takes no images."""
        if how is None or len(interface.inputs) != 1:
            return None
        try:
            return cls(how, interface.inputs[0], limits)
        except InvalidInput:
            return None

    @property
    def row_bytes(self) -> int:
        """The size of one image as a tensor."""
        return int(np.prod(self._shape)) * self.spec.numpy_dtype.itemsize

    def read(self, data: bytes | memoryview, name: str = "the image") -> ReadImage:
        """An encoded image; `name` is what errors call it.

        Raises InvalidInput for bytes that are not an image that is read, or too large a one; DependencyMissing
        without pillow.
        """
        try:
            image, size = decode_bytes(data, self._mode, NETWORK_FORMATS, self.limits, self._needed)
        except UnreadableImage as error:
            kinds = ", ".join(kind.removeprefix("image/") for kind in IMAGE_TYPES)
            raise InvalidInput(
                f"{name} cannot be read", cause=str(error), hint=f"send one of {kinds}"
            ) from None
        return self._read(image, placed(size[0], size[1], self.how), size)

    def of_pixels(self, image: Any) -> ReadImage:
        """Of a PIL image."""
        image = image.convert(self._mode) if image.mode != self._mode else image
        return self._read(image, placed(image.width, image.height, self.how), image.size)

    def _needed(self, width: int, height: int) -> tuple[int, int]:
        place = placed(width, height, self.how)
        return place.width, place.height

    def _read(self, image: Any, place: Placing, size: tuple[int, int]) -> ReadImage:
        values = self._numbers.of(arranged(image, place, self.how))
        tensor = _typed(values, self.spec.dtype).reshape(self._shape)
        return ReadImage(tensor, place.frame(*size, self.how))


class Normalisation:
    """`(pixel * scale - mean) / std` for each channel, and the order of axes and channels."""

    def __init__(self, how: Preprocess) -> None:
        channels = 1 if how.channels == "L" else 3
        mean = np.broadcast_to(np.asarray(how.mean, np.float64), channels)
        std = np.broadcast_to(np.asarray(how.std, np.float64), channels)
        self._factor = (how.scale / std).astype(np.float32)
        self._offset = (-mean / std).astype(np.float32)
        self._first = how.layout == "NCHW"
        self._reversed = how.channels == "BGR"
        self._raw = bool((self._factor == 1).all() and (self._offset == 0).all())

    def of(self, pixels: Array) -> Array:
        """FP32 from UINT8 pixels `[height, width, channels]`, as `[channels, height, width]` for NCHW."""
        if self._reversed:
            pixels = pixels[:, :, ::-1]
        if self._first:
            pixels = pixels.transpose(2, 0, 1)
        result: Array = np.empty(pixels.shape, np.float32)
        if self._raw:
            result[...] = pixels
            return result
        if not self._first:
            np.multiply(pixels, self._factor, out=result)
            result += self._offset
            return result
        for plane, source, factor, offset in zip(
            result, pixels, self._factor, self._offset, strict=True
        ):
            np.multiply(source, factor, out=plane)
            plane += offset
        return result


def arranged(image: Any, place: Placing, how: Preprocess) -> Array:
    """The pixels of a PIL image in its place of the input: UINT8 `[height, width, channels]`."""
    module = pillow()
    resample = getattr(module.Resampling, how.interpolation.upper())
    size = (place.width, place.height)
    if image.size != size:
        image = image.resize(size, resample)
    left, top = place.left, place.top
    if place.width >= how.width and place.height >= how.height:
        if size != (how.width, how.height):
            image = image.crop((-left, -top, how.width - left, how.height - top))
        pixels = np.asarray(image)
        return pixels if pixels.ndim == 3 else pixels[:, :, None]
    inner = np.asarray(image)
    inner = inner if inner.ndim == 3 else inner[:, :, None]
    whole: Array = np.full((how.height, how.width, inner.shape[2]), how.pad, np.uint8)
    whole[top : top + place.height, left : left + place.width] = inner
    return whole


def _typed(values: Array, dtype: str) -> Array:
    """In the input's type; integers are rounded and cut to what it holds."""
    if dtype == "FP32":
        return values
    if dtype in ("FP16", "FP64"):
        return values.astype(np.float16 if dtype == "FP16" else np.float64)
    kind = np.uint8 if dtype == "UINT8" else np.int8
    bounds = np.iinfo(kind)
    return np.clip(np.rint(values), bounds.min, bounds.max).astype(kind)


def _shape(how: Preprocess, spec: TensorSpec) -> tuple[int, ...]:
    """Of one image as the input. Raises InvalidInput."""
    channels = 1 if how.channels == "L" else 3
    if how.layout == "NCHW":
        one: tuple[int, ...] = (channels, how.height, how.width)
    else:
        one = (how.height, how.width, channels)
    shapes = [(1, *one), one]
    if channels == 1:
        flat = (how.height, how.width)
        shapes += [(1, *flat), flat]
    for shape in shapes:
        if spec.dtype in _NUMBERS and spec.fits(shape):
            return shape
    raise InvalidInput(
        f"input '{spec.name}' is {spec.describe()}, which is not an image of {how.height} x {how.width}"
    )
