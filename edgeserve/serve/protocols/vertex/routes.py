"""The routes of Vertex AI's containers: health and predictions at the paths that AIP_* variables name; and the paths that
Google's own clients call, so that an application can be pointed at a device instead of the cloud."""

from __future__ import annotations

import os
from typing import Any, Final

from edgeserve.serve.access.keys import Role
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import JSON, RETRY, Response
from edgeserve.serve.http.route import (
    Answer,
    Asked,
    Content,
    Parameter,
    Route,
    RouteList,
    json_of,
    later,
)
from edgeserve.serve.protocols.context import Served
from edgeserve.serve.protocols.vertex.codec import PredictBody, PredictionsBody, Vertex
from edgeserve.serve.protocols.vertex.errors import GoogleError, google_error
from edgeserve.serve.settings.clouds.vertex import vertex_routes

# What Google's REST client calls.
_ENDPOINT: Final = "/v1/projects/{project}/locations/{location}/endpoints/{endpoint}"


@later
async def _health(served: Served, asked: Asked, request: Request) -> Response:
    ready = await served.control.ready()
    return Response.json({}, 200 if ready else 503, () if ready else RETRY)


def _predict(served: Served, asked: Asked) -> Answer:
    return _inferring(served, asked, raw=False)


def _raw_predict(served: Served, asked: Asked) -> Answer:
    return _inferring(served, asked, raw=True)


def _inferring(served: Served, asked: Asked, *, raw: bool) -> Answer:
    protocol = served.kept(_raw if raw else _plain)
    return served.inference.route(protocol, served.the_model(), None, asked.head.headers)


def _plain(served: Served) -> Vertex:
    return Vertex(served.limits, served.v2)


def _raw(served: Served) -> Vertex:
    return Vertex(served.limits, served.v2, wrapped=True)


_TAKES: Final = Content("", {JSON: PredictBody, "application/octet-stream": bytes}, required=True)
_GIVES: Final = Content("The predictions, one an instance", {JSON: PredictionsBody})
_ERRORS: Final = (403, 408, 415, 500, 503, 504)


def routes() -> RouteList[Served]:
    """The list, for the paths in the environment. Raises UsageError."""
    paths = vertex_routes(os.environ)
    parameters = ("project", "location", "endpoint", "deployed")
    return RouteList(
        "vertex",
        (
            Route(
                "GET", paths.health, Role.OPEN, _health, "200 if the server is ready, otherwise 503",
                ("vertexHealth",), "vertex", gives=json_of(dict[str, Any], "Yes"),
                answers={503: json_of(dict[str, Any], "No")},
            ),
            Route(
                "POST", paths.predict, Role.INFER, _predict,
                "Run the only model: `predict`, or the body of `rawPredict`",
                ("vertexPredict",), "vertex", takes=_TAKES, gives=_GIVES, errors=_ERRORS, most=None,
            ),
            Route(
                "POST", f"{_ENDPOINT}:predict", Role.INFER, _predict,
                "As Google's clients call it: `predict`",
                ("vertexEndpointPredict",), "vertex", takes=_TAKES, gives=_GIVES, errors=_ERRORS, most=None,
            ),
            Route(
                "POST", f"{_ENDPOINT}:rawPredict", Role.INFER, _raw_predict,
                "As Google's clients call it: `rawPredict`",
                ("vertexEndpointRawPredict",), "vertex", takes=_TAKES, gives=_GIVES, errors=_ERRORS, most=None,
            ),
        ),
        GoogleError,
        google_error,
        tags={"vertex": "Vertex AI's container contract."},
        parameters=tuple(Parameter(name, str, "Any name") for name in parameters),
        title="Vertex AI's container contract",
    )  # fmt: skip
