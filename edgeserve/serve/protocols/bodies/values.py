"""JSON values to the inputs of one model: rows ("instances"), where each is a value without the axis of the batch, and
columns ("inputs"), where each input comes whole."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.errors import InvalidInput
from edgeserve.preprocess import Frame, ImageReader
from edgeserve.serve.protocols.bodies.long import (
    LONG_BYTES,
    LongNumbers,
    columns_of,
    fields_of,
    general,
)
from edgeserve.serve.settings.limits import Limits
from edgeserve.tensors import Array, Interface, Tensors, TensorSpec
from edgeserve.values import Misfit, array_of, packed, unnested
from edgeserve.wire.json import commas
from edgeserve.wire.text import kind_of

_SCALARS: Final[dict[str, Any]] = {"f": float, "i": int, "u": int, "b": bool}
_B64: Final = "b64"
# Under these names clients of other servers send the bytes of an image.
_IMAGE_KEYS: Final = ("b64", "image_bytes", "image", "data", "body")


class Read(msgspec.Struct, frozen=True):
    """Inputs from a body. `whole`: the model has no axis for rows, and the one row is all of it. `frames` say where
    images are in the input, if images came."""

    inputs: Tensors
    rows: int
    whole: bool = False
    frames: tuple[Frame, ...] = ()


class ValueReader:
    """Reads JSON values for one model. May be used from several threads."""

    def __init__(self, interface: Interface, limits: Limits, images: ImageReader | None) -> None:
        self.interface = interface
        self.images = images
        self._limits = limits
        self._names = {spec.name for spec in interface.inputs}
        self._has_texts = any(spec.dtype == "BYTES" for spec in interface.inputs)
        self._typed = _typed_decoder(interface)
        self.numbers = LongNumbers(interface, limits.elements)

    # rows

    def rows(self, text: msgspec.Raw | bytes) -> Read:
        """A list of rows as JSON text. Raises InvalidInput."""
        data = memoryview(text)
        if self._typed is not None and not (self.images and b'"' in bytes(data)):
            found = self._quick(data)
            if found is not None:
                return found
        if len(data) > LONG_BYTES and self.images is None:
            named = columns_of(data)
            if named is not None and not _is_b64(named):
                return self._of_texts(named)
            if self._typed is not None and b'"' not in bytes(data):
                spec = self.interface.inputs[0]
                raise InvalidInput(
                    f"instances: expected rows of {spec.describe()} in lists that do not differ in length, "
                    "with numbers alone"
                )
        return self.listed(general(bytes(data)))

    def listed(self, rows: Any) -> Read:
        """A list of rows that is parsed already. Raises InvalidInput."""
        if not isinstance(rows, list):
            raise InvalidInput(f"instances: expected a list, got {kind_of(rows)}")
        if not rows:
            raise InvalidInput("instances: expected at least one, got an empty list")
        encoded = self.encoded_images(rows)
        if encoded is not None:
            return self.read_images(encoded)
        named = self._by_name(rows)
        return self._checked(
            {
                name: self._array(self.interface.input(name), values)
                for name, values in named.items()
            }
        )

    def _by_name(self, rows: list[Any]) -> dict[str, list[Any]]:
        """The values of each input, one a row."""
        specs = self.interface.inputs
        if all(isinstance(row, dict) and not _is_b64(row) for row in rows):
            keys = set(rows[0])
            for at, row in enumerate(rows):
                if set(row) != keys:
                    raise InvalidInput(
                        f"instances[{at}]: expected {sorted(keys)}, as the first one has, got {sorted(row)}"
                    )
            return {name: [row[name] for row in rows] for name in rows[0]}
        if len(specs) == 1:
            return {specs[0].name: rows}
        names = ", ".join(f"'{spec.name}'" for spec in specs)
        raise InvalidInput(f"instances: expected objects with the inputs {names}")

    def _quick(self, text: memoryview) -> Read | None:
        """Rows of numbers for the only input; None for what is not that, and `listed` says why."""
        (spec,) = self.interface.inputs
        decoder, depth = self._typed or (None, 0)
        assert decoder is not None
        self._check_count(spec, text)
        try:
            long = self.numbers.array(spec, text)
            if long is not None:
                array = long
            else:
                values, shape = unnested(decoder.decode(text))
                array = packed(values, spec.dtype).reshape(shape)
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError):
            return None
        if array.ndim != depth or not array.size:
            return None
        rows: int = array.shape[0]
        fits = spec.fits(array.shape) and rows <= self.interface.max_batch
        if fits and array.size <= self._limits.elements:
            return Read({spec.name: array}, rows)
        return self._checked({spec.name: array})

    def _check_count(self, spec: TensorSpec, text: memoryview) -> None:
        """Refuse more numbers than fit before they are parsed."""
        if len(text) <= LONG_BYTES or not self.interface.max_batch:
            return
        fixed = [d for d in spec.shape[1:] if isinstance(d, int)]
        if len(fixed) != len(spec.shape) - 1:
            return
        most = self.interface.max_batch * math.prod(fixed)
        if commas(text) + 1 > most:
            raise InvalidInput(
                f"input '{spec.name}': expected at most {most} values, in {self.interface.max_batch} rows"
            )

    # columns

    def columns(self, text: msgspec.Raw | bytes, *, ignore_unknown: bool = False) -> Read:
        """The inputs as JSON text: an object by name, or the value of the only one. Raises InvalidInput."""
        data = memoryview(text)
        if len(data) > LONG_BYTES:
            fields = fields_of(data)
            if fields is not None and ignore_unknown:
                fields = {name: v for name, v in fields.items() if name in self._names}
            if fields is not None and not any(b'"' in bytes(v) for v in fields.values()):
                return self._of_texts(fields)
            if fields is None and len(self.interface.inputs) == 1:
                (spec,) = self.interface.inputs
                array = self.numbers.array(spec, data)
                if array is not None:
                    return self._checked({spec.name: array})
        return self.named(general(bytes(data)), ignore_unknown=ignore_unknown)

    def _of_texts(self, texts: Mapping[str, msgspec.Raw | bytes]) -> Read:
        """Of the JSON text of each input. Raises InvalidInput."""
        arrays = {}
        for name, text in texts.items():
            spec = self.interface.input(name)
            array = self.numbers.array(spec, text)
            if array is None:
                array = self._array(spec, general(bytes(memoryview(text))))
            arrays[name] = array
        return self._checked(arrays)

    def named(self, value: Any, *, ignore_unknown: bool = False) -> Read:
        """As `columns`, of a value that is parsed already."""
        specs = self.interface.inputs
        if isinstance(value, dict) and not _is_b64(value):
            given: Mapping[str, Any] = value
            if ignore_unknown:
                given = {name: v for name, v in value.items() if name in self._names}
        elif len(specs) == 1:
            given = {specs[0].name: value}
        else:
            names = ", ".join(f"'{spec.name}'" for spec in specs)
            raise InvalidInput(f"inputs: expected an object with {names}, got {kind_of(value)}")
        if self.images is not None and len(given) == 1:
            (only,) = given.values()
            encoded = self.encoded_images(only if isinstance(only, list) else [only])
            if encoded is not None:
                return self.read_images(encoded)
        arrays = {name: self._array(self.interface.input(name), v) for name, v in given.items()}
        return self._checked(arrays)

    # images

    def read_images(self, encoded: Sequence[bytes | memoryview]) -> Read:
        """Encoded images, a row each. Raises InvalidInput; also for a model that takes none."""
        images = self.images
        if images is None:
            raise no_images(self.interface)
        most = self.interface.max_batch or 1
        if len(encoded) > most:
            raise InvalidInput(f"expected 1 to {most} images, got {len(encoded)}")
        one = len(encoded) == 1
        found = [
            images.read(data, "the image" if one else f"image {at}")
            for at, data in enumerate(encoded)
        ]
        tensor = found[0].tensor if one else np.concatenate([image.tensor for image in found])
        inputs = {images.spec.name: tensor}
        rows = self.interface.check(inputs)
        frames = tuple(image.frame for image in found)
        return Read(inputs, rows, whole=not self.interface.max_batch, frames=frames)

    def encoded_images(self, rows: list[Any]) -> list[bytes] | None:
        """The images that rows hold; None if they hold something else."""
        if self.images is None:
            return None
        found = [_encoded(row, self.images.spec.name) for row in rows]
        if not any(data is not None for data in found):
            return None
        for at, data in enumerate(found):
            if data is None:
                raise InvalidInput(f"instances[{at}]: expected an image, as others are")
        return [data for data in found if data is not None]

    # arrays

    def _array(self, spec: TensorSpec, values: Any) -> Array:
        try:
            if spec.dtype == "BYTES":
                return _texts(spec, values)
            if spec.dtype == "BF16":
                raise Misfit("BF16 has no JSON form")
            return array_of(values, spec.dtype)
        except Misfit as error:
            raise InvalidInput(f"input '{spec.name}': {error}") from None

    def _checked(self, arrays: Tensors) -> Read:
        """With the shapes of the interface. Raises InvalidInput."""
        whole = not self.interface.max_batch
        inputs = {name: self._fitted(self.interface.input(name), a) for name, a in arrays.items()}
        for name, array in inputs.items():
            if array.size > self._limits.elements:
                raise InvalidInput(
                    f"input '{name}': expected at most {self._limits.elements} elements, got {array.size}"
                )
        rows = self.interface.check(inputs)
        return Read(inputs, rows, whole)

    def _fitted(self, spec: TensorSpec, array: Array) -> Array:
        shape = array.shape
        if spec.fits(shape):
            return array
        if shape and shape[0] == 1 and not self.interface.max_batch and spec.fits(shape[1:]):
            return array.reshape(shape[1:])
        if spec.shape and spec.shape[-1] == 1 and spec.fits((*shape, 1)):
            return array.reshape((*shape, 1))
        return array


def no_images(interface: Interface) -> InvalidInput:
    """For an image that was sent to a model that takes none, or whose bundle does not say how."""
    described = ", ".join(f"'{spec.name}' {spec.describe()}" for spec in interface.inputs)
    return InvalidInput(
        f"this model does not take images: send tensors, {described}",
        hint="convert --image-size and --preprocess store how an image becomes the input",
    )


def _typed_decoder(interface: Interface) -> tuple[msgspec.json.Decoder[Any], int] | None:
    """What reads rows of the only input, if that holds numbers; and how deep its lists are."""
    if len(interface.inputs) != 1:
        return None
    (spec,) = interface.inputs
    scalar = _SCALARS.get(spec.numpy_dtype.kind)
    depth = len(spec.shape)
    if scalar is None or spec.dtype in ("FP16", "BF16") or not 1 <= depth <= 8:
        return None
    nested: Any = scalar
    for _ in range(depth):
        nested = list[nested]
    return msgspec.json.Decoder(nested), depth


def _is_b64(value: Mapping[str, Any]) -> bool:
    return len(value) == 1 and _B64 in value


def _encoded(row: Any, name: str) -> bytes | None:
    """The bytes of an image in a row: `{"b64": …}`, that below a usual name or the input's own, or text."""
    for _ in range(2):
        if isinstance(row, dict) and len(row) == 1:
            (key,) = row
            if key in _IMAGE_KEYS or key == name:
                row = row[key]
    if not isinstance(row, str):
        return None
    return decoded_b64(row, "an image")


