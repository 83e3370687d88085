"""From image files to a model's input tensors."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Final

from edgeserve.bundle import Preprocess
from edgeserve.errors import DataError
from edgeserve.preprocess.decoding import FILE_FORMATS, ImageLimits, UnreadableImage, decode
from edgeserve.preprocess.geometry import Frame, placed
from edgeserve.preprocess.reader import Normalisation, arranged
from edgeserve.tensors import Array

IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
)
# A photograph of the largest cameras fits.
_LIMITS: Final = ImageLimits(pixels=250_000_000)


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
    return read_framed(file, name, how)[0]


def read_framed(file: BinaryIO, name: str, how: Preprocess) -> tuple[Array, Frame]:
    """As `read_image`, and where the image is in the tensor."""

    def needed(width: int, height: int) -> tuple[int, int]:
        place = placed(width, height, how)
        return place.width, place.height

    mode = "L" if how.channels == "L" else "RGB"
    try:
        image, size = decode(file, mode, FILE_FORMATS, _LIMITS, needed)
    except UnreadableImage as error:
        raise DataError(f"{name} is not a readable image", cause=str(error)) from None
    width, height = size
    place = placed(width, height, how)
    tensor = Normalisation(how).of(arranged(image, place, how))
    return tensor, place.frame(width, height, how)
