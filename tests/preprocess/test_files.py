"""Images become exactly the numbers that a Preprocess describes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeserve.bundle import Preprocess
from edgeserve.cli.images import preprocess_from
from edgeserve.errors import UsageError
from edgeserve.preprocess import load_image


def gradient(folder: Path, width: int, height: int) -> Path:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)[None, :]
    pixels[..., 1] = np.arange(height)[:, None]
    pixels[..., 2] = 200
    Image.fromarray(pixels).save(folder / "g.png")
    return folder / "g.png"


def test_the_centre_is_cropped_and_channels_are_normalised(tmp_path: Path) -> None:
    file = gradient(tmp_path, 12, 8)
    how = Preprocess(8, 8, mean=(0.0, 0.0, 200.0), std=(1.0, 2.0, 4.0))
    tensor = load_image(file, how)
    assert tensor.shape == (3, 8, 8)
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor[0, 0], np.arange(2, 10))
    np.testing.assert_array_equal(tensor[1, :, 0], np.arange(8) / 2)
    assert not tensor[2].any()


def test_layout_and_channel_order_are_kept(tmp_path: Path) -> None:
    file = gradient(tmp_path, 8, 8)
    rgb = load_image(file, Preprocess(8, 8))
    nhwc = load_image(file, Preprocess(8, 8, layout="NHWC", channels="BGR"))
    np.testing.assert_array_equal(nhwc[..., ::-1].transpose(2, 0, 1), rgb)
    assert load_image(file, Preprocess(8, 8, channels="L")).shape == (1, 8, 8)


def test_crop_ratio_resizes_before_cropping(tmp_path: Path) -> None:
    file = gradient(tmp_path, 16, 16)
    tensor = load_image(file, Preprocess(4, 4, crop_ratio=0.5, interpolation="nearest"))
    assert tensor[0, 0, 0] >= 4  # of 8 resized columns the middle four: the left quarter is gone


@pytest.mark.parametrize("size", [(5, 40), (40, 5)])
def test_images_of_any_shape_fill_the_input(tmp_path: Path, size: tuple[int, int]) -> None:
    assert load_image(gradient(tmp_path, *size), Preprocess(10, 20)).shape == (3, 10, 20)


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text('[preprocess]\nheight = 10\nwidth = 20\nmean = 1.5\nlayout = "NHWC"\n')
    found = preprocess_from(file, {"layout": "NCHW", "std": "1,2,3"})
    assert found == Preprocess(10, 20, layout="NCHW", mean=(1.5,), std=(1.0, 2.0, 3.0))
    assert preprocess_from(None, {"image_size": None}) is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"mean": "0.5"}, "no image size"),
        ({"image_size": "big"}, "neither N nor HxW"),
        ({"image_size": "8", "mean": "a,b"}, "not a list of numbers"),
        ({"image_size": "8", "mean": "1,2"}, "2 numbers for 3 channels"),
        ({"image_size": "8", "std": "0"}, "std must not be 0"),
        ({"image_size": "8", "interpolation": "magic"}, "describe no preprocessing"),
    ],
)
def test_flags_that_make_no_sense_say_why(flags: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        preprocess_from(None, flags)
    assert words in str(caught.value)


def test_an_unknown_field_suggests_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text("height = 8\nwidth = 8\ninterpolatoin = 'nearest'\n")
    with pytest.raises(UsageError) as caught:
        preprocess_from(file, {})
    assert "did you mean 'interpolation'?" in (caught.value.hint or "")
