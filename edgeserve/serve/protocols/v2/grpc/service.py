"""inference.GRPCInferenceService: its methods, the role each needs, and what answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from google.protobuf.message import Message

from edgeserve.serve.access.keys import Role
from edgeserve.serve.grpc.service import Ask, Exchange, GrpcService, Infer
from edgeserve.serve.protocols.grpc_inference import ServedCalls
from edgeserve.serve.protocols.v2.grpc.about import About
from edgeserve.serve.protocols.v2.grpc.infer import InferMessages
from edgeserve.serve.protocols.v2.grpc.stream import Stream
from edgeserve.wire import SERVICE, messages


def service(served: ServedCalls) -> GrpcService:
    """The service of one server."""
    about, start = About(served), served.inferences.starting
    alone, streamed = (
        start(InferMessages(served.shm, served.limits, streamed=how)) for how in (False, True)
    )
    return GrpcService(
        SERVICE,
        messages.DESCRIPTOR,
        (
            Infer("ModelInfer", alone),
            Exchange("ModelStreamInfer", lambda *opened: Stream(streamed, *opened)),
            _ask(about.ServerLive, Role.OPEN),
            _ask(about.ServerReady, Role.OPEN),
            _ask(about.ModelReady),
            _ask(about.ServerMetadata),
            _ask(about.ModelMetadata),
            _ask(about.ModelConfig),
            _ask(about.ModelStatistics),
            _ask(about.RepositoryIndex),
            _ask(about.RepositoryModelLoad, Role.CONTROL),
            _ask(about.RepositoryModelUnload, Role.CONTROL),
            _ask(about.SystemSharedMemoryStatus, Role.CONTROL),
            _ask(about.SystemSharedMemoryRegister, Role.CONTROL),
            _ask(about.SystemSharedMemoryUnregister, Role.CONTROL),
            _ask(about.CudaSharedMemoryStatus, Role.CONTROL),
            _ask(about.CudaSharedMemoryRegister, Role.CONTROL),
            _ask(about.CudaSharedMemoryUnregister, Role.CONTROL),
            _ask(about.TraceSetting),
            _ask(about.LogSettings),
        ),
    )


def _ask(handler: Callable[[Any], Awaitable[Message]], role: Role = Role.INFER) -> Ask:
    """The method that a handler is named after, as its messages are."""
    name: str = handler.__name__
    return Ask(name, handler, getattr(messages, f"{name}Request"), role)


SERVICES: Final = (service,)
