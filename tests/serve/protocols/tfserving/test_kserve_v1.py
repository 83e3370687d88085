"""KServe v1 on TF Serving's paths, against recordings of the real one; CloudEvents."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from edgeserve.serve.settings.server import Settings
from tests.seeing import colours_bundle, photograph
from tests.serve.background import Background
from tests.serve.protocols.asking import Answered, ask
from tests.serve.protocols.oracles import Recorded, needs, recorded, replay
from tests.serve.protocols.tfserving.models import doubled

LIN = "/v1/models/lin:predict"
ROWS = {"instances": [[1, 2], [3, 4]]}
DOUBLED = {"predictions": [[2.0, 4.0], [6.0, 8.0]]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    folder = tmp_path_factory.mktemp("kserve")
    models = folder / "models"
    models.mkdir()
    for name in ("lin", "plain"):
        doubled(models, name)
    (models / "sick" / "1").mkdir(parents=True)
    settings = Settings(bundle=str(colours_bundle(folder)), repository=str(models), http_port=0)
    with Background(settings) as running:
        yield running


# Recorded exchanges that are answered otherwise here, by name: our status, and why.
# docs/coming-from/tf-serving.md has the same table.
DIFFERENT = {
    "models slash": (404, "no such route, no redirect"),
    "model unhealthy": (200, "TF Serving's answer on the same path, with ready false"),
    "predict empty list": (400, "a batch has at least one row"),
    "response header": (400, "the recorded model reads keys of its own"),
    "InvalidInput": (400, "the recorded model reads keys of its own"),
    "text/plain": (200, "the content type is ignored, as TF Serving does"),
    "charset": (200, "the content type is ignored, as TF Serving does"),
    "CloudEvent structured without time": (200, "time is optional in CloudEvents"),
    "CloudEvent binary bad JSON": (400, "the body has to be JSON"),
    "gzip body": (200, "compressed bodies are read"),
}
# Handed to the model as bytes there.
BYTES = ("text/plain", "charset")
CASES = recorded("kserve_v1")


def event(answer: Answered | Recorded) -> dict[str, str]:
    headers = answer.headers if isinstance(answer, Answered) else answer.answer_headers
    found = {name: value for name, value in headers.items() if name.startswith("ce-")}
    for new in ("ce-id", "ce-time"):
        assert found.pop(new, "none") or not found
    return found


@needs("kserve_v1")
def test_kserve_and_this_server_answer_alike(server: Background) -> None:
    assert len(CASES) > 30
    wrong: list[Any] = []
    for exchange in CASES:
        answer = replay(server, exchange)
        expected = DIFFERENT.get(exchange.name, (exchange.status, ""))[0]
        if answer.status != expected:
            wrong.append((exchange.name, exchange.path, exchange.status, answer.status, answer.body[:150]))  # fmt: skip
        elif answer.status == exchange.status == 200:
            if "predictions" in exchange.json:
                np.testing.assert_allclose(answer.json["predictions"], exchange.json["predictions"])
                assert event(answer) == event(exchange), exchange.name
            elif exchange.name not in BYTES and exchange.name != "models":
                assert exchange.json.keys() <= answer.json.keys(), exchange.name
        elif answer.status == exchange.status and "error" in exchange.json:
            assert answer.json["error"]
    assert not wrong


EVENT = {
    "specversion": "1.0",
    "id": "x1",
    "source": "https://example.com/p",
    "type": "t1",
    "time": "2026-11-30T12:00:00Z",
}
MEDIA = "application/cloudevents+json"


@pytest.mark.parametrize(
    "more",
    [
        {"data": ROWS},
        {"data": ROWS, "datacontenttype": "application/json", "subject": "extra"},
        {"data_base64": base64.b64encode(json.dumps(ROWS).encode()).decode()},
    ],
)
def test_a_structured_event_is_answered_with_one(server: Background, more: Any) -> None:
    answer = ask(server, LIN, EVENT | more, content_type=f"{MEDIA}; charset=utf-8")
    assert answer.headers["content-type"] == MEDIA
    found = answer.json
    assert found.pop("id") != "x1"
    assert "T" in found.pop("time")
    assert found == {
        "specversion": "1.0",
        "source": "io.kserve.inference.lin",
        "type": "io.kserve.inference.response",
        "datacontenttype": "application/json",
        "data": DOUBLED,
    }


def test_a_photograph_may_be_an_event(server: Background) -> None:
    text = base64.b64encode(photograph("blue")).decode()
    document = EVENT | {"datacontenttype": "image/jpeg", "data_base64": text}
    answer = ask(server, "/v1/models/colours:predict", document, content_type=MEDIA)
    assert np.argmax(answer.json["data"]["predictions"]) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "not a CloudEvent"),
        (b"[]", "not a CloudEvent"),
        ({"data": ROWS}, "missing required field"),
        (EVENT, "not a JSON object"),
        (EVENT | {"data_base64": "?"}, "data_base64"),
        (EVENT | {"data": {"instances": "abc"}}, "expected a list"),
        (b'{"data":' + b"[" * 5000, "nested"),
    ],
)
def test_what_is_not_an_event_is_refused(server: Background, body: Any, words: str) -> None:
    answer = ask(server, LIN, body, content_type=MEDIA)
    assert (answer.status, words in answer.json["error"]) == (400, True), answer.body
