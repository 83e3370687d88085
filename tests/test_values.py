"""Plain values become arrays exactly, or are refused, with any numpy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgeserve
from edgeserve.client.tensors import tensor_from_json
from edgeserve.errors import InferenceFailed, InvalidInput
from edgeserve.tensors import DTYPES
from edgeserve.values import Misfit, array_of, best_first, fitting
from tests.bundles import linear, linear_bundle

INTEGERS = ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("nested", [False, True])
def test_integers_reach_exactly_the_ends_of_their_type(dtype: str, nested: bool) -> None:
    limits = np.iinfo(DTYPES[dtype])
    ends = [int(limits.min), int(limits.max)]
    array = array_of([ends, ends] if nested else ends, dtype)
    assert array.dtype == DTYPES[dtype]
    assert array.tolist() == ([ends, ends] if nested else ends)
    for outside in (ends[0] - 1, ends[1] + 1, 2**70, -(2**70)):
        with pytest.raises(Misfit, match=f"a value is outside {dtype}"):
            array_of([[outside, 0]] if nested else [outside, 0], dtype)


@pytest.mark.parametrize(
    ("dtype", "values", "words"),
    [
        ("FP32", [True, 1.5], "expected FP32 values, got a boolean"),
        ("FP64", [[1.5], [False]], "expected FP64 values, got a boolean"),
        ("INT32", [True, 2], "expected INT32 values, got a boolean"),
        ("BOOL", [1, 0], "expected BOOL values, got 1"),
        ("BOOL", [True, 0.0], "expected BOOL values, got 0.0"),
        ("INT64", [1.0, 2], "expected INT64 values, got 1.0"),
        ("UINT8", [1.7], "expected UINT8 values, got 1.7"),
        ("FP32", ["1", 2], "expected FP32 values, got a string"),
        ("FP32", [None], "expected FP32 values, got null"),
        ("FP32", [{}], "expected FP32 values, got an object"),
        ("BF16", [1.5], "expected BF16 values, got 1.5"),
        ("BYTES", ["a", 1], "expected strings, got 1"),
        ("FP32", [[1, 2], [3]], "differ in length"),
        ("FP32", [[1, 2], 3], "differ in length"),
        ("FP32", [1, [2]], "differ in length"),
        ("FP32", [[[1], [2]], [[3, 4]]], "differ in length"),
        ("FP64", [10**400], "a value is outside FP64"),
    ],
)
def test_nothing_is_taken_for_another_kind(dtype: str, values: list[Any], words: str) -> None:
    with pytest.raises(Misfit, match=words):
        array_of(values, dtype)


def test_integers_are_rounded_to_floating_point_types() -> None:
    assert array_of([2**53 + 1], "FP64").tolist() == [2.0**53]
    assert array_of([2**24 + 1, 10**20], "FP32").tolist() == [2.0**24, np.float32(1e20)]
    assert array_of([1e39, -(10**39)], "FP32").tolist() == [math.inf, -math.inf]
    assert array_of([65519, 65520, -1e9], "FP16").tolist() == [65504, math.inf, -math.inf]
    assert math.copysign(1, array_of([-0.0], "FP32")[0]) == -1


def test_shapes_are_those_of_the_lists() -> None:
    assert array_of(5, "INT8").shape == ()
    assert array_of([], "FP32").shape == (0,)
    assert array_of([[], []], "BOOL").shape == (2, 0)
    assert array_of([[[1, 2, 3]], [[4, 5, 6]]], "INT64").shape == (2, 1, 3)
    assert array_of([["a"], [b"b"]], "BYTES").tolist() == [["a"], [b"b"]]


def test_arrays_in_another_type_keep_their_values() -> None:
    assert fitting(np.int64([0, 255]), "UINT8").tolist() == [0, 255]
    assert fitting(np.uint64([2**63 - 1]), "INT64").tolist() == [2**63 - 1]
    assert fitting(np.int32([2**24 + 1]), "FP32").tolist() == [2.0**24]
    for array, dtype in (
        (np.int64([-1]), "UINT64"),
        (np.uint64([2**63]), "INT64"),
        (np.int16([300]), "INT8"),
        (np.float32([1]), "INT8"),
        (np.array([True]), "FP32"),
        (np.int8([1]), "BOOL"),
        (np.array(["1"]), "FP32"),
    ):
        with pytest.raises(Misfit):
            fitting(array, dtype)


@pytest.mark.parametrize("dtype", [*INTEGERS, "FP16", "FP32", "FP64"])
def test_the_largest_come_first_in_their_own_type(dtype: str) -> None:
    kind = DTYPES[dtype]
    if kind.kind == "f":
        row = np.array([1, math.nan, -math.inf, 3, math.inf, 3], kind)
        assert best_first(row[None]).tolist() == [[4, 3, 5, 0, 2, 1]]
        return
    limits = np.iinfo(kind)
    row = np.array([limits.max - 1, limits.min, limits.max, limits.min + 1, limits.max], kind)
    assert best_first(row[None]).tolist() == [[2, 4, 0, 3, 1]]


def test_answers_of_servers_are_read_exactly() -> None:
    values = [2**63 - 1, -(2**63), 2**53 + 1]
    assert tensor_from_json("y", "INT64", (3,), values).tolist() == values
    assert tensor_from_json("y", "BYTES", (2, 1), [["a"], ["é"]]).tolist() == [
        [b"a"],
        ["é".encode()],
    ]
    assert np.isnan(tensor_from_json("y", "FP32", (2,), [None, 1])[0])
    for datatype, data in (
        ("INT8", [300]), ("FP32", [True]), ("INT32", [1.5]), ("BYTES", [1]), ("FP32", None),
        ("INT32", [None]), ("FP32", [1, 2]), ("FP31", [1]),
    ):  # fmt: skip
        with pytest.raises(InferenceFailed):
            tensor_from_json("y", datatype, (1,), data)


def test_python_values_given_to_a_model(tmp_path: Path) -> None:
    with edgeserve.load(linear_bundle(tmp_path)) as model:
        for value in ([[1, 2, 3, 4]], ((1, 2.0, 3, 4),), [np.float64([1, 2, 3, 4])]):
            answer = model.run({"x": value})["y"]
            np.testing.assert_allclose(answer, linear(np.float32([[1, 2, 3, 4]])), rtol=1e-5)
        for wrong, words in (
            ([[True, 2, 3, 4]], "a boolean"),
            ([["1", 2, 3, 4]], "a string"),
            ([[1, 2, 3], [4]], "differ in length"),
            (np.int64([[1, 2, 3, 4]]), "expected FP32, got INT64"),
        ):
            with pytest.raises(InvalidInput, match=words):
                model.run({"x": wrong})
