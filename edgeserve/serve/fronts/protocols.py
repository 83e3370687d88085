"""All protocols by name: the HTTP routes and the gRPC services of those that a server speaks. A protocol that is not
served is not imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Final

from edgeserve.serve.http.route import RouteList
from edgeserve.serve.protocols.common import COMMON
from edgeserve.serve.protocols.context import Served

if TYPE_CHECKING:
    from edgeserve.serve.grpc.service import GrpcService
    from edgeserve.serve.protocols.grpc_inference import ServedCalls

_PACKAGE: Final = "edgeserve.serve.protocols"
# Of these, `grpc/service.py` lists SERVICES.
WITH_GRPC: Final = ("v2", "tfserving")


def route_lists(names: Sequence[str]) -> tuple[RouteList[Served], ...]:
    """The routes of these protocols, in their order, and those that belong to none. Where two have a route of one
    method and path, the first one's answers. If no route has a path, the first protocol whose paths begin like it
    writes the error."""
    return (*(_routes(name)() for name in names), COMMON)


def services(names: Sequence[str]) -> tuple[Callable[[ServedCalls], GrpcService], ...]:
    """What makes the gRPC services of these protocols, all on one port. Raises ImportError without grpcio."""
    return tuple(
        service
        for name in names
        if name in WITH_GRPC
        for service in import_module(f"{_PACKAGE}.{name}.grpc.service").SERVICES
    )


def _routes(name: str) -> Callable[[], RouteList[Served]]:
    found: Callable[[], RouteList[Served]] = import_module(f"{_PACKAGE}.{name}.routes").routes
    return found
