"""From a head to what answers it: routes as data, and the one router built from the lists of all protocols.

A route is declared once. How it is found, 404, 405 with Allow, HEAD, the role a caller needs, the largest body, the
OpenAPI description (edgeserve.serve.protocols.openapi) and the table in docs/protocols.md follow from the declaration.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

from edgeserve.errors import EdgeServeError
from edgeserve.serve.access.keys import Authoriser, Caller, Role, key_of
from edgeserve.serve.http.errors import failure, refused
from edgeserve.serve.http.head import Head
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import (
    JSON,
    ErrorWriter,
    Refusal,
    Response,
    server_failed,
)

log = logging.getLogger(__name__)

# The largest body of a route that reads none.
IGNORED_BYTES: Final = 4_096
# The event loop refers to tasks weakly.
_TASKS: Final[set[asyncio.Task[None]]] = set()
_OPTIONAL: Final = re.compile(r"\[([^\[\]]*)\]")
_OPTIONAL_TEXT: Final = re.compile(r"\[[^\[\]{}]*\]")
_NAME: Final = re.compile(r"\{(\w+)\}")
_SEGMENT: Final = re.compile(r"(?:\{(\w+)\})?([^{}\[\]]*)")

P = TypeVar("P")

# Answers requests with one head, now or later; called once a request. It may have a method
# `misfit(length: int) -> Refusal | None`, which raises EdgeServeError: why a body of so many bytes cannot be right.
# It is asked before a large body is received.
Answer = Callable[[Request], None]


class NoRoute(Exception):
    """Nothing answers this head; the refusal says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class Asked:
    """A head that has found its route. `values` are the named parts of its path, percent-decoded."""

    __slots__ = ("_authoriser", "_caller", "head", "values")

    def __init__(
        self, head: Head, values: Mapping[str, str], caller: Caller, authoriser: Authoriser
    ) -> None:
        self.head = head
        self.values = values
        self._caller = caller
        self._authoriser = authoriser

    def may(self, role: Role) -> bool:
        """Whether the caller has a role, beyond the one that the route needs."""
        return self._authoriser.allows(role, self._caller)


Handler = Callable[[P, Asked], Answer]


def now(answer: Callable[[P, Asked], Response]) -> Handler[P]:
    """The handler of a route that is answered at once."""

    def handler(served: P, asked: Asked) -> Answer:
        def respond(request: Request) -> None:
            try:
                response = answer(served, asked)
            except EdgeServeError as error:
                response = failure(error)
            request.respond(response)

        return respond

    return handler


def later(answer: Callable[[P, Asked, Request], Coroutine[Any, Any, Response]]) -> Handler[P]:
    """The handler of a route that is answered when a coroutine has ended."""

    def handler(served: P, asked: Asked) -> Answer:
        async def respond(request: Request) -> None:
            try:
                response = await answer(served, asked, request)
            except EdgeServeError as error:
                response = failure(error)
            except Exception:
                log.exception("a request failed")
                response = server_failed()
            request.respond(response)

        def start(request: Request) -> None:
            task = asyncio.get_running_loop().create_task(respond(request))
            _TASKS.add(task)
            task.add_done_callback(_TASKS.discard)

        return start

    return handler


@dataclass(frozen=True)
class Parameter:
    """A parameter of a route, for its description: a part of the path, or a header. `kind` is a Python type."""

    name: str
    kind: Any
    text: str
    where: str = "path"


@dataclass(frozen=True)
class Content:
    """A body, for the description: what it is, and its Python type by media type."""

    text: str = ""
    kinds: Mapping[str, Any] = field(default_factory=dict)
    required: bool = False
    example: Any = None


def json_of(kind: Any, text: str = "As described", *, required: bool = False) -> Content:
    """A body of JSON of a Python type."""
    return Content(text, {JSON: kind}, required)


