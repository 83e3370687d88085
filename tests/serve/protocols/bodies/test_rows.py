"""Rows of numbers as JSON: long ones are read in pieces, and mean the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols.bodies import values
from edgeserve.serve.protocols.bodies.values import ValueReader
from edgeserve.serve.settings.limits import Limits
from edgeserve.tensors import Interface, TensorSpec

LIMITS = Limits(elements=100_000)


def reader(*shape: int | str, dtype: str = "FP32", max_batch: int = 64) -> ValueReader:
    spec = TensorSpec("x", dtype, shape)
    return ValueReader(Interface((spec,), (spec,), max_batch), LIMITS, None)


@pytest.mark.parametrize("dtype", ["FP32", "INT64", "FP16", "BOOL"])
def test_long_rows_are_read_as_short_ones(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(24).reshape(2, 3, 4) % 2 if dtype == "BOOL" else np.arange(24).reshape(2, 3, 4)
    kind = {"FP32": np.float32, "INT64": np.int64, "FP16": np.float16, "BOOL": np.bool_}[dtype]
    text = json.dumps(rows.astype(kind).tolist()).encode()
    short = reader("batch", 3, 4, dtype=dtype).rows(text)
    monkeypatch.setattr(values, "_GENERAL_BYTES", 8)
    monkeypatch.setattr("edgeserve.wire.json._PIECE", 16)
    long = reader("batch", 3, 4, dtype=dtype).rows(text)
    assert (short.rows, long.rows) == (2, 2)
    np.testing.assert_array_equal(short.inputs["x"], rows.astype(kind))
    np.testing.assert_array_equal(long.inputs["x"], rows.astype(kind))


@pytest.mark.parametrize(
    "text", ["[[1,2],[3]]", "[[1,2],3]", '[[1,"a"]]', "[[1,2],[[3],4]]", "[[1,2]", "[[1,2],[3,4e999]]"]
)  # fmt: skip
def test_long_rows_that_are_wrong_are_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "_GENERAL_BYTES", 8)
    monkeypatch.setattr("edgeserve.wire.json._PIECE", 4)
    with pytest.raises(InvalidInput):
        reader("batch", 2).rows(text.encode())


def test_more_values_than_fit_are_refused_before_they_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(values, "_GENERAL_BYTES", 8)
    with pytest.raises(InvalidInput, match="at most 4 values, in 2 rows"):
        reader("batch", 2, max_batch=2).rows(b"[[1,2],[3,4],[5,6]]")
    with pytest.raises(InvalidInput, match="a batch of 1 to 2, got 3"):
        reader("batch", "n", max_batch=2).rows(b"[[1,2],[3,4],[5,6]]")


def test_a_model_without_rows_takes_one() -> None:
    for text in (b"[[1,2]]", b"[[[1,2]]]"):
        read = reader(1, 2, max_batch=0).rows(text)
        assert (read.whole, read.inputs["x"].shape) == (True, (1, 2))
