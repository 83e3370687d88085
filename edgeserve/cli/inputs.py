"""From files and stdin to a model's input tensors: .npz, .npy, JSON and images, told apart by content."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edgeserve.client import Question
from edgeserve.errors import DataError, InvalidInput, UsageError
from edgeserve.tensors import Array, Interface, Tensors, TensorSpec

if TYPE_CHECKING:
    from edgeserve.bundle import Preprocess

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


def read_question(
    sources: list[str], interface: Interface, preprocess: Preprocess | None
) -> Question:
    """What the files (or `-`, stdin) ask: one .npz, .npy or JSON, or any number of images.

    Raises DataError for a file that cannot be read, InvalidInput naming the input that does not fit.
    """
    contents = [_read(source) for source in sources]
    if len(contents) == 1 and not _is_image(contents[0]):
        return _one(sources[0], contents[0], interface)
    for source, content in zip(sources, contents, strict=True):
        if not _is_image(content):
            raise UsageError(
                f"{source} is not an image", hint="several inputs must all be images: a batch"
            )
    return Question(_images(sources, contents, interface, preprocess))


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
        raise DataError(f"{source} cannot be read", cause=str(error)) from None
    if isinstance(document, dict) and isinstance(document.get("inputs"), list):
        return _v2(source, document, interface)
    values = document if isinstance(document, dict) else {"": document}
    return Question(_named({n: _array(n, v) for n, v in values.items()}, interface))


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
        array = _array(given.name, given.data)
        try:
            inputs[given.name] = _typed(spec, array).reshape(given.shape)
        except ValueError:
            raise InvalidInput(
                f"input '{spec.name}': {array.size} elements do not make shape {given.shape}"
            ) from None
    outputs = tuple(o.name for o in request.outputs)
    return Question(inputs, outputs, request.parameters, request.id)


def _array(name: str, values: Any) -> Array:
    try:
        return np.asarray(values)
    except ValueError:
        raise DataError(f"'{name}': its lists differ in length") from None


def _named(arrays: Tensors, interface: Interface) -> Tensors:
    """Arrays as the model's inputs. A lone array without a name is the lone input."""
    known = {s.name for s in interface.inputs}
    given = {n: a for n, a in arrays.items() if n in known or n not in _LABELS}
    if len(given) == len(known) == 1 and next(iter(given)) in ("", "arr_0"):
        given = dict(zip(known, given.values(), strict=True))
    tensors: Tensors = {}
    for name, array in given.items():
        if not name:
            wanted = ", ".join(sorted(known))
            raise InvalidInput(f"the model has several inputs ({wanted}): give an .npz or JSON")
        spec = interface.input(name)
        tensors[name] = _batched(spec, _typed(spec, array))
    for spec in interface.inputs:
        if spec.name not in tensors:
            got = ", ".join(sorted(given)) or "nothing"
            raise InvalidInput(f"input '{spec.name}' ({spec.describe()}) is missing, got {got}")
    return tensors


def _batched(spec: TensorSpec, array: Array) -> Array:
    """One sample may come without the batch axis."""
    return array[None] if array.ndim == len(spec.shape) - 1 else array


def _typed(spec: TensorSpec, array: Array) -> Array:
    """The array in the model's element type, where that loses nothing but precision."""
    wanted = spec.numpy_dtype
    if spec.dtype == "BYTES":
        if array.dtype.kind not in "SUO":
            raise InvalidInput(f"input '{spec.name}': expected texts, got {array.dtype}")
        texts = [t if isinstance(t, bytes) else str(t).encode() for t in array.reshape(-1).tolist()]
        result = np.empty(len(texts), dtype=object)
        result[:] = texts
        return result.reshape(array.shape)
    if array.dtype.kind in "SUO" or not np.can_cast(array.dtype, wanted, "same_kind"):
        raise InvalidInput(f"input '{spec.name}': expected {spec.dtype} values, got {array.dtype}")
    with np.errstate(over="ignore"):
        typed = array.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(typed, array):
        raise InvalidInput(f"input '{spec.name}': a value is outside {spec.dtype}")
    return typed


def _images(
    sources: list[str], contents: list[bytes], interface: Interface, preprocess: Preprocess | None
) -> Tensors:
    from edgeserve.preprocess import read_image

    if len(interface.inputs) != 1:
        raise UsageError(
            f"an image is one input, the model has {len(interface.inputs)}",
            hint="give an .npz or JSON",
        )
    if preprocess is None:
        raise UsageError(
            "nothing says how an image becomes this model's input",
            hint="--preprocess FILE.toml; `convert --image-size` stores it in the bundle",
        )
    (spec,) = interface.inputs
    images = [
        read_image(io.BytesIO(content), source, preprocess)
        for source, content in zip(sources, contents, strict=True)
    ]
    return {spec.name: np.stack([_typed(spec, image) for image in images])}
