"""Raw tensors as views on the received bytes: what is taken out and what is left is what protobuf reads."""

from __future__ import annotations

import numpy as np
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.serve.protocols.v2.grpc import codec
from edgeserve.serve.protocols.v2.grpc.large import split
from edgeserve.wire import messages
from tests.bundles import LINEAR
from tests.serve.grpc.conftest import request, samples

Request = messages.ModelInferRequest


def whole(data: bytes) -> messages.ModelInferRequest | None:
    try:
        return Request.FromString(data)
    except DecodeError:
        return None


def rejoined(data: bytes) -> messages.ModelInferRequest | None:
    parts = split(data)
    if parts is None:
        return whole(data)
    message = whole(parts[0])
    if message is not None:
        message.raw_input_contents.extend(bytes(b) for b in parts[1])
    return message


@given(st.lists(st.binary(max_size=300), max_size=5), st.text(max_size=5), st.booleans(), st.data())
def test_split_loses_nothing(
    blobs: list[bytes], name: str, typed: bool, data: st.DataObject
) -> None:
    message = request(raw_input_contents=blobs, id=name)
    if typed:
        message.inputs[0].contents.fp32_contents.extend([1.0, 2.0])
    wire = bytearray(message.SerializeToString())
    assert rejoined(bytes(wire)) == message
    # Fields in another order, and tensors apart from each other, as protobuf allows.
    for extra in data.draw(st.permutations([message, request(raw_input_contents=[b"more"])])):
        wire += extra.SerializeToString()
    assert rejoined(bytes(wire)) == whole(bytes(wire))


@given(st.binary(max_size=80))
def test_any_bytes(data: bytes) -> None:
    parts = split(data)
    if parts is not None and whole(data) is not None:
        assert rejoined(data) == whole(data)
    if whole(data) is None and parts is not None:
        # The rest is as bad as the whole was: protobuf refuses it all the same.
        assert whole(parts[0]) is None


@given(st.data())
def test_damaged_messages(data: st.DataObject) -> None:
    wire = bytearray(request(2, raw_input_contents=[bytes(32), b"x"]).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    damaged = bytes(wire[: data.draw(st.integers(1, len(wire)))])
    assert rejoined(damaged) == whole(damaged)


def test_many_fields_are_left_to_protobuf() -> None:
    assert split(b"\x0a\x00" * 100_000) is None


def test_a_large_request_is_a_view_on_what_came() -> None:
    x = samples(8_000)
    data = request(8_000, raw_input_contents=[x.tobytes()]).SerializeToString()
    parsed = codec.parse(data)
    assert not parsed.message.raw_input_contents
    assert parsed.blobs[0].obj is data
    decoded = codec.decode(parsed, 1 << 28)
    (given_input,) = decoded.inputs
    np.testing.assert_array_equal(given_input.values, x)
    assert LINEAR.input("x").fits(given_input.shape)
