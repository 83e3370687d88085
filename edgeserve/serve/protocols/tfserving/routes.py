"""The routes of TF Serving's REST API, and of KServe's v1 protocol, which has the same paths."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from edgeserve.errors import InvalidInput, ModelNotFound, quoted
from edgeserve.serve.access.keys import Role
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import JSON, PlainError, Refusal, Response, plain_error
from edgeserve.serve.http.route import (
    Answer,
    Asked,
    Content,
    Handler,
    NoRoute,
    Parameter,
    Route,
    RouteList,
    json_of,
    later,
    now,
)
from edgeserve.serve.protocols.common import silent_workers
from edgeserve.serve.protocols.context import Served
from edgeserve.serve.protocols.tfserving.about import ModelVersions, metadata, versions_of
from edgeserve.serve.protocols.tfserving.codec import (
    Method,
    PredictionsRow,
    PredictRow,
    TfServing,
)


class ModelNames(msgspec.Struct, frozen=True):
    """The names of all models."""

    models: list[str]


def _list(served: Served, asked: Asked) -> Response:
    names = sorted({model.name for model in served.repository.loaded()})
    return Response.struct(ModelNames(names))


@later
async def _status(served: Served, asked: Asked, request: Request) -> Response:
    name, version = _named(asked)
    status = await served.control.status()
    found = [s for s in status.models if s.name == name and version in (None, s.version)]
    if not found:
        of = f"version {quoted(version)}" if version is not None else "any versions"
        raise ModelNotFound(f"Could not find {of} of model {quoted(name)}")
    return Response.struct(versions_of(name, found))


def _metadata(served: Served, asked: Asked) -> Response:
    return Response.json(metadata(served.repository.find(*_named(asked))))


@later
async def _metrics(served: Served, asked: Asked, request: Request) -> Response:
    from edgeserve.serve.metrics.tfserving import TfServingMetrics  # few ask for it

    counts = await served.control.counts()
    text = TfServingMetrics(counts).render()
    return Response.of(200, [text], _PROMETHEUS, silent_workers(counts))


def _asking(method: Method) -> Handler[Served]:
    def make(served: Served) -> TfServing:
        return TfServing(served.limits, method)

    def handler(served: Served, asked: Asked) -> Answer:
        return served.inference.route(served.kept(make), *_named(asked), asked.head.headers)

    return handler


def _labelled(served: Served, asked: Asked) -> Answer:
    """Labels of versions are not set on this server. Raises InvalidInput, as TF Serving for an unknown one."""
    served.repository.find(asked.values["model"])
    raise InvalidInput(f"Unrecognized servable version label: {asked.values['label']:.60}")


def _explain(served: Served, asked: Asked) -> Answer:
    known = served.repository.find(asked.values["model"]).name
    raise NoRoute(Refusal(501, "unsupported", f"model '{known}' has no explainer"))


def _named(asked: Asked) -> tuple[str, str | None]:
    """The model and the version in a path. ovmsclient asks for version 0 unless told otherwise: the newest."""
    version = asked.values.get("version")
    return asked.values["model"], None if version == "0" else version


_PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"
_OF_MODEL: Final = "/v1/models/{model}[/versions/{version}]"
_OF_LABEL: Final = "/v1/models/{model}/labels/{label}"
_ERRORS: Final = (403, 408, 415, 500, 503, 504)
_PREDICT: Final[dict[str, Any]] = {
    "takes": Content(
        "", {JSON: PredictRow}, required=True, example={"instances": [[1.0, 2.0, 3.0, 4.0]]}
    ),
    "gives": Content("The outputs", {JSON: PredictionsRow}),
    "errors": _ERRORS,
    "most": None,
}
_EXAMPLES: Final[dict[str, Any]] = {
    "takes": Content("", {JSON: dict[str, Any]}, required=True, example={"examples": [{"x": 1.0}]}),
    "gives": json_of(dict[str, Any], "One result an example"),
    "errors": _ERRORS,
    "most": None,
}
_ROUTES: Final[tuple[Route[Served], ...]] = (
    Route(
        "GET", "/v1/models", Role.INFER, now(_list), "Names of all models (KServe v1)",
        ("v1List",), "tfserving", gives=json_of(ModelNames),
    ),
    Route(
        "GET", _OF_MODEL, Role.INFER, _status, "Versions of a model and their states; for KServe's clients also `ready`",
        ("v1Status", "v1StatusOfVersion"), "tfserving", gives=json_of(ModelVersions), errors=(503,),
    ),
    Route(
        "GET", f"{_OF_MODEL}/metadata", Role.INFER, now(_metadata), "The model's signature",
        ("v1Metadata", "v1MetadataOfVersion"), "tfserving", gives=json_of(dict[str, Any]), errors=(503,),
    ),
    Route(
        "POST", f"{_OF_MODEL}:predict", Role.INFER, _asking(Method.PREDICT), "Run a model on rows or columns",
        ("v1Predict", "v1PredictVersion"), "tfserving", **_PREDICT,
    ),
    Route(
        "POST", f"{_OF_MODEL}:classify", Role.INFER, _asking(Method.CLASSIFY), "Labels and scores of examples",
        ("v1Classify", "v1ClassifyVersion"), "tfserving", **_EXAMPLES,
    ),
    Route(
        "POST", f"{_OF_MODEL}:regress", Role.INFER, _asking(Method.REGRESS), "A number for each example",
        ("v1Regress", "v1RegressVersion"), "tfserving", **_EXAMPLES,
    ),
    Route(
        "GET", "/monitoring/prometheus/metrics", Role.INFER, _metrics, "TF Serving's metrics as Prometheus text",
        ("v1Metrics",), "tfserving", gives=Content("Prometheus text", {_PROMETHEUS: str}),
    ),
    Route("POST", f"{_OF_MODEL}:explain", Role.INFER, _explain, "501: explainers are unsupported"),
    Route("GET", _OF_LABEL, Role.INFER, _status, ""),
    Route("GET", f"{_OF_LABEL}/metadata", Role.INFER, _labelled, ""),
    *(Route("POST", f"{_OF_LABEL}:{m}", Role.INFER, _labelled, "") for m in Method),
)  # fmt: skip


def routes() -> RouteList[Served]:
    """The list."""
    return RouteList(
        "tfserving",
        _ROUTES,
        PlainError,
        plain_error,
        tags={"tfserving": "TF Serving's REST API and KServe v1."},
        parameters=(
            Parameter("model", str, "A model's name"),
            Parameter("version", str, "Its version; 0: the newest"),
        ),
        title="TF Serving's REST API and KServe v1",
    )
