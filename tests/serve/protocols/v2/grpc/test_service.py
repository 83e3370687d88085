"""The service's list of methods: all that inference.proto declares, each with its messages and its role."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.serve.access.keys import Role
from edgeserve.serve.fronts import grpc as front
from edgeserve.serve.grpc.service import Ask, GrpcService
from edgeserve.serve.protocols.grpc_inference import ServedCalls
from edgeserve.serve.protocols.v2.grpc.service import service
from edgeserve.wire import messages
from tests.serve.background import Background
from tests.serve.grpc.conftest import settings


def test_the_list_is_the_declared_service(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[GrpcService] = []

    def noted(served: ServedCalls) -> GrpcService:
        made.append(service(served))
        return made[0]

    monkeypatch.setattr(front, "services", lambda names: (noted,))
    with Background(settings(bundle)):
        (listed,) = made
    declared = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert listed.name == declared.full_name
    assert sorted(m.name for m in listed.methods) == sorted(m.name for m in declared.methods)
    asks = {m.name: m for m in listed.methods if isinstance(m, Ask)}
    assert len(asks) == len(declared.methods) - 2
    for method in declared.methods:
        if method.name in asks:
            assert asks[method.name].request.DESCRIPTOR is method.input_type
    roles = {m.name: m.role for m in listed.methods}
    assert {n for n, role in roles.items() if role is Role.OPEN} == {"ServerLive", "ServerReady"}
    controls = {n for n, role in roles.items() if role is Role.CONTROL}
    changes = ("RepositoryModel", "SystemShared", "CudaShared")
    assert controls == {n for n in roles if n.startswith(changes)}
