"""The routes of TorchServe's inference API, and of its management API for callers with the control role."""

from __future__ import annotations

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
    now,
)
from edgeserve.serve.protocols.bodies.media import query_of
from edgeserve.serve.protocols.context import Served
from edgeserve.serve.protocols.openapi import document
from edgeserve.serve.protocols.torchserve.codec import TorchServe
from edgeserve.serve.protocols.torchserve.errors import TorchServeError, torchserve_error
from edgeserve.serve.protocols.torchserve.management import (
    DescribedVersion,
    Managed,
    ModelArchives,
    change,
    describe,
    list_models,
    plain_version,
    register,
    unregister,
)

_METHODS: Final = ("POST", "PUT", "GET", "PATCH", "DELETE")


@later
async def _ping(served: Served, asked: Asked, request: Request) -> Response:
    if await served.control.ready():
        return Response.struct(Managed("Healthy"))
    return Response.struct(Managed("Unhealthy"), 503, RETRY)


def _predict(served: Served, asked: Asked) -> Answer:
    name, version = asked.values["model"], plain_version(asked.values.get("version"))
    return served.inference.route(served.kept(_protocol), name, version, asked.head.headers)


def _invoke(served: Served, asked: Asked) -> Answer:
    name = query_of(asked.head.query).get("model_name") or served.the_model()
    return served.inference.route(served.kept(_protocol), name, None, asked.head.headers)


def _protocol(served: Served) -> TorchServe:
    return TorchServe(served.limits)


def _description(served: Served, asked: Asked) -> Response:
    return Response.json(document(served.lists))


def _described(served: Served, asked: Asked) -> Response:
    """The same for a model that there is. Raises ModelNotFound."""
    served.repository.find(asked.values["model"], plain_version(asked.values.get("version")))
    return _description(served, asked)


_PREDICT: Final[dict[str, Any]] = {
    "takes": Content(
        "", {"image/jpeg": bytes, "application/octet-stream": bytes, JSON: Any}, required=True
    ),
    "gives": Content("Labels and their probabilities, boxes, or the row", {JSON: Any}),
    "errors": (403, 408, 415, 500, 503, 504),
    "most": None,
}
_OF_MODEL: Final = "/predictions/{model}[/{version}]"
_NAMES: Final = {"POST": ("tsPredict", "tsPredictVersion"), "PUT": ("tsPut", "tsPutVersion")}
_PINGS: Final = {"GET": ("tsPing",), "POST": ("tsPingPost",)}
_ROUTES: Final[tuple[Route[Served], ...]] = (
    *(
        Route(
            method, "/ping", Role.OPEN, _ping, "200 and Healthy if the server is ready, otherwise 503" if method in _PINGS else "",
            _PINGS.get(method, ()), "torchserve",
            gives=json_of(Managed, "Yes"), answers={503: json_of(Managed, "No")},
        )
        for method in ("GET", "POST", "OPTIONS")
    ),
    *(
        Route(
            method, _OF_MODEL, Role.INFER, _predict,
            "Run a model on one row: raw bytes, a form, or JSON" if method == "POST" else "",
            _NAMES.get(method, ()), "torchserve", **_PREDICT,
        )
        for method in _METHODS
    ),
    Route("OPTIONS", _OF_MODEL, Role.INFER, now(_described), ""),
    Route("POST", "/models/{model}/invoke", Role.INFER, _predict, "As `/predictions/{model}`", ("tsInvoke",), "torchserve", **_PREDICT),
    Route("POST", "/invocations", Role.INFER, _invoke, "As `/predictions`, of the only model or `?model_name=`", ("tsInvocations",), "torchserve", **_PREDICT),
    Route("POST", "/{model}[/{version}]/predict", Role.INFER, _predict, "As `/predictions/{model}`", (), "torchserve", **_PREDICT),
    Route("GET", "/api-description", Role.INFER, now(_description), "The description of all routes", ("tsDescription",), "torchserve", gives=json_of(dict[str, Any])),
    Route("OPTIONS", "/", Role.INFER, now(_description), ""),
    Route("GET", "/models", Role.CONTROL, list_models, "Names of models, by page", ("tsList",), "torchserve", gives=json_of(ModelArchives)),
    Route(
        "GET", "/models/{model}[/{version}]", Role.CONTROL, describe, "A model's version, or all of them",
        ("tsDescribe", "tsDescribeVersion"), "torchserve", gives=json_of(list[DescribedVersion]), errors=(503,),
    ),
    Route(
        "POST", "/models", Role.CONTROL, register, "Load a model of the repository by its name; `url` is never fetched",
        ("tsRegister",), "torchserve", gives=json_of(Managed), answers={409: json_of(TorchServeError, "It is loaded already")},
        errors=(403, 501, 503), parameters=(Parameter("url", str, "The model's name", "query"),), most=65_536,
    ),
    Route(
        "DELETE", "/models/{model}[/{version}]", Role.CONTROL, unregister, "Unload a model",
        ("tsUnregister", "tsUnregisterVersion"), "torchserve", gives=json_of(Managed), errors=(403, 501, 503),
    ),
    Route(
        "PUT", "/models/{model}[/{version}]", Role.CONTROL, change, "501: instances are a setting",
        ("tsScale", "tsScaleVersion"), "torchserve", gives=json_of(Managed), errors=(403, 501),
    ),
    Route("PUT", "/models/{model}/{version}/set-default", Role.CONTROL, change, "501: version policies are settings"),
)  # fmt: skip


def routes() -> RouteList[Served]:
    """The list."""
    return RouteList(
        "torchserve",
        _ROUTES,
        TorchServeError,
        torchserve_error,
        tags={"torchserve": "TorchServe's inference and management API."},
        parameters=(
            Parameter("model", str, "A model's name"),
            Parameter("version", str, "Its version; 1.0 is 1"),
        ),
        title="TorchServe's inference and management API",
    )
