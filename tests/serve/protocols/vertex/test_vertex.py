"""Vertex AI's container contract, as its platform and Google's clients use it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeserve.errors import UsageError
from edgeserve.serve.protocols.vertex.routes import routes
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear_bundle
from tests.seeing import boxes_bundle, colours_bundle, photograph
from tests.serve.background import Background
from tests.serve.protocols.asking import ask
from tests.serve.protocols.doubling import doubling_bundle
from tests.serve.protocols.oracles import Recorded, needs, recorded, replay

PREDICT = "/v1/endpoints/e1/deployedModels/d1:predict"
ENDPOINT = "/v1/projects/p/locations/l/endpoints/1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    bundle = doubling_bundle(tmp_path_factory.mktemp("vertex"))
    with Background(Settings(bundle=str(bundle), http_port=0, protocols="vertex")) as running:
        yield running


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    bundle = colours_bundle(tmp_path_factory.mktemp("vertex"))
    with Background(Settings(bundle=str(bundle), http_port=0, protocols="vertex")) as running:
        yield running


# Where edgeserve answers otherwise than Google's server, and why. docs/coming-from/vertex.md has the same table.
DIFFERENT = {
    "HEAD of the health route": (405, 200),
    "a slash at the end": (307, 404),
    "no instances": (500, 400),
    "application/JSON": (400, 200),
    "an image": (400, 400),
    "gzip": (500, 200),
    "Accept names HTML first": (200, 200),
}


def difference(exchange: Recorded) -> str:
    path, headers = exchange.path, {k.lower(): v for k, v in exchange.headers.items()}
    if exchange.method == "HEAD" and not path.endswith(":predict"):
        return "HEAD of the health route"
    if path.endswith("/"):
        return "a slash at the end"
    if exchange.sent == b'{"x": 1}':
        return "no instances"
    if headers.get("content-type") == "application/JSON":
        return "application/JSON"
    if headers.get("content-encoding") == "gzip":
        return "gzip"
    return ""


def comparable(exchange: Recorded) -> bool:
    """What the recorded predictor of its own did is not to be compared, nor FastAPI's own pages."""
    if exchange.path in ("/openapi.json", "/docs"):
        return False
    sent = exchange.sent or b""
    if len(sent) > 1_000_000:  # more rows than this bundle takes
        return False
    return (
        b'"cmd"' not in sent and b"image_bytes" not in sent and exchange.headers.get("Accept") != ""
    )


CASES = [e for e in recorded("vertex_cpr") if comparable(e)]


@needs("vertex_cpr")
def test_google_s_server_and_this_one_answer_alike(server: Background) -> None:
    assert len(CASES) > 15
    for exchange in CASES:
        answer = replay(server, exchange)
        recorded_status, expected = DIFFERENT.get(difference(exchange), (exchange.status,) * 2)
        assert exchange.status == recorded_status, exchange
        assert answer.status == expected, (exchange, answer)
        if exchange.status == answer.status == 200 and exchange.method == "POST":
            if len(exchange.body) < 1_000:
                assert answer.json.keys() == exchange.json.keys()
                assert str(answer.json) == str(json.loads(exchange.body, parse_int=float))
        elif answer.status >= 400 and answer.body and exchange.path.startswith("/v1/endpoints/"):
            error = answer.json["error"]
            assert error["code"] == answer.status
            assert error["message"]
            assert error["status"].isupper()


def test_health_is_open_and_says_whether_the_server_is_ready(server: Background) -> None:
    answer = ask(server, "/v1/endpoints/1/deployedModels/2", method="GET")
    assert (answer.status, answer.json) == (200, {})


def test_google_s_rest_client_finds_its_routes(server: Background) -> None:
    for query in ("", "?$alt=json;enum-encoding=int"):
        answer = ask(server, f"{ENDPOINT}:predict{query}", {"instances": [[1, 2]]})
        assert answer.json == {"predictions": [[2.0, 4.0]]}
    inner = {"contentType": "text/csv", "data": base64.b64encode(b"1,2\n3,4\n").decode()}
    answer = ask(server, f"{ENDPOINT}:rawPredict", {"httpBody": inner})
    assert answer.json == {"predictions": [[2.0, 4.0], [6.0, 8.0]]}


@pytest.mark.parametrize(
    ("body", "media", "accept", "expected"),
    [
        (b"1,2\n3,4\n", "text/csv", "text/csv", b"2.0,4.0\n6.0,8.0\n"),
        (
            b"[1,2]\n[3,4]\n",
            "application/jsonlines",
            "application/jsonlines",
            b"[2.0,4.0]\n[6.0,8.0]\n",
        ),
        (b"[[1,2]]", "application/json", "*/*", b"[[2.0,4.0]]"),
        (b'{"inputs":[[1,2]]}', "application/json", "*/*", b'{"outputs":[[2.0,4.0]]}'),
    ],
)
def test_bodies_of_raw_predict_are_read_as_they_are(
    server: Background, body: bytes, media: str, accept: str, expected: bytes
) -> None:
    answer = ask(server, PREDICT, body, content_type=media, accept=accept)
    assert (answer.status, answer.body) == (200, expected)
    assert answer.headers["x-edgeserve-device"] == "cpu"


