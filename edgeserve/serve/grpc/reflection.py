"""Server reflection: tools such as grpcurl ask the server for its services and messages."""

from __future__ import annotations

from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from edgeserve.serve.grpc import health
from edgeserve.serve.grpc.pool import Pools
from edgeserve.wire import SERVICE, messages

# Version 1 has the messages of v1alpha; tools ask for one or the other.
_NAMES: Final = (str(reflection.SERVICE_NAME), "grpc.reflection.v1.ServerReflection")


def handlers(pools: Pools) -> dict[str, grpc.RpcMethodHandler]:
    """By the methods' full names."""
    handler = grpc.stream_stream_rpc_method_handler(
        pools.on_stream(_servicer().ServerReflectionInfo),
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return {f"/{name}/ServerReflectionInfo": handler for name in _NAMES}


def _servicer() -> Any:
    """grpc's own servicer, with our descriptors beside those of health and reflection."""
    pool = descriptor_pool.DescriptorPool()
    for described in (messages.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        file = descriptor_pb2.FileDescriptorProto()
        described.CopyToProto(file)
        pool.Add(file)
    return reflection.ReflectionServicer((SERVICE, health.NAME, _NAMES[0]), pool=pool)
