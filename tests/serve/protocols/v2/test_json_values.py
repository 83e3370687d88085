"""What a value in JSON becomes: the table of docs/protocols.md, whatever form it comes in and whatever numpy
is installed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols.v2 import codec as v2
from edgeserve.tensors import DTYPES, Interface, TensorSpec
from edgeserve.wire import json as json_data

INF = float("inf")
TAKEN: list[tuple[str, str, list[Any]]] = [
    ("INT8", "-128,127", [-128, 127]),
    ("UINT8", "0,255", [0, 255]),
    ("INT64", "9223372036854775807,-9223372036854775808", [2**63 - 1, -(2**63)]),
    ("INT64", "9007199254740993,-9007199254740993", [2**53 + 1, -(2**53) - 1]),
    ("UINT64", "18446744073709551615,9007199254740993", [2**64 - 1, 2**53 + 1]),
    ("FP64", "100000000000000000000,9007199254740993", [1e20, 2.0**53]),
    ("FP64", "-0.0,5e-324", [-0.0, 5e-324]),
    ("FP64", "0.1,123456789.123456789", [0.1, 123456789.123456789]),
    ("FP32", "100000000000000000000,16777217", [float(np.float32(1e20)), 2.0**24]),
    ("FP32", "1e-46,-1e-46", [0.0, -0.0]),
    ("FP32", "1e39,-1e39", [INF, -INF]),
    ("BOOL", "true,false", [True, False]),
    ("BYTES", '"caf\\u00e9","\\u0000"', ["café".encode(), b"\0"]),
]
REFUSED: list[tuple[str, str, str]] = [
    ("INT8", "300,1", "a value is outside INT8"),
    ("UINT8", "-1,256", "a value is outside UINT8"),
    ("INT16", "70000,1", "a value is outside INT16"),
    ("INT32", "3000000000,-1", "a value is outside INT32"),
    ("UINT32", "-1,0", "a value is outside UINT32"),
    ("INT64", "9223372036854775808,0", "a value is outside INT64"),
    ("UINT64", "-1,1", "a value is outside UINT64"),
    ("UINT64", "18446744073709551616,1", "expected UINT64 values"),
    ("INT64", "1.0,2.0", "expected INT64 values, got 1.0"),
    ("INT64", "1e3,2", "expected INT64 values, got 1000.0"),
    ("INT32", "1.5,2", "expected INT32 values, got 1.5"),
    ("INT32", "true,2", "expected INT32 values, got a boolean"),
    ("INT32", "null,2", "expected INT32 values, got null"),
    ("FP32", "true,1", "expected FP32 values, got a boolean"),
    ("FP32", "true,false", "expected FP32 values, got a boolean"),
    ("FP64", "1.5,true", "expected FP64 values, got a boolean"),
    ("FP32", '"1",2', "expected FP32 values, got a string"),
    ("FP64", "1e400,1", "number is infinity"),
    ("BOOL", "1,0", "expected BOOL values, got 1"),
    ("BOOL", "true,0", "expected BOOL values, got 0"),
    ("BOOL", '"true",false', "expected BOOL values, got a string"),
    ("BYTES", '"a",1', "expected strings, got 1"),
    ("BYTES", '"a",true', "expected strings, got a boolean"),
    ("BYTES", '"\\ud800","b"', "not JSON"),
    ("FP16", "1,2", "FP16 has no JSON form"),
    ("BF16", "1,2", "BF16 has no JSON form"),
    ("FP32", "1,[2]", "lists differ in length"),
    ("FP32", "[1],2", "lists differ in length"),
    ("FP32", "[1,2],[]", "lists differ in length"),
    ("FP32", ".5,1.", "not JSON"),
    ("FP64", "1E5,+1", "not JSON"),
]
# Only a general parser reads these, after the typed one gave up.
TOKENS_TAKEN = [("FP32", "NaN,1", [float("nan"), 1]), ("FP64", "-Infinity,Infinity", [-INF, INF])]
TOKENS_REFUSED = [
    ("FP32", "NaN,true", "expected FP32 values, got a boolean"),
    ("FP32", 'NaN,"1"', "expected FP32 values, got a string"),
    ("FP64", "NaN,1e400", "is out of range"),
    ("INT64", "NaN,1", "expected INT64 values, got nan"),
    ("INT8", "Infinity,300", "expected INT8 values, got inf"),
    ("BYTES", '"NaN","\\ud800"', "a string is not valid Unicode"),
]
FORMS = ["[{}]", "[[{}]]", "[[[{}]]]"]


def read(dtype: str, text: str, shape: tuple[int, ...] = (1, 2)) -> Any:
    spec = TensorSpec("x", dtype, tuple(f"d{i}" for i in range(len(shape))))
    codec = v2.V2Codec("m", "1", Interface((spec,), ()))
    body = '{"inputs":[{"name":"x","shape":%s,"datatype":"%s","data":%s}]}'
    array = codec.decode((body % (list(shape), dtype, text)).encode(), None).inputs["x"]
    assert (array.dtype, array.shape) == (DTYPES[dtype], shape)
    return array.reshape(-1)


@pytest.fixture(params=["whole", "in pieces"])
def form_of_reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Small lists are read as large ones are, too. True: in pieces."""
    if request.param == "whole":
        return False
    monkeypatch.setattr(json_data, "_PIECE", 8)
    return True


