"""The routes of the Open Inference Protocol v2 with Triton's extensions."""

from __future__ import annotations

from typing import Any, Final

from msgspec import UNSET

from edgeserve.serve.access.keys import Role
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import JSON, RETRY, PlainError, Refusal, Response, plain_error
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
from edgeserve.serve.protocols.bodies.media import QUERY
from edgeserve.serve.protocols.common import silent_workers
from edgeserve.serve.protocols.context import Served
from edgeserve.serve.protocols.v2.codec import V2, metadata
from edgeserve.serve.protocols.v2.config import ModelConfig, config_of, platform_of
from edgeserve.serve.protocols.v2.document import InferBody, InputBody, Size
from edgeserve.serve.protocols.v2.extensions import EXTENSIONS
from edgeserve.serve.protocols.v2.images import ImageInfer, Predict, sends_image
from edgeserve.serve.protocols.v2.management import MEMORY, REPOSITORY, SETTINGS
from edgeserve.serve.protocols.v2.messages import (
    InferredMessage,
    ListedModel,
    LiveMessage,
    MetadataMessage,
    ModelName,
    ModelReadyMessage,
    ModelsMessage,
    ModelVersion,
    OutputMessage,
    PredictedMessage,
    ReadyMessage,
    RegionName,
    ServerMessage,
    StatisticsMessage,
)
from edgeserve.serve.status.status import readiness, where
from edgeserve.version import __version__

# health, open to everybody


def _live(served: Served, asked: Asked) -> Response:
    return Response.struct(LiveMessage(live=True))


@later
async def _ready(served: Served, asked: Asked, request: Request) -> Response:
    status = await served.control.status()
    document = ReadyMessage(status.ready, live=True)
    if asked.may(Role.INFER):
        models, workers = readiness(status), status.workers or UNSET
        document = ReadyMessage(status.ready, live=True, models=models, workers=workers)
    return Response.struct(document, 200 if status.ready else 503, () if status.ready else RETRY)


# about the server and its models


def _server(served: Served, asked: Asked) -> Response:
    return Response.struct(ServerMessage("edgeserve", __version__, EXTENSIONS))


def _list(served: Served, asked: Asked) -> Response:
    repository = served.repository
    models = [
        ListedModel(m.name, repository.versions(m.name), **where(m))
        for m in repository.loaded()
        if m.version == repository.versions(m.name)[-1]
    ]
    return Response.struct(ModelsMessage(models))


def _metadata(served: Served, asked: Asked) -> Response:
    model = served.repository.find(*_named(asked))
    versions = served.repository.versions(model.name)
    return Response.json(metadata(model.name, versions, platform_of(model), model.interface))


def _config(served: Served, asked: Asked) -> Response:
    return Response.struct(config_of(served.repository.find(*_named(asked))))


@later
async def _model_ready(served: Served, asked: Asked, request: Request) -> Response:
    model = served.repository.find(*_named(asked))
    ready = await served.control.answers((model.name, model.version))
    return Response.struct(ModelReadyMessage(model.name, ready), 200 if ready else 503)


@later
async def _statistics(served: Served, asked: Asked, request: Request) -> Response:
    counts = await served.control.counts()
    return Response.struct(StatisticsMessage(counts.statistics()), headers=silent_workers(counts))


@later
async def _model_statistics(served: Served, asked: Asked, request: Request) -> Response:
    model = served.repository.find(*_named(asked))
    counts = await served.control.counts()
    found = [s for s in counts.statistics() if (s.name, s.version) == (model.name, model.version)]
    return Response.struct(StatisticsMessage(found), headers=silent_workers(counts))


# inference


def _infer(served: Served, asked: Asked) -> Answer:
    headers = asked.head.headers
    if sends_image(headers):
        return served.inference.route(served.kept(_image_infer), *_named(asked), headers)
    route = served.inference.route(served.v2, *_named(asked), headers)
    asked.head.aligned_at = route.terms or 0  # behind the JSON
    return route


def _predict(served: Served, asked: Asked) -> Answer:
    headers = {**asked.head.headers, QUERY: asked.head.query}
    return served.inference.route(served.kept(_predicting), *_named(asked), headers)


def _image_infer(served: Served) -> ImageInfer:
    return ImageInfer(_v2(served))


def _predicting(served: Served) -> Predict:
    return Predict(_v2(served), served.limits)


def _v2(served: Served) -> V2:
    assert isinstance(served.v2, V2)
    return served.v2


def _generate(served: Served, asked: Asked) -> Answer:
    """Triton's routes for language models, which are not served here. Raises as for models that are."""
    known = served.repository.find(*_named(asked)).name
    message = (
        f"model '{known}' does not generate text: models here compute tensors from tensors, "
        f"ask /v2/models/{known}/infer"
    )
    raise NoRoute(Refusal(501, "unsupported", message))


def _named(asked: Asked) -> tuple[str, str | None]:
    """The model and the version in a path."""
    return asked.values["model"], asked.values.get("version")


