"""Images that come over a network become exactly one model's input, or a clear refusal."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeserve.bundle import Preprocess
from edgeserve.errors import InvalidInput
from edgeserve.preprocess import ImageLimits, ImageReader, is_image
from edgeserve.tensors import Array, Interface, TensorSpec


def reader(
    how: Preprocess, dtype: str = "FP32", shape: tuple[int | str, ...] | None = None, **limits: int
) -> ImageReader:
    channels = 1 if how.channels == "L" else 3
    one = (channels, how.height, how.width)
    if how.layout == "NHWC":
        one = (how.height, how.width, channels)
    spec = TensorSpec("image", dtype, shape or ("batch", *one))
    return ImageReader(how, spec, ImageLimits(**limits))


def encoded(image: Any, kind: str = "PNG", **more: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Any:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def plain(image: Any) -> Array:
    return np.asarray(image, np.float32).transpose(2, 0, 1)


@pytest.mark.parametrize("turn", range(1, 9))
def test_the_orientation_of_the_camera_is_followed(turn: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(noise(12, 8), exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    how = Preprocess(upright.size[1], upright.size[0], resize="stretch")
    found = reader(how).read(data)
    np.testing.assert_array_equal(found.tensor[0], plain(upright))
    assert (found.frame.width, found.frame.height) == upright.size


def test_a_letterbox_keeps_the_shape_and_leads_back_to_the_photograph() -> None:
    image = Image.new("RGB", (200, 100), (255, 0, 0))
    found = reader(Preprocess(64, 64, resize="letterbox")).read(encoded(image))
    inside = found.tensor[0, 0] == 255
    assert inside[16:48].all()
    assert not inside[:16].any()
    assert (found.tensor[0, :, :16] == 114).all()
    np.testing.assert_allclose(
        found.frame.to_image(np.array([[0, 16, 64, 48], [32, 0, 64, 32]])),
        [[0, 0, 200, 100], [100, 0, 200, 50]],
    )


def test_a_crop_leads_back_to_the_photograph() -> None:
    found = reader(Preprocess(8, 8)).read(encoded(noise(32, 16)))
    np.testing.assert_allclose(found.frame.to_image(np.array([[0, 0, 8, 8]])), [[8, 0, 24, 16]])


@pytest.mark.parametrize(
    ("dtype", "shape", "expected"),
    [
        ("UINT8", None, (1, 3, 4, 4)),
        ("FP16", (3, 4, 4), (3, 4, 4)),
        ("FP64", (1, 3, 4, 4), (1, 3, 4, 4)),
        ("INT8", ("n", 3, "h", "w"), (1, 3, 4, 4)),
    ],
)
def test_the_tensor_has_the_type_and_shape_of_the_input(
    dtype: str, shape: tuple[int | str, ...] | None, expected: tuple[int, ...]
) -> None:
    how = Preprocess(4, 4, mean=(128.0,) if dtype == "INT8" else (0.0,))
    made = reader(how, dtype, shape)
    found = made.read(encoded(noise(4, 4)))
    made.spec.check(found.tensor)
    assert found.tensor.shape == expected


@pytest.mark.parametrize(
    ("how", "shape"),
    [
        (Preprocess(4, 4), ("n", 1, 4, 4)),
        (Preprocess(4, 4), ("n", 3, 4, 5)),
        (Preprocess(4, 4, layout="NHWC"), ("n", 3, 4, 4)),
        (Preprocess(4, 4), (4,)),
    ],
)
def test_a_model_that_takes_no_such_images_has_no_reader(
    how: Preprocess, shape: tuple[int | str, ...]
) -> None:
    spec = TensorSpec("x", "FP32", shape)
    assert ImageReader.of(how, Interface((spec,), ())) is None
    assert ImageReader.of(None, Interface((spec,), ())) is None
    with pytest.raises(InvalidInput, match="not an image of 4 x 4"):
        ImageReader(how, spec)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 7), (7, 7, 7)),
        (Image.new("RGBA", (4, 4), (1, 2, 3, 0)), (1, 2, 3)),
        (Image.new("LA", (4, 4), (9, 0)), (9, 9, 9)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("RGB", (4, 4), (5, 6, 7)).quantize(4), (5, 6, 7)),
        (Image.fromarray(np.full((4, 4), 257 * 40, np.uint16)), (40, 40, 40)),
    ],
)
def test_pictures_of_any_mode_become_rgb(image: Any, expected: tuple[int, ...]) -> None:
    found = reader(Preprocess(4, 4)).read(encoded(image)).tensor
    assert tuple(found[0, :, 2, 2]) == expected


def test_a_palette_with_transparency_is_read_without_a_warning() -> None:
    image = Image.new("RGB", (4, 4), (5, 6, 7)).quantize(4)
    data = encoded(image, transparency=bytes([0, 255, 255, 255]))
    assert tuple(reader(Preprocess(4, 4)).read(data).tensor[0, :, 0, 0]) == (5, 6, 7)


def test_cmyk_photographs_have_the_colours_that_viewers_show() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = reader(Preprocess(4, 4)).read(data).tensor[0, :, 0, 0]
    assert red > 245
    assert max(green, blue) < 10


def test_of_an_animation_the_first_picture_is_read() -> None:
    frames = [Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))]
    for kind in ("GIF", "WEBP", "PNG"):
        more = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **more)
        assert tuple(reader(Preprocess(4, 4)).read(data).tensor[0, :, 0, 0]) == (255, 0, 0), kind


PHOTOGRAPH = encoded(noise(64, 48), "JPEG")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "format is not known"),
        (b"not an image at all, but text", "format is not known"),
        (PHOTOGRAPH[:400], "runcated"),
        (PHOTOGRAPH[:5], "format is not known"),
        (encoded(noise(64, 48))[:600], ""),
        (encoded(noise(8, 8), "TIFF"), "format is not known"),
        (encoded(Image.new("1", (2000, 1000))), "2000 x 1000 pixels, at most 1000000 are read"),
        (b"\xff\xd8\xff" + bytes(30_000), "it is 30003 bytes, at most 30000 are read"),
    ],
)
def test_what_is_not_read_is_refused_with_the_reason(data: bytes, words: str) -> None:
    made = reader(Preprocess(4, 4), pixels=1_000_000, bytes=30_000)
    with pytest.raises(InvalidInput, match=r"photo\.jpg cannot be read") as error:
        made.read(data, "photo.jpg")
    assert words in str(error.value)
    assert "jpeg" in (error.value.hint or "")


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    """20,000 x 20,000 pixels in 49 KB; Pillow itself would warn, and then decode 400 MB."""
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")
        )

    side = 20_000
    head = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    with pytest.raises(InvalidInput, match="cannot be read"):
        reader(Preprocess(4, 4)).read(data)


def test_images_are_known_by_their_first_bytes() -> None:
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        assert is_image(encoded(noise(8, 8), kind)), kind
    for data in (b"", b'{"inputs": []}', b"\x93NUMPY", b"BM", b"RIFF1234WAVE", bytes(100)):
        assert not is_image(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photograph_is_what_pillow_makes_of_it(kind: str) -> None:
    """Resize(256), CenterCrop(224), ToTensor, Normalize, as torchvision writes them for Pillow's images."""
    image = noise(320, 281).resize((500, 333), Image.Resampling.BICUBIC)
    data = encoded(image, kind)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    opened = Image.open(io.BytesIO(data)).convert("RGB")
    resized = opened.resize((int(256 * 500 / 333), 256), Image.Resampling.BILINEAR)
    left, top = round((resized.width - 224) / 2), round((resized.height - 224) / 2)
    cropped = np.asarray(resized.crop((left, top, left + 224, top + 224)), np.float64) / 255
    expected = ((cropped - mean) / std).transpose(2, 0, 1)
    how = Preprocess(224, 224, crop_ratio=0.875, scale=1 / 255, mean=tuple(mean), std=tuple(std))
    found = reader(how).read(data).tensor[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size_and_looks_the_same() -> None:
    from edgeserve.preprocess.decoding import NETWORK_FORMATS, decode_bytes

    small = noise(40, 30)
    data = encoded(small.resize((2400, 1800), Image.Resampling.BICUBIC), "JPEG", quality=95)
    image, size = decode_bytes(data, "RGB", NETWORK_FORMATS, ImageLimits(), lambda w, h: (224, 168))
    assert size == (2400, 1800)
    assert image.size == (600, 450)
    how = Preprocess(168, 224, resize="stretch")
    whole = Image.open(io.BytesIO(data)).resize((224, 168), Image.Resampling.BILINEAR)
    found = reader(how).read(data)
    assert np.abs(found.tensor[0] - plain(whole)).max() <= 3
    assert np.abs(found.tensor[0] - plain(whole)).mean() < 0.5
    assert (found.frame.width, found.frame.height) == (2400, 1800)
