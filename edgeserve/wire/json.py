"""Tensors from their JSON form: strictly typed, nested or flat, checked before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np

from edgeserve.errors import InvalidInput
from edgeserve.tensors import Array, TensorSpec
from edgeserve.values import Misfit, checked, packed, unnested
from edgeserve.wire.text import kind_of, parse_json

NO_JSON_FORM: Final = {"FP16", "BF16"}
_SCALARS: Final[dict[str, Any]] = {"f": float, "i": int, "u": int, "b": bool}
_MAX_NESTED: Final = 8
# A millisecond or a few of parsing.
_PIECE: Final = 1 << 20
_SPACE: Final = b" \t\r\n"
_LIST: Final = ord("[")
_LOOK: Final = 64  # most numbers are shorter
_ROWS: Final = msgspec.json.Decoder(list[msgspec.Raw])
_MAX_SIZE: Final = 2**63 - 1


class JsonPort:
    """One input of a model: checks shapes for it, and makes arrays of JSON data.

    It has at most `max_elements` elements; `max_batch` is the model's, 0 for one without a batch dimension.
    """

    __slots__ = ("_decoders", "_dims", "_elements", "_rows", "spec")

    def __init__(self, spec: TensorSpec, max_elements: int, max_batch: int = 0) -> None:
        self.spec = spec
        self._rows = max_batch
        self._dims = spec.wire_shape
        self._elements = max_elements
        scalar = _SCALARS.get(spec.numpy_dtype.kind)
        self._decoders: list[msgspec.json.Decoder[Any]] = []
        if scalar is not None and spec.dtype not in NO_JSON_FORM:
            nested: Any = scalar
            for _ in range(_MAX_NESTED):
                nested = list[nested]
                self._decoders.append(msgspec.json.Decoder(nested))

    def shape_of(self, shape: list[int], datatype: str) -> tuple[int, ...]:
        """The checked shape. Raises InvalidInput."""
        if datatype == self.spec.dtype and len(shape) == len(self._dims):
            elements = 1
            for want, got in zip(self._dims, shape, strict=True):
                if got < 0 or (got != want and want >= 0):
                    break
                elements *= got
            else:
                if elements <= self._elements:
                    return tuple(shape)
        raise InvalidInput(self._misfit(shape, datatype))

    def _misfit(self, shape: list[int], datatype: str) -> str:
        spec = self.spec
        if datatype != spec.dtype:
            return f"input '{spec.name}': expected {spec.dtype}, got {datatype:.40}"
        if any(not 0 <= size <= _MAX_SIZE for size in shape):
            return f"input '{spec.name}' shape: expected a list of sizes from 0 to {_MAX_SIZE}"
        if not spec.fits(tuple(shape)):
            want = ",".join(str(d) for d in spec.shape)
            have = ",".join(str(d) for d in shape[:16])
            return f"input '{spec.name}': expected shape [{want}], got [{have}]"
        return (
            f"input '{spec.name}': expected at most {self._elements} elements, "
            f"got {math.prod(shape[:_MAX_NESTED])}"
        )

    def array_of(self, shape: tuple[int, ...], data: Any) -> Array:
        """`data` is JSON text or a general object. Raises InvalidInput."""
        spec = self.spec
        if data is msgspec.UNSET:
            raise InvalidInput(f"input '{spec.name}' has neither data nor binary_data_size")
        if spec.dtype in NO_JSON_FORM:
            raise InvalidInput(
                f"input '{spec.name}': {spec.dtype} has no JSON form, send binary data"
            )
        if type(data) is msgspec.Raw:
            if self._decoders and len(data) > _PIECE:
                return self._large(data, shape)
            array = self._typed(data, shape) if self._decoders else None
            if array is not None:
                return array
            data = parse_json(bytes(data))
        return self._general(shape, data)

    def _typed(self, text: msgspec.Raw, shape: tuple[int, ...]) -> Array | None:
        """The array, if all is as it should be; else None, and `_general` says why."""
        array: Array | None
        try:
            array = packed(self._decoders[0].decode(text), self.spec.dtype)
        except msgspec.MsgspecError:
            array = self._nested(text)
        except (ValueError, OverflowError):
            return None
        if array is None or array.size != math.prod(shape):
            return None
        return array.reshape(shape)

    def _nested(self, text: msgspec.Raw) -> Array | None:
        depth = _depth(text)
        if depth < 2:
            return None
        try:
            return self._decoded(text, depth)
        except (msgspec.MsgspecError, ValueError, OverflowError):
            return None

    def _decoded(self, text: msgspec.Raw | memoryview | bytes, depth: int) -> Array:
        if not 1 <= depth <= _MAX_NESTED:
            raise ValueError("nested too deep")
        values, shape = unnested(self._decoders[depth - 1].decode(text))
        return packed(values, self.spec.dtype).reshape(shape)

    def _large(self, text: msgspec.Raw, shape: tuple[int, ...]) -> Array:
        """What cannot be right is refused before it is parsed, and nothing is parsed twice to say more."""
        name, expected = f"input '{self.spec.name}'", math.prod(shape)
        if self._rows and shape[0] > self._rows:
            raise InvalidInput(f"{name}: expected a batch of 1 to {self._rows}, got {shape[0]}")
        found = commas(memoryview(text)) + 1
        if found != expected:
            raise InvalidInput(
                f"{name} data: expected {expected} elements for shape {list(shape)}, got {found}"
            )
        try:
            return self._in_pieces(memoryview(text), _depth(text)).reshape(shape)
        except OverflowError:
            raise InvalidInput(f"{name} data: a value is outside {self.spec.dtype}") from None
        except (msgspec.MsgspecError, ValueError, TypeError):
            raise InvalidInput(
                f"{name} data: expected {expected} {self.spec.dtype} values, in one list or in lists "
                "that do not differ in length"
            ) from None

    def nested(self, text: memoryview) -> Array:
        """Nested lists of numbers, whatever their shape. Other threads run between the pieces of a long text. Raises
        MsgspecError, ValueError, TypeError, OverflowError."""
        start, end = 0, len(text)
        while start < end and text[start] in _SPACE:
            start += 1
        while start < end and text[end - 1] in _SPACE:
            end -= 1
        return self._in_pieces(text[start:end], _depth(text[start:end]))

    def _in_pieces(self, text: memoryview, depth: int) -> Array:
        """As `_decoded`, but no call takes longer than a piece: other threads wait for Python's lock only
        that long. Raises what decoding raises, and ValueError for lists that differ in length."""
        if len(text) <= _PIECE or depth < 1:
            return self._decoded(text, depth)
        if text[0] != _LIST:
            raise ValueError("expected a list")
        if depth == 1:
            return np.concatenate([self._decoded(b"[%b]" % piece, 1) for piece in _cut(text)])
        parts: list[Array] = []
        rows: list[memoryview] = []
        size = 0
        for raw in _ROWS.decode(text):
            row = memoryview(raw)
            if size + len(row) > _PIECE and rows:
                parts.append(self._decoded(b"[%b]" % b",".join(rows), depth))
                rows, size = [], 0
            if len(row) > _PIECE:
                parts.append(self._in_pieces(row, depth - 1)[np.newaxis])
            else:
                rows.append(row)
                size += len(row)
        if rows:
            parts.append(self._decoded(b"[%b]" % b",".join(rows), depth))
        return np.concatenate(parts)

    def _general(self, shape: tuple[int, ...], data: Any) -> Array:
        spec = self.spec
        if not isinstance(data, list):
            raise InvalidInput(f"input '{spec.name}' data: expected a list, got {kind_of(data)}")
        expected = math.prod(shape)
        try:
            values, _ = unnested(data)
            array = checked(values, spec.dtype)
        except Misfit as error:
            raise InvalidInput(f"input '{spec.name}' data: {error}") from None
        if array.size != expected:
            raise InvalidInput(
                f"input '{spec.name}' data: expected {expected} elements for shape {list(shape)}, "
                f"got {array.size}"
            )
        return (_encoded(spec, array) if spec.dtype == "BYTES" else array).reshape(shape)


def commas(text: memoryview) -> int:
    """How many commas a list has: one less than its numbers, nested or not."""
    starts = range(0, len(text), _PIECE)
    return sum([bytes(text[i : i + _PIECE]).count(b",") for i in starts])


def _cut(text: memoryview) -> Iterator[bytes]:
    """The inside of a JSON list of numbers in pieces, without the commas between them. A list of anything
    else may be cut where its pieces are not JSON."""
    start, end = 1, len(text) - 1
    at, look = start + _PIECE, _LOOK
    while at < end:
        comma = bytes(text[at : at + look]).find(b",")
        if comma < 0:
            at, look = at + look, min(2 * look, _PIECE)
            continue
        yield bytes(text[start : at + comma])
        start = at + comma + 1
        at, look = start + _PIECE, _LOOK
    yield bytes(text[start:end])


def _depth(text: msgspec.Raw | memoryview) -> int:
    """How many lists open at the start of a JSON value."""
    depth = 0
    for char in bytes(memoryview(text)[:64]):
        if char == 0x5B:
            depth += 1
        elif char not in b" \t\r\n":
            break
    return depth


def _encoded(spec: TensorSpec, texts: Array) -> Array:
    try:
        texts[:] = [t.encode() for t in texts]
    except UnicodeEncodeError:  # half of a surrogate pair
        raise InvalidInput(f"input '{spec.name}' data: a string is not valid Unicode") from None
    return texts
