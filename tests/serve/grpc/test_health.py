"""Health probes and reflection, with grpc's own clients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from edgeserve.serve.grpc.health import Health
from edgeserve.wire import SERVICE
from tests.serve.background import Background
from tests.serve.grpc.conftest import address, settings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.fixture
def health(channel: grpc.Channel) -> health_pb2_grpc.HealthStub:
    return health_pb2_grpc.HealthStub(channel)


@pytest.mark.parametrize("service", ["", SERVICE, "linear"])
def test_check(health: health_pb2_grpc.HealthStub, service: str) -> None:
    asked = health_pb2.HealthCheckRequest(service=service)
    assert health.Check(asked).status == SERVING
    watched = health.Watch(asked)
    assert next(watched).status == SERVING
    watched.cancel()


def test_unknown_services(health: health_pb2_grpc.HealthStub) -> None:
    asked = health_pb2.HealthCheckRequest(service="nope")
    with pytest.raises(grpc.RpcError) as caught:
        health.Check(asked)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watched = health.Watch(asked)
    assert next(watched).status == UNKNOWN
    watched.cancel()


def test_bytes_that_are_no_check(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/grpc.health.v1.Health/Check")(b"\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_watchers_see_the_server_drain(bundle: Path) -> None:
    server = Background(settings(bundle))
    with grpc.insecure_channel(address(server)) as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watched).status == SERVING
        server.stop()
        assert next(watched).status == NOT_SERVING
        with pytest.raises(grpc.RpcError):
            next(watched)


def test_models_that_come_and_go() -> None:
    health = Health(lambda: None)
    health.services = (SERVICE,)
    health.tell(True, {"a": True, "b": False})
    assert told(health, "", "a", "b") == [SERVING, SERVING, NOT_SERVING]
    health.tell(True, {"b": True})
    assert told(health, "a", "b") == [NOT_SERVING, SERVING]
    health.drain()
    health.tell(True, {"b": True})
    assert told(health, "", SERVICE, "b") == [NOT_SERVING] * 3


def told(health: Health, *services: str) -> list[int]:
    found = []
    for service in services:
        message = health_pb2.HealthCheckRequest(service=service).SerializeToString()
        answer = health.check(message, None)
        found.append(health_pb2.HealthCheckResponse.FromString(answer).status)
    return found


def test_reflection(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)
    assert {SERVICE, "grpc.health.v1.Health"} <= set(database.get_services())
    pool = DescriptorPool(database)
    service = pool.FindServiceByName(SERVICE)
    assert len(service.methods) == 20
    request = pool.FindMessageTypeByName("inference.ModelInferRequest")
    assert request.fields_by_name["raw_input_contents"].number == 7
    assert pool.FindServiceByName("grpc.health.v1.Health").methods_by_name["Watch"]


def test_reflection_under_its_newer_name(channel: grpc.Channel) -> None:
    def asked() -> Iterator[bytes]:
        yield b"\x3a\x00"  # list_services = 7

    call = channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
    (answer,) = call(asked())
    assert SERVICE.encode() in answer
