"""Outputs as JSON text, in one piece or several."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeserve.errors import InvalidInput
from edgeserve.wire import written
from edgeserve.wire.written import nested_json


@given(
    arrays.arrays(
        st.sampled_from((np.float32, np.float64, np.int64, np.uint8, np.bool_)),
        arrays.array_shapes(max_dims=4, max_side=9, min_side=0),
    ),
    st.integers(1, 200),
)
def test_pieces_are_the_whole(array: Any, piece: int) -> None:
    whole = nested_json("y", array, "", "token")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written, "_PIECE", piece)
        patch.setattr(written, "_PAUSE_S", 0)
        assert nested_json("y", array, "", "token") == whole
    if array.dtype.kind != "f":
        assert json.loads(whole) == array.tolist()


def test_a_large_output_is_written_like_a_small_one() -> None:
    array = np.random.default_rng(0).normal(size=(3, 200, 100)).astype(np.float32)
    array[1, 2, 3] = np.nan
    found = json.loads(nested_json("y", array, "FP32", "token"))
    np.testing.assert_array_equal(np.float32(found), array)
    texts = np.array([b"a", b"\xff"] * 10_000, object).reshape(-1, 2)
    assert json.loads(nested_json("y", texts, "BYTES", "token"))[5] == ["a", {"b64": "/w=="}]


def test_half_precision_is_written_as_numbers() -> None:
    assert nested_json("y", np.float16([1.5, 2]), "FP16", "token") == b"[1.5,2.0]"
    bits = (np.float32([1.5, -2]).view(np.uint32) >> 16).astype(np.uint16)
    assert nested_json("y", bits, "BF16", "token") == b"[1.5,-2.0]"


def test_an_answer_larger_than_the_server_sends_is_refused() -> None:
    array = np.zeros((100, 1_000), np.float64)
    with pytest.raises(InvalidInput, match="larger than 100000 bytes"):
        nested_json("y", array, "FP64", "token", most=100_000)
    assert nested_json("y", array, "FP64", "token", most=1_000_000)


@pytest.mark.parametrize(("how", "text"), [("token", b"[NaN,-Infinity]"), ("null", b"[null,null]")])
def test_numbers_that_json_has_no_form_for(how: Any, text: bytes) -> None:
    assert nested_json("y", np.float32([np.nan, -np.inf]), "FP32", how) == text
    with pytest.raises(InvalidInput, match="NaN or infinity"):
        nested_json("y", np.float32([np.nan]), "FP32", "refuse")


@pytest.mark.parametrize("kind", ["longlong", "ulonglong", "intc", "int8", "bool", "float32"])
def test_one_value_of_any_type_is_written_without_brackets(kind: str) -> None:
    assert json.loads(nested_json("y", np.array(1, kind), "", "token")) == 1
    assert nested_json("y", np.array(np.nan, np.float32), "FP32", "token") == b"NaN"
