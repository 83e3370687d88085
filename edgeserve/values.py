"""Arrays from plain Python values, as JSON and callers give them.

The values decide what is accepted, not numpy: some of its versions wrap an integer that does not fit its
type, and all of them take `True` for 1 and 1.7 for 1.
"""

from __future__ import annotations

import array as arrays
from itertools import chain
from typing import Any, Final

import numpy as np

from edgeserve.errors import DataError
from edgeserve.tensors import DTYPES, Array

# Python's array type checks the range of integers, and makes an array of a short list several times as fast
# as numpy does. It has two names for 64 bits, one of them twice as fast. BF16 is given as its raw halves.
_LONG: Final = ("l", "L") if arrays.array("l").itemsize == 8 else ("q", "Q")
_CODES: Final = {
    "INT8": "b", "UINT8": "B", "INT16": "h", "UINT16": "H", "INT32": "i", "UINT32": "I",
    "INT64": _LONG[0], "UINT64": _LONG[1], "FP32": "f", "FP64": "d", "BF16": "H",
}  # fmt: skip
_TYPES: Final[dict[str, frozenset[type]]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str, bytes}),
}
_KINDS: Final = {bool: "a boolean", str: "a string", bytes: "a string", dict: "an object"}


class Misfit(ValueError):
    """Values that do not make an array of a type. The message says why."""


def array_of(values: Any, dtype: str) -> Array:
    """A number, text or boolean, or a list of them, nested or flat, as an array of that shape.

    Integers fit floating-point types and are rounded to them; numbers beyond FP32 or FP16 become infinity.
    Nothing else is converted. Raises Misfit.
    """
    flat, shape = unnested(values) if isinstance(values, list) else ([values], ())
    return checked(flat, dtype).reshape(shape)


def unnested(values: list[Any]) -> tuple[list[Any], tuple[int, ...]]:
    """The elements of a nested list in order, and its shape. Raises Misfit for lists that differ in length."""
    flat = values
    shape: tuple[int, ...] = (len(values),)
    while flat and type(flat[0]) is list:
        if set(map(type, flat)) != {list} or len(set(map(len, flat))) != 1:
            raise Misfit("its lists differ in length")
        shape = (*shape, len(flat[0]))
        flat = list(chain.from_iterable(flat))
    return flat, shape


def checked(values: list[Any], dtype: str) -> Array:
    """A flat array. Raises Misfit for a value of another kind, or outside the type."""
    allowed = _TYPES[DTYPES[dtype].kind]
    found = set(map(type, values))
    if not found <= allowed:
        if list in found:
            raise Misfit("its lists differ in length")
        wrong = next(v for v in values if type(v) not in allowed)
        wanted = "strings" if dtype == "BYTES" else f"{dtype} values"
        raise Misfit(f"expected {wanted}, got {_kind(wrong)}")
    try:
        return packed(values, dtype)
    except OverflowError:
        raise Misfit(f"a value is outside {dtype}") from None


def packed(values: list[Any], dtype: str) -> Array:
    """A flat array of values whose Python types are known to fit. Raises OverflowError for those outside
    the type."""
    code = _CODES.get(dtype)
    if code is not None:
        return np.frombuffer(arrays.array(code, values), DTYPES[dtype])
    if dtype == "FP16":
        with np.errstate(over="ignore"):
            return np.array(values, np.float64).astype(np.float16)
    if dtype == "BYTES":
        texts = np.empty(len(values), object)
        texts[:] = values
        return texts
    return np.array(values, DTYPES[dtype])


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return _KINDS.get(type(value), f"{value!r:.40}")


def fitting(array: Array, dtype: str) -> Array:
    """An array in another numeric type, where that loses nothing but precision. Raises Misfit."""
    wanted = DTYPES[dtype]
    if array.dtype == wanted:
        return array
    kind = array.dtype.kind
    numbers = "iuf" if wanted.kind == "f" else "iu"
    if wanted.kind == "b" or kind not in numbers:
        raise Misfit(f"expected {dtype} values, got {array.dtype}")
    if wanted.kind in "iu" and array.size:
        limits = np.iinfo(wanted)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise Misfit(f"a value is outside {dtype}")
    with np.errstate(over="ignore"):
        return array.astype(wanted)


def best_first(rows: Array) -> Array:
    """Indices that sort each row of a matrix of numbers from its largest to its smallest, equal ones in
    their order, NaN last; compared in their own type."""
    # ~x is -1 - x of signed and max - x of unsigned integers: the order reversed, without overflow.
    reversed_order = ~rows if rows.dtype.kind in "iu" else -rows
    return np.argsort(reversed_order, axis=-1, kind="stable")


def unreadable(message: str, error: Exception) -> DataError:
    """What to raise where numpy cannot read a file: `error` is numpy's own, from `allow_pickle=False`."""
    if "allow_pickle" not in str(error):
        return DataError(message, cause=str(error))
    return DataError(
        message,
        cause="it holds Python objects, whose pickles could execute anything",
        hint="save texts as numpy.array(texts, dtype=str)",
    )
