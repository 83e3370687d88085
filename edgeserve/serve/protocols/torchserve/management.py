"""TorchServe's management API, for callers with the control role: models are named, never fetched.

TorchServe's `url` names an archive anywhere on the network or the disk ("ShellTorch", CVE-2023-43654). Here it is the name of a
model of the server's repository folder, and nothing else is read.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from edgeserve.errors import InvalidInput, ModelNotFound, quoted
from edgeserve.names import NAME, NAME_RULE
from edgeserve.serve.control import check_model_control
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import ErrorResponse, Refusal, Response
from edgeserve.serve.http.route import Answer, Asked, NoRoute, later, now
from edgeserve.serve.protocols.bodies.media import query_of
from edgeserve.serve.protocols.context import Served
from edgeserve.serve.status.status import ModelStatus
from edgeserve.wire.text import as_object, check_depth, parse_json

_PAGE: Final = 100
_DEPTH: Final = 4
_ARCHIVE: Final = ".mar"


class ModelArchive(msgspec.Struct, frozen=True, rename="camel"):
    """A model, and its name in the repository."""

    model_name: str
    model_url: str


class ModelArchives(msgspec.Struct, frozen=True, rename="camel"):
    """A page of models. `next_page_token` is left out after the last."""

    models: list[ModelArchive]
    next_page_token: str | UnsetType = UNSET


class WorkerState(msgspec.Struct, frozen=True):
    """What runs a model: a candidate of its chain."""

    id: str
    status: str
    runtime: str
    device: str
    gpu: bool


class DescribedVersion(msgspec.Struct, frozen=True, rename="camel"):
    """One version of a model."""

    model_name: str
    model_version: str
    model_url: str
    runtime: str
    min_workers: int
    max_workers: int
    batch_size: int
    workers: list[WorkerState]
    reason: str | UnsetType = UNSET


class Managed(msgspec.Struct, frozen=True):
    """What was done."""

    status: str


def _list(served: Served, asked: Asked) -> Response:
    query = query_of(asked.head.query)
    first, limit = _count(query, "next_page_token", 0), _count(query, "limit", _PAGE)
    names = served.repository.registered()
    page = names[first : first + max(1, min(limit, _PAGE))]
    after = first + len(page)
    token: str | UnsetType = str(after) if after < len(names) else UNSET
    return Response.struct(ModelArchives([ModelArchive(n, n) for n in page], token))


@later
async def describe(served: Served, asked: Asked, request: Request) -> Response:
    """Raises ModelNotFound."""
    name, version = asked.values["model"], plain_version(asked.values.get("version"))
    status = await served.control.status()
    found = [s for s in status.models if s.name == name]
    if not found:
        raise ModelNotFound(f"Model not found: {name:.128}")
    if version is None:
        newest = max(found, key=lambda s: int(s.version))
        found = [newest]
    elif version != "all":
        found = [s for s in found if s.version == version]
        if not found:
            raise ModelNotFound(f"no version {quoted(version)} of '{name}'")
    return Response.struct([_described(served, each) for each in found])


def register(served: Served, asked: Asked) -> Answer:
    """Load a model of the repository by its name. Raises Forbidden."""
    check_model_control(served.model_control)
    return _register(served, asked)


@later
async def _register(served: Served, asked: Asked, request: Request) -> Response:
    name = _wanted(asked, request)
    if served.repository.versions(name):
        return ErrorResponse(409, f"Model {name} is already registered.")
    await served.control.load(name)
    version = served.repository.versions(name)[-1:] or ["1"]
    return Response.struct(Managed(f'Model "{name}" Version: {version[0]} registered'))


def unregister(served: Served, asked: Asked) -> Answer:
    """Unload a model, all its versions. Raises Forbidden."""
    check_model_control(served.model_control)
    if "version" in asked.values:
        raise NoRoute(
            Refusal(501, "unsupported", "versions are unloaded together: leave the version out")
        )
    return _unregister(served, asked)


@later
async def _unregister(served: Served, asked: Asked, request: Request) -> Response:
    name = asked.values["model"]
    if name not in served.repository.registered():
        raise ModelNotFound(f"Model not found: {name:.128}")
    await served.control.unload(name)
    return Response.struct(Managed(f'Model "{name}" unregistered'))


def change(served: Served, asked: Asked) -> Answer:
    """Scaling and default versions are settings here."""
    check_model_control(served.model_control)
    served.repository.find(asked.values["model"])
    message = "instances and version policies are settings of the server: see --instances and config.pbtxt"
    raise NoRoute(Refusal(501, "unsupported", message))


list_models = now(_list)


def plain_version(version: str | None) -> str | None:
    """TorchServe's 1.0 is 1."""
    return version.removesuffix(".0") if version is not None else None


def _described(served: Served, status: ModelStatus) -> DescribedVersion:
    loaded = [m for m in served.repository.loaded() if (m.name, m.version) == status.key]
    workers: list[WorkerState] = []
    instances = 0
    if loaded:
        (model,) = loaded
        candidate, instances = model.candidate, model.settings.instances
        state = "READY" if model.ready else "UNLOADING"
        workers = [
            WorkerState(
                candidate.label, state, candidate.runtime, candidate.device, candidate.kind == "gpu"
            )
        ]
    return DescribedVersion(
        status.name,
        status.version,
        status.name,
        workers[0].runtime if workers else "",
        instances,
        instances,
        loaded[0].interface.max_batch if loaded else 0,
        workers,
        status.reason or UNSET,
    )


def _wanted(asked: Asked, request: Request) -> str:
    """The name in the query or in JSON. Raises InvalidInput for anything but a name."""
    given: dict[str, Any] = dict(query_of(asked.head.query))
    body = bytes(request.body)
    if body.strip():
        check_depth(body, _DEPTH)
        given |= as_object(parse_json(body), "request")
    url = given.get("url")
    if not isinstance(url, str) or not url:
        raise InvalidInput("Parameter url is required.")
    name = url.removesuffix(_ARCHIVE)
    if not NAME.fullmatch(name):
        raise InvalidInput(
            "url is not opened: it has to be the name of a model of the server's repository folder",
            hint=NAME_RULE,
        )
    if given.get("model_name") not in (None, "", name):
        raise InvalidInput("model_name has to be the name in url: models keep their names")
    return name


def _count(query: Any, name: str, default: int) -> int:
    text = str(query.get(name, default))
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else default
