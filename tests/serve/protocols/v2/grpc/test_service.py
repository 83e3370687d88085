"""The service's list of methods: all that inference.proto declares, each with its messages and its role."""

from __future__ import annotations

from typing import Any

from edgeserve.serve.access.keys import Role
from edgeserve.serve.grpc.service import Ask
from edgeserve.serve.protocols.v2.grpc.about import About
from edgeserve.serve.protocols.v2.grpc.service import service
from edgeserve.wire import messages


class Inferences:
    """Never started."""

    start: Any = None


def test_the_list_is_the_declared_service() -> None:
    about = About.__new__(About)  # its methods are listed, not called
    listed = service(about, Inferences())  # type: ignore[arg-type]
    declared = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert listed.name == declared.full_name
    assert sorted(m.name for m in listed.methods) == sorted(m.name for m in declared.methods)
    asks = {m.name: m for m in listed.methods if isinstance(m, Ask)}
    for method in declared.methods:
        if method.name in asks:
            assert asks[method.name].request.DESCRIPTOR is method.input_type
    roles = {m.name: m.role for m in listed.methods}
    assert {n for n, role in roles.items() if role is Role.OPEN} == {"ServerLive", "ServerReady"}
    controls = {n for n, role in roles.items() if role is Role.CONTROL}
    changes = ("RepositoryModel", "SystemShared", "CudaShared")
    assert controls == {n for n in roles if n.startswith(changes)}
