"""Routes as data: what a protocol declares, and what its handlers get and give back.

A route is declared once. How it is found, 404, 405 with Allow, HEAD, the role a caller needs and the largest body
(edgeserve.serve.http.routing), the OpenAPI description (edgeserve.serve.protocols.openapi) and the table in
docs/protocols.md follow from the declaration.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from edgeserve.errors import EdgeServeError
from edgeserve.serve.access.keys import Authoriser, Caller, Role
from edgeserve.serve.http.errors import failure
from edgeserve.serve.http.head import Head
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import (
    JSON,
    ErrorWriter,
    Refusal,
    Response,
    Stamp,
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

P = TypeVar("P")

# Answers requests with one head, now or later; called once a request. It may have a method
# `misfit(length: int) -> Refusal | None`, which raises EdgeServeError: why a body of so many bytes cannot be right.
# Beside it, `turned_away(head: Head, refusal: Refusal)` is told of each that was refused so.
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

    def check(self, role: Role) -> None:
        """Raise AccessDenied unless the caller has a role, beyond the one that the route needs."""
        self._authoriser.check(role, self._caller)


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
    """All routes of one protocol, how it writes errors, and what it adds to the headers of every answer.

    The rest is for documentation. `error` is the Python type of an error's body, `parameters` describes the named
    parts of paths, `tags` groups routes, `schemas` names types otherwise than their classes.
    """

    name: str
    routes: tuple[Route[P], ...]
    error: Any
    write_error: ErrorWriter
    tags: Mapping[str, str] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    schemas: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    stamp: Stamp | None = None


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
