"""Outputs as JSON text: flat or nested, quickly, with a choice about what JSON has no form for."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from typing import Any, Final, Literal

import msgspec
import numpy as np
import orjson

from edgeserve.errors import InvalidInput
from edgeserve.tensors import Array
from edgeserve.wire.json import NO_JSON_FORM

# Bytes of an array that take some hundred microseconds to write as JSON.
_PIECE: Final = 65_536
# Python's lock goes to another thread only while its holder does not want it back.
_PAUSE_S: Final = 1e-6
# What becomes of NaN and infinity, which JSON cannot express: an error, Python's tokens, or null.
NotFinite = Literal["refuse", "token", "null"]


def json_data(name: str, array: Array, datatype: str, *, allow_nan: bool) -> bytes:
    """The flat JSON list of an output. Raises InvalidInput for what JSON cannot express."""
    if array.dtype == object:
        try:
            texts = [v.decode() if isinstance(v, bytes) else str(v) for v in array.reshape(-1)]
        except UnicodeDecodeError:
            raise InvalidInput(f"output '{name}' is not text: ask for binary data") from None
        return msgspec.json.encode(texts)
    if datatype in NO_JSON_FORM:
        raise InvalidInput(f"output '{name}': {datatype} has no JSON form, ask for binary data")
    flat = np.ascontiguousarray(array).reshape(-1)
    return _numbers(name, flat, "token" if allow_nan else "refuse")


def nested_json(
    name: str,
    array: Array,
    datatype: str,
    not_finite: NotFinite,
    *,
    as_b64: bool = False,
    most: int | None = None,
) -> bytes:
    """An output as nested JSON lists, or a number if it has no axes. FP16 and BF16 are written as the numbers that they
    are. Bytes that are not text, or all if `as_b64`, become `{"b64": "..."}`. Other threads run between the pieces of
    a long text.

    Raises InvalidInput for numbers that are not finite, if they are refused, and for a long text of more than `most`
    bytes.
    """
    if datatype == "BF16" and array.dtype == np.uint16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)

    def write(part: Array) -> bytes:
        if part.dtype == object:
            return msgspec.json.encode(_texts(part, as_b64=as_b64))
        return _numbers(name, np.ascontiguousarray(part).reshape(part.shape), not_finite)

    if array.nbytes <= _PIECE or not array.ndim:
        return write(array)
    pieces: list[bytes] = []
    size = 0
    for piece in _in_pieces(array, write):
        pieces.append(piece)
        size += len(piece)
        if most is not None and size > most:
            raise InvalidInput(f"the answer is larger than {most} bytes")
        time.sleep(_PAUSE_S)
    return b"".join(pieces)


def _in_pieces(array: Array, write: Callable[[Array], bytes]) -> Iterator[bytes]:
    """The text of an array with axes, a few rows at a time; of a long row likewise."""
    step = max(1, _PIECE * len(array) // max(1, array.nbytes))
    comma = b"["
    for first in range(0, len(array), step):
        part = array[first : first + step]
        if part.nbytes > _PIECE and part.ndim > 1:
            yield comma
            yield from _in_pieces(part[0], write)
        else:
            yield b"".join((comma, memoryview(write(part))[1:-1]))
        comma = b","
    yield b"]"


def _numbers(name: str, array: Array, not_finite: NotFinite) -> bytes:
    # One value is written as a list of one without its brackets: orjson does not know all of numpy's scalars.
    value = array if array.ndim else array.reshape(1)
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    text = text if array.ndim else text[1:-1]
    # The n of null: no number has one, and one byte is found fast.
    if array.dtype.kind == "f" and b"n" in text and not_finite != "null":
        if not_finite == "refuse":
            raise InvalidInput(
                f"output '{name}' holds NaN or infinity, which JSON cannot express: ask for binary "
                "data, or for the tokens NaN and Infinity with the parameter allow_nan"
            )
        return _with_tokens(text, array.reshape(-1))
    return text


def _with_tokens(text: bytes, flat: Array) -> bytes:
    """The tokens that Python's json module reads, where `text` has null for what is not finite."""
    odd = [
        b"NaN" if value != value else b"Infinity" if value > 0 else b"-Infinity"
        for value in flat[~np.isfinite(flat)].tolist()
    ]
    return b"".join(chain.from_iterable(zip_longest(text.split(b"null"), odd, fillvalue=b"")))


def _texts(array: Array, *, as_b64: bool) -> Any:
    written = np.empty(array.shape, object)
    for place, value in np.ndenumerate(array):
        written[place] = _text(value, as_b64=as_b64)
    return written.tolist() if array.ndim else written[()]


def _text(value: object, *, as_b64: bool) -> object:
    data = value if isinstance(value, bytes) else str(value).encode()
    if not as_b64:
        try:
            return data.decode()
        except UnicodeDecodeError:
            pass
    return {"b64": base64.b64encode(data).decode()}
