"""Whatever is sent is answered with a status, and the server goes on."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeserve.serve.grpc import SERVICE, messages
from edgeserve.tensors import DTYPES
from tests.bundles import linear
from tests.serve.grpc.conftest import method, request, samples

METHODS = [
    m.name
    for m in messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    if not m.client_streaming
]
GOOD = request(2, raw_input_contents=[samples(2).tobytes()], id="1").SerializeToString()
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Never the client's fault: these would be bugs.
SERVER_FAULTS = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS}


def ask(channel: grpc.Channel, name: str, data: bytes) -> bytes | None:
    """The answer, or None where it was refused for a reason."""
    try:
        return method(channel, name)(data, timeout=20)
    except grpc.RpcError as error:
        assert error.code() not in SERVER_FAULTS, error
        assert error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, "it hangs"
        assert error.details()
        return None


@pytest.fixture(autouse=True)
def still_serves(channel: grpc.Channel) -> Any:
    yield
    answer = method(channel, "ModelInfer")(GOOD, timeout=20)
    response = messages.ModelInferResponse.FromString(answer)
    got = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(2, 3)
    np.testing.assert_allclose(got, linear(samples(2)), rtol=1e-5, atol=1e-6)


@CALM
@given(st.sampled_from(METHODS), st.binary(max_size=300))
def test_random_bytes(channel: grpc.Channel, name: str, data: bytes) -> None:
    ask(channel, name, data)


@CALM
@given(st.data())
def test_a_good_request_with_bytes_changed(channel: grpc.Channel, data: st.DataObject) -> None:
    message = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(message)))
    ask(channel, "ModelInfer", bytes(message[: cut or None]))


PARAMETERS = st.dictionaries(
    st.sampled_from(
        ["timeout", "priority", "classification", "shared_memory_region", "triton_x",
         "shared_memory_byte_size", "shared_memory_offset", "sequence_id", "binary_data", ""]
    ),
    st.one_of(
        st.builds(dict),
        st.booleans().map(lambda v: {"bool_param": v}),
        st.integers(-(2**63), 2**63 - 1).map(lambda v: {"int64_param": v}),
        st.text(max_size=5).map(lambda v: {"string_param": v}),
        st.floats().map(lambda v: {"double_param": v}),
        st.integers(0, 2**64 - 1).map(lambda v: {"uint64_param": v}),
    ),
    max_size=2,
)  # fmt: skip
CONTENTS = st.one_of(
    st.none(),
    st.fixed_dictionaries(
        {},
        optional={
            "bool_contents": st.lists(st.booleans(), max_size=4),
            "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=4),
            "uint64_contents": st.lists(st.integers(0, 2**64 - 1), max_size=4),
            "fp32_contents": st.lists(st.floats(width=32), min_size=4, max_size=4),
            "bytes_contents": st.lists(st.binary(max_size=4), max_size=4),
        },
    ),
)
INPUTS = st.builds(
    lambda contents, **fields: fields | ({"contents": contents} if contents is not None else {}),
    CONTENTS,
    name=st.sampled_from(["x", "x", "y", ""]),
    datatype=st.sampled_from(["FP32", "FP32", *sorted(DTYPES), "BF16", "x"]),
    shape=st.sampled_from([[1, 4], [2, 4], [0, 4], [4], [], [-1, 4], [2**62, 4], [1, 2, 2]]),
    parameters=PARAMETERS,
)
REQUESTS = st.fixed_dictionaries(
    {"model_name": st.sampled_from(["linear", "linear", "linear", "nope", ""])},
    optional={
        "model_version": st.sampled_from(["1", "2", "x", "-1"]),
        "id": st.text(max_size=5),
        "parameters": PARAMETERS,
        "inputs": st.lists(INPUTS, max_size=2),
        "outputs": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from(["y", "x", ""])}, optional={"parameters": PARAMETERS}
            ),
            max_size=2,
        ),
        "raw_input_contents": st.lists(
            st.sampled_from([b"", bytes(16), bytes(32), bytes(15), b"\xff" * 16]), max_size=2
        ),
    },
)


@CALM
@given(REQUESTS)
def test_messages_with_fields_changed(channel: grpc.Channel, fields: dict[str, Any]) -> None:
    answer = ask(channel, "ModelInfer", messages.ModelInferRequest(**fields).SerializeToString())
    if answer is not None:
        response = messages.ModelInferResponse.FromString(answer)
        assert response.id == fields.get("id", "")
        assert len(response.outputs) == len(response.raw_output_contents)


@CALM
@given(st.lists(st.one_of(st.binary(max_size=60), st.just(GOOD)), max_size=6))
def test_streams_answer_each_message(channel: grpc.Channel, sent: list[bytes]) -> None:
    call = channel.stream_stream(
        f"/{SERVICE}/ModelStreamInfer",
        response_deserializer=messages.ModelStreamInferResponse.FromString,
    )
    answers = list(call(iter(sent), timeout=20))
    assert len(answers) == len(sent)
    for message, answer in zip(sent, answers, strict=True):
        assert bool(answer.error_message) == (message != GOOD)


@CALM
@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True).filter(
                lambda n: not n.startswith("grpc-") and not n.endswith("-bin")
            ),
            st.from_regex(r"[ -~]{0,40}", fullmatch=True),
        ),
        max_size=5,
    )
)
def test_metadata_of_all_kinds(channel: grpc.Channel, metadata: list[tuple[str, str]]) -> None:
    try:
        method(channel, "ModelInfer")(GOOD, metadata=metadata, timeout=20)
    except grpc.RpcError as error:
        assert error.code() not in SERVER_FAULTS - {grpc.StatusCode.INTERNAL}