_OF_MODEL: Final = "/v2/models/{model}[/versions/{version}]"
_READY: Final = json_of(ReadyMessage, "Yes")
_STATISTICS: Final = json_of(StatisticsMessage)
_BINARY: Final = "application/octet-stream"
_ROUTES: Final[tuple[Route[Served], ...]] = (
    Route(
        "GET", "/v2/health/live", Role.OPEN, now(_live), "200 while the process runs",
        ("live",), "health", gives=json_of(LiveMessage, "Yes"),
    ),
    Route(
        "GET", "/v2/health/ready", Role.OPEN, _ready,
        "200 if the server is ready, otherwise 503; for callers who may infer, the device, runtime and variant of each model",
        ("ready",), "health", gives=_READY, answers={503: json_of(ReadyMessage, "No")},
    ),
    Route(
        "GET", "/v2[/]", Role.INFER, now(_server), "Server name, version, extensions",
        ("server",), "models", gives=json_of(ServerMessage),
    ),
    Route(
        "GET", "/v2/models", Role.INFER, now(_list),
        "Models, their versions, and what serves them",
        ("list",), "models", gives=json_of(ModelsMessage),
    ),
    Route(
        "GET", "/v2/models/stats", Role.INFER, _statistics, "Counts and times of all models",
        ("statistics",), "models", gives=_STATISTICS,
    ),
    Route(
        "GET", f"{_OF_MODEL}[/]", Role.INFER, now(_metadata),
        "Inputs and outputs: name, datatype, shape (-1: dynamic)",
        ("metadata", "metadataOfVersion"), "models",
        gives=json_of(MetadataMessage), errors=(503,),
    ),
    Route(
        "GET", f"{_OF_MODEL}/ready[/]", Role.INFER, _model_ready, "200 if the model is ready, otherwise 503",
        ("modelReady", "modelReadyOfVersion"), "models",
        gives=json_of(ModelReadyMessage), errors=(503,),
    ),
    Route(
        "GET", f"{_OF_MODEL}/config[/]", Role.INFER, now(_config),
        "Triton's model configuration with the batching and queue policies that are in effect",
        ("config", "configOfVersion"), "models", gives=json_of(ModelConfig), errors=(503,),
    ),
    Route(
        "GET", f"{_OF_MODEL}/stats[/]", Role.INFER, _model_statistics,
        "Counts and times since the model was loaded",
        ("modelStatistics", "modelStatisticsOfVersion"), "models",
        gives=_STATISTICS, errors=(503,),
    ),
    Route(
        "POST", f"{_OF_MODEL}/infer[/]", Role.INFER, _infer, "Run a model",
        ("infer", "inferVersion"), "inference",
        takes=Content(
            "", {JSON: InferBody, _BINARY: bytes, "image/jpeg": bytes, "image/png": bytes, "image/webp": bytes},
            required=True,
            example={
                "inputs": [
                    {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
                ]
            },
        ),
        gives=Content("The outputs", {JSON: InferredMessage, _BINARY: bytes}),
        errors=(403, 408, 415, 500, 503, 504),
        parameters=(
            Parameter(
                "Inference-Header-Content-Length", Size,
                "Bytes of JSON before the binary tensors; 0: the body is one tensor alone", "header",
            ),
        ),
        most=None,
    ),
    Route(
        "POST", f"{_OF_MODEL}/predict[/]", Role.INFER, _predict,
        "An image, or JSON, to an answer for people: classes, boxes, a class map or a vector",
        ("predict", "predictVersion"), "inference",
        takes=Content(
            "", {"image/jpeg": bytes, "image/png": bytes, "image/webp": bytes, JSON: dict[str, Any]}, required=True,
        ),
        gives=Content("The answer", {JSON: PredictedMessage}),
        errors=(403, 408, 415, 500, 503, 504),
        parameters=(
            Parameter("top_k", Size, "Most classes, or boxes", "query"),
            Parameter("threshold", float, "Least score, from 0 to 1", "query"),
        ),
        most=None,
    ),
    Route(
        "POST", f"{_OF_MODEL}/generate[/]", Role.INFER, _generate,
        "501: language models are unsupported",
    ),
    Route(
        "POST", f"{_OF_MODEL}/generate_stream[/]", Role.INFER, _generate, "501: language models are unsupported",
    ),
    *SETTINGS,
    *REPOSITORY,
    *MEMORY,
)  # fmt: skip

V2_ROUTES: Final[RouteList[Served]] = RouteList(
    "v2",
    _ROUTES,
    PlainError,
    plain_error,
    tags={
        "health": "Open to everybody.",
        "models": "What is served.",
        "inference": "The Open Inference Protocol v2.",
        "control": "Changes the server; needs the control role and has to be switched on.",
    },
    parameters=(
        Parameter("model", ModelName, "A model's name"),
        Parameter("version", ModelVersion, "Its version"),
        Parameter("region", RegionName, "A region's name"),
    ),
    schemas={
        "Error": PlainError,
        "Live": LiveMessage,
        "Ready": ReadyMessage,
        "ModelReady": ModelReadyMessage,
        "Server": ServerMessage,
        "Models": ModelsMessage,
        "Metadata": MetadataMessage,
        "Config": ModelConfig,
        "Statistics": StatisticsMessage,
        "InferRequest": InferBody,
        "InferInput": InputBody,
        "InferResponse": InferredMessage,
        "InferOutput": OutputMessage,
    },
    title="Open Inference Protocol v2 with Triton's extensions",
)


def routes() -> RouteList[Served]:
    """The list."""
    return V2_ROUTES
