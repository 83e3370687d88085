"""The routes that belong to no protocol: metrics, the status page, the description of all routes."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edgeserve.serve.access.keys import Role
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import JSON, Headers, PlainError, Response, plain_error
from edgeserve.serve.http.route import (
    Asked,
    Content,
    Parameter,
    Route,
    RouteList,
    json_of,
    later,
    now,
)
from edgeserve.serve.metrics.server_counts import Counts
from edgeserve.serve.protocols.context import Served
from edgeserve.serve.status.files import NAMES
from edgeserve.serve.status.history import HistoryDocument

_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
_HTML: Final = "text/html; charset=utf-8"
_PAGE: Final = Content(
    "The page, or its data if Accept names JSON alone", {JSON: dict[str, Any], _HTML: str}
)


@later
async def _status(served: Served, asked: Asked, request: Request) -> Response:
    return await served.page.answer(asked)


@later
async def _root(served: Served, asked: Asked, request: Request) -> Response:
    """The page for browsers. KServe's clients ask this path whether the server lives."""
    if b"text/html" in asked.head.headers.get(b"accept", b""):
        return await served.page.answer(asked)
    return Response.struct(AliveMessage("alive"))


@later
async def _live(served: Served, asked: Asked, request: Request) -> Response:
    return await served.page.live()


def _history(served: Served, asked: Asked) -> Response:
    return served.page.history(asked)


def _file(name: str) -> Route[Served]:
    return Route(
        "GET", f"/status/static/{name}", Role.OPEN, now(lambda served, asked: served.page.file(name, asked)), "",
    )  # fmt: skip


@later
async def _metrics(served: Served, asked: Asked, request: Request) -> Response:
    counts = await served.control.counts()
    return Response.of(200, [counts.metrics()], _PROMETHEUS, silent_workers(counts))


def silent_workers(counts: Counts) -> Headers:
    """A header with the workers whose counts are those of an earlier answer."""
    if not counts.silent:
        return ()
    return (("x-edgeserve-silent-workers", ", ".join(map(str, counts.silent))),)


def _openapi(served: Served, asked: Asked) -> Response:
    from edgeserve.serve.protocols.openapi import document  # few ask for it

    return Response.json(document(served.lists))


class AliveMessage(msgspec.Struct, frozen=True):
    """The process runs."""

    status: str


COMMON: Final[RouteList[Served]] = RouteList(
    "common",
    (
        Route(
            "GET", "/status", Role.OPEN, _status,
            "Status page; JSON if `Accept` names it alone. Callers who may not infer get the page's frame without data, or 401",
            ("status",), "models", gives=_PAGE,
        ),
        Route("GET", "/status/live", Role.INFER, _live, "The part of the status page that changes, as HTML"),
        Route(
            "GET", "/status/history", Role.INFER, now(_history),
            "Rate, percentiles, errors and queue of the last 15 minutes, in all and by version",
            ("history",), "models", gives=json_of(HistoryDocument),
            parameters=(Parameter("since", float, "Only points after this time, in seconds since 1970", "query"),),
        ),
        *map(_file, NAMES),
        Route(
            "GET", "/", Role.OPEN, _root,
            'The status page if `Accept` names text/html, otherwise `{"status":"alive"}`',
            ("alive",), "health", gives=Content("The process runs", {JSON: AliveMessage, _HTML: str}),
        ),
        Route(
            "GET", "/metrics", Role.INFER, _metrics, "Counters and histograms as Prometheus text",
            ("metrics",), "models", gives=Content("Prometheus text", {_PROMETHEUS: str}),
        ),
        Route(
            "GET", "/openapi.json", Role.INFER, now(_openapi), "This description",
            ("openapi",), "models", gives=json_of(dict[str, Any]),
        ),
    ),
    PlainError,
    plain_error,
)  # fmt: skip
