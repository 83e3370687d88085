"""From a request's head to what answers it: the routes of the Open Inference Protocol v2, and /metrics.

Each route says which role it needs, and the authoriser is asked before anything else happens.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from edgeserve.errors import EdgeServeError
from edgeserve.serve.access.keys import Authoriser, Caller, Role, key_of
from edgeserve.serve.control import Control
from edgeserve.serve.engine.flight import InFlight
from edgeserve.serve.http.errors import refused
from edgeserve.serve.http.head import Head
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import RETRY, Headers, Refusal, Response
from edgeserve.serve.http.route import IGNORED_BYTES, NoRoute, Route, asking, not_allowed, reading
from edgeserve.serve.metrics.counts import Counts
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.protocols.inference import Inference, InferRoute
from edgeserve.serve.protocols.v2 import codec as v2
from edgeserve.serve.protocols.v2.config import config_of, platform_of
from edgeserve.serve.protocols.v2.extensions import EXTENSIONS
from edgeserve.serve.protocols.v2.management import Management
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.shm import SharedMemory
from edgeserve.serve.status.page import PATHS, StatusPage
from edgeserve.serve.status.status import readiness, where
from edgeserve.version import __version__

log = logging.getLogger(__name__)

_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"

_MODEL: Final = re.compile(
    rb"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(infer|ready|config|stats|generate(?:_stream)?))?/?"
)


class Router:
    """Answers requests for the models of a repository, on one listener."""

    def __init__(
        self,
        repository: ModelRepository,
        authoriser: Authoriser,
        limits: Limits,
        shm: SharedMemory,
        flight: InFlight,
        management: Management,
        control: Control,
    ) -> None:
        self._repository = repository
        self._control = control
        self._authoriser = authoriser
        self._limits = limits
        self._inference = Inference(repository, limits, flight)
        self._v2 = v2.V2(limits, shm)
        self._management = management
        self._page = StatusPage(control, repository)
        self._asked: dict[bytes, Callable[[], Coroutine[Any, Any, Response]]] = {
            b"/v2/models/stats": self._statistics,
            b"/metrics": self._metrics,
        }
        self._fixed: dict[bytes, Callable[[], Response]] = {
            b"/v2": self._server,
            b"/v2/": self._server,
            b"/v2/models": self._list,
            b"/openapi.json": _openapi,
        }

    def close(self) -> None:
        self._inference.close()

    def handle(self, request: Request) -> None:
        """Answer now or later; never raises."""
        try:
            head = request.head
            if head.route is None:  # the leave that there was may have ended
                refusal = self.admit(head, request.address)
                if refusal is not None:
                    request.respond(refusal)
                    return
            head.route(request)
        except Exception:
            log.exception("a request could not be handled")
            request.respond(Response.error(500, "the server failed; its log says why"))

    def admit(self, head: Head, address: str) -> Refusal | None:
        """Say what answers a head, and how much it reads, or why its request is not served; never raises.

        To be asked before anything of the body is taken.
        """
        head.most, head.trusted = IGNORED_BYTES, False
        try:
            route = self._route(head, caller_of(head, address))
        except NoRoute as error:
            return error.refusal
        except EdgeServeError as error:
            refusal = refused(error)
            if refusal is None:
                log.exception("a request could not be routed")
            return refusal or Refusal(503, "unavailable", str(error))
        if head.length is not None and head.length > head.most:
            message = f"the body is {head.length} bytes, at most {head.most} are taken here"
            return Refusal(413, "body_too_large", message)
        head.route = route
        return None

    def announced(self, head: Head) -> Refusal | None:
        """Why a request cannot be right that was let in, by what its head says of the body; never raises."""
        route = head.route
        if not isinstance(route, InferRoute) or head.length is None:
            return None
        try:
            return route.misfit(head.length)
        except EdgeServeError as error:
            return refused(error)

    def _route(self, head: Head, caller: Caller) -> Route:
        """Raises NoRoute, AccessDenied, InvalidInput, ModelNotFound, ModelUnavailable."""
        path = head.path
        if path == b"/v2/health/live":
            return reading(head, lambda: Response.json({"live": True}))
        if path == b"/v2/health/ready":
            detailed = self._authoriser.allows(Role.INFER, caller)
            return asking(head, lambda: self._health(detailed=detailed))

        def check(role: Role) -> None:
            self._authoriser.check(role, caller)
            head.trusted = True

        managed = self._management.find(head, check)
        if managed is not None:
            return managed
        check(Role.INFER)
        if path in PATHS:
            return asking(head, lambda: self._page.answer(head))
        asked = self._asked.get(path)
        if asked is not None:
            return asking(head, asked)
        fixed = self._fixed.get(path)
        if fixed is not None:
            return reading(head, fixed)
        match = _MODEL.fullmatch(path)
        if match is None:
            raise NoRoute(Refusal(404, "unknown_route", "no such route"))
        name, version = decoded(match[1]), None if match[2] is None else decoded(match[2])
        if match[3] == b"infer":
            if head.method != "POST":
                raise not_allowed("POST")
            head.most = self._limits.body_bytes
            return self._inference.route(self._v2, name, version, head.headers)
        if match[3] in (b"generate", b"generate_stream"):
            raise self._no_text(head, name, version)
        what = match[3]
        if what == b"ready":
            return asking(head, lambda: self._ready(name, version))
        if what == b"stats":
            return asking(head, lambda: self._statistics(name, version))
        return reading(head, lambda: self._about(name, version, what))

    def _no_text(self, head: Head, name: str, version: str | None) -> NoRoute:
        """Triton's routes for language models, which are not served here. Raises as for models that are."""
        if head.method != "POST":
            raise not_allowed("POST")
        known = self._repository.find(name, version).name
        message = (
            f"model '{known}' does not generate text: models here compute tensors from tensors, "
            f"ask /v2/models/{known}/infer"
        )
        return NoRoute(Refusal(501, "unsupported", message))

    # about the server and its models

    def _server(self) -> Response:
        return Response.json(
            {"name": "edgeserve", "version": __version__, "extensions": EXTENSIONS}
        )

    async def _health(self, *, detailed: bool) -> Response:
        status = await self._control.status()
        document: dict[str, object] = {"ready": status.ready, "live": True}
        if detailed:
            document["models"] = readiness(status)
            if status.workers:
                document["workers"] = status.workers
        return Response.struct(
            document, 200 if status.ready else 503, () if status.ready else RETRY
        )

    async def _ready(self, name: str, version: str | None) -> Response:
        model = self._repository.find(name, version)
        ready = (await self._control.status()).answers(model.name, model.version)
        return Response.json({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def _statistics(self, name: str | None = None, version: str | None = None) -> Response:
        """Of all models, or of the one that is named."""
        model = None if name is None else self._repository.find(name, version)
        counts = await self._control.counts()
        found = [
            one
            for one in counts.statistics()
            if model is None or (one.name, one.version) == (model.name, model.version)
        ]
        return Response.struct({"model_stats": found}, headers=_silent(counts))

    async def _metrics(self) -> Response:
        counts = await self._control.counts()
        return Response.of(200, [counts.metrics()], _PROMETHEUS, _silent(counts))

    def _list(self) -> Response:
        models = [
            {"name": m.name, "versions": self._repository.versions(m.name), **where(m)}
            for m in self._repository.loaded()
            if m.version == self._repository.versions(m.name)[-1]
        ]
        return Response.json({"models": models})

    def _about(self, name: str, version: str | None, what: bytes | None) -> Response:
        model = self._repository.find(name, version)
        if what == b"config":
            return Response.struct(config_of(model))
        return Response.json(
            v2.metadata(
                model.name,
                self._repository.versions(model.name),
                platform_of(model),
                model.interface,
            )
        )


def caller_of(head: Head, address: str) -> Caller:
    def text(name: bytes) -> str | None:
        value = head.headers.get(name)
        return None if value is None else value.decode("latin-1")

    key = key_of(text(b"authorization"), text(b"x-api-key"))
    return Caller(key, address, text(b"host") or "", text(b"origin"))


def decoded(part: bytes) -> str:
    return unquote_to_bytes(part).decode("utf-8", "replace")


def _openapi() -> Response:
    from edgeserve.serve.protocols.v2.openapi import document  # few ask for it

    return Response.json(document())


def _silent(counts: Counts) -> Headers:
    """Says of which workers the numbers are as of earlier."""
    if not counts.silent:
        return ()
    return (("x-edgeserve-silent-workers", ", ".join(map(str, counts.silent))),)
