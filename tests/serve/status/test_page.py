"""The status page: what serves, what failed and why, for people and for machines."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeserve.serve.settings.server import Settings
from edgeserve.serve.status.files import NAMES
from edgeserve.serve.status.page import wants_json
from edgeserve.serve.status.plain import render
from edgeserve.serve.status.status import (
    CandidateStatus,
    InsteadOf,
    ModelStatus,
    ServerStatus,
    Step,
    WorkerStatus,
)
from edgeserve.serve.status.templates import Templates, open_templates
from edgeserve.version import __version__
from tests.bundles import linear_bundle
from tests.serve.background import Background
from tests.serve.conftest import RawClient, infer_body, post
from tests.serve.protocols.asking import ask

GPU, CPU = "onnxruntime/gpu/onnx-fp32", "onnxruntime/cpu/onnx-fp32"
KEY = "infer-key-0123456789"


def get(url: str, path: str = "/status", *headers: str) -> tuple[int, dict[str, str], str]:
    with RawClient(url) as client:
        client.send("\r\n".join((f"GET {path} HTTP/1.1", "Host: t", *headers, "", "")).encode())
        status, found, body = client.response()
        return status, found, body.decode()


def test_a_lost_device_is_on_the_page_in_its_own_words(tmp_path: Path) -> None:
    settings = Settings(
        bundle=str(linear_bundle(tmp_path)),
        http_port=0,
        reopen=60.0,
        inject=("gpu:stand-in", "gpu:crash@60"),
    )
    with Background(settings) as server, RawClient(server.url) as client:
        before = get(server.url)[2]
        devices = [""]
        while devices[-1] != "cpu":
            client.send(post(infer_body([[1, 2, 3, 4]])))
            devices.append(client.response()[1]["x-edgeserve-device"])
        status, headers, text = get(server.url)
        document = json.loads(get(server.url, "/status", "Accept: application/json")[2])
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert (
        f"Serves on <strong>gpu</strong>: <code>{GPU}</code>, fp32, in a process of its" in before
    )
    assert "none since it was loaded" in before
    assert f"Serves on <strong>cpu</strong>: <code>{CPU}</code>, fp32, for" in text
    assert f"Instead of <code>{GPU}</code>: <span" in text
    assert f"<code>{GPU}</code> &rarr; <code>{CPU}</code>" in text
    assert "died of SIGSEGV: injected: gpu:crash@60" in text
    assert "(hint: it will be restarted after a pause" in text
    assert re.search(r"failed</span>, tried again in (4[0-9]|5[0-9]|1 min)", text)
    assert f"{len(devices) - 1} answered, none failed" in text

    found = msgspec.convert(document, ServerStatus)
    (model,) = found.models
    step = model.last_fallback
    assert step is not None
    assert (step.count, step.source, step.destination, step.reason) == (1, GPU, CPU, "crash")
    assert abs(step.at - time.time()) < 60
    assert [(c.candidate, c.state) for c in model.candidates] == [
        (GPU, "waiting"),
        (CPU, "serving"),
    ]
    assert (found.ready, model.ready, model.device) == (True, True, "cpu")
    assert (found.degraded, model.degraded) == (True, True)
    for page, word, good in ((before, "ready", "good"), (text, "degraded", "bad")):
        assert f"<title>edgeserve: {word}</title>" in page
        assert f'<span class="badge {good}">{word}</span></h1>' in page
    assert "degraded: not on its first candidate</span></h3>" in text


def test_a_device_that_came_back_is_on_the_page(tmp_path: Path) -> None:
    settings = Settings(
        bundle=str(linear_bundle(tmp_path)),
        http_port=0,
        reopen=0.05,
        inject=("gpu:stand-in", "gpu:kill@60"),
    )
    with Background(settings) as server, RawClient(server.url) as client:
        devices = ["gpu"]
        end = time.monotonic() + 60
        while len(set(devices)) < 2 or devices[-1] != "gpu":
            assert time.monotonic() < end
            client.send(post(infer_body([[1, 2, 3, 4]])))
            devices.append(client.response()[1]["x-edgeserve-device"])
        text = get(server.url)[2]
        document = json.loads(get(server.url, "/status", "Accept: application/json")[2])
    (model,) = msgspec.convert(document, ServerStatus).models
    assert model.last_recovery is not None
    assert model.last_recovery.destination == GPU
    assert model.last_recovery.away_s is not None
    assert "last recovery" in text
    assert "it was away for" in text
    states = {c.candidate: c.state for c in model.candidates}
    assert states == {GPU: "serving", CPU: "standby"}
    assert "standby, open</span>" in text
    assert "<title>edgeserve: ready</title>" in text


def test_a_model_that_does_not_load_says_why(tmp_path: Path) -> None:
    good, bad = linear_bundle(tmp_path, "good"), linear_bundle(tmp_path, "bad")
    (bad / "onnx-fp32" / "model.onnx").write_bytes(b"")
    settings = Settings(bundle=str(good), bundles=(str(bad),), http_port=0)
    with Background(settings) as server:
        _, _, text = get(server.url)
    assert "<h3>bad <small>version 1</small> <span" in text
    assert "onnx-fp32/model.onnx" in text
    assert str(tmp_path) not in text


def test_the_page_asks_this_server_alone(server: Background) -> None:
    status, headers, text = get(server.url)
    assert status == 200
    assert get(server.url, "/", "Accept: text/html")[0] == 200
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "frame-ancestors": "'none'",
        "form-action": "'none'",
    }
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert re.findall(r'(?:src|href)="([^"]*)"', text) == [
        "#live-models" if name is None else f"status/static/{name}"
        for name in ("icon.svg", "page.css", "page.js", None)
    ]
    # What the policy would block: a page that needs it would be broken.
    for word in ("<style", " style=", " onclick", " onload", "javascript:", "://", "<script>"):
        assert word not in text
    with RawClient(server.url) as client:
        client.send(post(b"{}", "/status"))
        assert client.response()[0] == 405


@pytest.mark.parametrize("name", NAMES)
def test_files_of_the_page_are_sent_once(server: Background, name: str) -> None:
    path = f"/status/static/{name}"
    status, headers, text = get(server.url, path)
    assert (status, headers["content-type"]) == (200, NAMES[name])
    assert headers["cache-control"] == "no-cache"
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("HTTP", "")
    for words in ("innerHTML", "eval(", "insertAdjacentHTML", "document.write"):
        assert words not in text
    for method in ("GET", "HEAD"):
        tags = f'W/"other", {headers["etag"]}'
        again = ask(server, path, method=method, if_none_match=tags)
        assert (again.status, again.body) == (304, b"")
        assert again.headers["content-length"] == str(len(text.encode()))


@pytest.mark.parametrize(
    "path",
    ["/status/static/", "/status/static/page.py", "/status/static/..%2fpage.py", "/status/static/../page.py"],
)  # fmt: skip
def test_no_other_file_is_sent(server: Background, path: str) -> None:
    assert get(server.url, path)[0] == 404


def test_without_jinja_the_page_is_one_plain_document(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with Background(Settings(bundle=str(bundle), http_port=0)) as server:
        status, headers, text = get(server.url)
        missing = get(server.url, "/status/live")
    assert status == 200
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in headers["content-security-policy"]
    assert headers["content-security-policy"].startswith("default-src 'none'")
    for word in ("<script", "src=", "href=", "@import", "url(", "://"):
        assert word not in text
    assert ">linear <small>version 1, <span" in text
    on_a_phone(text)
    assert missing[0] == 404
    assert "pip install 'edgeserve[page]'" in json.loads(missing[2])["error"]


def test_a_candidate_that_is_not_open_says_so(tmp_path: Path) -> None:
    inject = ("gpu:stand-in",)
    bundle = str(linear_bundle(tmp_path))
    with Background(Settings(bundle=bundle, http_port=0, standby="cold", inject=inject)) as server:
        text = get(server.url)[2]
    assert ">standby, not open</span>" in text


def on_a_phone(text: str) -> None:
    """No cell is wider than the screen: rows are blocks, each cell under its column's name."""
    narrow = re.search(r"@media \(max-width: \S+\) \{(.*?)\n\}", text, re.DOTALL)
    assert narrow is not None
    assert "td { display: block; }" in narrow[1]
    assert "nowrap" not in text.replace(
        "@media (min-width: 60rem) { td code { white-space: nowrap; } }", ""
    )
    cells = re.findall(r'<td data-name="([^"]+)"', text)
    assert cells[:4] == ["candidate", "device", "precision", "state"]
    assert text.count("<td") == len(cells) == 7
    assert 'content="width=device-width, initial-scale=1"' in text


