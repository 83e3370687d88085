"""Whatever comes as a body or as a message is a request that the model can run, or an error that says why not."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeserve.errors import EdgeServeError
from edgeserve.serve.engine import Outcome
from edgeserve.serve.http.content import BodyTooLarge
from edgeserve.serve.metrics.reasons import meaning_of
from edgeserve.serve.models.model import ServedModel
from edgeserve.serve.protocols.tfserving.codec import Method, TfServing, TfServingCodec
from edgeserve.serve.protocols.tfserving.events import mode_of
from edgeserve.serve.protocols.tfserving.grpc import messages
from edgeserve.serve.protocols.tfserving.grpc.codec import (
    ClassifyMessages,
    PredictMessages,
    RegressMessages,
)
from edgeserve.serve.settings.limits import Limits
from tests.conformance.models import echo_bundle
from tests.seeing import boxes_bundle, colours_bundle, photograph
from tests.serve.found import found_bundle
from tests.serve.protocols.doubling import doubling_bundle
from tests.serve.protocols.fuzzing import WORDS, computed, damaged
from tests.serve.protocols.opened import opened
from tests.serve.protocols.tfserving.models import half

LIMITS: Final = Limits(body_bytes=1 << 20, elements=1 << 16, output_bytes=1 << 20)
EVENTS: Final = "application/cloudevents+json"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Sequence[ServedModel]:
    folder = tmp_path_factory.mktemp("fuzz")
    bundles = (doubling_bundle, colours_bundle, boxes_bundle, found_bundle, echo_bundle)
    return [*(opened(bundle(folder)) for bundle in bundles), opened(half(folder, 1, 2.0))]


# Bodies


B64: Final = base64.b64encode(photograph()).decode()
EVENT: Final = {"specversion": "1.0", "id": "1", "source": "a", "type": "b"}
# Right for one of the models and methods, with their media types.
RIGHT: Final[list[tuple[bytes, str]]] = [
    (b'{"instances":[[1,2],[-3,4.5]]}', "application/json"),
    (b'{"signature_name":"serving_default","instances":[{"x":[1,2],"ids":7}]}', ""),
    (b'{"inputs":{"x":[[1,2],[-3,4]],"ids":[1,2]}}', "application/json"),
    (b'\xef\xbb\xbf{"instances":[[NaN,-Infinity]]}', "application/json"),
    (b'{"instances":[{"half":[1,2],"long":[1,2],"byte":[1,2],"flag":[true,false],"text":["a",{"b64":"YQ=="}]}]}', ""),
    (json.dumps({"instances": [{"b64": B64}, {"image": {"b64": B64}}]}).encode(), ""),
    (json.dumps({"inputs": {"image": [{"b64": B64}]}}).encode(), ""),
    (photograph(), "image/jpeg"),
    (b'{"context":{"x":1},"examples":[{},{"x":[3]},{"x":4.5}]}', ""),
    (json.dumps(EVENT | {"data": {"instances": [[1, 2]]}}).encode(), EVENTS),
    (json.dumps(EVENT | {"data_base64": B64}).encode(), EVENTS),
]  # fmt: skip
NAMES: Final = (
    "instances", "inputs", "examples", "context", "signature_name", "x", "ids", "image", "text", "b64", "data",
    "data_base64", "id", "specversion", "source", "type",
)  # fmt: skip
VALUES: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, str]:
    """A body and its media type: right, damaged, or made up."""
    body, media = draw(st.sampled_from(RIGHT))
    kind = draw(st.sampled_from(("right", "damaged", "damaged", "json", "bytes")))
    if kind == "damaged":
        body = damaged(draw, body, WORDS)
    elif kind == "json":
        body = json.dumps(draw(VALUES)).encode()
    elif kind == "bytes":
        body = draw(st.binary(max_size=64))
    return body, media


@pytest.fixture(scope="module")
def codecs(models: Sequence[ServedModel]) -> Sequence[TfServingCodec]:
    """Of each model and method."""
    return [TfServing(LIMITS, method).codec(model) for model in models for method in Method]


def run(codec: TfServingCodec, case: tuple[bytes, str]) -> None:
    """Raises EdgeServeError."""
    body, media = case
    terms = mode_of({b"content-type": media.encode()})
    codec.check_size(len(body), terms)
    assert codec.text_bytes(len(body), terms) >= 0
    request = codec.decode(body, terms)
    assert codec.interface.check(request.inputs) == request.rows
    outputs = computed(codec.model, request.rows)
    assert codec.written_bytes(request, outputs) >= 0
    response = codec.encode(request, outputs, codec.model.bundle.manifest.chain[0])
    assert response.form.status == 200
    assert all(isinstance(part, bytes | memoryview) for part in response.parts)


def check(codecs: Sequence[TfServingCodec], case: tuple[bytes, str]) -> None:
    for codec in codecs:
        try:
            run(codec, case)
        except BodyTooLarge:
            continue
        except EdgeServeError as error:
            failed = error
        else:
            continue
        assert meaning_of(failed).http in (400, 404), (failed, case)


@given(bodies())
@settings(max_examples=150)
def test_any_body_is_run_or_refused(
    codecs: Sequence[TfServingCodec], case: tuple[bytes, str]
) -> None:
    check(codecs, case)


@pytest.mark.slow
@given(bodies())
@settings(max_examples=100_000, suppress_health_check=list(HealthCheck))
def test_a_hundred_thousand_bodies_are_run_or_refused(
    codecs: Sequence[TfServingCodec], case: tuple[bytes, str]
) -> None:
    check(codecs, case)


def test_the_bodies_that_are_right_are_run(codecs: Sequence[TfServingCodec]) -> None:
    """Each by at least one of the models; otherwise the others would test nothing."""
    for case in RIGHT:
        done = 0
        for codec in codecs:
            try:
                run(codec, case)
            except EdgeServeError:
                continue
            done += 1
        assert done, case


# Messages


def tensor(dtype: int, shape: tuple[int, ...], **values: Any) -> Any:
    proto = messages.TensorProto(dtype=dtype, **values)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def predict(**inputs: Any) -> bytes:
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name="m"))
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(value)
    data: bytes = request.SerializeToString()
    return data


def examples() -> bytes:
    """Classification and regression requests have the same fields."""
    request = messages.ClassificationRequest(model_spec=messages.ModelSpec(name="m"))
    listed = request.input.example_list_with_context
    listed.context.features.feature["x"].int64_list.value.append(1)
    listed.examples.add()
    listed.examples.add().features.feature["x"].float_list.value.append(2.5)
    data: bytes = request.SerializeToString()
    return data


MESSAGES: Final = [
    predict(x=tensor(1, (2, 2), float_val=[1, 2, 3, 4]), ids=tensor(9, (2,), int64_val=[1])),
    predict(x=tensor(1, (1, 2), tensor_content=bytes(8)), ids=tensor(9, (1,), int64_val=[1])),
    predict(
        half=tensor(19, (1, 2), half_val=[15360]), long=tensor(9, (1, 2), int64_val=[1]),
        byte=tensor(4, (1, 2), int_val=[255]), flag=tensor(10, (1, 2), bool_val=[True]),
        text=tensor(7, (1, 2), string_val=[b"a", b"\xff"]),
    ),
    examples(),
]  # fmt: skip


@st.composite
def serialized(draw: st.DrawFn) -> bytes:
    """A message: right, damaged, or made up."""
    data = draw(st.sampled_from(MESSAGES))
    kind = draw(st.sampled_from(("right", "damaged", "damaged", "damaged", "bytes")))
    if kind == "damaged":
        return damaged(draw, data)
    return draw(st.binary(max_size=64)) if kind == "bytes" else data


def called(model: ServedModel, kind: Any, message: bytes) -> None:
    """Raises EdgeServeError."""
    codec = kind(LIMITS)
    decoded = codec.decode(codec.parse(message))
    request = codec.bind(decoded, model, None)
    assert model.interface.check(request.inputs) == request.rows
    outputs = computed(model, request.rows)
    assert codec.written_bytes(request, outputs) >= 0
    result = Outcome(outputs, model.bundle.manifest.chain[0], 1, 0.0, 0.0)
    assert isinstance(codec.encode(request, model, result), bytes)


def check_message(models: Sequence[ServedModel], message: bytes) -> None:
    for model in models:
        for kind in (PredictMessages, ClassifyMessages, RegressMessages):
            try:
                called(model, kind, message)
            except EdgeServeError as error:
                failed = error
            else:
                continue
            assert meaning_of(failed).http in (400, 404), (failed, message)


@given(serialized())
@settings(max_examples=150)
def test_any_message_is_run_or_refused(models: Sequence[ServedModel], message: bytes) -> None:
    check_message(models, message)


@pytest.mark.slow
@given(serialized())
@settings(max_examples=100_000, suppress_health_check=list(HealthCheck))
def test_a_hundred_thousand_messages_are_run_or_refused(
    models: Sequence[ServedModel], message: bytes
) -> None:
    check_message(models, message)


def test_the_messages_that_are_right_are_run(models: Sequence[ServedModel]) -> None:
    for message in MESSAGES:
        done = 0
        for model in models:
            for kind in (PredictMessages, ClassifyMessages, RegressMessages):
                try:
                    called(model, kind, message)
                except EdgeServeError:
                    continue
                done += 1
        assert done, message
