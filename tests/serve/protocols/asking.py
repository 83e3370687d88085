"""One request over a connection of its own, for tests of protocols."""

from __future__ import annotations

import http.client
import json
from typing import Any, NamedTuple

from tests.serve.background import Background
from tests.serve.running import Served


class Answered(NamedTuple):
    """`headers` are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    server: Background | Served, path: str, body: Any = None, method: str = "POST", **headers: str
) -> Answered:
    """`body` is sent as it is if it is bytes, else as JSON; `headers` have _ for -."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        given.setdefault("content-type", "application/json")
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, path, body, given)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answered(response.status, found, response.read())
    finally:
        connection.close()


def form(*parts: tuple[str, str, bytes]) -> tuple[bytes, str]:
    """A multipart/form-data body of (name, file name, data), and its content type."""
    boundary = b"------------------------d74496d66958873e"
    body = b"".join(
        b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n%s\r\n"
        % (boundary, name.encode(), filename.encode(), data)
        for name, filename, data in parts
    )
    return body + b"--%s--\r\n" % boundary, f"multipart/form-data; boundary={boundary.decode()}"
