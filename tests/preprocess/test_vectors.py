"""Images become what torchvision makes of them; its results are stored (tests/data/make_image_vectors.py)."""

from __future__ import annotations

import io
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from edgeserve.bundle import Preprocess
from edgeserve.preprocess import ImageReader, read_image
from edgeserve.tensors import TensorSpec

VECTORS = np.load(Path(__file__).parents[1] / "data" / "image-vectors.npz")
CASES = sorted(name for name in VECTORS.files if " " in name)
SIDE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def preprocess(case: str) -> Preprocess:
    _, resize, interpolation = case.split()
    fields = {
        "height": SIDE, "width": SIDE, "layout": "NHWC", "scale": 1 / 255, "mean": MEAN, "std": STD,
        "crop_ratio": 0.9, "resize": resize, "interpolation": interpolation,
    }  # fmt: skip
    return msgspec.convert(fields, Preprocess)


@pytest.mark.parametrize("case", CASES)
def test_every_way_to_resize_is_torchvisions(case: str) -> None:
    file = io.BytesIO()
    Image.fromarray(VECTORS[case.split()[0]]).save(file, "PNG")
    how = preprocess(case)
    expected = (VECTORS[case] / 255 - np.array(MEAN)) / np.array(STD)
    served = ImageReader(how, TensorSpec("image", "FP32", ("batch", SIDE, SIDE, 3)))
    found = served.read(file.getvalue()).tensor[0]
    # A step of one pixel's value, in units of the tensor.
    step = 1 / 255 / min(STD)
    np.testing.assert_allclose(found, expected, atol=step + 1e-5)
    assert np.mean(np.abs(found - expected) > 1e-5) < 0.001  # and nearly all to the bit
    np.testing.assert_array_equal(read_image(io.BytesIO(file.getvalue()), "it", how), found)
