"""Decoding and encoding the Open Inference Protocol v2, without a socket."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeserve.bundle import Candidate
from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols.v2 import codec as v2
from edgeserve.serve.protocols.v2.classes import Classes
from edgeserve.serve.protocols.v2.document import general, parse
from edgeserve.serve.protocols.v2.request import RequestedOutput, V2Request
from edgeserve.tensors import DTYPES, Interface, TensorSpec, dtype_name
from edgeserve.wire import binary

LINEAR = Interface(
    (TensorSpec("x", "FP32", ("batch", 4)),), (TensorSpec("y", "FP32", ("batch", 3)),), 8
)
LINEAR_CODEC = v2.V2Codec("linear", "1", LINEAR)
MIXED = Interface(
    (
        TensorSpec("text", "BYTES", ("batch",)),
        TensorSpec("half", "FP16", ("batch", 2)),
        TensorSpec("flag", "BOOL", ("batch",)),
        TensorSpec("count", "INT8", ("batch",)),
    ),
    (TensorSpec("y", "FP32", ("batch", 3)),),
    8,
)


def decode(document: Any, blobs: bytes = b"", interface: Interface = LINEAR) -> V2Request:
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    length = len(head) if blobs else None
    return v2.V2Codec("m", "1", interface).decode(memoryview(head + blobs), length)


def entry(**change: Any) -> dict[str, Any]:
    plain = {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    return {k: v for k, v in {**plain, **change}.items() if v is not ...}


def test_flat_and_nested_json_are_the_same() -> None:
    flat = decode({"inputs": [entry()], "id": "7"})
    nested = decode({"inputs": [entry(data=[[1, 2, 3, 4]])]})
    np.testing.assert_array_equal(flat.inputs["x"], np.float32([[1, 2, 3, 4]]))
    np.testing.assert_array_equal(nested.inputs["x"], flat.inputs["x"])
    assert (flat.id, flat.rows) == ("7", 1)


def test_bare_nan_and_infinity_are_accepted_on_input() -> None:
    request = decode(
        b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":[NaN,Infinity,-Infinity,1]}]}'
    )
    assert np.isnan(request.inputs["x"][0, 0])
    assert np.isinf(request.inputs["x"][0, 1])


def test_binary_tensors_are_views_when_aligned_and_right_when_not() -> None:
    values = np.arange(8, dtype=np.float32)
    for pad in range(4):
        document = {
            "inputs": [entry(shape=[2, 4], data=..., parameters={"binary_data_size": 32})],
            "id": "x" * pad,
        }
        request = decode(document, values.tobytes())
        np.testing.assert_array_equal(request.inputs["x"], values.reshape(2, 4))


def test_json_and_binary_inputs_mix() -> None:
    texts = b"".join(struct.pack("<I", len(t)) + t for t in (b"hi", b""))
    document = {
        "inputs": [
            {"name": "text", "shape": [2], "datatype": "BYTES",
             "parameters": {"binary_data_size": len(texts)}},
            {"name": "half", "shape": [2, 2], "datatype": "FP16",
             "parameters": {"binary_data_size": 8}},
            {"name": "flag", "shape": [2], "datatype": "BOOL", "data": [True, False]},
            {"name": "count", "shape": [2], "datatype": "INT8", "data": [-128, 127]},
        ]
    }  # fmt: skip
    request = decode(document, texts + np.float16([1, 2, 3, 4]).tobytes(), MIXED)
    assert request.inputs["text"].tolist() == [b"hi", b""]
    assert request.inputs["half"].dtype == np.float16
    assert request.inputs["count"].tolist() == [-128, 127]


def test_a_raw_body_is_one_tensor_in_batch_one() -> None:
    request = LINEAR_CODEC.decode(memoryview(np.ones(4, np.float32).tobytes()), 0)
    assert request.inputs["x"].shape == (1, 4)
    assert all(o.binary for o in request.wanted)


BAD: list[tuple[Any, str]] = [
    (b"", "not JSON"),
    (b"{", "not JSON"),
    (b"[]", "request: expected an object"),
    (b'"x"', "request: expected an object, got a string"),
    (b"\xff\xfe", "not JSON"),
    (b'{"inputs":[' + b"[" * 200 + b"]" * 200 + b"]}", "nested deeper than 100"),
    ({}, "inputs: expected a list, got nothing"),
    ({"inputs": [entry()], "model": "x"}, "unknown field 'model'"),
    ({"inputs": [7]}, "inputs[0]: expected an object, got 7"),
    ({"inputs": [entry(name=...)]}, "inputs[0].name: expected a string"),
    ({"inputs": [entry(name="z")]}, "unknown input 'z'"),
    ({"inputs": []}, "input 'x' is missing: expected FP32[batch,4]"),
    ({"inputs": [entry(), entry()]}, "input 'x' is given twice"),
    ({"inputs": [entry(shape=[4])]}, "expected shape [batch,4], got [4]"),
    ({"inputs": [entry(shape=[-1, 4])]}, "shape: expected a list of sizes"),
    ({"inputs": [entry(shape=[True, 4])]}, "shape: expected a list of sizes"),
    ({"inputs": [entry(shape=[1.0, 4])]}, "shape: expected a list of sizes"),
    ({"inputs": [entry(shape="1,4")]}, "shape: expected a list of sizes"),
    ({"inputs": [entry(shape=[10**18, 4])]}, "expected at most 268435456 elements, got 4000000000000000000"),
    ({"inputs": [entry(shape=[9, 4], data=[0] * 36)]}, "expected a batch of 1 to 8, got 9"),
    ({"inputs": [entry(shape=[0, 4], data=[])]}, "expected a batch of 1 to 8, got 0"),
    ({"inputs": [entry(datatype="FP64")]}, "expected FP32, got FP64"),
    ({"inputs": [entry(datatype=...)]}, "datatype: expected a string, got nothing"),
    ({"inputs": [entry(data=...)]}, "neither data nor binary_data_size"),
    ({"inputs": [entry(data="1234")]}, "data: expected a list, got a string"),
    ({"inputs": [entry(data=[1, 2, 3])]}, "expected 4 elements for shape [1, 4], got 3"),
    ({"inputs": [entry(data=[[1, 2], [3]])]}, "differ in length"),
    ({"inputs": [entry(data=["a", "b", "c", "d"])]}, "expected FP32 values"),
    ({"inputs": [entry(data=[None, 1, 2, 3])]}, "expected FP32 values"),
    ({"inputs": [entry()], "id": 7}, "id: expected a string, got 7"),
    ({"inputs": [entry()], "parameters": []}, "parameters: expected an object"),
    ({"inputs": [entry()], "parameters": {"triton_x": 1}}, "'triton_x' is reserved"),
    ({"inputs": [entry()], "parameters": {"timeout": -1}}, "'timeout': expected microseconds"),
    ({"inputs": [entry()], "parameters": {"binary_data_output": 1}}, "expected true or false"),
    ({"inputs": [entry()], "outputs": {}}, "outputs: expected a list"),
    ({"inputs": [entry()], "outputs": [{"name": "q"}]}, "unknown output 'q'"),
    ({"inputs": [entry()], "outputs": [{"name": "y"}, {"name": "y"}]}, "asked for twice"),
    (
        {"inputs": [entry()], "outputs": [{"name": "y", "parameters": {"classification": "3"}}]},
        "classification: expected a count",
    ),
    (
        {
            "inputs": [entry()],
            "outputs": [
                {"name": "y", "parameters": {"classification": 1, "shared_memory_region": "r", "shared_memory_byte_size": 8}}
            ],
        },
        "classes do not go to shared memory",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("document", "words"), BAD)
def test_malformed_requests_name_the_field(document: Any, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(document)
    assert words in str(caught.value)


@pytest.mark.parametrize("identity", [7, "seven"])
def test_sequences_are_for_models_without_a_state_what_other_requests_are(identity: Any) -> None:
    parameters = {"sequence_id": identity, "sequence_start": True, "sequence_end": False}
    body = json.dumps({"inputs": [entry()], "parameters": parameters}).encode()
    assert LINEAR_CODEC.decode(body, None).inputs["x"].tolist() == [[1, 2, 3, 4]]
    stateful = v2.V2Codec("m", "1", LINEAR, keeps_state=True)
    with pytest.raises(InvalidInput, match="starts each request from its initial state"):
        stateful.decode(body, None)
    none = {"sequence_id": 0, "sequence_start": False}
    body = json.dumps({"inputs": [entry()], "parameters": none}).encode()
    assert stateful.decode(body, None).rows == 1


def test_an_empty_id_is_left_out() -> None:
    for identity in ("", None):
        request = V2Request({}, 1, ("y",), identity, wanted=(RequestedOutput("y", False),))
        encoded = LINEAR_CODEC.encode(
            request, {"y": np.zeros((1, 3), np.float32)}, Candidate("v", "r", "d")
        )
        assert b'"id"' not in b"".join(encoded.parts)


@pytest.mark.parametrize(
    ("parameters", "blob", "words"),
    [
        ({"binary_data_size": 15}, bytes(15), "expected 16 bytes"),
        ({"binary_data_size": 17}, bytes(16), "expected 17 bytes of binary data, got 16"),
        ({"binary_data_size": 16}, bytes(20), "4 bytes of binary data belong to no input"),
        ({"binary_data_size": -1}, bytes(16), "expected a size, got -1"),
        ({"binary_data_size": 10**18}, bytes(16), "bytes of binary data, got 16"),
        ({"binary_data_size": 10**30}, bytes(16), "bytes of binary data, got 16"),
        ({"binary_data_size": "16"}, bytes(16), "expected a size, got '16'"),
    ],
)
def test_binary_sizes_must_add_up(parameters: dict[str, Any], blob: bytes, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode({"inputs": [entry(data=..., parameters=parameters)]}, blob)
    assert words in str(caught.value)


def told(codec: v2.V2Codec, body: memoryview, length: int) -> object:
    """What is made of a body, or what is wrong with it."""
    try:
        request = codec.decode(body, length)
    except InvalidInput as error:
        return str(error)
    inputs = {n: (a.dtype, a.shape, a.tobytes()) for n, a in request.inputs.items()}
    return msgspec.structs.asdict(request) | {"inputs": inputs}


MODEL = Interface(
    (TensorSpec("x", "FP32", ("batch", "n")), TensorSpec("m", "INT8", ("batch",))),
    (TensorSpec("y", "FP32", ("batch", 3)), TensorSpec("z", "FP32", ("batch", 3))),
    8,
)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.integers(0, 3), st.sampled_from([[], ["z"]]),
            st.sampled_from([{}, {"timeout": 5}, {"binary_data_output": True}, {"priority": 2}]),
            st.sampled_from([None, "", "7"]), st.integers(-4, 4), st.booleans(),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_heads_that_come_again_mean_what_they_meant(asked: list[tuple[Any, ...]]) -> None:
    codec, noise = v2.V2Codec("m", "1", MODEL), np.random.default_rng(0)
    for rows, wide, outputs, parameters, identity, more, flat in asked:
        sizes = {"x": 4 * rows * wide, "m": rows}
        document: dict[str, Any] = {
            "inputs": [
                entry(shape=[rows, wide], data=..., parameters={"binary_data_size": sizes["x"]}),
                entry(name="m", shape=[rows], datatype="INT8", data=[0] * rows)
                if flat
                else entry(
                    name="m", shape=[rows], datatype="INT8", data=...,
                    parameters={"binary_data_size": rows},
                ),
            ],
            "outputs": [{"name": name} for name in outputs],
            "parameters": parameters,
        }  # fmt: skip
        if identity is not None:
            document["id"] = identity
        head = json.dumps(document).encode()
        blob = noise.bytes(max(0, sizes["x"] + (0 if flat else rows) + (more if more > 2 else 0)))
        body = memoryview(head + blob)
        assert told(codec, body, len(head)) == told(v2.V2Codec("m", "1", MODEL), body, len(head))


def test_a_head_that_came_again_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = v2.V2Codec("m", "1", LINEAR)
    head = json.dumps({"inputs": [entry(data=..., parameters={"binary_data_size": 16})]}).encode()
    bodies = [head + np.float32([i, 1, 2, 3]).tobytes() for i in range(3)]
    assert codec.decode(bodies[0], len(head)).inputs["x"][0, 0] == 0
    monkeypatch.setattr(v2, "parse", pytest.fail)
    for i, body in enumerate(bodies):
        assert codec.decode(body, len(head)).inputs["x"][0, 0] == i


def test_data_and_binary_data_contradict() -> None:
    with pytest.raises(InvalidInput, match="both data and binary_data_size"):
        decode({"inputs": [entry(parameters={"binary_data_size": 16})]}, bytes(16))


@pytest.mark.parametrize(
    ("shape", "blob"),
    [
        ([1], b"\x05\0\0\0hi"),
        ([1], b"\x02\0\0\0hi!"),
        ([2], b"\x02\0\0\0hi"),
        ([10**12], b"\0\0\0\0"),
    ],
)
def test_broken_strings_are_refused(shape: list[int], blob: bytes) -> None:
    with pytest.raises(InvalidInput):
        binary.from_bytes(TensorSpec("t", "BYTES", ("n",)), tuple(shape), memoryview(blob))


@pytest.mark.parametrize("value", [128, -129, 1.5])
def test_values_outside_the_type_are_refused(value: float) -> None:
    spec = Interface((TensorSpec("c", "INT8", (1,)),), LINEAR.outputs)
    with pytest.raises(InvalidInput):
        decode(
            {"inputs": [{"name": "c", "shape": [1], "datatype": "INT8", "data": [value]}]},
            interface=spec,
        )


@given(st.data(), st.sampled_from(sorted(set(DTYPES) - {"BYTES"})))
def test_binary_round_trips(data: st.DataObject, name: str) -> None:
    shape = data.draw(hnp.array_shapes(max_dims=3, max_side=4))
    array = data.draw(hnp.arrays(DTYPES[name], shape))
    spec = TensorSpec("x", name, shape)
    back = binary.from_bytes(spec, shape, memoryview(bytes(binary.to_bytes(array))))
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=6))
def test_strings_round_trip(texts: list[bytes]) -> None:
    array = np.empty(len(texts), object)
    array[:] = texts
    spec = TensorSpec("t", "BYTES", ("n",))
    back = binary.from_bytes(spec, (len(texts),), memoryview(bytes(binary.to_bytes(array))))
    assert back.tolist() == texts


def encode(outputs: dict[str, np.ndarray], **wanted: Any) -> tuple[dict[str, Any], bytes]:
    asked = tuple(RequestedOutput(n, **{"binary": False, **wanted}) for n in outputs)
    request = V2Request({}, 1, tuple(outputs), "abc", wanted=asked)
    interface = Interface(
        LINEAR.inputs,
        tuple(TensorSpec(n, dtype_name(a.dtype), a.shape) for n, a in outputs.items()),
    )
    codec = v2.V2Codec("m", "1", interface, Classes(interface, {"y": ["cat", "dog"]}))
    encoded = codec.encode(request, outputs, Candidate("v", "r", "d"))
    body = b"".join(bytes(p) for p in encoded.parts)
    lengths = encoded.lines.removeprefix(b"\r\nInference-Header-Content-Length: ")
    split = int(lengths) if lengths else len(body)
    document: dict[str, Any] = orjson.loads(body[:split])
    return document, body[split:]


def test_json_outputs_are_flat_with_id_and_parameters() -> None:
    document, blob = encode({"y": np.float32([[1, 2], [3, 4]])})
    assert document["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4]}
    ]
    where = {"edgeserve_device": "d", "edgeserve_runtime": "r", "edgeserve_variant": "v"}
    assert (document["id"], document["parameters"], blob) == ("abc", where, b"")
    assert (document["model_name"], document["model_version"]) == ("m", "1")


def test_binary_outputs_follow_the_json() -> None:
    values = np.float32([[1, 2], [3, 4]])
    document, blob = encode({"y": values}, binary=True)
    assert document["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert blob == values.tobytes()


def test_outputs_that_json_cannot_express_say_so() -> None:
    for bad in (np.float32([[np.nan]]), np.float16([[1]])):
        with pytest.raises(InvalidInput, match="binary data"):
            encode({"y": bad})


def test_classification_is_score_index_label() -> None:
    document, _ = encode({"y": np.float32([[0.25, 2.0, 1.0]])}, classes=2)
    assert document["outputs"][0]["data"] == ["2.000000:1:dog", "1.000000:2"]
    assert document["outputs"][0]["datatype"] == "BYTES"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=10,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("x") | JSON,
        "shape": st.just([1, 4]) | JSON,
        "datatype": st.just("FP32") | JSON,
        "data": st.just([1, 2, 3, 4]) | JSON,
        "parameters": st.just({"binary_data_size": 16}) | JSON,
    },
)


@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(FIELDS | JSON, max_size=2) | JSON},
        optional={"outputs": JSON, "parameters": JSON, "id": JSON},
    ),
    st.binary(max_size=20),
    st.booleans(),
)
@settings(max_examples=500)
def test_any_document_decodes_or_is_invalid_input(
    document: Any, blobs: bytes, header: bool
) -> None:
    head = json.dumps(document).encode()
    try:
        request = LINEAR_CODEC.decode(head + blobs, len(head) if header else None)
    except InvalidInput:
        return
    assert LINEAR.check(request.inputs) == request.rows


@given(st.binary(max_size=64), st.none() | st.integers(-5, 80))
def test_any_bytes_decode_or_are_invalid_input(body: bytes, length: int | None) -> None:
    try:
        LINEAR_CODEC.decode(memoryview(body), length)
    except InvalidInput:
        return


NUMBERS = st.integers(-300, 300) | st.floats(width=32) | st.booleans() | st.none() | st.integers()
DATA = st.recursive(NUMBERS, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@given(
    st.sampled_from(sorted(set(DTYPES) - {"BYTES"})),
    st.lists(st.integers(0, 4) | st.just(1.0), max_size=3),
    st.lists(st.integers(-200, 200), max_size=8) | DATA,
)
@settings(max_examples=150)
def test_typed_and_general_reading_agree(datatype: str, shape: list[Any], data: Any) -> None:
    """What is quick must be no other than what is thorough, in what it takes and in what it gives."""
    spec = TensorSpec("x", datatype, tuple(f"d{i}" for i in range(len(shape))))
    codec = v2.V2Codec("m", "1", Interface((spec,), LINEAR.outputs))
    body = json.dumps(
        {"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}]}
    ).encode()

    def outcome(read: Any) -> Any:
        try:
            array = codec._request(read(), memoryview(b"")).inputs["x"]
        except InvalidInput:
            return "invalid"
        return array.dtype, array.shape, array.tobytes()

    assert outcome(lambda: parse(body, 100)) == outcome(lambda: general(body))
