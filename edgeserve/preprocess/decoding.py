"""From the bytes of an image to its pixels, as it is looked at. What is too large is refused by its header, before it is
decoded."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, BinaryIO, Final

import msgspec
import numpy as np

from edgeserve.errors import DependencyMissing

# By media type: what images that come over a network may be. Pillow opens them by their content.
IMAGE_TYPES: Final = {
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/bmp": "BMP",
}
# Of files also those that only scanners and cameras write.
FILE_FORMATS: Final = (*IMAGE_TYPES.values(), "TIFF")
NETWORK_FORMATS: Final = tuple(IMAGE_TYPES.values())
_ORIENTATION: Final = 0x0112  # of EXIF
_UPRIGHT: Final = 1
# 32 MiB at most.
_BLOCK_BYTES: Final = 1 << 20
_KEPT_BLOCKS: Final = 32


class ImageLimits(msgspec.Struct, frozen=True):
    """What an image may have at most: `pixels` decoded, `bytes` as it comes."""

    pixels: int = 50_000_000
    bytes: int = 67_108_864


class UnreadableImage(Exception):
    """Bytes that are not an image that is read; the message says why."""


def is_image(data: bytes | memoryview) -> bool:
    """Whether bytes begin like an image of IMAGE_TYPES."""
    start = bytes(data[:12])
    return (
        start.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a"))
        or (start.startswith(b"BM") and len(data) > 26)
        or (start.startswith(b"RIFF") and start[8:12] == b"WEBP")
    )


@cache
def pillow() -> Any:
    """The module PIL.Image, which keeps memory for the next pictures. Raises DependencyMissing.

    Memory that is new for each picture comes from the system page by page, which takes as long as decoding does.
    """
    try:
        from PIL import Image
    except ImportError:
        raise DependencyMissing("pillow", needed_for="reading images", extra="images") from None
    if not any(name.startswith("PILLOW_") for name in os.environ):
        memory: Any = getattr(Image, "core", None)
        memory.set_block_size(_BLOCK_BYTES)
        memory.set_blocks_max(_KEPT_BLOCKS)
    return Image


def decode(
    file: BinaryIO,
    mode: str,
    formats: Sequence[str],
    limits: ImageLimits,
    needed: Callable[[int, int], tuple[int, int]],
) -> tuple[Any, tuple[int, int]]:
    """The first picture of an image, upright, in Pillow's `mode` RGB or L; and the width and height that it has in the
    file, upright, too.

    A JPEG is decoded at a fraction of its size where that is at least twice the size that is `needed` of an image
    with this width and height: it costs less than resizing does. Colours under transparency are kept and the
    transparency is dropped, as torchvision's loader does. Raises UnreadableImage, DependencyMissing.
    """
    module = pillow()
    # Pillow warns of what it takes for a bomb; here the pixels are bounded.
    from PIL import UnidentifiedImageError

    problems = (
        OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError,
        IndexError, KeyError, TypeError, NotImplementedError, ZeroDivisionError, AttributeError,
        module.DecompressionBombError, module.DecompressionBombWarning,
    )  # fmt: skip
    try:
        with module.open(file, formats=formats) as image:
            width, height = image.size
            if width * height > limits.pixels:
                raise UnreadableImage(
                    f"it has {width} x {height} pixels, at most {limits.pixels} are read"
                )
            if not width or not height:
                raise UnreadableImage("it has no pixels")
            turn = _orientation(image)
            wanted = needed(height, width) if turn > 4 else needed(width, height)
            if turn > 4:
                wanted = wanted[::-1]
            if image.format in ("JPEG", "MPO"):
                image.draft(None, (2 * wanted[0], 2 * wanted[1]))
            plain = _in_mode(image, mode)
            size = (height, width) if turn > 4 else (width, height)
            return _upright(plain, turn), size
    except UnidentifiedImageError:
        raise UnreadableImage("its format is not known") from None
    except problems as error:
        raise UnreadableImage(str(error) or type(error).__name__) from None


def decode_bytes(
    data: bytes | memoryview,
    mode: str,
    formats: Sequence[str],
    limits: ImageLimits,
    needed: Callable[[int, int], tuple[int, int]],
) -> tuple[Any, tuple[int, int]]:
    """As `decode`."""
    if len(data) > limits.bytes:
        raise UnreadableImage(f"it is {len(data)} bytes, at most {limits.bytes} are read")
    return decode(io.BytesIO(data), mode, formats, limits, needed)


def _in_mode(image: Any, mode: str) -> Any:
    if image.mode == "I;16" or (image.mode == "I" and image.format == "PNG"):
        # Pillow would cut what is above 255.
        values = np.asarray(image).astype(np.uint32)
        image = pillow().fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of any other conversion
    if image.mode != mode:
        return image.convert(mode)
    image.load()
    return image


def _orientation(image: Any) -> int:
    """EXIF's number, 1 to 8; upright if there is none, or what there is cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION, _UPRIGHT)
    except Exception:  # noqa: BLE001 - damaged metadata do not damage the picture
        return _UPRIGHT
    return found if isinstance(found, int) and 1 <= found <= 8 else _UPRIGHT


def _upright(image: Any, turn: int) -> Any:
    if turn == _UPRIGHT:
        return image
    way = pillow().Transpose
    ways = (
        way.FLIP_LEFT_RIGHT, way.ROTATE_180, way.FLIP_TOP_BOTTOM, way.TRANSPOSE,
        way.ROTATE_270, way.TRANSVERSE, way.ROTATE_90,
    )  # fmt: skip
    return image.transpose(ways[turn - 2])