def test_who_may_not_infer_gets_the_frame_of_the_page(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"infer {KEY}\n")
    settings = Settings(bundle=str(linear_bundle(tmp_path)), http_port=0, keys=str(keys))
    with Background(settings) as server:
        frames = set()
        for path in ("/", "/status"):
            for key in ("X-None: none", "X-Api-Key: not-a-key-0123456789"):
                status, headers, text = get(server.url, path, "Accept: text/html", key)
                assert status == 200
                assert "Authorization" in headers["vary"]
                frames.add(text)
            status, _, text = get(
                server.url, path, "Accept: text/html", f"Authorization: Bearer {KEY}"
            )
            assert status == 200
            assert "linear" in text
        (frame,) = frames
        for word in ("linear", __version__, "onnx", "ready", "cpu"):
            assert word not in frame
        assert '<form id="key-form" class="key">' in frame
        for path in ("/status/live", "/status/history"):
            assert get(server.url, path)[0] == 401
            assert get(server.url, path, f"X-Api-Key: {KEY}")[0] == 200
        for accept in ("application/json", "*/*", "text/plain"):
            assert get(server.url, "/status", f"Accept: {accept}")[0] == 401
        assert get(server.url)[0] == 401
        assert get(server.url, "/status/static/page.js")[0] == 200
        for accept in ("Accept: application/json", "X-Accept: none"):
            assert get(server.url, "/", accept)[::2] == (200, '{"status":"alive"}')


