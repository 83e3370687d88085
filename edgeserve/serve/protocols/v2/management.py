"""The routes that look at or change the server itself: repository, shared memory, trace, logging.

Sources: Triton's protocol/extension_model_repository.md, extension_shared_memory.md, extension_trace.md,
extension_logging.md.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec

from edgeserve.errors import InvalidInput, ModelNotFound
from edgeserve.names import NAME, NAME_RULE
from edgeserve.serve.access.keys import Role
from edgeserve.serve.control import check_model_control
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import Refusal, Response
from edgeserve.serve.http.route import (
    Answer,
    Asked,
    Handler,
    NoRoute,
    Parameter,
    Route,
    json_of,
    later,
    now,
)
from edgeserve.serve.protocols.context import Served
from edgeserve.serve.protocols.v2.extensions import (
    LOG_SETTINGS,
    NO_CUDA,
    ONE_REPOSITORY,
    READ_ONLY,
    TRACE_SETTINGS,
    check_unload,
)
from edgeserve.serve.protocols.v2.messages import (
    IndexEntry,
    IndexRequest,
    LoadRequest,
    RegionRequest,
    UnloadRequest,
)
from edgeserve.serve.shm import Region, UnknownRegion
from edgeserve.wire.text import check_depth

log = logging.getLogger(__name__)

_BODY: Final = 1 << 20
_DEPTH: Final = 10
_T = TypeVar("_T")
_Parameters = dict[str, str | int | bool]


class _Change(msgspec.Struct):
    """The body of load and unload."""

    parameters: _Parameters = {}


# settings


def _log_settings(served: Served, asked: Asked) -> Response:
    return Response.json(LOG_SETTINGS)


def _trace_settings(served: Served, asked: Asked) -> Response:
    model = asked.values.get("model")
    if model is not None:
        served.repository.find(model)
    return Response.json(TRACE_SETTINGS)


# the model repository


@later
async def _index(served: Served, asked: Asked, request: Request) -> Response:
    only_ready = _read(request, IndexRequest).ready
    models = (await served.control.status()).models
    return Response.struct(
        [
            IndexEntry(m.name, m.version, m.state, m.reason)
            for m in models
            if m.state == "READY" or not only_ready
        ]
    )


def _changing(change: Callable[[Served, str, _Parameters], Awaitable[None]]) -> Handler[Served]:
    """The handler of load or unload."""

    def handler(served: Served, asked: Asked) -> Answer:
        check_model_control(served.model_control)
        name = asked.values["model"]
        if not NAME.fullmatch(name):
            raise InvalidInput(f"model name: {NAME_RULE}")

        @later
        async def answer(served: Served, asked: Asked, request: Request) -> Response:
            return await _done(change(served, name, _read(request, _Change).parameters))

        return answer(served, asked)

    return handler


async def _load(served: Served, name: str, parameters: _Parameters) -> None:
    await served.control.load(name, parameters)


async def _unload(served: Served, name: str, parameters: _Parameters) -> None:
    check_unload(parameters)
    try:
        await served.control.unload(name)
    except ModelNotFound:
        log.info("a model that is not known was unloaded")  # no error, as with Triton


def _other_repository(served: Served, asked: Asked) -> Answer:
    raise InvalidInput(ONE_REPOSITORY)


# shared memory


def _regions(served: Served, asked: Asked) -> Response:
    return Response.struct(served.shm.status(asked.values.get("region")))


@later
async def _register(served: Served, asked: Asked, request: Request) -> Response:
    region = asked.values.get("region")
    if not served.shm.enabled or region is None:
        served.shm.status()
        raise InvalidInput("region: expected a name, as in /region/NAME/register")
    wanted = _read(request, RegionRequest)
    change = served.control.register(region, wanted.key, wanted.offset, wanted.byte_size)
    return await _done(change)


@later
async def _unregister(served: Served, asked: Asked, request: Request) -> Response:
    return await _done(served.control.unregister(asked.values.get("region")))


def _cuda_regions(served: Served, asked: Asked) -> Answer:
    region = asked.values.get("region")
    if region is not None:
        raise UnknownRegion(f"no CUDA memory region is registered as {region!r:.60}")
    return lambda request: request.respond(Response.json([]))


def _cuda_register(served: Served, asked: Asked) -> Answer:
    raise NoRoute(Refusal(400, "unsupported", NO_CUDA))


def _nothing(served: Served, asked: Asked) -> Response:
    return Response.of(200, [])


async def _done(change: Awaitable[None]) -> Response:
    await change
    return Response.of(200, [])


def _read(request: Request, kind: type[_T]) -> _T:
    """The JSON body; an empty one is an empty object. Raises InvalidInput."""
    body = bytes(request.body)
    if len(body) > _BODY:
        raise InvalidInput(f"the body: expected at most {_BODY} bytes, got {len(body)}")
    check_depth(body, _DEPTH)
    try:
        return msgspec.json.decode(body.strip() or b"{}", type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the body: {error}") from None


_REPOSITORY: Final = "/v2/repository"
_SYSTEM: Final = "/v2/systemsharedmemory"
_CUDA: Final = "/v2/cudasharedmemory"
_SETTINGS: Final = json_of(dict[str, Any])
_REGIONS: Final = json_of(list[Region], "The regions")
_ANY_REGION: Final = (Parameter("region", str, "A region's name, or any other"),)

SETTINGS: Final[tuple[Route[Served], ...]] = (
    Route(
        "GET", "/v2/logging", Role.INFER, now(_log_settings), "Log settings; read-only",
        ("logging",), "models", gives=_SETTINGS, other_methods=READ_ONLY,
    ),
    Route(
        "GET", "/v2[/models/{model}]/trace/setting", Role.INFER, now(_trace_settings),
        "Trace settings; read-only", ("trace", "traceOfModel"), "models",
        gives=_SETTINGS, errors=(503,), other_methods=READ_ONLY,
    ),
)  # fmt: skip

REPOSITORY: Final[tuple[Route[Served], ...]] = (
    Route(
        "POST", f"{_REPOSITORY}/index", Role.INFER, _index,
        "Every version of every model, its state, and why it is not ready. The body can be empty",
        ("repositoryIndex",), "models", takes=json_of(IndexRequest),
        gives=json_of(list[IndexEntry], "Every version"), most=_BODY,
    ),
    Route(
        "POST", f"{_REPOSITORY}/models/{{model}}/load", Role.CONTROL, _changing(_load),
        "Load a model, or load it again",
        ("load",), "control", takes=json_of(LoadRequest), errors=(500, 503), most=_BODY,
    ),
    Route(
        "POST", f"{_REPOSITORY}/models/{{model}}/unload", Role.CONTROL, _changing(_unload),
        "Stop serving a model",
        ("unload",), "control", takes=json_of(UnloadRequest), errors=(500,), most=_BODY,
    ),
    *(
        Route("POST", f"{_REPOSITORY}/{{repository}}/{what}", role, _other_repository, "", most=_BODY)
        for what, role in (
            ("index", Role.INFER),
            ("models/{model}/load", Role.CONTROL),
            ("models/{model}/unload", Role.CONTROL),
        )
    ),
)  # fmt: skip

MEMORY: Final[tuple[Route[Served], ...]] = (
    Route(
        "GET", f"{_SYSTEM}/status", Role.CONTROL, now(_regions),
        "Registered shared memory regions",
        ("regions",), "control", gives=_REGIONS,
    ),
    Route(
        "GET", f"{_SYSTEM}/region/{{region}}/status", Role.CONTROL, now(_regions),
        "One shared memory region", ("region",), "control", gives=_REGIONS,
    ),
    Route(
        "POST", f"{_SYSTEM}/region/{{region}}/register", Role.CONTROL, _register,
        "Register a region of an existing object: `key`, `offset`, `byte_size`",
        ("register",), "control", takes=json_of(RegionRequest, required=True), most=_BODY,
    ),
    Route(
        "POST", f"{_SYSTEM}/region/{{region}}/unregister", Role.CONTROL, _unregister,
        "Unregister a region", ("unregister",), "control", parameters=_ANY_REGION, most=_BODY,
    ),
    Route(
        "POST", f"{_SYSTEM}/unregister", Role.CONTROL, _unregister,
        "Unregister all regions", ("unregisterAll",), "control", most=_BODY,
    ),
    Route(
        "POST", f"{_SYSTEM}/register", Role.CONTROL, _register, "",
        most=_BODY,
    ),
    Route(
        "GET", f"{_CUDA}[/region/{{region}}]/status", Role.CONTROL, _cuda_regions,
        "An empty list: CUDA regions are unsupported", ("cudaRegions", "cudaRegion"), "control",
        gives=_REGIONS, parameters=_ANY_REGION,
    ),
    Route(
        "POST", f"{_CUDA}[/region/{{region}}]/unregister", Role.CONTROL, now(_nothing),
        "Nothing to unregister: CUDA regions are unsupported", ("cudaUnregisterAll", "cudaUnregister"),
        "control", parameters=_ANY_REGION, most=_BODY,
    ),
    Route(
        "POST", f"{_CUDA}[/region/{{region}}]/register", Role.CONTROL, _cuda_register,
        "400: CUDA regions are unsupported",
    ),
)  # fmt: skip
