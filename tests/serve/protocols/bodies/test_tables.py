"""CSV, JSON lines and archives of numpy, both ways."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest

from edgeserve.errors import InvalidInput
from edgeserve.serve.http.content import BodyTooLarge
from edgeserve.serve.protocols.bodies import long, tables
from edgeserve.serve.protocols.bodies.long import LongNumbers
from edgeserve.serve.protocols.bodies.tables import as_inputs, from_csv, from_npz, to_csv
from edgeserve.serve.protocols.bodies.written import ValueWriter
from edgeserve.serve.settings.limits import Limits
from edgeserve.tensors import Interface, Tensors, TensorSpec

MOST = 1 << 20


def interface(*inputs: tuple[str, str, tuple[int | str, ...]]) -> Interface:
    specs = tuple(TensorSpec(*entry) for entry in inputs)
    return Interface(specs, specs, 64)


def read(body: bytes, model: Interface, *, header: bool = False) -> Tensors:
    return from_csv(body, model, LongNumbers(model, 1 << 20), header=header)


X = interface(("x", "FP32", ("batch", 4)))


@pytest.mark.parametrize(
    ("body", "model", "header", "expected"),
    [
        (b"1,2,3,4\n5,6,7,8\n", X, False, [[1, 2, 3, 4], [5, 6, 7, 8]]),
        (b"\xef\xbb\xbf1,2,3,4\r\n\r\n", X, False, [[1, 2, 3, 4]]),
        (b"a,b,c,d\n1,2,3,4\n", X, True, [[1, 2, 3, 4]]),
        (b'".5", +1,1e3,nan\n', X, False, [[0.5, 1, 1000, np.nan]]),
        (b"1,2,3,4\n", interface(("x", "FP32", ("batch", 2, 2))), False, [[[1, 2], [3, 4]]]),
        (b"1\n2\n", interface(("x", "INT64", ("batch",))), False, [1, 2]),
        (b"1,2,3\n", interface(("x", "UINT8", ("batch", "n"))), False, [[1, 2, 3]]),
        (b'"a,b",c\n', interface(("x", "BYTES", ("batch", 2))), False, [[b"a,b", b"c"]]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("longest", [long.LONG_BYTES, 2], ids=["short", "long"])
def test_a_line_is_a_row(
    body: bytes, model: Interface, header: bool, expected: Any, longest: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for module in (long, tables):
        monkeypatch.setattr(module, "LONG_BYTES", longest)
    found = read(body, model, header=header)["x"]
    assert found.dtype == model.inputs[0].numpy_dtype
    np.testing.assert_array_equal(found, np.array(expected, found.dtype))


def test_columns_have_the_names_of_the_inputs() -> None:
    model = interface(("x", "FP32", ("batch", 1)), ("ids", "INT64", ("batch",)))
    found = read(b"ids,x\n7,1.5\n8,2.5\n", model, header=True)
    assert (found["ids"].tolist(), found["x"].tolist()) == ([7, 8], [[1.5], [2.5]])
    with pytest.raises(InvalidInput, match="a model with one input"):
        read(b"7,1.5\n", model)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no rows"), (b"\n\n", "no rows"), (b"1,2\n1\n", "differ in length"), (b"1,2\n", "a line of 2 values"),
        (b"1,2,3,x\n", "'x'"), (b"\xff", "UTF-8"), (b'"1', "a line of 1 values"), (b"1,2,3,4],[5\n", "is not a number"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("longest", [long.LONG_BYTES, 0], ids=["short", "long"])
def test_what_is_no_table_is_refused(
    body: bytes, words: str, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (long, tables):
        monkeypatch.setattr(module, "LONG_BYTES", longest)
    with pytest.raises(InvalidInput, match=words):
        read(body, X)


@pytest.mark.parametrize("longest", [long.LONG_BYTES, 0], ids=["short", "long"])
def test_a_header_names_every_value(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (long, tables):
        monkeypatch.setattr(module, "LONG_BYTES", longest)
    model = interface(("x", "FP32", ("batch", "n")))
    with pytest.raises(InvalidInput, match="has 1 names, its rows have 2 values"):
        read(b"x\n1,2\n", model, header=True)


def test_a_whole_number_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInput, match="outside UINT8"):
        read(b"256\n", interface(("x", "UINT8", ("batch", 1))))
    with pytest.raises(InvalidInput, match="whole number"):
        read(b"1.5\n", interface(("x", "INT64", ("batch", 1))))


def test_too_many_values_are_not_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (long, tables):
        monkeypatch.setattr(module, "LONG_BYTES", 8)
    monkeypatch.setattr(long, "MOST_VALUES", 6)
    assert read(b"1,2,3,4\n" * 4, X)["x"].shape == (4, 4)
    with pytest.raises(InvalidInput, match="more than 6 values"):
        read(b".5,2,3,4\n" * 4, X)


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.float32([[0.1, 2], [np.nan, -np.inf]]), b"0.1,2.0\nNaN,-Infinity\n"),
        (np.int64([1, 2]), b"1\n2\n"),
        (np.float32([[[1, 2], [3, 4]]]), b"1.0,2.0,3.0,4.0\n"),
        (np.float64(3), b"3.0\n"),
        (np.zeros((0, 4), np.float32), b""),
        (np.zeros((2, 0), np.float32), b"\n\n"),
        (np.array([[b"a,b", b"\xc3\xa4"]], object), '"a,b",ä\n'.encode()),
        (np.array([[True, False]]), b"True,False\n"),
    ],
)
def test_a_row_is_a_line(array: Any, text: bytes) -> None:
    assert to_csv(np.asarray(array), MOST) == text


def test_a_table_larger_than_the_server_sends_is_refused() -> None:
    for array in (np.zeros((100, 4)), np.full((100, 4), b"abc", object)):
        with pytest.raises(InvalidInput, match="larger than 1000 bytes"):
            to_csv(array, 1_000)


def test_rows_are_lines_of_json() -> None:
    specs = (TensorSpec("y", "FP32", ("batch", 2)), TensorSpec("z", "INT64", ("batch",)))
    writer = ValueWriter(Interface(specs, specs, 8), "token")
    outputs = {"y": np.float32([[1, 2], [3, 4]]), "z": np.int64([5, 6])}
    assert writer.lines(("y",), outputs, 2) == b"[1.0,2.0]\n[3.0,4.0]\n"
    assert writer.lines(("y", "z"), outputs, 2).splitlines()[1] == b'{"y":[3.0,4.0],"z":6}'
    whole = ValueWriter(Interface(specs, specs, 0), "token")
    assert whole.lines(("y",), outputs, 1) == b"[[1.0,2.0],[3.0,4.0]]\n"
    with pytest.raises(InvalidInput, match="not a row for each"):
        writer.lines(("y",), outputs, 3)


def archive(method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, data in members.items():
            made.writestr(f"{name}.npy", data)
    return file.getvalue()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_archives_are_read_and_bounded() -> None:
    x = np.zeros((100, 100), np.float32)
    body = archive(x=npy(x))
    np.testing.assert_array_equal(from_npz(body, Limits())["x"], x)
    with pytest.raises(BodyTooLarge):
        from_npz(body, Limits(body_bytes=10_000))
    for damaged in (b"", body[:50], body[:60] + b"\xff" * 20 + body[80:], body[:-30]):
        with pytest.raises(InvalidInput):
            from_npz(damaged, Limits())
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(InvalidInput, match="compressed otherwise"):
            from_npz(archive(method, x=npy(x)), Limits())


def test_arrays_take_the_types_of_the_inputs() -> None:
    assert as_inputs({"any": np.float64([[1, 2, 3, 4]])}, X)["x"].dtype == np.float32
    assert as_inputs({"x": np.int8([1, 2, 3, 4])}, X)["x"].shape == (1, 4)
    for wrong in (np.array([["a"]]), np.array([[True]])):
        with pytest.raises(InvalidInput):
            as_inputs({"x": wrong}, X)
    with pytest.raises(InvalidInput, match="BF16"):
        as_inputs({"x": np.float32([[1]])}, interface(("x", "BF16", ("batch", 1))))
