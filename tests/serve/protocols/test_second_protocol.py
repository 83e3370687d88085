"""A second protocol (rows.py, beside this) is served next to v2 with all that v2 has."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest

from edgeserve.serve.fronts import http as front
from edgeserve.serve.fronts.protocols import route_lists
from edgeserve.serve.settings.limits import Limits
from edgeserve.serve.settings.server import Settings
from tests.serve.background import Background
from tests.serve.protocols.rows import ROWS_ROUTES, RowsCodec
from tests.serve.slow import slow, slow_bundle

KEY = "infer-key-0123456789"
ROW = [[1.0, 2.0, 3.0, 4.0]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    folder = tmp_path_factory.mktemp("rows")
    keys = folder / "keys"
    keys.write_text(f"infer {KEY}\n")
    settings = Settings(
        bundle=str(slow_bundle(folder)), http_port=0, max_body=200_000, batch_delay=0.2, preferred_batches=(4,),
        keys=str(keys), limits=Limits(compress_bytes=400),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(front, "route_lists", lambda names: (*route_lists(names), ROWS_ROUTES))
        with Background(settings) as running:
            yield running


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(
    server: Background, path: str, body: bytes | Any, method: str = "POST", **headers: str
) -> Answer:
    """Of one connection; `body` is sent as JSON unless it is bytes, `headers` have _ for -."""
    given = {"x-api-key": KEY, "content-type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
    try:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, data, given)
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())
    finally:
        connection.close()


def v2_answer(server: Background, body: bytes | Any, **headers: str) -> Answer:
    if not isinstance(body, bytes):
        entry = {"name": "x", "shape": np.shape(body), "datatype": "FP32", "data": body}
        body = {"inputs": [entry]}
    return ask(server, "/v2/models/slow/infer", body, **headers)


def test_both_answer_the_same(server: Background) -> None:
    rows, v2 = ask(server, "/rows/slow", ROW), v2_answer(server, ROW)
    assert (rows.status, v2.status) == (200, 200)
    assert rows.headers["content-type"] == "application/json"
    assert rows.headers["x-edgeserve-device"] == v2.headers["x-edgeserve-device"] == "cpu"
    np.testing.assert_allclose(json.loads(rows.body), slow(np.float32(ROW)), rtol=1e-3, atol=1e-3)
    (output,) = json.loads(v2.body)["outputs"]
    np.testing.assert_array_equal(np.float32(json.loads(rows.body)[0]), np.float32(output["data"]))


def test_requests_of_both_share_a_batch(server: Background) -> None:
    def executions() -> int:
        told = ask(server, "/v2/models/slow/stats", b"", "GET")
        return int(json.loads(told.body)["model_stats"][0]["execution_count"])

    before = executions()
    with ThreadPoolExecutor(4) as four:
        answers = [four.submit(ask, server, "/rows/slow", ROW) for _ in range(2)]
        answers += [four.submit(v2_answer, server, ROW) for _ in range(2)]
    assert [a.result().status for a in answers] == [200] * 4
    assert executions() - before < 4


@pytest.mark.parametrize(
    ("path", "body", "status", "headers", "said"),
    [
        ("/rows/slow", b"[[1, 2", 422, {}, "not rows: Input data was truncated"),
        ("/rows/slow", [[1.0, 2.0]], 422, {}, "expected shape [batch,4], got [1,2]"),
        ("/rows/slow", ROW * 65, 422, {}, "expected a batch of 1 to 16, got 65"),
        ("/rows/nobody", ROW, 404, {}, "nobody"),
        ("/rows/slow", ROW, 401, {"x_api_key": "wrong"}, "key"),
        ("/rows/slow", ROW, 415, {"content_type": "text/csv"}, "rows are application/json"),
        ("/rows/slow", ROW, 415, {"content_encoding": "br"}, "content codings"),
        ("/rows/slow", b" " * 150_000, 413, {}, "at most 100000 bytes"),
        ("/rows/other/path", ROW, 404, {}, "no such route"),
    ],
)  # fmt: skip
def test_errors_have_the_protocols_form(
    server: Background, path: str, body: Any, status: int, headers: dict[str, str], said: str
) -> None:
    answer = ask(server, path, body, **headers)
    assert (answer.status, answer.headers["content-type"]) == (status, "text/plain")
    assert said in answer.body.decode()


def test_v2_keeps_its_errors(server: Background) -> None:
    answer = v2_answer(server, b"[[1, 2")
    assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
    assert "error" in json.loads(answer.body)


def test_other_methods_are_told_which_one(server: Background) -> None:
    answer = ask(server, "/rows/slow", b"", "GET")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert answer.headers["content-type"] == "text/plain"


def test_refusals_are_counted_as_they_are_sent(server: Background) -> None:
    ask(server, "/rows/slow", b"no rows")
    text = ask(server, "/metrics", b"", "GET").body.decode()
    assert 'edgeserve_http_refused_total{reason="invalid",status="422"}' in text
    assert 'edgeserve_request_failures_total{model="slow",reason="invalid",version="1"}' in text


def test_compressed_bodies_and_answers(server: Background) -> None:
    body = gzip.compress(json.dumps(ROW * 15).encode())
    answer = ask(server, "/rows/slow", body, content_encoding="gzip", accept_encoding="gzip")
    assert answer.status == 200
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["x-edgeserve-device"] == "cpu"
    found = json.loads(gzip.decompress(answer.body))
    np.testing.assert_allclose(found, slow(np.float32(ROW * 15)), rtol=1e-3, atol=1e-3)


def test_much_text_is_decoded_on_a_thread(
    server: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    decode = RowsCodec.decode

    def noted(codec: RowsCodec, body: bytes | memoryview, terms: None) -> Any:
        seen.append(threading.current_thread().name)
        return decode(codec, body, terms)

    monkeypatch.setattr(RowsCodec, "decode", noted)
    assert ask(server, "/rows/slow", ROW).status == 200
    padded = b" " * 40_000 + json.dumps(ROW).encode()
    assert ask(server, "/rows/slow", padded).status == 200
    loop, thread = seen
    assert loop == "edgeserve-server"
    assert thread != loop
