"""Arrays of numpy as bodies: read as numpy writes them, never as Python."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols.bodies.tables import from_npy, to_npy

ARRAYS: list[Any] = [
    np.float32([[1, 2]]),
    np.array(3.0),
    np.zeros((0, 4)),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.array(["äb", "c"]),
    np.array([b"x"]),
    np.array([True]),
    np.arange(3, dtype=">i4"),
    np.float16([1]),
    np.zeros((2, 1, 3), np.uint8),
    np.array([""]),
]


def written(array: Any, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{list(a.shape)}")
def test_what_numpy_writes_is_read(array: Any, version: tuple[int, int]) -> None:
    found = from_npy(written(array, version))
    np.testing.assert_array_equal(found, array)
    assert (found.dtype, found.shape) == (array.dtype.newbyteorder("="), array.shape)
    assert found.flags.c_contiguous


def test_what_is_written_is_read_by_numpy() -> None:
    for array in (np.float32([[1, 2]]), np.asfortranarray(np.ones((2, 3)))):
        np.testing.assert_array_equal(np.load(io.BytesIO(to_npy(array))), array)
    texts = np.array([b"a", b"bc"], object)
    assert np.load(io.BytesIO(to_npy(texts))).tolist() == [b"a", b"bc"]


@pytest.mark.parametrize(
    "array",
    [np.array([None]), np.array([1j]), np.array([(1, 2)], "i4,f4"), np.array(["2020"], "M8[D]")],
    ids=lambda a: str(a.dtype),
)
def test_objects_and_other_types_are_refused(array: Any) -> None:
    with pytest.raises(InvalidInput):
        from_npy(written(array))


def header(text: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x04\x00\x02\x00{}",
        header("{"), header("{}"), header("[]"), header("{'descr': __import__('os').getpid()}"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", bytes(7)),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 0), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }" % ("1," * 65)),
        header("{'descr': '<f3', 'fortran_order': False, 'shape': (), }"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1L,), }", bytes(4)),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}", bytes(4)),
    ],
    ids=range(15),
)  # fmt: skip
def test_a_damaged_file_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        from_npy(body)


@given(st.data())
def test_a_changed_byte_is_an_array_or_an_error(data: st.DataObject) -> None:
    body = bytearray(written(np.arange(6, dtype=np.int16).reshape(2, 3)))
    at = data.draw(st.integers(0, len(body) - 1))
    body[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidInput):
        assert from_npy(bytes(body)).size <= len(body)
