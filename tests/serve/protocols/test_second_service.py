"""A second gRPC service (rows_calls.py, beside this) is served on v2's port with all that v2 has."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from edgeserve.serve.fronts import grpc as front
from edgeserve.serve.fronts.protocols import services
from edgeserve.wire import SERVICE, messages
from tests.bundles import linear
from tests.serve.background import Background
from tests.serve.grpc.conftest import address, settings
from tests.serve.protocols.rows_calls import rows_service

KEY = "infer-key-0123456789"
CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"infer {KEY}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "services", lambda names: (*services(names), rows_service))
        with Background(settings(bundle, keys=str(keys), max_body=1 << 20)) as running:
            yield running


@pytest.fixture
def channel(server: Background) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(address(server)) as opened:
        yield opened


def run(channel: grpc.Channel, message: bytes | dict[str, Any], key: str = KEY) -> bytes:
    data = message if isinstance(message, bytes) else json.dumps(message).encode()
    metadata = [("x-api-key", key)]
    answer: bytes = channel.unary_unary("/rows.Rows/Run")(data, timeout=20, metadata=metadata)
    return answer


@pytest.mark.parametrize("spaces", [0, 20_000], ids=["on the loop", "on the caller's thread"])
def test_rows_are_answered_beside_v2(channel: grpc.Channel, spaces: int) -> None:
    rows = [[1.0, 2.0, 3.0, 4.0]]
    message = json.dumps({"model": "linear", "rows": rows}).encode() + b" " * spaces
    np.testing.assert_allclose(json.loads(run(channel, message)), linear(np.float32(rows)), 1e-5)
    asked = messages.ModelInferRequest(model_name="linear")
    asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    asked.raw_input_contents.append(np.float32(rows).tobytes())
    infer = channel.unary_unary(
        f"/{SERVICE}/ModelInfer", response_deserializer=messages.ModelInferResponse.FromString
    )
    answer = infer(asked.SerializeToString(), metadata=[("x-api-key", KEY)])
    y = np.frombuffer(answer.raw_output_contents[0], np.float32)
    np.testing.assert_allclose(y, linear(np.float32(rows))[0], 1e-5)


@pytest.mark.parametrize(
    ("message", "key", "code", "said"),
    [
        (b"{", KEY, CODE.INVALID_ARGUMENT, "not rows"),
        ({"model": "linear", "rows": [[1.0]]}, KEY, CODE.INVALID_ARGUMENT, "expected shape"),
        ({"model": "nobody", "rows": [[1.0]]}, KEY, CODE.NOT_FOUND, "nobody"),
        ({"model": "linear", "rows": [[1.0]]}, "wrong", CODE.UNAUTHENTICATED, "key"),
        (b" " * (1 << 21), KEY, CODE.RESOURCE_EXHAUSTED, "larger"),
    ],
)
def test_errors(
    channel: grpc.Channel, message: bytes | dict[str, Any], key: str, code: Any, said: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        run(channel, message, key)
    assert caught.value.code() is code
    assert said in caught.value.details()


def test_health_and_reflection_know_it(channel: grpc.Channel, bundle: Path) -> None:
    asked = health_pb2.HealthCheckRequest(service="rows.Rows")
    assert health_pb2_grpc.HealthStub(channel).Check(asked).status == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "services", lambda names: (*services(names), rows_service))
        with (
            Background(settings(bundle)) as open_server,
            grpc.insecure_channel(address(open_server)) as opened,
        ):
            found = ProtoReflectionDescriptorDatabase(opened).get_services()
    assert {SERVICE, "rows.Rows", "grpc.health.v1.Health"} <= set(found)
