"""Data that a model's types do not hold are refused, not cast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeserve.errors import DataError
from edgeserve.evaluate import load_samples
from edgeserve.evaluate.streams import from_callable, from_table
from edgeserve.tensors import DTYPES, Interface, TensorSpec

BAD = {
    "too-large": ("UINT8", np.array([[300, 1]]), "a value is outside UINT8"),
    "negative": ("UINT64", np.array([[-1, 1]]), "a value is outside UINT64"),
    "beyond-int32": ("INT32", np.array([[2**31, 1]]), "a value is outside INT32"),
    "beyond-int64": ("INT64", np.array([[2**64 - 1, 1]], np.uint64), "is outside INT64"),
    "floats": ("INT64", np.array([[1.5, 1]]), "expected INT64, got float64"),
    "nan": ("INT64", np.array([[np.nan, 1]]), "expected INT64, got float64"),
    "numbers-for-text": ("BYTES", np.array([[1, 2]]), "expected BYTES, got int64"),
    "text-for-numbers": ("FP32", np.array([["1", "2"]]), "expected FP32, got <U1"),
    "int-for-bool": ("BOOL", np.array([[1, 0]]), "expected BOOL, got int64"),
}  # fmt: skip


def interface(dtype: str) -> Interface:
    spec = TensorSpec("x", dtype, ("batch", 2))
    return Interface((spec,), (TensorSpec("y", "FP32", ("batch", 2)),))


@pytest.mark.parametrize("name", BAD)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, name: str) -> None:
    dtype, array, text = BAD[name]
    np.savez(tmp_path / "x.npz", x=np.concatenate([np.zeros_like(array)] * 3 + [array]))
    with pytest.raises(DataError) as caught:
        load_samples(tmp_path / "x.npz", interface(dtype), None)
    assert text in str(caught.value)
    with pytest.raises(DataError):
        from_callable(lambda: [array[0]], interface(dtype), 4, "rows")


def test_wrong_ranks_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 1, 1, 2), np.float32))
    with pytest.raises(DataError, match="wrong shape"):
        load_samples(tmp_path / "x.npz", interface("FP32"), None)


@pytest.mark.parametrize("dtype", ["UINT8", "INT32", "UINT64", "INT64"])
def test_the_ends_of_a_type_fit_it(tmp_path: Path, dtype: str) -> None:
    limits = np.iinfo(DTYPES[dtype])
    ends = np.array([[limits.min, limits.max]], DTYPES[dtype])
    np.savez(tmp_path / "x.npz", x=ends)
    assert np.array_equal(load_samples(tmp_path / "x.npz", interface(dtype), None)[0]["x"], ends)


@pytest.mark.parametrize(
    ("dtype", "row", "problem"),
    [
        ("INT64", "1.5,2", "not a number"),
        ("INT64", "nan,2", "not a number"),
        ("UINT8", "300,2", "a value is outside UINT8"),
        ("INT64", "9007199254740993,2.0", None),
        ("BYTES", "red,größer", None),
    ],
)
def test_tables_keep_whole_numbers_and_texts(
    tmp_path: Path, dtype: str, row: str, problem: str | None
) -> None:
    (tmp_path / "x.csv").write_text(f"a,b\n{row}\n", "utf-8")
    if problem is not None:
        with pytest.raises(DataError, match=problem):
            from_table(tmp_path / "x.csv", interface(dtype))
        return
    first = from_table(tmp_path / "x.csv", interface(dtype))[0]["x"][0]
    wanted = [t.encode() for t in row.split(",")] if dtype == "BYTES" else [9007199254740993, 2]
    assert first.tolist() == wanted