def test_the_live_part_is_that_of_the_page(server: Background) -> None:
    _, headers, live = get(server.url, "/status/live")
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert 'id="live-head"' in live
    assert 'data-name="linear" data-version="1" data-task="generic" data-images=""' in live
    assert "<html" not in live
    document = json.loads(get(server.url, "/status", "Accept: application/json")[2])
    assert document["memory_bytes"] > 10_000_000
    (model,) = document["models"]
    assert model["size_bytes"] > 100
    assert (model["task"], model["takes_images"]) == ("generic", False)


@pytest.mark.parametrize(
    ("accept", "json_wanted"),
    [
        (b"", False),
        (b"*/*", False),
        (b"text/html,application/xhtml+xml,application/json;q=0.9,*/*;q=0.8", False),
        (b"application/json", True),
        (b"Application/JSON; q=1, */*; q=0.1", True),
    ],
)
def test_json_is_for_those_who_ask_for_it_alone(accept: bytes, json_wanted: bool) -> None:
    assert wants_json(accept) is json_wanted


class _Tags(HTMLParser):
    """The tags of a document with the names of their attributes, and the text between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(" ".join((tag, *(name for name, _ in attrs))))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(text: str) -> _Tags:
    found = _Tags()
    found.feed(text)
    found.close()
    return found


def status_with(text: str) -> ServerStatus:
    """A status in which everything that anybody else may have written is `text`."""
    candidate = CandidateStatus(
        text, text, text, True, "waiting", reason=text, message=text, hint=text, retry_s=1.0
    )
    serving = msgspec.structs.replace(candidate, state="serving")
    step = Step(1, text, text, 0.0, reason=text, message=text, hint=text)
    model = ModelStatus(
        text, text, "READY", True, text, True, text, text, text, 0.0, text, 4, placement=text,
        candidates=(candidate, serving), last_fallback=step, last_recovery=step, answered=1,
        failed={text: 1}, instead_of=InsteadOf(text, text, text, 1.0), task=text, size_bytes=1, queue=1,
    )  # fmt: skip
    workers = (WorkerStatus(1, True), WorkerStatus(2, False, text))
    return ServerStatus(
        True,
        True,
        (model,),
        workers=workers,
        server=text,
        version=text,
        process=1,
        time=100.0,
        up_s=1.0,
    )


PAGES = (render, lambda status: templates().page(status).decode())


@cache
def templates() -> Templates:
    found = open_templates()
    assert found is not None
    return found


@pytest.mark.parametrize("page", PAGES, ids=["plain", "templates"])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), min_size=1))
def test_whatever_a_bundle_or_a_driver_says_is_text(
    page: Callable[[ServerStatus], str], text: str
) -> None:
    found, plain = parsed(page(status_with(text))), parsed(page(status_with("plain")))
    assert found.tags == plain.tags
    assert squeezed(found.words) == squeezed(plain.words).replace("plain", "".join(text.split()))


def squeezed(words: list[str]) -> str:
    return "".join("".join(words).split())


@pytest.mark.parametrize("page", PAGES, ids=["plain", "templates"])
def test_markup_in_a_driver_s_message_is_shown_not_run(
    page: Callable[[ServerStatus], str],
) -> None:
    hostile = "</code></style><script>alert(1)</script><img src=x onerror=alert(1)>'\"&"
    text = page(status_with(hostile))
    assert "<script>" not in text
    assert "<img" not in text
    assert "&lt;script&gt;" in text