@dataclass(frozen=True)
class Route(Generic[P]):
    """One route of a protocol. Handlers get a P, what the server as a whole serves, and the head.

    `path` is a pattern: `{name}` is a segment, or its beginning (`{model}:predict`); `[...]` may be left out.
    `handler` is called once for each new head, and raises EdgeServeError or NoRoute to refuse it. GET routes
    answer HEAD, too. `most` is the largest body in bytes; None: as large as the server takes.

    The rest is for documentation. `operations` are the OpenAPI names of the paths that the pattern stands for, the
    shortest path first; OpenAPI leaves out paths without a name, the table of routes a route without a `summary`.
    `errors` are the statuses beside those that every route has; `answers` are statuses other than 200 with a body
    other than an error's. `other_methods` is the text of the 405, if not the usual one.
    """

    method: str
    path: str
    role: Role
    handler: Handler[P]
    summary: str
    operations: tuple[str, ...] = ()
    tag: str = ""
    takes: Content | None = None
    gives: Content = Content("Done")
    answers: Mapping[int, Content] = field(default_factory=dict)
    errors: tuple[int, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    most: int | None = IGNORED_BYTES
    other_methods: str = ""

    def documented(self) -> Iterator[tuple[str, str]]:
        """The OpenAPI name and the path of each operation."""
        return zip(self.operations, expanded(shown(self.path)), strict=False)


@dataclass(frozen=True, eq=False)
class RouteList(Generic[P]):
    """All routes of one protocol, and how it writes errors.

    `error` is the Python type of an error's body, `parameters` describes the named parts of paths, `tags` groups
    the routes for their description, and `schemas` names types there otherwise than their classes.
    """

    name: str
    routes: tuple[Route[P], ...]
    error: Any
    write_error: ErrorWriter
    tags: Mapping[str, str] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    schemas: Mapping[str, Any] = field(default_factory=dict)


def shown(pattern: str) -> str:
    """A path pattern without optional text, such as a slash at the end: as documentation has it."""
    return _OPTIONAL_TEXT.sub("", pattern)


def names_of(pattern: str) -> list[str]:
    """The names in a path pattern, in its order."""
    return _NAME.findall(pattern)


def expanded(pattern: str) -> list[str]:
    """Every path pattern without `[...]` that a pattern stands for; those that leave out more come first."""
    found = _OPTIONAL.search(pattern)
    if found is None:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [*expanded(before + after), *expanded(before + found[1] + after)]


class _Found(NamedTuple):
    """A route at one path, the protocol that it belongs to, and the names of the path's values."""

    route: Route[Any]
    listed: RouteList[Any]
    names: list[str]


class _Node:
    """The routes whose paths begin alike: by the next segment, and by what follows a name in it."""

    __slots__ = ("fixed", "listed", "methods", "named")

    def __init__(self, listed: RouteList[Any]) -> None:
        self.listed = listed  # the first protocol that has a route here
        self.fixed: dict[bytes, _Node] = {}
        self.named: dict[bytes, _Node] = {}  # the longest text first
        self.methods: dict[str, _Found] = {}  # of the routes whose paths end here

    def find(self, segments: list[bytes], at: int, values: list[bytes]) -> _Node | None:
        """Where a path ends that has routes; its values are appended. Fixed segments are preferred."""
        if at == len(segments):
            return self if self.methods else None
        segment = segments[at]
        node = self.fixed.get(segment)
        if node is not None:
            found = node.find(segments, at + 1, values)
            if found is not None:
                return found
        for text, node in self.named.items():
            if len(segment) > len(text) and segment.endswith(text):
                values.append(segment[: len(segment) - len(text)])
                found = node.find(segments, at + 1, values)
                if found is not None:
                    return found
                values.pop()
        return None

    def child(self, segment: str, listed: RouteList[Any]) -> tuple[_Node, str | None]:
        """The node below for a segment of a pattern, and the name in it. Raises ValueError."""
        match = _SEGMENT.fullmatch(segment)
        if match is None:
            raise ValueError(f"{segment!r} is not a segment of a path pattern")
        name, text = match[1], match[2].encode()
        nodes = self.fixed if name is None else self.named
        node = nodes.get(text)
        if node is None:
            node = nodes[text] = _Node(listed)
            self.named = dict(sorted(self.named.items(), key=lambda item: -len(item[0])))
        return node, name


class Router(Generic[P]):
    """Answers the requests on one listener from lists of routes. The authoriser is asked before anything else."""

    def __init__(
        self,
        authoriser: Authoriser,
        lists: Sequence[RouteList[P]],
        served: P,
        body_bytes: int,
    ) -> None:
        """`served` is given to all handlers; `body_bytes` is the largest body of any route. Raises ValueError for
        two routes of one method and path."""
        self._authoriser = authoriser
        self._served = served
        self._body_bytes = body_bytes
        self._root = _Node(lists[0])
        self._fixed: dict[bytes, _Node] = {}  # by paths without values
        for listed in lists:
            for route in listed.routes:
                for path in expanded(route.path):
                    self._add(listed, route, path)

    def _add(self, listed: RouteList[P], route: Route[P], path: str) -> None:
        node, names = self._root, []
        for segment in path.removeprefix("/").split("/"):
            node, name = node.child(segment, listed)
            if name is not None:
                names.append(name)
        if not names:
            self._fixed[path.encode()] = node
        other = node.methods.get(route.method)
        if other is not None:
            raise ValueError(
                f"{route.method} {path} of {listed.name} is also a route of {other.listed.name}"
            )
        found = node.methods[route.method] = _Found(route, listed, names)
        if route.method == "GET":
            node.methods["HEAD"] = found

    def handle(self, request: Request) -> None:
        """Answer now or later; never raises."""
        try:
            head = request.head
            if head.route is None:  # the caller's leave may have ended
                refusal = self.admit(head, request.address)
                if refusal is not None:
                    request.respond(refusal)
                    return
            head.route(request)
        except Exception:
            log.exception("a request could not be handled")
            request.respond(server_failed())

    def admit(self, head: Head, address: str) -> Refusal | None:
        """Set what answers a head and how much it reads, or say why its request is not served; never raises.

        To be asked before anything of the body is taken.
        """
        head.most, head.trusted = IGNORED_BYTES, False
        try:
            route = self._route(head, caller_of(head, address))
        except NoRoute as error:
            return error.refusal
        except EdgeServeError as error:
            refusal = refused(error)
            if refusal is None:
                log.exception("a request could not be routed")
            return refusal or Refusal(503, "unavailable", str(error))
        if head.length is not None and head.length > head.most:
            message = f"the body is {head.length} bytes, at most {head.most} are taken here"
            return Refusal(413, "body_too_large", message)
        head.route = route
        return None

    def announced(self, head: Head) -> Refusal | None:
        """Why the body of a request that was let in cannot be right, by its length; never raises."""
        misfit = getattr(head.route, "misfit", None)
        if misfit is None or head.length is None:
            return None
        try:
            found: Refusal | None = misfit(head.length)
        except EdgeServeError as error:
            return refused(error)
        return found

    def _route(self, head: Head, caller: Caller) -> Answer:
        """Raises NoRoute, and what the handler of the route raises."""
        values: list[bytes] = []
        node = self._fixed.get(head.path)
        if node is None:
            segments = head.path[1:].split(b"/")
            node = self._root.find(segments, 0, values)
        if node is None:
            head.write_error = self._nearest(segments).write_error
            self._check(Role.INFER, head, caller)
            raise NoRoute(Refusal(404, "unknown_route", "no such route"))
        found = node.methods.get(head.method)
        if found is None:
            raise self._other_method(node, head, caller)
        route, listed, names = found
        head.write_error = listed.write_error
        self._check(route.role, head, caller)
        head.most = self._body_bytes if route.most is None else route.most
        named = dict(zip(names, map(decoded, values), strict=True))
        return route.handler(self._served, Asked(head, named, caller, self._authoriser))

    def _other_method(self, node: _Node, head: Head, caller: Caller) -> NoRoute:
        """For a path that has routes of other methods. Raises AccessDenied."""
        first = next(iter(node.methods.values()))
        head.write_error = first.listed.write_error
        self._check(first.route.role, head, caller)
        allowed = ", ".join(sorted(node.methods))
        message = first.route.other_methods or f"method not allowed, use {allowed}"
        return NoRoute(Refusal(405, "method", message, (("Allow", allowed),)))

    def _check(self, role: Role, head: Head, caller: Caller) -> None:
        """Raises AccessDenied."""
        if role is not Role.OPEN:
            self._authoriser.check(role, caller)
            head.trusted = True

    def _nearest(self, segments: list[bytes]) -> RouteList[P]:
        """The protocol whose paths begin most like an unknown one: it writes the error."""
        node = self._root
        for segment in segments:
            child = node.fixed.get(segment)
            if child is None:
                break
            node = child
        return node.listed


def caller_of(head: Head, address: str) -> Caller:
    def text(name: bytes) -> str | None:
        value = head.headers.get(name)
        return None if value is None else value.decode("latin-1")

    key = key_of(text(b"authorization"), text(b"x-api-key"))
    return Caller(key, address, text(b"host") or "", text(b"origin"))


def decoded(part: bytes) -> str:
    """A part of a path, percent-decoded."""
    return (unquote_to_bytes(part) if b"%" in part else part).decode("utf-8", "replace")
