"""From an image file to a model's input tensor, as a bundle's Preprocess says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from edgeserve.bundle import Preprocess
from edgeserve.errors import DataError, DependencyMissing
from edgeserve.tensors import Array

IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
)


def image_files(folder: Path) -> list[Path]:
    """All images below `folder`, sorted by path."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def load_image(path: Path, how: Preprocess) -> Array:
    """`read_image` of a file."""
    try:
        with path.open("rb") as file:
            return read_image(file, str(path), how)
    except OSError as error:
        raise DataError(f"{path} is not a readable image", cause=str(error)) from None


def read_image(file: BinaryIO, name: str, how: Preprocess) -> Array:
    """Read, resize, crop and normalise one image: FP32 of `layout` without the batch axis.

    `name` is what errors call it. Raises DataError for a file that is not an image, DependencyMissing
    without pillow.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise DependencyMissing("pillow", needed_for="reading images", extra="images") from None
    try:
        with Image.open(file) as image:
            side = round(min(how.height, how.width) / how.crop_ratio)
            # JPEG can be decoded at a fraction of its size, which costs less than resizing does.
            image.draft(None, (2 * side, 2 * side))
            mode = "L" if how.channels == "L" else "RGB"
            return image_tensor(image.convert(mode), how)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name} is not a readable image", cause=str(error)) from None


def image_tensor(image: Any, how: Preprocess) -> Array:
    """The tensor of an opened PIL image that already has the right mode."""
    from PIL import Image

    side = round(min(how.height, how.width) / how.crop_ratio)
    scale = max(
        side / min(image.size),
        how.width / image.size[0],
        how.height / image.size[1],
    )
    size = (
        max(how.width, round(image.size[0] * scale)),
        max(how.height, round(image.size[1] * scale)),
    )
    resample = getattr(Image.Resampling, how.interpolation.upper())
    left, top = (size[0] - how.width) // 2, (size[1] - how.height) // 2
    cropped = image.resize(size, resample).crop((left, top, left + how.width, top + how.height))
    pixels = np.asarray(cropped, np.float32)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if how.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    mean, std = np.asarray(how.mean, np.float32), np.asarray(how.std, np.float32)
    normal = (pixels * np.float32(how.scale) - mean) / std
    if how.layout == "NCHW":
        normal = normal.transpose(2, 0, 1)
    return np.ascontiguousarray(normal, np.float32)
