"""The routes of Amazon SageMaker's container contract: health, invocations, batch transform, multi-model endpoints; and
the path that AWS's own clients call, so that an application can be pointed at a device instead of the cloud.

Source: "Use Your Own Inference Code with Hosting Services" in Amazon SageMaker's developer guide.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from edgeserve.errors import EdgeServeError, InvalidInput, ModelNotFound
from edgeserve.serve.access.keys import Role
from edgeserve.serve.http.errors import failure
from edgeserve.serve.http.head import Head
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import JSON, RETRY, Refusal, Response
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
from edgeserve.serve.protocols.bodies.dialects import NPY
from edgeserve.serve.protocols.bodies.tables import NPY_DATA
from edgeserve.serve.protocols.context import Served
from edgeserve.serve.protocols.inference import InferRoute
from edgeserve.serve.protocols.sagemaker.batch import ExecutionParameters, execution_parameters
from edgeserve.serve.protocols.sagemaker.codec import Invocations
from edgeserve.serve.protocols.sagemaker.errors import InvocationError, write_error
from edgeserve.serve.protocols.sagemaker.headers import stamp, target_model, target_version
from edgeserve.serve.protocols.sagemaker.models import (
    Done,
    LoadedModel,
    LoadedModels,
    LoadModel,
    check_registered,
    list_models,
    load_model,
    show_model,
    unload_model,
)
from edgeserve.serve.settings.clouds.sagemaker import default_accept

_LOAD_BYTES: Final = 65_536


@later
async def _ping(served: Served, asked: Asked, request: Request) -> Response:
    """200 if the server is ready; also if clients are to load its models, and none is open yet."""
    status = await served.control.status()
    idle = served.model_control and status.serving and all(m.device is None for m in status.models)
    if status.ready or idle:
        return Response.json({"status": "Healthy"})
    return Response.json({"status": "Unhealthy"}, 503, RETRY)


def _invocations(served: Served) -> Invocations:
    return Invocations(served.limits, served.v2, default_accept(os.environ))


class _Invocation:
    """Answers requests with one head. Which model they are about is asked each time: models come and go."""

    def __init__(self, served: Served, asked: Asked, model: Callable[[], str]) -> None:
        self._served = served
        self._headers = asked.head.headers
        self._version = target_version(self._headers)
        self._model = model
        self._name: str | None = None
        self._route: InferRoute | None = None
        self.terms = self._found().terms

    def _found(self) -> InferRoute:
        """Raises as Inference.route."""
        name = self._model()
        if self._route is None or name != self._name:
            inference = self._served.inference
            protocol = self._served.kept(_invocations)
            self._route = inference.route(protocol, name, self._version, self._headers)
            self._name = name
        return self._route

    def __call__(self, request: Request) -> None:
        try:
            route = self._found()
        except EdgeServeError as error:
            request.respond(failure(error))
            return
        route(request)

    def misfit(self, length: int) -> Refusal | None:
        return self._found().misfit(length)

    def turned_away(self, head: Head, refusal: Refusal) -> None:
        if self._route is not None:
            self._route.turned_away(head, refusal)


def _invoke(served: Served, asked: Asked) -> Answer:
    """Of the model that the request names, or the only one."""
    named = target_model(asked.head.headers)
    endpoint = asked.values.get("endpoint")

    def model() -> str:
        if named is not None:
            return named
        try:
            return served.the_model()
        except ModelNotFound as error:
            if endpoint is not None and served.repository.versions(endpoint):
                return endpoint
            if not served.repository.entries():
                raise
            raise InvalidInput(
                f"{error}: name one in X-Amzn-SageMaker-Target-Model, or POST /models/M/invoke"
            ) from None

    return _aligned(asked, _Invocation(served, asked, model))


def _invoke_model(served: Served, asked: Asked) -> Answer:
    """Of the model in the path."""
    name = asked.values["model"]
    return _aligned(asked, _Invocation(served, asked, lambda: check_registered(served, name)))


def _aligned(asked: Asked, invocation: _Invocation) -> Answer:
    terms = invocation.terms
    if terms.v2 is not None:
        asked.head.aligned_at = terms.v2  # behind the JSON
    elif terms.media.type == NPY:
        asked.head.aligned_at = NPY_DATA
    return invocation


_OF_MODEL: Final = "/models/{model}"
_TAG: Final = "sagemaker"
_HEALTHY: Final = json_of(dict[str, str], "Yes")
_BINARY: Final = "application/octet-stream"
_TAKES: Final = Content(
    "JSON, CSV, JSON lines, arrays of numpy, an image, or Triton's binary type",
    {JSON: Any, "text/csv": str, "application/jsonlines": str, _BINARY: bytes},
    required=True,
    example={"instances": [[1, 2, 3, 4]]},
)
_GIVES: Final = Content(
    "What the model computed, in the form of the request or as Accept asks",
    {JSON: Any, "text/csv": str, "application/jsonlines": str, _BINARY: bytes},
)
_ERRORS: Final = (406, 408, 415, 500, 503, 504)
_NO_ROOM: Final = Content("The model does not fit into memory", {JSON: InvocationError})
_HEADERS: Final = (
    Parameter("X-Amzn-SageMaker-Target-Model", str, "The model, if there are several", "header"),
    Parameter("X-Amzn-SageMaker-Target-Variant", str, "The version; AllTraffic: the newest", "header"),
    Parameter("X-Amzn-SageMaker-Inference-Id", str, "The request's id for the log", "header"),
    Parameter("X-Amzn-SageMaker-Custom-Attributes", str, "Repeated in the answer", "header"),
)  # fmt: skip
_ROUTES: Final[tuple[Route[Served], ...]] = (
    Route(
        "GET", "/ping", Role.OPEN, _ping, "200 if the server is ready, otherwise 503",
        ("sagemakerPing",), _TAG, gives=_HEALTHY, answers={503: json_of(dict[str, str], "No")},
    ),
    Route(
        "POST", "/invocations[/]", Role.INFER, _invoke, "Run the model",
        ("sagemakerInvoke",), _TAG, takes=_TAKES, gives=_GIVES, errors=_ERRORS,
        answers={507: _NO_ROOM}, parameters=_HEADERS, most=None,
    ),
    Route(
        "POST", "/endpoints/{endpoint}/invocations", Role.INFER, _invoke,
        "As AWS's clients call it: the model of this name if there are several",
        ("sagemakerInvokeEndpoint",), _TAG, takes=_TAKES, gives=_GIVES, errors=_ERRORS,
        answers={507: _NO_ROOM}, parameters=_HEADERS, most=None,
    ),
    Route(
        "GET", "/execution-parameters", Role.INFER, now(execution_parameters),
        "How batch transform should send its requests",
        ("sagemakerExecutionParameters",), _TAG, gives=json_of(ExecutionParameters),
    ),
    Route(
        "GET", "/models[/]", Role.INFER, now(list_models),
        "Loaded models by name: `limit` from `next_page_token` on",
        ("sagemakerModels",), _TAG, gives=json_of(LoadedModels),
        parameters=(
            Parameter("limit", int, "Most models of an answer", "query"),
            Parameter("next_page_token", str, "As the answer before has it", "query"),
        ),
    ),
    Route(
        "POST", "/models[/]", Role.CONTROL, load_model,
        "Load a model of the server's repository by its name; its `url` is not opened",
        ("sagemakerLoad",), _TAG, takes=json_of(LoadModel), gives=json_of(Done),
        answers={409: json_of(InvocationError, "It is loaded"), 507: _NO_ROOM}, errors=(500, 503),
        most=_LOAD_BYTES,
    ),
    Route(
        "GET", f"{_OF_MODEL}[/]", Role.INFER, now(show_model), "One loaded model",
        ("sagemakerModel",), _TAG, gives=json_of(LoadedModel),
    ),
    Route(
        "DELETE", f"{_OF_MODEL}[/]", Role.CONTROL, unload_model, "Unload a model",
        ("sagemakerUnload",), _TAG, gives=json_of(Done), errors=(500, 503),
    ),
    Route(
        "POST", f"{_OF_MODEL}/invoke[/]", Role.INFER, _invoke_model, "Run one model",
        ("sagemakerInvokeModel",), _TAG, takes=_TAKES, gives=_GIVES, errors=_ERRORS,
        answers={507: _NO_ROOM}, parameters=_HEADERS[1:], most=None,
    ),
)  # fmt: skip


def routes() -> RouteList[Served]:
    """The list."""
    return RouteList(
        "sagemaker",
        _ROUTES,
        InvocationError,
        write_error,
        tags={_TAG: "Amazon SageMaker's container contract."},
        parameters=(
            Parameter("model", str, "A model's name"),
            Parameter("endpoint", str, "Any name"),
        ),
        title="Amazon SageMaker's container contract",
        stamp=stamp,
    )
