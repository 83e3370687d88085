"""From images to a model's input tensors, as a bundle's Preprocess says."""

from edgeserve.preprocess.decoding import IMAGE_TYPES, ImageLimits, is_image
from edgeserve.preprocess.files import (
    IMAGE_SUFFIXES,
    image_files,
    load_image,
    read_framed,
    read_image,
)
from edgeserve.preprocess.geometry import Frame
from edgeserve.preprocess.reader import ImageReader, ReadImage

__all__ = [
    "IMAGE_SUFFIXES",
    "IMAGE_TYPES",
    "Frame",
    "ImageLimits",
    "ImageReader",
    "ReadImage",
    "image_files",
    "is_image",
    "load_image",
    "read_framed",
    "read_image",
]
