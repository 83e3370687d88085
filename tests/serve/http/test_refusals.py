"""Every request that is refused is counted by status and reason, and has a line where requests are logged."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeserve.serve.process import logs
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.server import Settings
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post

KEY = "k" * 32
LEAVE = f"X-Api-Key: {KEY}"
INFER = "/v2/models/linear/infer"
BODY = infer_body([[1, 2, 3, 4]])


@pytest.fixture
def logged(bundle: Path, tmp_path: Path) -> Iterator[Background]:
    keys = tmp_path / "keys"
    keys.write_text(f"infer {KEY}\n")
    limits = Limits(head_s=0.5, body_bytes=1 << 20)
    settings = Settings(
        bundle=str(bundle), http_port=0, keys=str(keys), access_log=True, limits=limits
    )
    with Background(settings) as running:
        yield running
    logs.set_up("text", access=False)


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: t", *headers]).encode() + b"\r\n\r\n"


REFUSED = [
    (get("/ok?x=y", "Bad header"), "400", "malformed", "/ok"),
    (b"\x16\x03\x01\r\n\r\n", "400", "malformed", ""),
    (post(BODY, INFER), "401", "unauthenticated", INFER),
    (post(BODY, INFER, "Authorization: Bearer " + "x" * 32), "401", "unauthenticated", INFER),
    (post(b"", "/v2/repository/models/linear/unload", LEAVE), "403", "forbidden",
     "/v2/repository/models/linear/unload"),
    (post(BODY, "/v2/models/nope/infer", LEAVE), "404", "unknown_model", "/v2/models/nope/infer"),
    (get("/v2/models/nope", LEAVE), "404", "unknown_model", "/v2/models/nope"),
    (get("/nope", LEAVE), "404", "unknown_route", "/nope"),
    (get(INFER, LEAVE), "405", "method", INFER),
    (b"GET /a HTTP/1.1\r\n", "408", "slow", "/a"),
    (post(bytes(2 << 20), INFER, LEAVE)[:200], "413", "body_too_large", INFER),
    (get("/" + "a" * 9000), "414", "uri_too_long", "/" + "a" * 199),
    (post(b"x", INFER, LEAVE, "Content-Encoding: br"), "415", "content_coding", INFER),
    (post(BODY, INFER, LEAVE, "Expect: the unexpected"), "417", "expectation", INFER),
    (get("/", "X: " + "a" * 20_000), "431", "head_too_large", "/"),
    (b"CONNECT t:80 HTTP/1.1\r\nHost: t\r\n\r\n", "501", "unsupported", "t:80"),
    (post(b"{}", "/v2/models/linear/generate", LEAVE), "501", "unsupported",
     "/v2/models/linear/generate"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505", "version", "*"),
    (post(b"not JSON", INFER, LEAVE), "400", "invalid", INFER),
]  # fmt: skip


def counted(
    server: Background, name: str = "edgeserve_http_refused_total"
) -> Counter[tuple[str, ...]]:
    with RawClient(server.url) as client:
        client.send(get("/metrics", LEAVE))
        text = client.response()[2].decode()
    found: Counter[tuple[str, ...]] = Counter()
    for labels, value in re.findall(rf"^{name}\{{(.*)\}} (.*)$", text, re.MULTILINE):
        pairs = dict(re.findall(r'(\w+)="(.*?)"', labels))
        found[pairs.get("status", pairs.get("code", "")), pairs["reason"]] = int(float(value))
    return found


def test_each_is_counted_once_and_has_a_line(
    logged: Background, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgeserve.access")
    wanted: Counter[tuple[str, ...]] = Counter()
    for sent, status, reason, _ in REFUSED:
        with RawClient(logged.url) as client:
            client.send(sent)
            assert str(client.response()[0]) == status, sent[:80]
        wanted[status, reason] += 1
    assert counted(logged) == wanted
    lines = [r.getMessage() for r in caplog.records if r.name == "edgeserve.access"]
    assert len(lines) == len(REFUSED)
    for line, (_, status, reason, path) in zip(lines, REFUSED, strict=True):
        assert f"status={status} result={reason} peer=127.0.0.1" in line
        assert f"path={path or chr(34) * 2} " in line


def test_what_is_served_is_not_counted(logged: Background) -> None:
    with RawClient(logged.url) as client:
        for sent in (post(BODY, INFER, LEAVE), get("/v2/health/live"), get("/v2", LEAVE)):
            client.send(sent)
            assert client.response()[0] == 200
    assert not counted(logged)


def test_a_client_cannot_write_lines_or_fields(
    logged: Background, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "edgeserve.access")
    hostile = 'a b" status=200 result=ok\r\nINFO edgeserve.access: \x1b[2J\u2028'
    with RawClient(logged.url) as client:
        client.send(post(infer_body([[1, 2, 3, 4]], id=hostile), INFER, LEAVE))
        assert client.response()[0] == 200
        client.send(get("/v2/models/x\"status=200%0a'", LEAVE))
        assert client.response()[0] == 404
    served, refused = [r for r in caplog.records if r.name == "edgeserve.access"]
    line = served.getMessage()
    assert line.startswith(
        "id=" + json.dumps(hostile) + " model=linear version=1 result=ok rows=1 "
    )
    assert line.isprintable()
    line = refused.getMessage()
    assert line.isprintable()
    assert r'path="/v2/models/x\"status=200%0a' in line
    for record in (served, refused):
        shown = json.loads(logs.JsonFormatter().format(record))
        assert shown["result"] in ("ok", "unknown_model")
    assert json.loads(logs.JsonFormatter().format(served))["id"] == hostile


def test_labels_hold_nothing_of_a_client(logged: Background) -> None:
    before = set(counted(logged))
    for number in range(30):
        with RawClient(logged.url) as client:
            for path in (f"/v2/models/m{number}/infer", f"/{number}"):
                client.send(post(BODY, path, LEAVE))
                assert client.response()[0] == 404
    assert set(counted(logged)) - before == {("404", "unknown_model"), ("404", "unknown_route")}
