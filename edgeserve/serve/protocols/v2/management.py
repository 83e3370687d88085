"""The routes that look at or change the server itself: repository, shared memory, trace, logging.

Sources: Triton's protocol/extension_model_repository.md, extension_shared_memory.md, extension_trace.md,
extension_logging.md.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec

from edgeserve.errors import InvalidInput, ModelNotFound
from edgeserve.serve.access.keys import Forbidden, Role
from edgeserve.serve.control import Control
from edgeserve.serve.http.errors import failure
from edgeserve.serve.http.head import Head
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import Refusal, Response
from edgeserve.serve.http.route import NoRoute, Route, later, not_allowed, reading
from edgeserve.serve.models.repository import ModelRepository
from edgeserve.serve.protocols.v2.extensions import LOG_SETTINGS, NO_CUDA, READ_ONLY, TRACE_SETTINGS
from edgeserve.serve.shm import SharedMemory, UnknownRegion
from edgeserve.wire.text import check_depth

log = logging.getLogger(__name__)

_REPOSITORY: Final = re.compile(
    rb"/v2/repository(?:/([^/]+))?/(?:(index)|models/([^/]+)/(load|unload))"
)
_MEMORY: Final = re.compile(
    rb"/v2/(system|cuda)sharedmemory(?:/region/([^/]+))?/(status|register|unregister)"
)
_SETTING: Final = re.compile(rb"/v2/(?:(logging)|(?:models/([^/]+)/)?trace/setting)")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_BODY: Final = 1 << 20
_DEPTH: Final = 10
_T = TypeVar("_T")


class _Index(msgspec.Struct):
    ready: bool = False


class IndexEntry(msgspec.Struct):
    """One version of one model, as the model repository extension lists it."""

    name: str
    version: str
    state: str
    reason: str


class _Change(msgspec.Struct):
    parameters: dict[str, str | int | bool] = {}


class _Registration(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


class Management:
    """Routes of the control plane, and of what it shows."""

    def __init__(
        self,
        repository: ModelRepository,
        shm: SharedMemory,
        control: Control,
        *,
        model_control: bool,
    ) -> None:
        self._repository = repository
        self._shm = shm
        self._control = control
        self._model_control = model_control

    def find(self, head: Head, check: Callable[[Role], None]) -> Route | None:
        """The route of a head, None if it is none of these. `check` raises for roles not given.

        Raises NoRoute, AccessDenied, InvalidInput.
        """
        path = head.path
        if match := _SETTING.fullmatch(path):
            check(Role.INFER)
            if head.method == "POST":
                raise NoRoute(Refusal(405, "method", READ_ONLY, (("Allow", "GET, HEAD"),)))
            document = LOG_SETTINGS if match[1] else TRACE_SETTINGS
            name = match[2]
            return reading(head, lambda: self._setting(document, name))
        if match := _REPOSITORY.fullmatch(path):
            return self._repository_route(head, match, check)
        if match := _MEMORY.fullmatch(path):
            check(Role.CONTROL)
            return self._memory_route(head, match)
        return None

    def _setting(self, document: dict[str, Any], name: bytes | None) -> Response:
        if name is not None:
            self._repository.find(_text(name))
        return Response.json(document)

    # the model repository

    def _repository_route(
        self, head: Head, match: re.Match[bytes], check: Callable[[Role], None]
    ) -> Route:
        check(Role.INFER if match[2] else Role.CONTROL)
        if head.method != "POST":
            raise not_allowed("POST")
        head.most = _BODY
        if match[1] is not None:
            raise InvalidInput("repository: expected none to be named, this server has one")
        if match[2]:
            return lambda request: later(request, self._index(request))
        if not self._model_control:
            raise Forbidden(
                "models are not loaded by clients", hint="edgeserve run --model-control"
            )
        name = _text(match[3])
        if not _NAME.fullmatch(name):
            raise InvalidInput("model name: expected letters, digits, '.', '_' and '-'")
        change = self._control.load if match[4] == b"load" else self._unload

        def route(request: Request) -> None:
            try:
                parameters = _decoded(request, _Change).parameters
            except InvalidInput as error:
                request.respond(failure(error))
                return
            later(request, _done(change(name, parameters)))

        return route

    async def _index(self, request: Request) -> Response:
        only_ready = _decoded(request, _Index).ready
        models = (await self._control.status()).models
        return Response.struct(
            [
                IndexEntry(m.name, m.version, m.state, m.reason)
                for m in models
                if m.state == "READY" or not only_ready
            ]
        )

    async def _unload(self, name: str, parameters: dict[str, str | int | bool]) -> None:
        unknown = set(parameters) - {"unload_dependents"}
        if unknown:
            raise InvalidInput(f"unload parameter '{min(unknown):.60}' is not known")
        try:
            await self._control.unload(name)
        except ModelNotFound:
            log.info("a model that is not known was unloaded")  # no error, as with Triton

    # shared memory

    def _memory_route(self, head: Head, match: re.Match[bytes]) -> Route:
        region = None if match[2] is None else _text(match[2])
        if match[1] == b"cuda":
            return _cuda_route(head, region, match[3])
        if match[3] == b"status":
            return reading(head, lambda: Response.struct(self._shm.status(region)))
        if head.method != "POST":
            raise not_allowed("POST")
        head.most = _BODY

        async def register(request: Request) -> Response:
            if not self._shm.enabled or region is None:
                self._shm.status()
                raise InvalidInput("region: expected a name, as in /region/NAME/register")
            wanted = _decoded(request, _Registration)
            change = self._control.register(region, wanted.key, wanted.offset, wanted.byte_size)
            return await _done(change)

        async def unregister(request: Request) -> Response:
            return await _done(self._control.unregister(region))

        answer = register if match[3] == b"register" else unregister
        return lambda request: later(request, answer(request))


def _cuda_route(head: Head, region: str | None, action: bytes) -> Route:
    """No region is ever registered: there is nothing to list, and nothing to unregister, which clients that
    may have left some behind do first."""
    if action == b"status":
        if region is not None:
            raise UnknownRegion(f"no CUDA memory region is registered as {region!r:.60}")
        return reading(head, lambda: Response.json([]))
    if head.method != "POST":
        raise not_allowed("POST")
    if action == b"register":
        raise NoRoute(Refusal(400, "unsupported", NO_CUDA))
    head.most = _BODY
    return lambda request: request.respond(Response.of(200, []))


async def _done(change: Awaitable[None]) -> Response:
    await change
    return Response.of(200, [])


def _decoded(request: Request, kind: type[_T]) -> _T:
    """The JSON body, where an empty one is an empty object. Raises InvalidInput."""
    body = bytes(request.body)
    if len(body) > _BODY:
        raise InvalidInput(f"the body: expected at most {_BODY} bytes, got {len(body)}")
    check_depth(body, _DEPTH)
    try:
        return msgspec.json.decode(body.strip() or b"{}", type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the body: {error}") from None


def _text(part: bytes) -> str:
    return unquote_to_bytes(part).decode("utf-8", "replace")
