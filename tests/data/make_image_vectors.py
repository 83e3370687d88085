"""Writes image-vectors.npz: what torchvision makes of small pictures, for tests/preprocess/test_vectors.py.

    pip install torch torchvision pillow numpy
    python tests/data/make_image_vectors.py

Each picture is resized and cropped, and stretched, by torchvision's transforms for PIL images, with each interpolation.
The letterbox is torchvision's Resize and Pad with the sizes and the rounding that ultralytics' LetterBox uses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import functional as f

SIDE = 32
SHORTER = 36  # round(32 / 0.9)
PAD = 114
SIZES = ((50, 50), (97, 41), (41, 97), (67, 60), (19, 30), (333, 37))
WAYS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def picture(width: int, height: int, seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (height // 4, width // 4, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def letterboxed(image: Image.Image, way: f.InterpolationMode) -> Image.Image:
    scale = min(SIDE / image.width, SIDE / image.height)
    width, height = round(image.width * scale), round(image.height * scale)
    across, down = (SIDE - width) / 2, (SIDE - height) / 2
    left, top = round(across - 0.1), round(down - 0.1)
    right, bottom = round(across + 0.1), round(down + 0.1)
    resized = f.resize(image, [height, width], way)
    return f.pad(resized, [left, top, right, bottom], PAD)


def main() -> None:
    arrays = {}
    for seed, size in enumerate(SIZES):
        image = picture(*size, seed)
        key = f"{size[0]}x{size[1]}"
        arrays[key] = np.asarray(image)
        for name in WAYS:
            way = f.InterpolationMode(name)
            arrays[f"{key} crop {name}"] = np.asarray(
                f.center_crop(f.resize(image, [SHORTER], way), [SIDE, SIDE])
            )
            arrays[f"{key} stretch {name}"] = np.asarray(f.resize(image, [SIDE, SIDE], way))
            arrays[f"{key} letterbox {name}"] = np.asarray(letterboxed(image, way))
    np.savez_compressed(Path(__file__).with_name("image-vectors.npz"), **arrays)


if __name__ == "__main__":
    main()
