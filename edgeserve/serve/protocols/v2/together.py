"""What a worker process answers for all of them: readiness, the index, statistics and metrics."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from edgeserve.errors import EnvironmentProblem
from edgeserve.serve.access.keys import Role
from edgeserve.serve.http.head import Head
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import RETRY, Headers, Response
from edgeserve.serve.http.route import Route, later, reading
from edgeserve.serve.metrics.prometheus import rendered
from edgeserve.serve.metrics.shared import Shown
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.status.overview import ModelOverview, Overview, WorkerOverview
from edgeserve.serve.status.page import PATHS, StatusPage
from edgeserve.serve.workers import Siblings
from edgeserve.serve.workers.messages import Counts, Standing

_MODEL: Final = re.compile(rb"/v2/models/([^/]+)(?:/versions/([^/]+))?/(ready|stats)/?")
_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"


class Together:
    """Routes whose answer is not one worker's alone."""

    def __init__(self, siblings: Siblings, repository: ModelRepository) -> None:
        self._siblings = siblings
        self._repository = repository
        self._page = StatusPage(repository)

    def find(self, head: Head, check: Callable[[Role], None]) -> Route | None:
        """The route of a head, None if it is none of these. `check` raises for roles not given.

        Raises NoRoute, AccessDenied.
        """
        path = head.path
        if path == b"/metrics":
            answer: Callable[[], Coroutine[Any, Any, Response]] = self._metrics
        elif path == b"/v2/models/stats":
            answer = self._statistics
        elif path in PATHS:

            def answer() -> Coroutine[Any, Any, Response]:
                return self._shown(head)

        elif match := _MODEL.fullmatch(path):
            name, version = _text(match[1]), None if match[2] is None else _text(match[2])
            about = self._ready if match[3] == b"ready" else self._model_statistics

            def answer() -> Coroutine[Any, Any, Response]:
                return about(name, version)
        else:
            return None
        check(Role.INFER)
        return _asking(head, answer)

    def health(self, head: Head, *, detailed: bool) -> Route:
        """Readiness of the server; `detailed` names models and workers. Raises NoRoute."""
        return _asking(head, lambda: self._health(detailed=detailed))

    async def _health(self, *, detailed: bool) -> Response:
        standing = await self._siblings.standing()
        document: dict[str, object] = {"ready": standing.ready, "live": True}
        if detailed:
            document["models"] = standing.models
            document["workers"] = standing.workers
        status, headers = (200, ()) if standing.ready else (503, RETRY)
        return Response.struct(document, status, headers)

    async def _ready(self, name: str, version: str | None) -> Response:
        model = self._repository.find(name, version)
        ready = (model.name, model.version) in (await self._siblings.standing()).serves
        return Response.json({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def _statistics(self) -> Response:
        counts = await self._siblings.counts()
        return Response.struct({"model_stats": counts.statistics}, headers=_missing(counts))

    async def _model_statistics(self, name: str, version: str | None) -> Response:
        model = self._repository.find(name, version)
        counts = await self._siblings.counts()
        found = [s for s in counts.statistics if (s.name, s.version) == (model.name, model.version)]
        return Response.struct({"model_stats": found}, headers=_missing(counts))

    async def _shown(self, head: Head) -> Response:
        found = self._page.overview()
        try:
            told = await asyncio.gather(self._siblings.standing(), self._siblings.counts())
        except EnvironmentProblem:
            return self._page.shown(head, found)  # of this process alone
        return self._page.shown(head, together(found, *told))

    async def _metrics(self) -> Response:
        counts = await self._siblings.counts()
        return Response.of(200, [rendered(Shown(counts.families))], _TEXT, _missing(counts))


def together(own: Overview, standing: Standing, counts: Counts) -> Overview:
    """What one worker shows of itself, with the numbers and the states of all."""
    numbers: dict[tuple[str, str, str], dict[str, int]] = {}
    for family in counts.families:
        for sample in family.samples:
            labels = sample.labels
            key = (sample.name, labels.get("model", ""), labels.get("version", ""))
            numbers.setdefault(key, {})[labels.get("reason", "")] = int(sample.value)
    states = {(e.name, e.version): e for e in standing.index}
    degraded = {name for name, told in standing.models.items() if "instead_of" in told}

    def shown(model: ModelOverview) -> ModelOverview:
        key = (model.name, model.version)
        entry = states.get(key)
        return msgspec.structs.replace(
            model,
            state=model.state if entry is None else entry.state,
            reason=model.reason if entry is None else entry.reason,
            ready=key in standing.serves,
            degraded=key in standing.serves and (model.degraded or model.name in degraded),
            answered=numbers.get(("edgeserve_requests_total", *key), {}).get("", 0),
            failed={
                reason: count
                for reason, count in numbers.get(
                    ("edgeserve_request_failures_total", *key), {}
                ).items()
                if count
            },
            pending=numbers.get(("edgeserve_pending_requests", *key), {}).get("", 0),
            queue=model.queue * max(1, len(standing.workers)),
        )

    models = tuple(shown(model) for model in own.models)
    return msgspec.structs.replace(
        own,
        ready=standing.ready,
        degraded=standing.ready and any(m.degraded for m in models),
        models=models,
        workers=tuple(WorkerOverview(w.worker, w.ready, w.reason) for w in standing.workers),
    )


def _missing(counts: Counts) -> Headers:
    """Says of which workers the numbers are as of earlier."""
    if not counts.silent:
        return ()
    return (("x-edgeserve-silent-workers", ", ".join(map(str, counts.silent))),)


def _asking(head: Head, answer: Callable[[], Coroutine[Any, Any, Response]]) -> Route:
    reading(head, lambda: Response.of(200, []))  # refuses other methods

    def route(request: Request) -> None:
        later(request, answer())

    return route


def _text(part: bytes) -> str:
    return unquote_to_bytes(part).decode("utf-8", "replace")
