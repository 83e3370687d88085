"""Values as JSON: long ones are read in pieces and never become Python's objects, and mean the same as short ones."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols.bodies import dialects, long, values
from edgeserve.serve.protocols.bodies.dialects import Dialect, DialectCodec, DialectTerms
from edgeserve.serve.protocols.bodies.media import Media
from edgeserve.serve.protocols.bodies.values import ValueReader
from edgeserve.serve.protocols.v2.codec import V2
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.shm import SharedMemory
from edgeserve.tensors import Interface, TensorSpec
from tests.serve.found import found_bundle
from tests.serve.protocols.doubling import doubling_bundle
from tests.serve.protocols.opened import opened

LIMITS = Limits(elements=100_000)


def reader(*shape: int | str, dtype: str = "FP32", max_batch: int = 64) -> ValueReader:
    spec = TensorSpec("x", dtype, shape)
    return ValueReader(Interface((spec,), (spec,), max_batch), LIMITS, None)


@pytest.fixture
def anything_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts of more than eight bytes are long, and read in pieces of sixteen."""
    for module in (long, values, dialects):
        monkeypatch.setattr(module, "LONG_BYTES", 8)
    monkeypatch.setattr("edgeserve.wire.json._PIECE", 16)
    monkeypatch.setattr(long, "MOST_VALUES", 30)


@pytest.mark.parametrize("dtype", ["FP32", "INT64", "FP16", "BOOL", "UINT8"])
def test_long_rows_are_read_as_short_ones(dtype: str, request: pytest.FixtureRequest) -> None:
    spec = TensorSpec("x", dtype, ())
    rows = (np.arange(24).reshape(2, 3, 4) % (2 if dtype == "BOOL" else 100)).astype(
        spec.numpy_dtype
    )
    text = json.dumps(rows.tolist()).encode()
    short = reader("batch", 3, 4, dtype=dtype)
    expected = short.rows(text)
    request.getfixturevalue("anything_is_long")
    for read in (
        expected,
        short.rows(text),
        short.columns(text),
        short.columns(b'{"x":%b}' % text),
    ):
        assert read.rows == 2
        np.testing.assert_array_equal(read.inputs["x"], rows)


@pytest.mark.parametrize(
    "text",
    ["[[1,2],[3]]", "[[1,2],3]", '[[1,"a"]]', "[[1,2],[[3],4]]", "[[1,2]", "[[1,2],[3,4e999]]"],
)
@pytest.mark.usefixtures("anything_is_long")
def test_long_rows_that_are_wrong_are_refused(text: str) -> None:
    for read in (reader("batch", 2).rows, reader("batch", 2).columns):
        with pytest.raises(InvalidInput):
            read(text.encode())


@pytest.mark.usefixtures("anything_is_long")
def test_more_values_than_fit_are_refused_before_they_are_read() -> None:
    with pytest.raises(InvalidInput, match="at most 4 values, in 2 rows"):
        reader("batch", 2, max_batch=2).rows(b"[[1,2],[3,4],[5,6]]")
    with pytest.raises(InvalidInput, match="a batch of 1 to 2, got 3"):
        reader("batch", "n", max_batch=2).rows(b"[[1,2],[3,4],[5,6]]")


@pytest.mark.usefixtures("anything_is_long")
def test_too_many_values_do_not_become_objects() -> None:
    with pytest.raises(InvalidInput, match="more than 30 values"):
        reader("batch", 2, dtype="BYTES").rows(json.dumps([["a", "b"]] * 20).encode())
    with pytest.raises(InvalidInput, match="more than 30 values"):
        long.general(b"[" + b"{}," * 31 + b"{}]")


def test_a_model_without_rows_takes_one() -> None:
    for text in (b"[[1,2]]", b"[[[1,2]]]"):
        read = reader(1, 2, max_batch=0).rows(text)
        assert (read.whole, read.inputs["x"].shape) == (True, (1, 2))


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> list[DialectCodec]:
    """Of a model with one input, and of one with two."""
    folder = tmp_path_factory.mktemp("bodies")
    v2 = V2(LIMITS, SharedMemory(()))
    models = [opened(doubling_bundle(folder)), opened(found_bundle(folder))]
    return [DialectCodec(model, LIMITS, v2.codec(model)) for model in models]


ROWS = [[float(i), float(i + 1)] for i in range(9)]
TENSOR = {"name": "x", "datatype": "FP32", "shape": [9, 2], "data": ROWS}


@pytest.mark.parametrize(
    ("media", "document", "form"),
    [
        ("application/json", ROWS, Dialect.BARE),
        ("application/json", {"instances": ROWS, "parameters": {"top_k": 1}}, Dialect.ROWS),
        ("application/json", {"instances": [{"x": row} for row in ROWS]}, Dialect.ROWS),
        ("application/json", {"inputs": ROWS}, Dialect.COLUMNS),
        ("application/json", {"inputs": {"x": ROWS}}, Dialect.COLUMNS),
        ("application/json", {"inputs": [TENSOR], "parameters": {}}, None),
        ("application/json", {"data": ROWS}, Dialect.BARE),
        ("application/json", {"Inputs": {"data": ROWS}}, Dialect.RESULTS),
        ("application/json", {"input_data": {"columns": [0, 1], "index": [0], "data": ROWS}}, Dialect.BARE),
        ("application/json", {"dataframe_split": {"data": ROWS}}, Dialect.BARE),
        ("application/json", {"input_data": ROWS}, Dialect.BARE),
        ("application/jsonlines", b"\n".join(json.dumps(row).encode() for row in ROWS), Dialect.ROWS),
    ],
)  # fmt: skip
def test_long_bodies_of_every_dialect(
    codecs: list[DialectCodec], media: str, document: Any, form: Dialect | None,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    terms = DialectTerms(Media(media, {}))
    short = codecs[0].decode(body, terms)
    request.getfixturevalue("anything_is_long")
    read = codecs[0].decode(body, terms)
    for found in (short, read):
        assert (found.rows, getattr(found, "form", None)) == (9, form)
        np.testing.assert_array_equal(found.inputs["x"], np.float32(ROWS))


@pytest.mark.usefixtures("anything_is_long")
def test_long_rows_of_several_inputs(codecs: list[DialectCodec]) -> None:
    rows = [{"x": row, "ids": at} for at, row in enumerate(ROWS)]
    columns = {"x": ROWS, "ids": list(range(9))}
    many = {"x": ROWS * 3, "ids": list(range(27))}
    found = codecs[1].decode(msgspec.json.encode(many), DialectTerms(Media("application/json", {})))
    assert found.rows == 1  # this model has no axis for rows
    for document in ({"inputs": columns}, columns, {"instances": rows}, rows):
        body = msgspec.json.encode(document)
        read = codecs[1].decode(body, DialectTerms(Media("application/json", {})))
        np.testing.assert_array_equal(read.inputs["x"], np.float32(ROWS))
        assert read.inputs["ids"].tolist() == list(range(9))
    odd = msgspec.json.encode({"instances": [*rows, {"x": [1, 2]}]})
    with pytest.raises(InvalidInput):
        codecs[1].decode(odd, DialectTerms(Media("application/json", {})))
