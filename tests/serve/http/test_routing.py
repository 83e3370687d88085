"""Lists of routes: what answers a path and a method, who may ask, and what is said where nothing answers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import orjson
import pytest

from edgeserve.errors import InvalidInput
from edgeserve.serve.access.keys import Authoriser, Keys, Role, read_keys
from edgeserve.serve.http.head import Head, parse_head
from edgeserve.serve.http.request import Request
from edgeserve.serve.http.response import ErrorResponse, PlainError, Refusal, Response, plain_error
from edgeserve.serve.http.route import (
    Answer,
    Asked,
    NoRoute,
    Route,
    RouteList,
    expanded,
    later,
    now,
    shown,
)
from edgeserve.serve.http.routing import Router
from edgeserve.serve.http.server import HttpServer
from edgeserve.serve.metrics.recorder import Recorder
from edgeserve.serve.settings.limits import Limits

INFER, CONTROL = "infer-key-0123456789", "control-key-0123456789"
KEYS = read_keys(None, {"EDGESERVE_API_KEY": INFER, "EDGESERVE_CONTROL_KEY": CONTROL})


def route(
    method: str, path: str, name: str = "", role: Role = Role.INFER, **more: Any
) -> Route[str]:
    """A route that answers with its name, what is served, and the values in its path."""

    def answer(served: str, asked: Asked) -> Response:
        return Response.json([name, served, asked.values])

    return Route(method, path, role, now(answer), "A route", **more)


def listed(*routes: Route[str], name: str = "one") -> RouteList[str]:
    return RouteList(name, routes, PlainError, plain_error)


def router(*lists: RouteList[str], keys: Keys = KEYS) -> Router[str]:
    return Router(Authoriser(keys, listens_on="127.0.0.1"), lists, "served", 1 << 20)


def head(method: str, path: str, key: str | None = INFER, length: int = 0) -> Head:
    leave = "" if key is None else f"X-Api-Key: {key}\r\n"
    text = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{leave}\r\n"
    return parse_head(text.encode(), Limits())


class Client:
    """What a request came from; keeps the answers."""

    address = "127.0.0.1"

    def __init__(self) -> None:
        self.answers: list[Response] = []

    def waits_for(self, request: Request) -> bool:
        return not self.answers

    def hold(self, count: int) -> bool:
        return True

    def respond(self, request: Request, response: Response) -> None:
        self.answers.append(response)


def admitted(found: Router[str], asked: Head) -> Refusal | None:
    return found.admit(asked, "127.0.0.1")


def answered(found: Router[str], asked: Head) -> Any:
    """The JSON of the answer to a request that is let in."""
    assert admitted(found, asked) is None
    client = Client()
    found.handle(Request(client, asked, b""))
    (answer,) = client.answers
    return orjson.loads(b"".join(answer.parts))


MODELS = listed(
    route("GET", "/m[/]", "list"),
    route("GET", "/m/stats", "stats of all"),
    route("GET", "/m/{model}[/versions/{version}][/]", "about"),
    route("POST", "/m/{model}[/versions/{version}]/infer", "infer"),
    route("GET", "/m/{model}/stats", "stats"),
    route("POST", "/m/{model}[/versions/{version}]:predict", "predict"),
    route("POST", "/m/{model}:re:predict", "again"),
)


@pytest.mark.parametrize(
    ("method", "path", "name", "values"),
    [
        ("GET", "/m", "list", {}),
        ("GET", "/m/", "list", {}),
        ("GET", "/m/stats", "stats of all", {}),
        ("GET", "/m/stats/", "about", {"model": "stats"}),
        ("GET", "/m/stats/stats", "stats", {"model": "stats"}),
        ("GET", "/m/a?b=c", "about", {"model": "a"}),
        ("GET", "/m/a/versions/2", "about", {"model": "a", "version": "2"}),
        ("GET", "/m/a/versions/2/", "about", {"model": "a", "version": "2"}),
        ("POST", "/m/stats/infer", "infer", {"model": "stats"}),
        ("POST", "/m/a/versions/2/infer", "infer", {"model": "a", "version": "2"}),
        ("POST", "/m/a:predict", "predict", {"model": "a"}),
        ("POST", "/m/a/versions/2:predict", "predict", {"model": "a", "version": "2"}),
        ("POST", "/m/a:re:predict", "again", {"model": "a"}),
        ("POST", "/m/:predict:predict", "predict", {"model": ":predict"}),
        ("GET", "/m/mod%C3%A8le%20%2f", "about", {"model": "modèle /"}),
        ("GET", "/m/%ff", "about", {"model": "�"}),
        ("GET", "/m/a%3Apredict", "about", {"model": "a:predict"}),
    ],
)
def test_a_path_leads_to_one_route(
    method: str, path: str, name: str, values: dict[str, str]
) -> None:
    assert answered(router(MODELS), head(method, path)) == [name, "served", values]


@pytest.mark.parametrize(
    "path", ["/", "/n", "/m//", "/m//infer", "/m/a/b", "/m/a/versions", "/m/a/infer/", "/M", "/m/a/versions//infer"]
)  # fmt: skip
def test_other_paths_are_404_for_those_who_may_infer(path: str) -> None:
    refusal = admitted(router(MODELS), head("GET", path))
    assert refusal is not None
    assert (refusal.status, refusal.reason, refusal.message) == (
        404,
        "unknown_route",
        "no such route",
    )
    refusal = admitted(router(MODELS), head("GET", path, key=None))
    assert refusal is not None
    assert refusal.status == 401


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/m", "GET, HEAD"),
        ("GET", "/m/a/infer", "POST"),
        ("HEAD", "/m/a/infer", "POST"),
        ("DELETE", "/both", "GET, HEAD, PUT"),
        ("GET", "/m/a:predict", "POST"),
    ],
)
def test_other_methods_are_405_with_those_that_there_are(
    method: str, path: str, allowed: str
) -> None:
    both = listed(route("GET", "/both"), route("PUT", "/both"))
    refusal = admitted(router(MODELS, both), head(method, path))
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (405, "method")
    assert refusal.form.headers == (("Allow", allowed),)
    assert refusal.message == f"method not allowed, use {allowed}"


def test_a_route_may_say_why_other_methods_are_not_allowed() -> None:
    found = router(listed(route("GET", "/settings", other_methods="read-only")))
    refusal = admitted(found, head("POST", "/settings"))
    assert refusal is not None
    assert (refusal.status, refusal.message) == (405, "read-only")
    assert refusal.form.headers == (("Allow", "GET, HEAD"),)


def test_head_is_answered_as_get() -> None:
    assert answered(router(MODELS), head("HEAD", "/m/a")) == ["about", "served", {"model": "a"}]


@pytest.mark.parametrize(
    ("role", "key", "status"),
    [
        (Role.OPEN, None, None),
        (Role.INFER, None, 401),
        (Role.INFER, "wrong-key-0123456789", 401),
        (Role.INFER, INFER, None),
        (Role.CONTROL, None, 401),
        (Role.CONTROL, INFER, 403),
        (Role.CONTROL, CONTROL, None),
    ],
)
def test_roles_are_asked_for_before_the_handler_is(
    role: Role, key: str | None, status: int | None
) -> None:
    asked = []

    def handler(served: str, found: Asked) -> Answer:
        asked.append(found.may(Role.CONTROL))
        return lambda request: None

    found = router(listed(Route("POST", "/a", role, handler, "")))
    for method in ("POST", "GET"):  # 405 tells no more to those who may not ask
        given = head(method, "/a", key)
        refusal = admitted(found, given)
        wrong = None if method == "POST" else 405
        assert (refusal and refusal.status) == (status or wrong)
        assert given.trusted is (status is None and role is not Role.OPEN)
    assert asked == ([key == CONTROL] if status is None else [])


@pytest.mark.parametrize(("most", "fits"), [(None, 1 << 20), (10, 10)])
def test_bodies_are_bounded_by_their_route(most: int | None, fits: int) -> None:
    found = router(listed(route("POST", "/a", most=most)))
    assert admitted(found, head("POST", "/a", length=fits)) is None
    refusal = admitted(found, head("POST", "/a", length=fits + 1))
    assert refusal is not None
    assert (refusal.status, refusal.reason) == (413, "body_too_large")


def test_a_handler_may_refuse() -> None:
    def unsupported(served: str, asked: Asked) -> Answer:
        raise NoRoute(Refusal(501, "unsupported", "not here"))

    def invalid(served: str, asked: Asked) -> Answer:
        raise InvalidInput("not so")

    found = router(
        listed(
            Route("GET", "/a", Role.OPEN, unsupported, ""),
            Route("GET", "/b", Role.OPEN, invalid, ""),
        )
    )
    for path, status in (("/a", 501), ("/b", 400)):
        refusal = admitted(found, head("GET", path))
        assert refusal is not None
        assert refusal.status == status


def test_bodies_that_cannot_be_right_are_refused_by_what_answers() -> None:
    class Even:
        def __call__(self, request: Request) -> None:
            request.respond(Response.json({}))

        def misfit(self, length: int) -> Refusal | None:
            if length > 9:
                raise InvalidInput("too long")
            return Refusal(400, "invalid", "odd") if length % 2 else None

    found = router(listed(Route("POST", "/a", Role.OPEN, lambda served, asked: Even(), "")), MODELS)
    for length, words in ((2, None), (3, "odd"), (10, "too long")):
        given = head("POST", "/a", length=length)
        assert admitted(found, given) is None
        refusal = found.announced(given)
        assert (refusal and refusal.message) == words
    given = head("POST", "/m/a/infer", length=3)
    assert admitted(found, given) is None
    assert found.announced(given) is None


def test_a_head_whose_route_was_forgotten_is_asked_about_again() -> None:
    found = router(MODELS)
    given, client = head("GET", "/m", key=None), Client()
    found.handle(Request(client, given, b""))
    (answer,) = client.answers
    assert isinstance(answer, Refusal)
    assert answer.status == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/m/{name}"), ("GET", "/m/stats"), ("POST", "/m/{a}/versions/{b}/infer[/]")],
)
def test_the_first_of_two_protocols_has_a_route_that_both_declare(method: str, path: str) -> None:
    found = router(MODELS, listed(route(method, path, "other"), name="two"))
    alone = router(MODELS)
    target = path.replace("{name}", "x").replace("{a}", "x").replace("{b}", "1").replace("[/]", "")
    answer = answered(found, head(method, target))
    assert answer == answered(alone, head(method, target))
    assert answer[0] != "other"


def test_two_routes_of_one_method_and_path_in_one_protocol_are_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"GET /m/\{b\} of two is declared twice"):
        router(listed(route("GET", "/m/{a}"), route("GET", "/m/{b}"), name="two"))


def test_a_protocol_may_stamp_every_answer_even_errors() -> None:
    stamped = replace(
        listed(route("GET", "/s")), stamp=lambda head, response: b"\r\nx-a: " + head.query
    )
    found = router(stamped)
    for method, path in (("GET", "/s"), ("PUT", "/s"), ("GET", "/s/unknown")):
        given = head(method, path)
        admitted(found, given)
        assert given.stamp is stamped.stamp


def test_protocols_share_paths_if_their_methods_differ() -> None:
    found = router(MODELS, listed(route("PUT", "/m/{name}", "put"), name="two"))
    assert answered(found, head("PUT", "/m/a")) == ["put", "served", {"name": "a"}]
    assert answered(found, head("GET", "/m/a")) == ["about", "served", {"model": "a"}]


@pytest.mark.parametrize("path", ["/a/{b", "/a/b}", "/a/x{b}", "/a/{b}{c}", "/a/{}"])
def test_patterns_that_are_none_are_a_mistake(path: str) -> None:
    with pytest.raises(ValueError, match="not a segment of a path pattern"):
        router(listed(route("GET", path)))


def test_patterns_stand_for_paths() -> None:
    pattern = "/m/{model}[/versions/{version}]/ready[/]"
    assert expanded(shown(pattern)) == ["/m/{model}/ready", "/m/{model}/versions/{version}/ready"]
    assert len(expanded(pattern)) == 4
    operations = route("GET", pattern, operations=("ready",)).documented()
    assert list(operations) == [("ready", "/m/{model}/ready")]


def coded(error: ErrorResponse) -> tuple[int, str, bytes]:
    body = {"code": error.status, "message": error.message}
    return error.status, "application/json", orjson.dumps(body)


def test_each_protocol_writes_its_errors(caplog: pytest.LogCaptureFixture) -> None:
    def wrong(served: str, asked: Asked) -> Response:
        raise InvalidInput("wrong")

    @later
    async def broken(served: str, asked: Asked, request: Request) -> Response:
        raise RuntimeError

    routes = (
        Route("GET", "/ping/wrong", Role.OPEN, now(wrong), ""),
        Route("GET", "/ping/broken", Role.OPEN, broken, ""),
    )
    found = router(MODELS, RouteList("two", routes, dict, coded), keys=Keys())

    async def story() -> list[tuple[int, Any]]:
        server = HttpServer(found, Limits(), Recorder())
        reader, writer = await asyncio.open_connection(*await server.listen("127.0.0.1", 0))
        answers = []
        for method, path in (
            ("GET", "/ping/wrong"), ("GET", "/ping/broken"), ("GET", "/ping/none"), ("GET", "/none"),
            ("POST", "/ping/wrong"), ("GET", "/m/a/b"), ("HEAD", "/m"), ("GET", "/bad header"),
        ):  # fmt: skip
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            text = await reader.readuntil(b"\r\n\r\n")
            length = int(text.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            body = b"" if method == "HEAD" else await reader.readexactly(length)
            answers.append((int(text.split()[1]), json.loads(body or b"{}")))
        writer.close()
        await server.close()
        return answers

    assert asyncio.run(story()) == [
        (400, {"code": 400, "message": "wrong"}),
        (500, {"code": 500, "message": "the server failed; its log says why"}),
        (404, {"code": 404, "message": "no such route"}),
        (404, {"error": "no such route"}),
        (405, {"code": 405, "message": "method not allowed, use GET, HEAD"}),
        (404, {"error": "no such route"}),
        (200, {}),
        (400, {"error": "malformed request: Expected HTTP/, RTSP/ or ICE/"}),
    ]
    assert "a request failed" in caplog.text
