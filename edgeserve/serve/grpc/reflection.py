"""Server reflection: tools such as grpcurl ask the server for its services and messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from edgeserve.serve.access.keys import Role
from edgeserve.serve.grpc import health
from edgeserve.serve.grpc.admission import PlacedMethod
from edgeserve.serve.grpc.pool import Pools
from edgeserve.serve.grpc.service import GrpcService

# Version 1 has the messages of v1alpha; tools ask for one or the other.
_NAMES: Final = (str(reflection.SERVICE_NAME), "grpc.reflection.v1.ServerReflection")


def entries(pools: Pools, services: Sequence[GrpcService]) -> dict[str, PlacedMethod]:
    """What answers the methods, by their paths: it tells about these services, health and itself."""
    handler = grpc.stream_stream_rpc_method_handler(
        pools.on_stream(_servicer(services).ServerReflectionInfo),
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return {f"/{name}/ServerReflectionInfo": PlacedMethod(handler, Role.INFER) for name in _NAMES}


def _servicer(services: Sequence[GrpcService]) -> Any:
    """grpc's own servicer, with the services' descriptors beside those of health and reflection."""
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(described: FileDescriptor) -> None:
        """After the files that it imports; each once."""
        if described.name in added:
            return
        added.add(described.name)
        for imported in described.dependencies:
            add(imported)
        file = descriptor_pb2.FileDescriptorProto()
        described.CopyToProto(file)
        pool.Add(file)

    files = [service.file for service in services]
    for described in (*files, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        add(described)
    names = [service.name for service in services]
    return reflection.ReflectionServicer((*names, health.NAME, _NAMES[0]), pool=pool)
