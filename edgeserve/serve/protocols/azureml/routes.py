"""The routes of Azure Machine Learning's inference server: health at `/`, scoring at `/score`, its description."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qs

from edgeserve.serve.access.keys import Role
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import JSON, RETRY, ErrorResponse, Refusal, Response
from edgeserve.serve.http.route import (
    Answer,
    Asked,
    Content,
    NoRoute,
    Parameter,
    Route,
    RouteList,
    json_of,
    later,
    now,
)
from edgeserve.serve.protocols.azureml.codec import AzureMl, ScoreBody
from edgeserve.serve.protocols.azureml.headers import (
    AzureError,
    azure_error,
    azure_stamp,
    check_ids,
)
from edgeserve.serve.protocols.azureml.swagger import VERSIONS, swagger
from edgeserve.serve.protocols.bodies.media import QUERY
from edgeserve.serve.protocols.context import Served

_TEXT: Final = "text/plain; charset=utf-8"
_METHODS: Final = "GET, OPTIONS, POST"


@later
async def _health(served: Served, asked: Asked, request: Request) -> Response:
    if b"text/html" in asked.head.headers.get(b"accept", b""):  # a browser
        return await served.page.answer(asked)
    if await served.control.ready():
        return Response.of(200, [b"Healthy"], _TEXT)
    return Response.of(503, [b"Unhealthy"], _TEXT, RETRY)


def _score(served: Served, asked: Asked) -> Answer:
    check_ids(asked.head)
    name = served.the_model()
    # The platform names its deployment here. A name that is not a version is its own affair.
    wanted = asked.head.headers.get(b"azureml-model-deployment", b"").decode("latin-1")
    version = wanted if wanted in served.repository.versions(name) else None
    headers = {**asked.head.headers, QUERY: asked.head.query}
    return served.inference.route(served.kept(_azureml), name, version, headers)


def _azureml(served: Served) -> AzureMl:
    return AzureMl(served.limits, served.v2)


def _options(served: Served, asked: Asked) -> Response:
    return Response.of(200, [b""], _TEXT, (("Allow", _METHODS),))


def _head(served: Served, asked: Asked) -> Answer:
    """HEAD would run the model."""
    raise NoRoute(
        Refusal(405, "method", f"method not allowed, use {_METHODS}", (("Allow", _METHODS),))
    )


def _swagger(served: Served, asked: Asked) -> Response:
    asked_for = parse_qs(asked.head.query.decode("latin-1")).get("version", ["2"])[0]
    if asked_for not in VERSIONS:
        return ErrorResponse(
            404, f"Swagger version [{asked_for:.20}] is not valid. Supported versions: [2, 3, 3.1]."
        )
    model = served.repository.find(served.the_model())
    return Response.json(swagger(asked_for, model.name, model.version, model.interface))


_GIVES: Final = Content("The predictions, one a row", {JSON: Any})
_ERRORS: Final = (403, 408, 415, 500, 503, 504)
_ROUTES: Final[tuple[Route[Served], ...]] = (
    Route(
        "GET", "/", Role.OPEN, _health, "`Healthy` if the server is ready; the status page for browsers",
        gives=Content("Yes", {_TEXT: str}), answers={503: Content("No", {_TEXT: str})},
    ),
    Route(
        "POST", "/score", Role.INFER, _score, "Run the only model",
        ("score",), "azureml",
        takes=Content("", {JSON: ScoreBody, "application/octet-stream": bytes}, required=True),
        gives=_GIVES, errors=_ERRORS, most=None,
    ),
    Route(
        "GET", "/score", Role.INFER, _score, "Run the only model on what the query holds",
        ("scoreQuery",), "azureml", gives=_GIVES, errors=_ERRORS,
        parameters=(Parameter("data", str, "Rows, as JSON", "query"),),
    ),
    Route("OPTIONS", "/score", Role.OPEN, now(_options), ""),
    Route("HEAD", "/score", Role.INFER, _head, ""),
    Route(
        "GET", "/swagger.json", Role.INFER, now(_swagger), "Description of `/score`; `?version=2`, `3` or `3.1`",
        ("swagger",), "azureml", gives=json_of(dict[str, Any]), errors=(503,),
    ),
)  # fmt: skip


def routes() -> RouteList[Served]:
    """The list."""
    return RouteList(
        "azureml",
        _ROUTES,
        AzureError,
        azure_error,
        tags={"azureml": "Azure Machine Learning's inference server."},
        title="Azure Machine Learning's inference server",
        stamp=azure_stamp,
    )
