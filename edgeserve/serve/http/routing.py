"""From a head to what answers it: the one router, built from the lists of routes of all protocols."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any, Final, Generic, NamedTuple
from urllib.parse import unquote_to_bytes

from edgeserve.errors import EdgeServeError
from edgeserve.serve.access.keys import Authoriser, Caller, Role, key_of
from edgeserve.serve.http.errors import refused
from edgeserve.serve.http.head import Head
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import Refusal, server_failed
from edgeserve.serve.http.route import (
    IGNORED_BYTES,
    Answer,
    Asked,
    NoRoute,
    P,
    Route,
    RouteList,
    expanded,
)

log = logging.getLogger(__name__)

_SEGMENT: Final = re.compile(r"(?:\{(\w+)\})?([^{}\[\]]*)")


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
        """`served` is given to all handlers; `body_bytes` is the largest body of any route. Where two protocols have
        a route of one method and path, the first one's answers. Raises ValueError for two such routes of one
        protocol."""
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
        if other is not None and other.route.method == route.method:
            if other.listed is listed:
                raise ValueError(f"{route.method} {path} of {listed.name} is declared twice")
            log.debug("%s %s: %s before %s", route.method, path, other.listed.name, listed.name)
            return
        found = node.methods[route.method] = _Found(route, listed, names)
        if route.method == "GET":
            node.methods.setdefault("HEAD", found)

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
            message = f"the body is {head.length} bytes; the limit is {head.most}"
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
            found = refused(error)
        turned_away = getattr(head.route, "turned_away", None)
        if found is not None and turned_away is not None:
            turned_away(head, found)
        return found

    def _route(self, head: Head, caller: Caller) -> Answer:
        """Raises NoRoute, and what the handler of the route raises."""
        values: list[bytes] = []
        node = self._fixed.get(head.path)
        if node is None:
            segments = head.path[1:].split(b"/")
            node = self._root.find(segments, 0, values)
        if node is None:
            self._belongs(head, self._nearest(segments))
            self._check(Role.INFER, head, caller)
            raise NoRoute(Refusal(404, "unknown_route", "no such route"))
        found = node.methods.get(head.method)
        if found is None:
            raise self._other_method(node, head, caller)
        route, listed, names = found
        self._belongs(head, listed)
        self._check(route.role, head, caller)
        head.most = self._body_bytes if route.most is None else route.most
        named = dict(zip(names, map(decoded, values), strict=True))
        return route.handler(self._served, Asked(head, named, caller, self._authoriser))

    def _other_method(self, node: _Node, head: Head, caller: Caller) -> NoRoute:
        """For a path that has routes of other methods. Raises AccessDenied."""
        first = next(iter(node.methods.values()))
        self._belongs(head, first.listed)
        self._check(first.route.role, head, caller)
        allowed = ", ".join(sorted(node.methods))
        message = first.route.other_methods or f"method not allowed, use {allowed}"
        return NoRoute(Refusal(405, "method", message, (("Allow", allowed),)))

    @staticmethod
    def _belongs(head: Head, listed: RouteList[P]) -> None:
        head.write_error, head.stamp = listed.write_error, listed.stamp

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
