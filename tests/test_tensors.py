"""Specs, interface checks, and batches that split into what they were joined from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.errors import InvalidInput
from edgeserve.tensors import (
    DTYPES,
    Interface,
    TensorSpec,
    dtype_name,
    join_batches,
    split_batches,
)

PAIR = Interface(
    (TensorSpec("a", "FP32", ("batch", 2)), TensorSpec("b", "INT64", ("batch",))),
    (TensorSpec("y", "FP32", ("batch", 2)),),
    max_batch=4,
)


def request_of(rows: int) -> dict[str, np.ndarray]:
    return {"a": np.zeros((rows, 2), np.float32), "b": np.zeros(rows, np.int64)}


def test_a_fitting_request_tells_its_batch_size() -> None:
    assert PAIR.check(request_of(3)) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"a": None}, ["'a' is missing", "FP32[batch,2]"]),
        ({"a": np.zeros((1, 2), np.float64)}, ["'a'", "expected FP32", "got FP64"]),
        ({"a": np.zeros((1, 3), np.float32)}, ["'a'", "expected shape [batch,2]", "got [1,3]"]),
        ({"a": np.zeros(2, np.float32)}, ["'a'", "expected shape [batch,2]", "got [2]"]),
        ({"a": np.zeros((2, 2), np.float32)}, ["different batch sizes"]),
        ({"c": np.zeros(1, np.float32)}, ["unknown input 'c'", "'a' FP32[batch,2]"]),
    ],
)
def test_a_request_that_does_not_fit_says_what_was_expected_and_got(
    change: dict[str, np.ndarray | None], words: list[str]
) -> None:
    merged = {**request_of(1), **change}
    with pytest.raises(InvalidInput) as caught:
        PAIR.check({n: a for n, a in merged.items() if a is not None})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("rows", [0, 5])
def test_batches_outside_the_limit_are_refused(rows: int) -> None:
    with pytest.raises(InvalidInput, match="batch of 1 to 4"):
        PAIR.check(request_of(rows))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_split_is_the_inverse_of_join(sizes: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    requests = [
        {"x": generator.normal(size=(n, 3)), "i": generator.integers(9, size=n)} for n in sizes
    ]
    parts = split_batches(join_batches(requests), sizes)
    for part, request in zip(parts, requests, strict=True):
        assert all(np.array_equal(part[name], request[name]) for name in request)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_protocol_type_has_one_numpy_type(name: str) -> None:
    if name == "BF16":  # numpy has none: its bits are carried as another type's
        assert DTYPES[name] == DTYPES["UINT16"]
    elif name != "BYTES":
        assert dtype_name(DTYPES[name]) == name


def test_complex_numbers_have_no_protocol_type() -> None:
    with pytest.raises(InvalidInput, match="complex64"):
        dtype_name(np.complex64)
