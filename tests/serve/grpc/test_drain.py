"""Stopping: what has begun is answered, what comes later is told to go elsewhere, nothing is left."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from edgeserve.wire import SERVICE, messages
from tests.serve.background import Background
from tests.serve.grpc.conftest import (
    address,
    method,
    pending,
    request,
    samples,
    settings,
)
from tests.serve.slow import slow
from tests.waiting import wait_for


def slow_requests(rows: int) -> tuple[bytes, np.ndarray]:
    x = samples(rows)
    message = request(rows, model_name="slow", raw_input_contents=[x.tobytes()])
    return bytes(message.SerializeToString()), slow(x)


def outputs(answer: bytes) -> np.ndarray:
    response = messages.ModelInferResponse.FromString(answer)
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(-1, 3)


def check(calls: list[Any], wanted: np.ndarray, *, at_least: int) -> None:
    """Every call was answered, rightly, or told to go elsewhere; none was cut."""
    codes = [call.code() for call in calls]
    assert set(codes) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert codes.count(grpc.StatusCode.OK) >= at_least
    for call, code in zip(calls, codes, strict=True):
        if code is grpc.StatusCode.OK:
            np.testing.assert_allclose(outputs(call.result()), wanted, rtol=1e-3, atol=1e-4)


def test_calls_in_flight_are_answered(slow_file: Path) -> None:
    server = Background(settings(slow_file, threads=1, batching=False))
    message, wanted = slow_requests(4)
    with grpc.insecure_channel(address(server)) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        calls = [infer.future(message) for _ in range(120)]
        wait_for(lambda: pending(server) > 0)
        taken = pending(server)
        server.stop()
        check(calls, wanted, at_least=int(taken))
        with pytest.raises(grpc.RpcError) as caught:
            infer(message)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_an_idle_stream_does_not_hold_the_server(slow_file: Path) -> None:
    server = Background(settings(slow_file, threads=1, drain_timeout=60.0))
    message, wanted = slow_requests(2)
    to_send: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def sent() -> Iterator[bytes]:
        while (item := to_send.get()) is not None:
            yield item

    with grpc.insecure_channel(address(server)) as channel:
        answers = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")(sent())
        to_send.put(message)
        first = messages.ModelStreamInferResponse.FromString(next(answers))
        got = np.frombuffer(first.infer_response.raw_output_contents[0], np.float32)
        np.testing.assert_allclose(got.reshape(-1, 3), wanted, rtol=1e-3, atol=1e-4)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 30
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        to_send.put(None)


def test_nothing_is_left(bundle: Path) -> None:
    before = {t for t in threading.enumerate() if t.name.startswith("edgeserve")}
    with Background(settings(bundle)) as server, grpc.insecure_channel(address(server)) as channel:
        method(channel, "ModelInfer")(request().SerializeToString())
        assert any(
            t.name.startswith("edgeserve-grpc") and t not in before for t in threading.enumerate()
        )
    after = {t for t in threading.enumerate() if t.name.startswith("edgeserve")}
    assert after <= before


def test_sigterm_ends_a_serving_process_with_0(slow_file: Path) -> None:
    command = [sys.executable, "-m", "edgeserve", "run", str(slow_file), "--http-port", "0"]
    process = subprocess.Popen([*command, "--grpc-port", "0"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process:
        where = next(line for line in process.stderr if line.startswith("gRPC: "))
        message, wanted = slow_requests(4)
        with grpc.insecure_channel(where.split()[1]) as channel:
            infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
            calls = [infer.future(message) for _ in range(20)]
            calls[0].result()
            process.terminate()
            check(calls, wanted, at_least=1)
        process.stderr.read()
        assert process.wait(30) == 0
