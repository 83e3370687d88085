"""From files and stdin to a model's input tensors: .npz, .npy, JSON and images, recognised by content."""

from __future__ import annotations

import io
import json
import math
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgeserve.client import Question
from edgeserve.errors import DataError, InvalidInput, UsageError
from edgeserve.tensors import Array, Interface, Tensors, TensorSpec, as_bytes
from edgeserve.values import Misfit, array_of, fitting, unreadable

if TYPE_CHECKING:
    from edgeserve.bundle import Preprocess
    from edgeserve.preprocess import Frame

STDIN = "-"
_JSON_STARTS = (b"{", b"[")
_LABELS = ("label", "labels")  # what labelled data hold beside the inputs


class _V2Input(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: list[int]
    data: Any


class _Named(msgspec.Struct, frozen=True):
    name: str


class _V2Request(msgspec.Struct, frozen=True):
    inputs: list[_V2Input]
    outputs: list[_Named] = []
    parameters: dict[str, str | int | float | bool] = {}
    id: str | None = None


class ReadInputs(msgspec.Struct, frozen=True):
    """What files ask, and where images are in the input, if they are images."""

    question: Question
    frames: tuple[Frame, ...] = ()


def read_question(
    sources: list[str], interface: Interface, preprocess: Preprocess | None
) -> ReadInputs:
    """What the files (or `-`, stdin) ask: one .npz, .npy or JSON, or any number of images.

    Raises DataError for a file that cannot be read, InvalidInput naming the input that does not fit.
    """
    contents = [_read(source) for source in sources]
    if len(contents) == 1 and not _is_image(contents[0]):
        return ReadInputs(_one(sources[0], contents[0], interface))
    for source, content in zip(sources, contents, strict=True):
        if not _is_image(content):
            raise UsageError(
                f"{source} is not an image", hint="several inputs must all be images: a batch"
            )
    return _images(sources, contents, interface, preprocess)


def _read(source: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if source == STDIN else Path(source).read_bytes()
    except OSError as error:
        raise DataError(f"{source} cannot be read", cause=error.strerror) from None


def _is_image(content: bytes) -> bool:
    known = content.startswith((b"PK", b"\x93NUMPY")) or content.lstrip()[:1] in _JSON_STARTS
    return bool(content) and not known


def _one(source: str, content: bytes, interface: Interface) -> Question:
    try:
        if content.startswith(b"PK"):
            return Question(_named(_npz(content), interface))
        if content.startswith(b"\x93NUMPY"):
            array = np.load(io.BytesIO(content), allow_pickle=False)
            return Question(_named({"": array}, interface))
        document = json.loads(content)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, RecursionError) as error:
        raise unreadable(f"{source} cannot be read", error) from None
    if isinstance(document, dict) and isinstance(document.get("inputs"), list):
        return _v2(source, document, interface)
    values = document if isinstance(document, dict) else {"": document}
    return Question(_named(values, interface))


def _npz(content: bytes) -> Tensors:
    archive = np.load(io.BytesIO(content), allow_pickle=False)
    return {name: archive[name] for name in archive.files}


def _v2(source: str, document: dict[str, Any], interface: Interface) -> Question:
    try:
        request = msgspec.convert(document, _V2Request)
    except msgspec.ValidationError as error:
        raise DataError(f"{source} is not a v2 request", cause=str(error)) from None
    inputs: Tensors = {}
    for given in request.inputs:
        spec = interface.input(given.name)
        if given.datatype != spec.dtype:
            raise InvalidInput(f"input '{spec.name}': expected {spec.dtype}, got {given.datatype}")
        array = _typed(spec, given.data)
        if array.size != math.prod(given.shape):
            raise InvalidInput(
                f"input '{spec.name}': {array.size} elements do not fit shape {given.shape}"
            )
        inputs[given.name] = array.reshape(given.shape)
    outputs = tuple(o.name for o in request.outputs)
    return Question(inputs, outputs, request.parameters, request.id)


def _named(values: Mapping[str, Any], interface: Interface) -> Tensors:
    """Arrays and lists as the model's inputs. A lone one without a name is the lone input."""
    known = {s.name for s in interface.inputs}
    given = {n: v for n, v in values.items() if n in known or n not in _LABELS}
    if len(given) == len(known) == 1 and next(iter(given)) in ("", "arr_0"):
        given = dict(zip(known, given.values(), strict=True))
    tensors: Tensors = {}
    for name, value in given.items():
        if not name:
            wanted = ", ".join(sorted(known))
            raise InvalidInput(f"the model has several inputs ({wanted}): give an .npz or JSON")
        spec = interface.input(name)
        tensors[name] = _batched(spec, _typed(spec, value))
    for spec in interface.inputs:
        if spec.name not in tensors:
            got = ", ".join(sorted(given)) or "nothing"
            raise InvalidInput(f"input '{spec.name}' ({spec.describe()}) is missing, got {got}")
    return tensors


def _batched(spec: TensorSpec, array: Array) -> Array:
    """One sample may come without the batch axis."""
    return array[None] if array.ndim == len(spec.shape) - 1 else array


def _typed(spec: TensorSpec, value: Any) -> Array:
    """An array, or values of JSON, in the model's element type, where that loses nothing but precision."""
    try:
        if not isinstance(value, np.ndarray):
            array = array_of(value, spec.dtype)
            return as_bytes(array) if spec.dtype == "BYTES" else array
        if spec.dtype == "BYTES":
            if value.dtype.kind not in "SUO":
                raise Misfit(f"expected texts, got {value.dtype}")
            return as_bytes(value)
        return fitting(value, spec.dtype)
    except Misfit as error:
        raise InvalidInput(f"input '{spec.name}': {error}") from None


def _images(
    sources: list[str], contents: list[bytes], interface: Interface, preprocess: Preprocess | None
) -> ReadInputs:
    from edgeserve.preprocess import read_framed

    if len(interface.inputs) != 1:
        raise UsageError(
            f"an image is one input, the model has {len(interface.inputs)}",
            hint="give an .npz or JSON",
        )
    if preprocess is None:
        raise UsageError(
            "the preprocessing of images for this model is not known",
            hint="--preprocess FILE.toml; `convert --image-size` stores it in the bundle",
        )
    (spec,) = interface.inputs
    images = [
        read_framed(io.BytesIO(content), source, preprocess)
        for source, content in zip(sources, contents, strict=True)
    ]
    tensor = np.stack([_typed(spec, image) for image, _ in images])
    return ReadInputs(Question({spec.name: tensor}), tuple(frame for _, frame in images))
