"""Whatever is sent is answered with a status, and the server goes on. It is a process of its own, as a
crash in native code would end it without a word."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.tensors import DTYPES
from edgeserve.wire import SERVICE, messages
from tests.bundles import linear
from tests.conformance.process import Served, serve
from tests.serve.grpc.conftest import method, request, samples

METHODS = [
    m.name
    for m in messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    if not m.client_streaming
]
GOOD = request(2, raw_input_contents=[samples(2).tobytes()], id="1").SerializeToString()
# Never the client's fault: these would be bugs; a deadline that passes, a server that hangs.
SERVER_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


def ask(
    channel: grpc.Channel, name: str, data: bytes, metadata: Sequence[tuple[str, str]] = ()
) -> bytes | None:
    """The answer, or None where it was refused for a reason."""
    call = channel.unary_unary(f"/{SERVICE}/{name}").future(data, timeout=20, metadata=metadata)
    if call.code() is grpc.StatusCode.OK:
        return bytes(call.result())
    assert call.code() not in SERVER_FAULTS, call.details()
    assert call.details()
    return None


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[Served]:
    with serve(bundle, "--max-body", "1000000") as running:
        yield running
        assert running.popen.poll() is None


@pytest.fixture
def channel(served: Served) -> Iterator[grpc.Channel]:
    """A channel to a server that serves afterwards as before."""
    with grpc.insecure_channel(served.grpc) as connected:
        yield connected
        check_answer(connected)


def check_answer(channel: grpc.Channel) -> None:
    answer = method(channel, "ModelInfer")(GOOD, timeout=20)
    response = messages.ModelInferResponse.FromString(answer)
    got = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(2, 3)
    np.testing.assert_allclose(got, linear(samples(2)), rtol=1e-5, atol=1e-6)


CALLS = st.tuples(st.sampled_from(METHODS), st.binary(max_size=300))
CHANGES = st.tuples(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(1, len(GOOD)),
)
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


STREAMS = st.lists(st.one_of(st.binary(max_size=60), st.just(GOOD)), max_size=6)
METADATA = st.lists(
    st.tuples(
        st.from_regex(r"[a-z0-9-]{1,20}", fullmatch=True).filter(
            lambda n: not n.startswith("grpc-") and not n.endswith("-bin")
        ),
        st.from_regex(r"[ -~]{0,40}", fullmatch=True),
    ),
    max_size=5,
)


def random_bytes(channel: grpc.Channel, case: tuple[str, bytes]) -> None:
    ask(channel, *case)


def changed_bytes(channel: grpc.Channel, case: tuple[list[tuple[int, int]], int]) -> None:
    changes, length = case
    message = bytearray(GOOD)
    for place, value in changes:
        message[place] = value
    ask(channel, "ModelInfer", bytes(message[:length]))


def changed_fields(channel: grpc.Channel, case: dict[str, Any]) -> None:
    answer = ask(channel, "ModelInfer", messages.ModelInferRequest(**case).SerializeToString())
    if answer is not None:
        response = messages.ModelInferResponse.FromString(answer)
        assert response.id == case.get("id", "")
        assert len(response.outputs) == len(response.raw_output_contents)


def streamed(channel: grpc.Channel, case: list[bytes]) -> None:
    """Each message has its answer, in order."""
    call = channel.stream_stream(
        f"/{SERVICE}/ModelStreamInfer",
        response_deserializer=messages.ModelStreamInferResponse.FromString,
    )
    answers = list(call(iter(case), timeout=20))
    assert len(answers) == len(case)
    for message, answer in zip(case, answers, strict=True):
        assert bool(answer.error_message) == (message != GOOD)


def any_metadata(channel: grpc.Channel, case: list[tuple[str, str]]) -> None:
    ask(channel, "ModelInfer", GOOD, case)


KINDS = pytest.mark.parametrize(
    ("check", "cases"),
    [
        (random_bytes, CALLS),
        (changed_bytes, CHANGES),
        (changed_fields, REQUESTS),
        (streamed, STREAMS),
        (any_metadata, METADATA),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)


def fuzz(channel: grpc.Channel, check: Callable[..., None], cases: Any, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(cases)
    def run(case: Any) -> None:
        check(channel, case)

    run()


@KINDS
def test_fuzz(channel: grpc.Channel, check: Callable[..., None], cases: Any) -> None:
    fuzz(channel, check, cases, 200)


@pytest.mark.slow
@KINDS
def test_many_cases(channel: grpc.Channel, check: Callable[..., None], cases: Any) -> None:
    fuzz(channel, check, cases, 8_000)
