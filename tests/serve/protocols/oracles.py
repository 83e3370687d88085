"""Recordings of real servers, replayed: what is asked, and what the real server answered. They are not part of the project;
tests that use them are skipped without them."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.serve.background import Background
from tests.serve.protocols.asking import Answered

# Beside the checkout, or beside the folder of a worktree.
_PLACES = [Path(__file__).parents[up] / "shared" / "oracles" for up in (4, 5)]
FOLDER = next((place for place in _PLACES if place.is_dir()), _PLACES[0])
# Added by the client, or different for each run.
_NOT_SENT = {"content-length", "host", "connection"}


class Recorded(NamedTuple):
    """One exchange with a real server. `body` of the answer is text, cut if it was long."""

    id: str
    name: str
    config: str
    state: str
    method: str
    path: str
    headers: dict[str, str]
    sent: bytes | None
    status: int
    answer_headers: dict[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def recorded(name: str) -> list[Recorded]:
    """The exchanges over HTTP of one file; none without the recordings."""
    file = FOLDER / f"{name}.jsonl"
    if not file.is_file():
        return []
    found = []
    for line in file.read_text("utf-8").splitlines():
        entry = json.loads(line)
        request, answer = entry.get("request", {}), entry.get("answer", {})
        if request.get("method", "raw") in ("raw", "GRPC", "NOTE") or not isinstance(
            answer.get("status"), int
        ):
            continue
        body = answer.get("body")
        found.append(
            Recorded(
                entry["id"],
                str(entry.get("name", "")),
                str(entry.get("config", "")),
                str(entry.get("state", "")),
                request["method"],
                request["path"],
                dict(request.get("headers", [])),
                _sent(request),
                answer["status"],
                {k.lower(): v for k, v in answer.get("headers", [])},
                body if isinstance(body, str) else json.dumps(body),
            )
        )
    return found


def needs(name: str) -> pytest.MarkDecorator:
    """Skips tests without the recordings."""
    there = (FOLDER / f"{name}.jsonl").is_file()
    return pytest.mark.skipif(not there, reason="the recordings of real servers are not here")


def replay(server: Background, exchange: Recorded) -> Answered:
    """What edgeserve answers to the same request."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    headers = {k: v for k, v in exchange.headers.items() if k.lower() not in _NOT_SENT}
    try:
        connection.request(exchange.method, exchange.path, exchange.sent, headers)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        body = response.read()
        if found.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        return Answered(response.status, found, body)
    finally:
        connection.close()


def _sent(request: dict[str, Any]) -> bytes | None:
    if "json" in request:
        return json.dumps(request["json"]).encode()
    if "text" in request:
        return str(request["text"]).encode()
    if "body_b64" in request:
        return base64.b64decode(request["body_b64"])
    if "repeat" in request:
        r = request["repeat"]
        return (r["prefix"] + r["unit"] * r["count"] + r["suffix"]).encode()
    return None
