"""Azure Machine Learning's inference server, as its platform and clients use it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from edgeserve.serve.settings.server import Settings
from tests.seeing import colours_bundle, photograph
from tests.serve.background import Background
from tests.serve.protocols.asking import ask
from tests.serve.protocols.doubling import doubling_bundle
from tests.serve.protocols.oracles import Recorded, needs, recorded, replay

UUID = 36
ROWS = [[1.0, 2.0], [3.0, 4.0]]
TWICE = [[2.0, 4.0], [6.0, 8.0]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    bundle = doubling_bundle(tmp_path_factory.mktemp("azureml"))
    with Background(Settings(bundle=str(bundle), http_port=0, protocols="azureml")) as running:
        yield running


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    bundle = colours_bundle(tmp_path_factory.mktemp("azureml"))
    with Background(Settings(bundle=str(bundle), http_port=0, protocols="azureml")) as running:
        yield running


# Where edgeserve answers otherwise than Azure's server, by what is asked: (its status, ours). docs/coming-from/azure-ml.md
# has the same table.
DIFFERENT = {
    "not JSON, of a script that reads it itself": (500, 400),
    "no body": (500, 400),
    "rows of different lengths": (500, 400),
    "a list, of a script with a schema": (400, 400),
    "metrics": (404, 200),
}


def difference(exchange: Recorded) -> str:
    sent = exchange.sent
    if exchange.path == "/metrics":
        return "metrics"
    if exchange.path == "/score" and exchange.status == 500:
        if not sent:
            return "no body"
        return (
            "not JSON, of a script that reads it itself"
            if b"[1]]" not in sent
            else "rows of different lengths"
        )
    return ""


def comparable(exchange: Recorded) -> bool:
    """What scripts of the recorded server did by themselves is not to be compared."""
    sent = exchange.sent or b""
    own = b'"cmd"' in sent or b'"x"' in sent or b"GlobalParameters" in sent or sent == b"[1, 2]"
    return not own and "rawhttp" not in exchange.config and "GlobalParameters" not in exchange.path


CASES = [e for e in recorded("azureml") if comparable(e)]


@needs("azureml")
def test_azure_s_server_and_this_one_answer_alike(server: Background) -> None:
    assert len(CASES) > 15
    for exchange in CASES:
        answer = replay(server, exchange)
        theirs, ours = DIFFERENT.get(difference(exchange), (exchange.status,) * 2)
        assert (exchange.status, answer.status) == (theirs, ours), (exchange, answer)
        for name in ("x-request-id", "x-ms-request-id", "x-ms-client-request-id"):
            sent = {k.lower(): v for k, v in exchange.headers.items()}.get(name, "")
            if name in exchange.answer_headers and sent and len(sent) <= 100:
                assert answer.headers[name] == exchange.answer_headers[name]
            elif name in exchange.answer_headers and answer.status != 431:
                assert name in answer.headers
        if answer.status >= 400 and answer.body and exchange.path != "/metrics":
            assert answer.json.keys() <= {"message", "error"}
        if exchange.path == "/":
            assert answer.body == b"Healthy"


def test_ids_of_requests_are_the_client_s_or_made(server: Background) -> None:
    first = ask(server, "/score", {"data": ROWS})
    again = ask(server, "/score", {"data": ROWS})
    assert len(first.headers["x-request-id"]) == UUID
    assert first.headers["x-request-id"] != again.headers["x-request-id"]
    assert first.headers["x-ms-request-id"] == first.headers["x-request-id"]
    assert first.headers["x-ms-run-function-failed"] == "False"
    named = ask(
        server,
        "/score",
        {"data": ROWS},
        x_ms_client_request_id="mine",
        x_request_id="r",
        traceid="t",
    )
    assert named.headers["x-ms-request-id"] == named.headers["x-ms-client-request-id"] == "mine"
    assert (named.headers["x-request-id"], named.headers["traceid"]) == ("r", "t")
    long = ask(server, "/score", {"data": ROWS}, x_ms_client_request_id="r" * 101)
    assert (long.status, "must not exceed 100" in long.json["message"]) == (431, True)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"data": ROWS}, TWICE),
        (ROWS, TWICE),
        ({"input_data": {"columns": ["a", "b"], "index": [0, 1], "data": ROWS}}, TWICE),
        ({"input_data": ROWS}, TWICE),
        ({"input_data": {"x": ROWS}}, TWICE),
        ({"dataframe_split": {"columns": ["a", "b"], "data": ROWS}}, TWICE),
        ({"Inputs": {"data": ROWS}, "GlobalParameters": {}}, {"Results": TWICE}),
        ({"instances": ROWS}, {"predictions": TWICE}),
        ({"inputs": ROWS}, {"outputs": TWICE}),
        ({"inputs": {"x": ROWS}}, {"outputs": TWICE}),
        ({"x": ROWS}, {"outputs": TWICE}),
        ({"data": [[float("nan"), 1.0]]}, "[[NaN,2.0]]"),
    ],
)
def test_the_answer_is_in_the_dialect_of_the_request(
    server: Background, document: Any, expected: Any
) -> None:
    answer = ask(server, "/score", document)
    assert answer.status == 200, answer.body
    assert (
        answer.body.decode() == expected if isinstance(expected, str) else answer.json == expected
    )


def test_the_query_may_hold_the_rows(server: Background) -> None:
    answer = ask(server, "/score?data=[[1,2]]", method="GET")
    assert answer.json == [[2.0, 4.0]]
    assert ask(server, "/score", method="GET").status == 400
    assert ask(server, "/score", method="HEAD").status == 405
    assert ask(server, "/score", method="OPTIONS").headers["allow"] == "GET, OPTIONS, POST"


def test_the_deployment_s_header_may_name_a_version(server: Background) -> None:
    for name in ("blue", "1", ""):
        answer = ask(server, "/score", {"data": ROWS}, azureml_model_deployment=name)
        assert answer.json == TWICE


@pytest.mark.parametrize("version", ["2", "3", "3.1"])
def test_the_description_is_of_the_model(server: Background, version: str) -> None:
    document = ask(server, f"/swagger.json?version={version}", method="GET").json
    assert document["info"]["title"] == "double"
    schemas = document.get("definitions") or document["components"]["schemas"]
    rows = schemas["ServiceInput"]["properties"]["data"]
    assert rows["items"] == {"type": "array", "items": {"type": "number"}}
    assert "/score" in document["paths"]


def test_photographs_are_scored(seeing: Background) -> None:
    raw = ask(seeing, "/score", photograph("blue"), content_type="image/jpeg")
    assert raw.json["classes"][0]["label"] == "blue"
    text = base64.b64encode(photograph("blue")).decode()
    rows = ask(seeing, "/score", {"data": [text]})
    assert rows.json[0].index(max(rows.json[0])) == 2
    one = ask(seeing, "/score", {"data": text})
    assert one.json["classes"][0]["label"] == "blue"


def test_a_browser_gets_the_page_and_the_platform_gets_healthy(server: Background) -> None:
    assert ask(server, "/", method="GET").body == b"Healthy"
    page = ask(server, "/", method="GET", accept="text/html,*/*")
    assert page.headers["content-type"].startswith("text/html")
