"""The HTTP listeners of one server, from its settings: one for data, and one for control if that has its own port."""

from __future__ import annotations

import asyncio
import logging

from edgeserve.errors import EnvironmentProblem
from edgeserve.serve.access import LOCALHOST
from edgeserve.serve.access.addresses import addresses_of, joined
from edgeserve.serve.access.keys import CONTROL_HINT, Authoriser, Keys, is_loopback
from edgeserve.serve.access.tls import Tls
from edgeserve.serve.control import Control, Parts
from edgeserve.serve.fronts.protocols import route_lists
from edgeserve.serve.http.routing import Router
from edgeserve.serve.http.server import HttpServer
from edgeserve.serve.protocols.context import Served
from edgeserve.serve.protocols.inference import Inference
from edgeserve.serve.protocols.v2.codec import V2
from edgeserve.serve.settings.protocols import protocols_of
from edgeserve.serve.settings.server import Settings
from edgeserve.serve.status.page import StatusPage
from edgeserve.serve.workers.inherited import Inherited, Plane

log = logging.getLogger(__name__)


class HttpFront:
    """Owns the HTTP listeners of a server; lives on one event loop."""

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        control: Control,
        tls: Tls | None,
        inherited: Inherited | None = None,
    ) -> None:
        self._settings = settings
        self._inherited = inherited
        self._scheme = "http" if tls is None else "https"
        keys, limits = settings.read_keys(), settings.effective_limits()
        self._warn(is_loopback(settings.host), bool(keys))
        self._warn_of_closed(keys)

        self._inference = Inference(
            parts.repository, limits, parts.flight, parts.tracing, self._scheme
        )
        lists = route_lists(protocols_of(settings.protocols))
        self._page = StatusPage(control, parts.repository)
        self._keeping: asyncio.Task[None] | None = None
        served = Served(
            lists,
            parts.repository,
            control,
            parts.shm,
            limits,
            self._inference,
            V2(limits, parts.shm),
            self._page,
            settings.model_control,
        )
        self.also: list[str] = []
        self._authorisers: list[Authoriser] = []

        def listener(host: str, *, controls: bool) -> HttpServer:
            authoriser = Authoriser(keys, settings.control_names, listens_on=host, control=controls)
            self._authorisers.append(authoriser)
            router = Router(authoriser, lists, served, limits.body_bytes)
            return HttpServer(router, limits, parts.recorder, tls)

        separate = settings.control_port is not None
        self._data = listener(settings.host, controls=not separate)
        self._control_host = settings.control_host or LOCALHOST
        self._control = listener(self._control_host, controls=True) if separate else None
        self._servers = {Plane.DATA: self._data}
        if self._control is not None:
            self._servers[Plane.CONTROL] = self._control

    async def listen(self) -> tuple[str, str | None]:
        """Start listening; the URLs of the data and the control listener. `also` has their other addresses. Raises
        EnvironmentProblem."""
        settings = self._settings
        url = await self._listen(Plane.DATA, settings.host, settings.http_port)
        control_url = None
        if self._control is not None:
            port = settings.control_port or 0
            control_url = await self._listen(
                Plane.CONTROL, self._control_host, port, "control plane "
            )
        if self._inherited is not None:
            asyncio.get_running_loop().add_reader(self._inherited.pool, self._take)
        self._keeping = asyncio.ensure_future(self._page.keep())
        return url, control_url

    async def _listen(self, plane: Plane, host: str, port: int, of: str = "") -> str:
        """The URL of the first address; the others go to `also`, after the text `of`."""
        server = self._servers[plane]
        if self._inherited is None:
            first, *others = await _bind(server, host, port)
        else:
            listeners = self._inherited.listeners(plane)
            first, *others = [server.accept_from(one) for one in listeners]
        self.also += [f"{of}{self._url(*other)}" for other in others]
        return self._url(*first)

    def _take(self) -> bool:
        """A connection that was accepted for this worker or another; False if there is none."""
        assert self._inherited is not None
        try:
            taken = self._inherited.take()
        except EOFError:
            self._take_no_more()
            return False
        if taken is None:
            return False
        plane, connection = taken
        self._servers[plane].adopt(connection)
        return True

    def _take_no_more(self) -> None:
        if self._inherited is not None:
            asyncio.get_running_loop().remove_reader(self._inherited.pool)

    def _warn(self, loopback: bool, keys: bool) -> None:
        """Warn about settings that are allowed but may not be intended."""
        if loopback:
            return
        if not keys and self._settings.tls_client_ca is None:
            log.warning(
                "every client that reaches this server may use its models: no keys are configured"
            )
        elif keys and self._scheme == "http":
            log.warning("keys travel in the clear: use TLS to protect them on the network")

    def _warn_of_closed(self, keys: Keys) -> None:
        control = self._settings.model_control or bool(self._settings.shared_memory_prefixes)
        if control and keys and not keys.control:
            log.warning(
                "the control plane is unreachable: no control key is configured (%s)", CONTROL_HINT
            )

    def change_keys(self, keys: Keys) -> None:
        """Require these keys from the next request on; requests in progress are answered."""
        self._warn_of_closed(keys)
        for authoriser in self._authorisers:
            authoriser.change(keys)
        for server in self._servers.values():
            server.forget_routes()

    async def drain(self, timeout_s: float) -> bool:
        """As HttpServer.drain, for both listeners."""
        while self._inherited is not None and self._take():
            pass
        self._take_no_more()
        drains = [server.drain(timeout_s) for server in self._servers.values()]
        return all(await asyncio.gather(*drains))

    async def close(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
        for server in self._servers.values():
            await server.close()
        if self._inherited is not None:
            self._take_no_more()
            self._inherited.close()
        await asyncio.to_thread(self._inference.close)

    def _url(self, host: str, port: int) -> str:
        return f"{self._scheme}://{joined(host, port)}"


async def _bind(server: HttpServer, host: str, port: int) -> list[tuple[str, int]]:
    """Listen on every address of `host` that is available; the addresses. Raises EnvironmentProblem for the first."""
    first, *others = addresses_of(host)
    found = [await server.listen(first, port)]
    port = found[0][1]
    for other in others:
        try:
            found.append(await server.listen(other, port))
        except EnvironmentProblem as error:
            log.warning("only %s is listened on: %s", joined(*found[0]), error)
    return found