def decoded_b64(text: str, what: str) -> bytes:
    """Base64, with or without padding, of the usual or the URL's alphabet. Raises InvalidInput."""
    data = text.encode("ascii", "replace")
    if data.startswith(b"data:"):
        data = data.partition(b",")[2]
    try:
        padded = data + b"=" * (-len(data) % 4)
        return base64.b64decode(
            padded, altchars=b"-_" if b"-" in data or b"_" in data else None, validate=True
        )
    except (binascii.Error, ValueError):
        raise InvalidInput(f"{what}: expected base64") from None


def _texts(spec: TensorSpec, values: Any) -> Array:
    """An array of bytes from text and `{"b64": …}`."""
    flat, shape = unnested(values) if isinstance(values, list) else ([values], ())
    array: Array = np.empty(len(flat), object)
    for at, value in enumerate(flat):
        if isinstance(value, dict) and _is_b64(value) and isinstance(value[_B64], str):
            array[at] = decoded_b64(value[_B64], f"input '{spec.name}'")
        elif isinstance(value, str):
            try:
                array[at] = value.encode()
            except UnicodeEncodeError:  # half of a surrogate pair
                raise Misfit("a string is not valid Unicode") from None
        elif isinstance(value, list):
            raise Misfit("its lists differ in length")
        else:
            raise Misfit(f"expected strings, got {kind_of(value)}")
    return array.reshape(shape)
