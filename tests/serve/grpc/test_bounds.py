"""What is held of large messages is bounded over all calls, and given back."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from edgeserve.serve.settings.limits import Limits
from edgeserve.wire import SERVICE, messages
from tests.serve.background import Background
from tests.serve.grpc.conftest import address, settings

MIB = 1 << 20


def large(size: int) -> bytes:
    """A request that is refused in the end, for it has an input too many."""
    message = messages.ModelInferRequest(
        model_name="slow", raw_input_contents=[bytes(16), bytes(size)]
    )
    for name in ("x", "y"):
        message.inputs.add(name=name, datatype="FP32", shape=[1, 4])
    return bytes(message.SerializeToString())


def good(rows: int) -> bytes:
    message = messages.ModelInferRequest(model_name="slow", raw_input_contents=[bytes(16 * rows)])
    message.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    return bytes(message.SerializeToString())


def padded(size: int) -> bytes:
    """One that is answered, with a parameter that takes room."""
    message = messages.ModelInferRequest.FromString(good(1))
    message.parameters["room"].string_param = "x" * size
    return bytes(message.SerializeToString())


@pytest.mark.slow
def test_large_messages_of_all_calls_are_bounded(slow_file: Path) -> None:
    limits = Limits(bodies_bytes=MIB)
    waiting = settings(slow_file, threads=1, batch_delay=1.5, limits=limits, max_body=None)
    with Background(waiting) as server, grpc.insecure_channel(address(server)) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        calls = [infer.future(padded(300_000)) for _ in range(8)]
        codes = [call.code() for call in calls]
        assert codes.count(grpc.StatusCode.OK) == 3
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 5
        refused = next(c for c in calls if c.code() is not grpc.StatusCode.OK)
        assert refused.details() == "too many large messages at one time"
        assert infer(good(1))
        for _ in range(2):  # what was held is given back, also for requests that failed
            for call in [infer.future(large(300_000)) for _ in range(3)]:
                assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert infer(padded(900_000))


def test_a_client_that_leaves_gives_its_room_back(slow_file: Path) -> None:
    limits = Limits(bodies_bytes=MIB)
    waiting = settings(slow_file, threads=1, batch_delay=1.0, limits=limits, max_body=None)
    with Background(waiting) as server, grpc.insecure_channel(address(server)) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for _ in range(4):
            calls = [infer.future(padded(300_000)) for _ in range(3)]
            for call in calls:
                call.cancel()
        assert infer(padded(900_000), timeout=20)
