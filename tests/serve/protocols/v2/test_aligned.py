"""Bodies that come in pieces are received where their tensors need no copy."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from edgeserve.serve.protocols.v2 import codec
from edgeserve.tensors import Array, TensorSpec
from tests.serve.background import Background
from tests.serve.conftest import RawClient


def test_tensors_begin_at_a_multiple_of_64(
    server: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    from_bytes = codec.binary.from_bytes

    def noted(spec: TensorSpec, shape: tuple[int, ...], data: memoryview) -> Array:
        array = from_bytes(spec, shape, data)
        seen.append(array.__array_interface__["data"][0] % 64)
        assert np.shares_memory(array, np.frombuffer(data, np.uint8))
        return array

    monkeypatch.setattr(codec.binary, "from_bytes", noted)
    entry = {"name": "x", "shape": [64, 4], "datatype": "FP32"}
    entry["parameters"] = {"binary_data_size": 64 * 16}
    for spaces in range(3):
        text = json.dumps({"inputs": [entry]}).encode() + b" " * spaces
        with RawClient(server.url) as client:
            client.send(
                b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: t\r\n"
                b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
                % (len(text), len(text) + 64 * 16)
            )
            time.sleep(0.05)  # so that the body is received by itself
            client.send(text + bytes(64 * 16))
            assert client.response()[0] == 200
    assert seen == [0, 0, 0]
