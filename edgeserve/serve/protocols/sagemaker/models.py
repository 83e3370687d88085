"""Multi-model endpoints: models of the server's repository are loaded and unloaded by name, by callers with the control
role. The `url` that the platform sends is never opened.

Source: "Build Your Own Container for SageMaker Multi-Model Endpoints" in Amazon SageMaker's developer guide.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

from edgeserve.errors import InvalidInput, ModelNotFound, quoted
from edgeserve.names import NAME, NAME_RULE
from edgeserve.serve.control import check_model_control
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import ErrorResponse, Response
from edgeserve.serve.http.route import Answer, Asked, later
from edgeserve.serve.protocols.bodies.media import query_of
from edgeserve.serve.protocols.context import Served
from edgeserve.wire.text import check_depth

_PAGE: Final = 100
_DEPTH: Final = 4


class LoadModel(msgspec.Struct, frozen=True):
    """`url` is where the platform put the model. It is not opened: the model is the one of this name in the server's
    repository."""

    model_name: str = ""
    url: str = ""


class LoadedModel(msgspec.Struct, frozen=True, rename="camel"):
    """A model that is loaded. `model_url` is its bundle's name in the server's repository."""

    model_name: str
    model_url: str


class LoadedModels(msgspec.Struct, frozen=True, rename="camel"):
    """One page of the loaded models by name. `next_page_token` is for the next one; it is left out after the last."""

    models: list[LoadedModel]
    next_page_token: Annotated[str, Meta(pattern="^[0-9]+$")] | UnsetType = UNSET


class Done(msgspec.Struct, frozen=True):
    """What was done."""

    status: str


class _Loading:
    """The models that are being loaded, by one process."""

    def __init__(self, served: Served) -> None:
        self.names: set[str] = set()


def list_models(served: Served, asked: Asked) -> Response:
    """A page: `limit` models from `next_page_token` on."""
    query = query_of(asked.head.query)
    first = _count(query.get("next_page_token", "0"), "next_page_token", 0)
    limit = _count(query.get("limit", str(_PAGE)), "limit", 1)
    names = served.repository.registered()
    there = names[first : first + min(limit, _PAGE)]
    after = first + len(there)
    token: str | UnsetType = str(after) if after < len(names) else UNSET
    return Response.struct(LoadedModels([_described(served, name) for name in there], token))


def show_model(served: Served, asked: Asked) -> Response:
    """Raises ModelNotFound for a model that is not loaded."""
    return Response.struct(_described(served, check_registered(served, asked.values["model"])))


def load_model(served: Served, asked: Asked) -> Answer:
    """200, 409 for a model that is loaded, 404 for one that the repository does not have, 507 without memory for it.
    Raises Forbidden."""
    check_model_control(served.model_control)
    return _load(served, asked)


@later
async def _load(served: Served, asked: Asked, request: Request) -> Response:
    wanted = _wanted(asked, request)
    name = wanted.model_name
    loading = served.kept(_Loading).names
    if name in loading or served.repository.versions(name):
        return ErrorResponse(409, f"Model {name} is already registered.")
    loading.add(name)
    try:
        await served.control.load(name)
    finally:
        loading.discard(name)
    return Response.struct(Done(f'Model "{name}" loaded'))


def unload_model(served: Served, asked: Asked) -> Answer:
    """200, or 404 for a model that is not loaded. Raises Forbidden."""
    check_model_control(served.model_control)
    return _unload(served, asked)


@later
async def _unload(served: Served, asked: Asked, request: Request) -> Response:
    name = check_registered(served, asked.values["model"])
    await served.control.unload(name)
    return Response.struct(Done(f'Model "{name}" unregistered'))


def check_registered(served: Served, name: str) -> str:
    """The name of a model that is loaded or failed to load. Raises ModelNotFound."""
    if name in served.repository.registered():
        return name
    raise ModelNotFound(f"Model not found: {quoted(name)}")


def _described(served: Served, name: str) -> LoadedModel:
    paths = [e.source.path for e in served.repository.entries() if e.source.name == name]
    return LoadedModel(name, paths[-1].rpartition("/")[2])


def _wanted(asked: Asked, request: Request) -> LoadModel:
    """From the body, or from the query, which the model server in Amazon's images reads too. Raises InvalidInput;
    ModelNotFound for a relative path, as that model server does."""
    body = bytes(request.body)
    if body.strip():
        check_depth(body, _DEPTH)
        try:
            wanted = msgspec.json.decode(body, type=LoadModel)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidInput(f"the body: {error}") from None
    else:
        query = query_of(asked.head.query)
        wanted = LoadModel(query.get("model_name", ""), query.get("url", ""))
    if not wanted.model_name:
        raise InvalidInput("model_name: expected the name of a model in this server's repository")
    if not NAME.fullmatch(wanted.model_name):
        raise InvalidInput(f"model_name: {NAME_RULE}")
    if "://" in wanted.url:
        raise InvalidInput(
            "url: expected the path that the platform gives: models come from this server's repository by name, "
            "nothing is fetched"
        )
    if ".." in wanted.url.replace("\\", "/").split("/"):
        raise ModelNotFound(f"Relative path is not allowed in url: {quoted(wanted.url)}")
    return wanted


def _count(text: str, what: str, least: int) -> int:
    """Raises InvalidInput."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= least):
        raise InvalidInput(f"{what}: expected a number of {least} or more, got {text!r:.40}")
    return int(text)
