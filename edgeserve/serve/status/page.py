"""The status page at `/` and `/status`, and what belongs to it: its JSON, its history, its files.

With Jinja2 it is a page with charts and a form that tries models; without, the plain document of
`edgeserve.serve.status.plain`. A browser sends no key by itself: where keys are configured, whoever has none gets the
page's frame without anything about this server, and its script asks for the rest with the key that is typed in.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

import msgspec

from edgeserve.errors import EnvironmentProblem, InvalidInput
from edgeserve.serve.access.keys import Role
from edgeserve.serve.http.response import JSON, ErrorResponse, Headers, Response
from edgeserve.serve.http.route import Asked
from edgeserve.serve.metrics.server_counts import RequestCounts
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.models.sources import Key
from edgeserve.serve.status.details import detailed, with_requests
from edgeserve.serve.status.files import PageFiles
from edgeserve.serve.status.history import History
from edgeserve.serve.status.plain import PLAIN_POLICY, render
from edgeserve.serve.status.status import Observed, ServerStatus
from edgeserve.serve.status.templates import Templates, open_templates

_HTML: Final = "text/html; charset=utf-8"
_COMMON: Final[Headers] = (
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("Vary", "Accept, Authorization, X-Api-Key"),
    ("X-Content-Type-Options", "nosniff"),
)
_PLAIN: Final[Headers] = (("Content-Security-Policy", PLAIN_POLICY), *_COMMON)
# `blob:`: masks and photographs that the page itself has read.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)
_PAGE: Final[Headers] = (
    ("Content-Security-Policy", POLICY),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
    *_COMMON,
)


class StatusPage:
    """The server as of each request, for people; candidates are shown as this process has them. Lives on the event
    loop; `keep` has to run for it to have a history."""

    def __init__(self, server: Observed, repository: ModelRepository) -> None:
        self._server = server
        self._repository = repository
        self._began = time.time()
        self._files = PageFiles()
        self._history = History(server)
        self._templates: Templates | None = None
        self._looked = False

    async def keep(self) -> None:
        """Keep the history, until cancelled."""
        await self._history.keep()

    async def answer(self, asked: Asked) -> Response:
        """HTML, or JSON for clients that ask for that. Raises AccessDenied for all but the frame of the page."""
        accept = asked.head.headers.get(b"accept", b"")
        if b"text/html" not in accept:  # it is no browser
            asked.check(Role.INFER)
        if wants_json(accept):
            found = await self.status()
            return Response.of(200, [msgspec.json.encode(found)], JSON, _COMMON)
        templates = await self._open()
        if templates is None:
            asked.check(Role.INFER)
            return Response.of(200, [render(await self.status()).encode()], _HTML, _PLAIN)
        status = await self.status() if asked.may(Role.INFER) else None
        return Response.of(200, [templates.page(status)], _HTML, _PAGE)

    async def live(self) -> Response:
        """The part of the page that changes, without what is around it."""
        templates = await self._open()
        if templates is None:
            return ErrorResponse(404, "the page needs Jinja2: pip install 'edgeserve[page]'")
        return Response.of(200, [templates.live(await self.status())], _HTML, _PAGE)

    def history(self, asked: Asked) -> Response:
        """The points of the last 15 minutes, after the time `since` in the query. Raises InvalidInput."""
        given = parse_qs(asked.head.query.decode("latin-1"), keep_blank_values=True).get(
            "since", ["0"]
        )[-1]
        try:
            since = float(given)
        except ValueError:
            message = f"since: expected seconds since 1970, got {given!r:.40}"
            raise InvalidInput(message) from None
        body = msgspec.json.encode(self._history.document(since))
        return Response.of(200, [body], JSON, _COMMON)

    def file(self, name: str, asked: Asked) -> Response:
        """A file of the page, by its name in the package."""
        return self._files.answer(name, asked.head)

    async def _open(self) -> Templates | None:
        """The templates, once they have been looked for; None without Jinja2."""
        if not self._looked:
            self._templates = await asyncio.to_thread(open_templates)
            self._looked = True
        return self._templates

    async def status(self) -> ServerStatus:
        """The status with all that there is to show."""
        status = await self._server.status()
        counted: Mapping[Key, RequestCounts] = {}
        memory = 0
        with contextlib.suppress(EnvironmentProblem):
            counts = await self._server.counts()
            counted, memory = counts.requests(), counts.memory_bytes()
        here = {(m.name, m.version): m for m in self._repository.loaded()}
        models = []
        for model in status.models:
            ready = model.key in status.serves
            shown = msgspec.structs.replace(
                model, ready=ready, degraded=ready and model.instead_of is not None
            )
            if model.key in here:
                shown = detailed(shown, here[model.key], len(status.workers) or 1)
            models.append(with_requests(shown, counted.get(model.key)))
        now = time.time()
        return msgspec.structs.replace(
            status,
            models=tuple(models),
            process=os.getpid(),
            time=now,
            up_s=now - self._began,
            degraded=status.ready and any(m.degraded for m in models),
            memory_bytes=memory,
        )


def wants_json(accept: bytes) -> bool:
    """Whether an Accept header names JSON, and no HTML."""
    kinds = {part.partition(b";")[0].strip().lower() for part in accept.split(b",")}
    return b"application/json" in kinds and b"text/html" not in kinds
