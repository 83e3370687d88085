"""Requests and responses as messages, without a server."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.bundle import Candidate
from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols.v2.classes import Classes
from edgeserve.serve.protocols.v2.grpc import codec
from edgeserve.serve.protocols.v2.request import RequestedOutput, V2Request
from edgeserve.tensors import DTYPES, Interface, Tensors, TensorSpec, dtype_name
from edgeserve.wire import messages
from tests.bundles import LINEAR
from tests.serve.grpc.conftest import request
from tests.serve.grpc.models import NUMERIC

MOST = 1 << 28
INTERFACE = Interface(
    (
        TensorSpec("text", "BYTES", ("batch",)),
        TensorSpec("half", "FP16", ("batch", 2)),
        TensorSpec("small", "INT8", ("batch",)),
    ),
    (TensorSpec("y", "FP32", ("batch", 3)),),
    max_batch=8,
)


def decoded_of(message: messages.ModelInferRequest) -> codec.V2Decoded:
    return codec.decode(codec.parse(message.SerializeToString()), MOST)


def linear_request(**fields: Any) -> messages.ModelInferRequest:
    return request(**fields)


def test_raw_and_typed_contents() -> None:
    message = messages.ModelInferRequest(model_name="m", id="7")
    message.inputs.add(name="text", datatype="BYTES", shape=[2])
    message.inputs.add(name="half", datatype="FP16", shape=[2, 2])
    message.inputs.add(name="small", datatype="INT8", shape=[2])
    half = np.float16([[1, 2], [3, 4]])
    message.raw_input_contents.extend(
        [b"\x02\0\0\0hi\0\0\0\0", half.tobytes(), np.int8([-1, 5]).tobytes()]
    )
    bound = codec.bind(decoded_of(message), INTERFACE, {}, None)
    assert bound.rows == 2
    assert bound.id == "7"
    assert bound.inputs["text"].tolist() == [b"hi", b""]
    np.testing.assert_array_equal(bound.inputs["half"], half)
    assert bound.inputs["small"].tolist() == [-1, 5]
    assert [o.name for o in bound.wanted] == ["y"]


@pytest.mark.parametrize("dtype", [*sorted(set(NUMERIC) - {"FP16"}), "BYTES"])
def test_typed_contents_of_every_type(dtype: str) -> None:
    values = [b"a", b"\0b"] if dtype == "BYTES" else [0, 1]
    message = messages.ModelInferRequest()
    given_input = message.inputs.add(name="x", datatype=dtype, shape=[2])
    getattr(given_input.contents, codec._CONTENTS[dtype]).extend(values)
    (decoded,) = decoded_of(message).inputs
    assert decoded.values is not None
    assert decoded.values.dtype == DTYPES[dtype]
    assert decoded.values.tolist() == values


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"raw_input_contents": []}, "expected 4 elements for shape \\[1, 4\\], got 0"),
        ({"raw_input_contents": [bytes(16)] * 2}, "expected 1 tensors, got 2"),
        ({"raw_input_contents": [bytes(15)]}, "'x': expected 16 bytes"),
        ({"raw_input_contents": [bytes(17)]}, "'x': expected 16 bytes"),
        ({"model_version": "x"}, "version: expected a number, got 'x'"),
        ({"model_version": "-1"}, "version: expected a number"),
        ({"model_version": "9" * 40}, "version: expected a number"),
        (
            {"inputs": [{"name": "x", "datatype": "FP33", "shape": [1, 4]}]},
            "unknown datatype 'FP33'",
        ),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]}, "expected sizes"),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1 << 62, 1 << 62]}]},
            "'x': expected at most 268435456 elements",
        ),
        (
            {"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1 << 62]}]},
            "'x': expected at most 268435456 elements",
        ),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4]}] * 2},
            "'x' is given twice",
        ),
        ({"inputs": [{"name": "z", "datatype": "FP32", "shape": [1, 4]}]}, "unknown input 'z'"),
        (
            {"inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 4]}]},
            "expected FP32, got INT32",
        ),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [4, 1]}]}, "expected shape"),
        ({"outputs": [{"name": "q"}]}, "unknown output 'q'"),
        ({"outputs": [{"name": "y"}] * 2}, "asked for twice"),
        ({"parameters": {"triton_x": {"bool_param": True}}}, "'triton_x' is reserved"),
        ({"parameters": {"timeout": {"string_param": "1"}}}, "'timeout': expected microseconds"),
        ({"parameters": {"timeout": {"int64_param": -1}}}, "'timeout': expected microseconds"),
        ({"parameters": {"timeout": {}}}, "'timeout' has no value"),
        (
            {"outputs": [{"name": "y", "parameters": {"classification": {"int64_param": -2}}}]},
            "'classification': expected a count",
        ),
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        codec.bind(decoded_of(linear_request(**fields)), LINEAR, {}, None)


def test_raw_and_contents_together_are_refused() -> None:
    message = request()
    message.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    with pytest.raises(InvalidInput, match="contents must not be given together with raw_input"):
        decoded_of(message)


def test_too_few_raw_contents_name_the_input_without() -> None:
    message = request()
    message.inputs.add(name="z", datatype="FP32", shape=[1])
    with pytest.raises(InvalidInput, match="'z': unable to find its data"):
        decoded_of(message)


@pytest.mark.parametrize(
    ("dtype", "field", "values", "words"),
    [
        ("FP32", "fp64_contents", [1.0], "expected fp32_contents for FP32, got fp64_contents"),
        ("INT8", "int64_contents", [1], "expected int_contents for INT8"),
        ("INT8", "int_contents", [300], "a value is outside INT8"),
        ("UINT16", "uint_contents", [1 << 16], "a value is outside UINT16"),
        ("FP32", "fp32_contents", [1.0, 2.0], "expected 1 elements .* got 2"),
        ("FP16", "fp32_contents", [1.0], "unable to find its data in raw_input_contents"),
    ],
)
def test_typed_contents_that_do_not_fit(
    dtype: str, field: str, values: list[Any], words: str
) -> None:
    message = messages.ModelInferRequest()
    given_input = message.inputs.add(name="x", datatype=dtype, shape=[1])
    getattr(given_input.contents, field).extend(values)
    with pytest.raises(InvalidInput, match=words):
        decoded_of(message)


@pytest.mark.parametrize(
    ("timeout_us", "remaining_s", "expected"),
    [(None, None, None), (0, None, 0.0), (2_000_000, None, 2.0), (None, 3.0, 3.0),
     (0, 3.0, 3.0), (2_000_000, 3.0, 2.0), (5_000_000, 3.0, 3.0)],
)  # fmt: skip
def test_the_nearer_deadline_counts(
    timeout_us: int | None, remaining_s: float | None, expected: float | None
) -> None:
    message = request()
    if timeout_us is not None:
        message.parameters["timeout"].int64_param = timeout_us
    bound = codec.bind(decoded_of(message), LINEAR, {}, remaining_s)
    assert bound.timeout_s == expected


def encoded(outputs: Tensors, request_id: str = "") -> messages.ModelInferResponse:
    candidate = Candidate("onnx-fp32", "onnxruntime", "cpu")
    specs = tuple(TensorSpec(n, dtype_name(a.dtype), a.shape) for n, a in outputs.items())
    asked = V2Request(
        {}, 1, tuple(outputs), request_id, wanted=tuple(RequestedOutput(n, True) for n in outputs)
    )
    head = codec.response_head("m", "3", candidate, final=False)
    data = codec.encode(
        head, asked, outputs, Interface((), specs), Classes(Interface((), specs)).best
    )
    response = messages.ModelInferResponse.FromString(data)
    # Written by hand, yet what protobuf itself writes.
    assert len(response.SerializeToString()) == len(data)
    return response


@given(
    st.dictionaries(
        st.text(max_size=200),
        st.tuples(st.sampled_from(NUMERIC), st.lists(st.integers(0, 40), max_size=3).map(tuple)),
        max_size=4,
    ),
    st.text(max_size=300),
)
def test_responses_written_by_hand_are_messages(
    described: dict[str, tuple[str, tuple[int, ...]]], request_id: str
) -> None:
    outputs = {n: np.ones(shape, DTYPES[dtype]) for n, (dtype, shape) in described.items()}
    response = encoded(outputs, request_id)
    assert (response.model_name, response.model_version) == ("m", "3")
    assert response.id == request_id
    assert response.parameters["edgeserve_device"].string_param == "cpu"
    assert {o.name: (o.datatype, tuple(o.shape)) for o in response.outputs} == described
    assert list(response.raw_output_contents) == [a.tobytes() for a in outputs.values()]


def test_a_large_output_is_whole() -> None:
    array = np.random.default_rng(0).normal(size=(2, 300_000)).astype(np.float32)
    assert encoded({"y": array}).raw_output_contents[0] == array.tobytes()


def test_answers_in_a_stream() -> None:
    inner = messages.ModelInferResponse(id="x" * 300).SerializeToString()
    answer = messages.ModelStreamInferResponse.FromString(codec.in_stream(inner))
    assert answer.infer_response.id == "x" * 300
    error = messages.ModelStreamInferResponse.FromString(codec.stream_error("no", "7"))
    assert (error.error_message, error.infer_response.id) == ("no", "7")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(data: bytes) -> None:
    with contextlib.suppress(InvalidInput):
        bound = codec.bind(codec.decode(codec.parse(data), MOST), LINEAR, {}, None)
        assert bound.rows >= 1
