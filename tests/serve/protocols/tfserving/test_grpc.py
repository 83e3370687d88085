"""TF Serving's gRPC API: recorded messages, tensors of every type in every form, statuses."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeserve.errors import InvalidInput
from edgeserve.serve.protocols.tfserving.about import DT
from edgeserve.serve.protocols.tfserving.grpc import messages
from edgeserve.serve.protocols.tfserving.grpc.tensors import from_proto, to_proto
from edgeserve.serve.settings.server import Settings
from edgeserve.tensors import DTYPES
from tests.seeing import colours_bundle, photograph
from tests.serve.background import Background
from tests.serve.protocols.oracles import FOLDER, needs
from tests.serve.protocols.tfserving.models import repository

PREDICTION = "/tensorflow.serving.PredictionService"
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    folder = tmp_path_factory.mktemp("tfgrpc")
    models = folder / "models"
    models.mkdir()
    repository(models)
    settings = Settings(
        bundle=str(colours_bundle(folder)), repository=str(models), http_port=0, grpc_port=0
    )
    with Background(settings) as running:
        yield running


@pytest.fixture(scope="module")
def channel(server: Background) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(str(server.started.grpc)) as opened:
        yield opened


def call(channel: grpc.Channel, path: str, data: bytes) -> tuple[grpc.StatusCode, bytes]:
    """The status and the serialized answer."""
    try:
        return CODE.OK, channel.unary_unary(path)(data, timeout=30)
    except grpc.RpcError as error:
        return error.code(), error.details().encode()


def predict(channel: grpc.Channel, name: str, **tensors: Any) -> Any:
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name=name))
    for key, value in tensors.items():
        request.inputs[key].CopyFrom(value)
    code, data = call(channel, f"{PREDICTION}/Predict", request.SerializeToString())
    assert code is CODE.OK, data
    return messages.PredictResponse.FromString(data)


def cases() -> list[dict[str, Any]]:
    file = FOLDER / "tfserving.jsonl"
    if not file.is_file():
        return []
    entries = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    found = [e for e in entries if e.get("request", {}).get("method") == "GRPC"]
    # Other models, whose bundles differ here.
    return [
        e
        for e in found
        if e["request"]["json"]["message"]["model_spec"].get("name", "half") in ("half", "nope")
    ]


# By name: our status, and why.
DIFFERENT = {
    "grpc label": (CODE.INVALID_ARGUMENT, "labels are not set here"),
    "grpc unknown signature": (CODE.INVALID_ARGUMENT, "as over REST"),
    "grpc classify": (CODE.INVALID_ARGUMENT, "this bundle has one signature"),
}


@needs("tfserving")
def test_recorded_messages_are_answered_alike(channel: grpc.Channel) -> None:
    assert len(cases()) > 12
    for entry in cases():
        name, request, answer = entry["name"], entry["request"], entry["answer"]
        data = base64.b64decode(request["json"]["serialized_b64"])
        code, got = call(channel, request["path"], data)
        expected = DIFFERENT.get(name, (CODE[answer["status"]], ""))[0]
        assert code is expected, (name, code, got)
        if code is CODE.OK and "Predict" in request["path"] and "outputs" in answer["json"]:
            found = messages.PredictResponse.FromString(got)
            theirs = answer["json"]["outputs"]["y"]["float_val"]
            assert list(found.outputs["y"].float_val) == theirs, name
            assert str(found.model_spec.version.value) == answer["json"]["model_spec"]["version"]


FIELDS = {
    "FP32": "float_val", "FP64": "double_val", "INT32": "int_val", "INT16": "int_val", "INT8": "int_val", "UINT8": "int_val",
    "UINT16": "int_val", "INT64": "int64_val", "UINT64": "uint64_val", "UINT32": "uint32_val", "BOOL": "bool_val",
}  # fmt: skip


@pytest.mark.parametrize("dtype", sorted(FIELDS))
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_tensors_survive_in_both_forms(dtype: str, data: st.DataObject) -> None:
    array = data.draw(
        arrays.arrays(DTYPES[dtype], arrays.array_shapes(min_dims=0, max_dims=3, max_side=3))
    )
    written = messages.TensorProto.FromString(to_proto(array, dtype))
    assert not written.tensor_content
    name, back = from_proto("x", written, 100)
    assert name == dtype
    np.testing.assert_array_equal(back, array)
    packed = messages.TensorProto(
        dtype=DT[dtype][1], tensor_shape=written.tensor_shape, tensor_content=array.tobytes()
    )
    np.testing.assert_array_equal(from_proto("x", packed, 100)[1], array)


def test_half_precision_and_strings() -> None:
    half = np.array([0.5, np.inf, -2.0], np.float16)
    np.testing.assert_array_equal(
        from_proto("x", messages.TensorProto.FromString(to_proto(half, "FP16")), 9)[1], half
    )
    raw = np.array([0x3FC0, 0x7F80], np.uint16)
    dtype, back = from_proto("x", messages.TensorProto.FromString(to_proto(raw, "BF16")), 9)
    assert dtype == "BF16"
    np.testing.assert_array_equal(back, raw)
    texts = np.array([[b"a", b"\xff"]], object)
    assert (
        from_proto("x", messages.TensorProto.FromString(to_proto(texts, "BYTES")), 9)[1].tolist()
        == texts.tolist()
    )


def tensor(dtype: int = 1, shape: tuple[int, ...] = (2,), **values: Any) -> Any:
    proto = messages.TensorProto(dtype=dtype, **values)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize(
    ("proto", "words"),
    [
        (tensor(dtype=8, float_val=[1, 2]), "dtype 8 is not supported"),
        (tensor(float_val=[1, 2, 3]), "expected 2 values"),
        (tensor(), "expected 2 values"),
        (tensor(tensor_content=b"1234"), "expected 8 bytes"),
        (tensor(shape=(-1,), float_val=[1]), "unknown sizes"),
        (tensor(shape=(1 << 40, 1 << 40), float_val=[1]), "at most 100 elements"),
        (tensor(dtype=6, int_val=[300, 1]), "outside INT8"),
        (tensor(dtype=7, tensor_content=b"a"), "string_val"),
    ],
)
def test_what_is_not_a_tensor_is_refused(proto: Any, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        from_proto("x", proto, 100)


def test_the_last_value_fills_the_shape() -> None:
    assert from_proto("x", tensor(shape=(2, 2), float_val=[1, 2]), 9)[1].tolist() == [
        [1, 2],
        [2, 2],
    ]


def test_several_outputs_and_a_filter(channel: grpc.Channel) -> None:
    inputs = {"a": tensor(shape=(1, 2), float_val=[1, 2]), "b": tensor(shape=(1,), float_val=[1])}
    both = predict(channel, "two", **inputs)
    assert list(both.outputs["sum"].float_val) == [2, 3]
    assert list(both.outputs["twice"].float_val) == [2]
    request = messages.PredictRequest(
        model_spec=messages.ModelSpec(name="two"), output_filter=["twice"]
    )
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(value)
    _, data = call(channel, f"{PREDICTION}/Predict", request.SerializeToString())
    assert list(messages.PredictResponse.FromString(data).outputs) == ["twice"]


def test_classify_and_regress(channel: grpc.Channel) -> None:
    request = messages.RegressionRequest(model_spec=messages.ModelSpec(name="half"))
    given_ = request.input.example_list_with_context
    given_.context.features.feature["x"].float_list.value.append(5)
    given_.examples.add()
    given_.examples.add().features.feature["x"].float_list.value.append(1)
    _, data = call(channel, f"{PREDICTION}/Regress", request.SerializeToString())
    found = messages.RegressionResponse.FromString(data)
    assert [r.value for r in found.result.regressions] == [5.5, 3.5]
    pixels = np.zeros((3, 8, 8), np.float32)
    pixels[1] = 1
    asked = messages.ClassificationRequest(model_spec=messages.ModelSpec(name="colours"))
    feature = asked.input.example_list.examples.add().features.feature["image"]
    feature.float_list.value.extend(pixels.reshape(-1).tolist())
    _, data = call(channel, f"{PREDICTION}/Classify", asked.SerializeToString())
    (row,) = messages.ClassificationResponse.FromString(data).result.classifications
    assert [c.label for c in row.classes] == ["red", "green", "blue"]
    assert row.classes[1].score > 0.99


def test_photographs_are_classified(channel: grpc.Channel) -> None:
    asked = messages.ClassificationRequest(model_spec=messages.ModelSpec(name="colours"))
    for colour in ("blue", "red"):
        feature = asked.input.example_list.examples.add().features.feature["image/encoded"]
        feature.bytes_list.value.append(photograph(colour))
    path = f"{PREDICTION}/Classify"
    _, data = call(channel, path, asked.SerializeToString())
    rows = messages.ClassificationResponse.FromString(data).result.classifications
    best = [max(row.classes, key=lambda c: c.score).label for row in rows]
    assert best == ["blue", "red"]
    asked.input.example_list.examples.add().features.feature["x"].bytes_list.value.append(b"no")
    code, words = call(channel, path, asked.SerializeToString())
    assert (code, b"image 2" in words) == (CODE.INVALID_ARGUMENT, True), words


def test_the_status_of_a_model(channel: grpc.Channel) -> None:
    request = messages.GetModelStatusRequest(model_spec=messages.ModelSpec(name="half"))
    path = "/tensorflow.serving.ModelService/GetModelStatus"
    _, data = call(channel, path, request.SerializeToString())
    found = messages.GetModelStatusResponse.FromString(data).model_version_status
    assert [(v.version, v.state, v.status.error_code) for v in found] == [(2, 30, 0), (1, 30, 0)]
    request.model_spec.name = "none"
    assert call(channel, path, request.SerializeToString())[0] is CODE.NOT_FOUND


@given(data=st.binary(max_size=120))
@settings(max_examples=40, deadline=None)
def test_no_message_breaks_the_server(channel: grpc.Channel, data: bytes) -> None:
    for method in ("Predict", "Classify", "Regress", "GetModelMetadata"):
        code, _ = call(channel, f"{PREDICTION}/{method}", data)
        assert code in (CODE.INVALID_ARGUMENT, CODE.NOT_FOUND), code


def test_photographs_come_as_strings(channel: grpc.Channel) -> None:
    proto = messages.TensorProto(dtype=DT["BYTES"][1])
    proto.tensor_shape.dim.add(size=2)
    proto.string_val.extend([photograph("blue"), photograph("red")])
    answer = predict(channel, "colours", image=proto)
    logits = from_proto("logits", answer.outputs["logits"], 100)[1]
    assert logits.argmax(axis=1).tolist() == [2, 0]
    proto.string_val[1] = b"nothing"
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name="colours"))
    request.inputs["image"].CopyFrom(proto)
    code, words = call(channel, f"{PREDICTION}/Predict", request.SerializeToString())
    assert code is CODE.INVALID_ARGUMENT
    assert b"image 1 cannot be read" in words


def test_a_short_message_does_not_become_a_large_array(channel: grpc.Channel) -> None:
    for dtype, values in ((1, {"float_val": [1.0]}), (7, {"string_val": [b"a"]})):
        _, view = from_proto("x", tensor(dtype, (1 << 16, 1), **values), 1 << 28)
        assert view.strides == (0, 0)
        with pytest.raises(InvalidInput, match="fills at most"):
            from_proto("x", tensor(dtype, (1 << 28,), **values), 1 << 28)
    answer = predict(channel, "half", x=tensor(shape=(1024,), float_val=[1]))
    assert list(answer.outputs["y"].float_val) == [3.5] * 1024


def test_too_many_examples_are_refused(channel: grpc.Channel) -> None:
    asked = messages.RegressionRequest(model_spec=messages.ModelSpec(name="half"))
    feature = asked.input.example_list.examples.add().features.feature["x"]
    feature.float_list.value.extend([0.0] * (1 << 19))
    code, words = call(channel, f"{PREDICTION}/Regress", asked.SerializeToString())
    assert (code, b"ask Predict" in words) == (CODE.INVALID_ARGUMENT, True), words
