"""The gRPC side of one server: its listener from its settings, with the services of all protocols."""

from __future__ import annotations

import asyncio
import logging

from edgeserve.errors import EnvironmentProblem
from edgeserve.serve.access.addresses import addresses_of, joined
from edgeserve.serve.access.keys import Authoriser, Caller, Keys, Role
from edgeserve.serve.control import Control, Parts
from edgeserve.serve.fronts.protocols import services
from edgeserve.serve.grpc.credentials import server_credentials
from edgeserve.serve.grpc.server import GrpcServer
from edgeserve.serve.protocols.grpc_inference import Inferences, ServedCalls
from edgeserve.serve.protocols.spans import traced
from edgeserve.serve.settings.protocols import protocols_of
from edgeserve.serve.settings.server import Settings

log = logging.getLogger(__name__)


class GrpcFront:
    """Owns the gRPC listener of a server; lives on one event loop.

    It has the control plane, too, unless `control_port` gives that an address of its own.
    """

    def __init__(self, settings: Settings, parts: Parts, control: Control) -> None:
        self._settings = settings
        self.also: list[str] = []
        self._authoriser = authoriser = Authoriser(
            settings.read_keys(),
            settings.control_names,
            listens_on=settings.host,
            control=settings.control_port is None,
        )

        def admit(role: Role, key: str | None) -> None:
            # Whoever reaches a loopback address is on this machine.
            authoriser.check(role, Caller(key=key, address=settings.host))

        async def readiness() -> tuple[bool, dict[str, bool]]:
            status = await control.status()
            models: dict[str, bool] = {}
            for model in status.models:
                models[model.name] = models.get(model.name, False) or model.state == "READY"
            return status.ready, models

        self._server = GrpcServer(
            settings, admit, readiness, parts.recorder, server_credentials(settings)
        )
        limits = settings.effective_limits()
        self._inferences = Inferences(
            parts.repository,
            parts.flight,
            asyncio.get_running_loop(),
            limits.bodies_bytes,
            traced=parts.tracing is not None,
        )
        served = ServedCalls(
            parts.repository,
            control,
            parts.shm,
            limits,
            self._inferences,
            settings.model_control,
            self._server.tell_health,
        )
        spoken = services(protocols_of(settings.protocols))
        self._server.serve([service(served) for service in spoken], traced(parts.tracing))

    def listen(self) -> str:
        """HOST:PORT that is listened on; `also` has further ones. Raises EnvironmentProblem."""
        first, *others = addresses_of(self._settings.host)
        port = self._server.listen(first, self._settings.grpc_port or 0)
        for other in others:
            try:
                self._server.listen(other, port)
            except EnvironmentProblem as error:
                log.warning("only %s is listened on: %s", joined(first, port), error)
            else:
                self.also.append(f"gRPC {joined(other, port)}")
        self._server.start()
        return joined(first, port)

    def change_keys(self, keys: Keys) -> None:
        """Calls that are handled already are answered; the next ones need these, and streams whose key is
        gone end."""
        self._authoriser.change(keys)
        self._server.check_streams()

    async def drain(self, timeout_s: float) -> bool:
        """As GrpcServer.drain."""
        return await self._server.drain(timeout_s)

    async def close(self) -> None:
        await self._server.close()
        self._inferences.close()