def test_v2_bodies_are_read_too(server: Background) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    answer = ask(server, PREDICT, {"inputs": [tensor]})
    assert answer.json["outputs"][0]["data"] == [2.0, 4.0]
    start = json.dumps(
        {
            "inputs": [
                {
                    "name": "x",
                    "datatype": "FP32",
                    "shape": [1, 1],
                    "parameters": {"binary_data_size": 4},
                }
            ]
        }
    ).encode()
    media = f"application/vnd.vertex-ai-triton.binary+json;json-header-size={len(start)}"
    answer = ask(server, PREDICT, start + b"\0\0\x80\x3f", content_type=media)
    assert answer.json["outputs"][0]["data"] == [2.0]
    for size in ("", ";json-header-size=z", ";json-header-size=\xb2"):
        binary = f"application/vnd.vertex-ai-triton.binary+json{size}"
        assert ask(server, PREDICT, start, content_type=binary).status == 400


def test_photographs_come_as_rows_or_raw(seeing: Background) -> None:
    text = base64.b64encode(photograph("blue")).decode()
    rows = {"instances": [{"image_bytes": {"b64": text}}, {"b64": text}]}
    (first, second) = ask(seeing, PREDICT, rows).json["predictions"]
    assert first == second
    assert first.index(max(first)) == 2
    rows["parameters"] = {"maxPredictions": 1}  # type: ignore[assignment]  # AutoML's
    (automl, _) = ask(seeing, PREDICT, rows).json["predictions"]
    assert (automl["ids"], automl["displayNames"]) == (["2"], ["blue"])
    raw = ask(seeing, PREDICT, photograph("blue"), content_type="image/jpeg")
    assert raw.json["classes"][0]["label"] == "blue"


def test_boxes_in_automl_s_form_are_shares_of_the_image(tmp_path: Path) -> None:
    settings = Settings(bundle=str(boxes_bundle(tmp_path)), http_port=0, protocols="vertex")
    text = base64.b64encode(photograph("blue", 80, 40)).decode()
    with Background(settings) as server:
        body = {"instances": [{"b64": text}], "parameters": {"confidenceThreshold": 0.5}}
        (record,) = ask(server, PREDICT, body).json["predictions"]
    assert record["displayNames"] == ["dog"]
    assert record["bboxes"] == [[0.0, 0.5, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("body", "more", "status", "words"),
    [
        (b"{", {}, 400, "not JSON"),
        ({"instances": 1}, {}, 400, "expected a list"),
        ({"instances": []}, {}, 400, "at least one"),
        ({"instances": [["a"]]}, {}, 400, "input 'x': expected FP32 values"),
        ({"instances": [[1], [1, 2]]}, {}, 400, "differ in length"),
        (b"a", {"content_type": "audio/wav"}, 415, "audio/wav is not read"),
        ({"instances": [[1]]}, {"accept": "text/html"}, 406, "Accept names none"),
        (photograph(), {"content_type": "image/jpeg"}, 400, "does not take images"),
    ],
)
def test_errors_are_google_s(
    server: Background, body: Any, more: dict[str, str], status: int, words: str
) -> None:
    answer = ask(server, PREDICT, body, **more)
    assert answer.status == status
    assert words in answer.json["error"]["message"]


def test_the_paths_are_those_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIP_HEALTH_ROUTE", "/alive")
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "/go")
    settings = Settings(bundle=str(linear_bundle(tmp_path)), http_port=0, protocols="vertex")
    with Background(settings) as server:
        assert ask(server, "/alive", method="GET").status == 200
        assert ask(server, "/go", {"instances": [[0, 0, 0, 0]]}).json == {
            "predictions": [[0.5] * 3]
        }
    monkeypatch.setenv("AIP_PREDICT_ROUTE", "go{there}")
    with pytest.raises(UsageError, match="AIP_PREDICT_ROUTE"):
        routes()


def test_a_server_of_several_models_says_that_the_route_is_for_one(tmp_path: Path) -> None:
    two = str(linear_bundle(tmp_path, "a")), str(linear_bundle(tmp_path, "b"))
    settings = Settings(bundle=two[0], bundles=two[1:], http_port=0, protocols="vertex")
    with Background(settings) as server:
        answer = ask(server, PREDICT, {"instances": [[0, 0, 0, 0]]})
    assert answer.status == 404
    assert "a, b" in answer.json["error"]["message"]