def same(array: Any, dtype: str, values: list[Any]) -> bool:
    if dtype == "BYTES":
        return bool(array.tolist() == values)
    return bool(array.tobytes() == np.array(values, DTYPES[dtype]).tobytes())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "text", "values"), TAKEN)
@pytest.mark.usefixtures("form_of_reading")
def test_taken(form: str, dtype: str, text: str, values: list[Any]) -> None:
    assert same(read(dtype, form.format(text)), dtype, values)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "text", "values"), TOKENS_TAKEN)
def test_tokens_taken(form: str, dtype: str, text: str, values: list[Any]) -> None:
    assert same(read(dtype, form.format(text)), dtype, values)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dtype", "text", "words"), REFUSED + TOKENS_REFUSED)
def test_refused(form_of_reading: bool, form: str, dtype: str, text: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(dtype, form.format(text))
    if not form_of_reading:
        assert words in str(caught.value)


@pytest.mark.parametrize("dtype", ["INT8", "FP32", "BOOL", "UINT64", "BYTES"])
@pytest.mark.parametrize(
    ("text", "shape"), [("[]", (0, 2)), ("[[],[]]", (2, 0)), ("[[[]]]", (0, 3)), ("[]", (0,))]
)
def test_no_values_are_an_empty_tensor(dtype: str, text: str, shape: tuple[int, ...]) -> None:
    assert read(dtype, text, shape).size == 0


def test_nesting_need_not_be_that_of_the_shape() -> None:
    for text in ("[[1],[2]]", "[[[[1,2]]]]", "[1,2]", "[" * 12 + "1,2" + "]" * 12):
        assert read("FP32", text).tolist() == [1, 2]


def test_texts_that_are_not_utf8_have_no_json_form() -> None:
    texts = np.array([b"caf\xc3\xa9", b"\xff"], object)
    assert v2.answers.json_data("y", texts[:1], "BYTES", allow_nan=False) == '["café"]'.encode()
    with pytest.raises(InvalidInput, match="output 'y' is not text: ask for binary data"):
        v2.answers.json_data("y", texts, "BYTES", allow_nan=False)


def test_answers_hold_integers_exactly() -> None:
    for dtype, values in (("INT64", [-(2**63), 2**53 + 1]), ("UINT64", [2**64 - 1, 2**53 + 1])):
        array = np.array(values, DTYPES[dtype])
        assert json.loads(v2.answers.json_data("y", array, dtype, allow_nan=False)) == values
