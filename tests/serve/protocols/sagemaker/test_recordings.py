"""What Amazon's own containers answered, replayed: equal in status and meaning, or a difference that is listed here and in
docs/coming-from/sagemaker.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from edgeserve.serve.settings.server import Settings
from tests.serve.background import Background
from tests.serve.protocols.asking import Answered, ask
from tests.serve.protocols.doubling import doubling_bundle
from tests.serve.protocols.oracles import FOLDER, Recorded, needs, recorded, replay
from tests.serve.repositories import shifted_bundle

DOCS: Final = Path(__file__).parents[4] / "docs" / "coming-from" / "sagemaker.md"


class Difference(NamedTuple):
    """The status of Amazon's container and of edgeserve. `why` stands in the docs."""

    theirs: int
    ours: int
    why: str


_BAD = "Bad input is 400"
_TYPES = "Media types have parameters"
_DEFAULT = "No Content-Type means JSON"
_METHODS = "Only POST runs a model"
_ROWS = "Rows are kept"
_LOADS = "A model that cannot be loaded fails to load"
_OWN = "Routes of the model server alone"
DIFFERENT: Final = {
    "ping OPTIONS": Difference(200, 405, _OWN),
    "root": Difference(405, 200, _OWN),
    "OPTIONS /": Difference(200, 405, _OWN),
    "unknown": Difference(404, 404, "Unknown paths have v2's errors"),
    "metrics": Difference(404, 200, _OWN),
    "predictions route": Difference(200, 404, _OWN),
    "mme scale PUT": Difference(200, 405, _OWN),
    "json scalar": Difference(200, 400, _ROWS),
    "mme invoke csv": Difference(200, 200, _ROWS),
    "csv header label": Difference(500, 200, _TYPES),
    "no content type": Difference(500, 400, _DEFAULT),  # [1] is not a list of rows
    "no body": Difference(500, 400, _DEFAULT),
    "Accept unsupported": Difference(500, 406, _TYPES),
    "bad json": Difference(500, 400, _BAD),
    "json strings": Difference(500, 400, _BAD),
    "empty body": Difference(500, 400, _BAD),
    "mme load bad json": Difference(500, 400, _BAD),
    "gzip body": Difference(500, 200, "Compressed bodies are read"),
    "invocations PUT": Difference(200, 405, _METHODS),
    "invocations HEAD": Difference(500, 405, _METHODS),
    "mme load oom": Difference(200, 507, _LOADS),
    "load oom": Difference(200, 507, _LOADS),
    "mme load broken": Difference(200, 500, _LOADS),
    "load broken": Difference(200, 500, _LOADS),
    "mme load without code": Difference(200, 404, _LOADS),
    "invoke oom": Difference(500, 503, _LOADS),
    "invoke oom again": Difference(500, 503, _LOADS),
    "invoke broken": Difference(404, 503, _LOADS),
}
# What the recorded handler did at a word, which no model does.
OF_THE_HANDLER: Final = {
    "raises", "MemoryError at inference", "slow ok", "over the timeout (4 s)", "right after the timeout",
    "4 s later", "worker dies", "4 s after death", "in flight at SIGTERM to the entry point only",
    "mme invoke oom at inference", "invoke oom at inference: 507", "invoke raises", "invoke handler status",
}  # fmt: skip


def compare(server: Background, exchange: Recorded) -> Answered:
    """What edgeserve answers to a recorded request, which is checked."""
    answer = replay(server, exchange)
    difference = DIFFERENT.get(exchange.name)
    assert exchange.status == (exchange.status if difference is None else difference.theirs)
    expected = exchange.status if difference is None else difference.ours
    assert answer.status == expected, (exchange, answer)
    if difference is not None:
        return answer
    if answer.status < 300 and exchange.method == "POST" and exchange.sent:
        if "invo" in exchange.path:
            assert answer.headers["content-type"] == exchange.answer_headers["content-type"]
            assert answer.json == exchange.json
    elif answer.status >= 400 and exchange.body:
        theirs = exchange.json
        assert {k: answer.json[k] for k in ("code", "type")} == {
            "code": theirs["code"],
            "type": _same_type(theirs["type"]),
        }
        assert answer.json["message"]
    return answer


def _same_type(name: str) -> str:
    return "BadRequestException" if name == "InvalidModelException" else name


# one model

SINGLE = [
    e
    for e in recorded("sagemaker_mms")
    if e.config.startswith("single") and e.name not in OF_THE_HANDLER
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    bundle = doubling_bundle(tmp_path_factory.mktemp("sagemaker"))
    settings = Settings(bundle=str(bundle), http_port=0, protocols="sagemaker", max_body=6 << 20)
    with Background(settings) as running:
        yield running


@needs("sagemaker_mms")
def test_one_model_is_answered_as_by_amazon_s_container(server: Background) -> None:
    assert len(SINGLE) > 20
    for exchange in SINGLE:
        compare(server, exchange)


# several models


@pytest.fixture
def several(tmp_path: Path) -> Iterator[Background]:
    """Models a, b, ok and others; `oom` does not fit, `broken` is damaged. None is loaded."""
    folder = tmp_path / "models"
    folder.mkdir()
    for name in ("a", "b", "ok", "ok2", "q", "same"):
        doubling_bundle(folder, name)
    shifted_bundle(folder, "oom", 1.0, pad_kb=10_000)
    (doubling_bundle(folder, "broken") / "onnx-fp32" / "model.onnx").write_bytes(b"damaged")
    settings = Settings(
        bundle=str(folder), http_port=0, protocols="sagemaker", model_control=True, load=(),
        memory_budget="16MB",
    )  # fmt: skip
    with Background(settings) as running:
        yield running


def load(server: Background, name: str) -> int:
    return ask(server, "/models", {"model_name": name, "url": f"/opt/ml/models/{name}"}).status


def registered(answer: Any) -> list[str]:
    return [model["modelName"] for model in answer["models"]]


@needs("sagemaker_mms")
def test_several_models_are_answered_as_by_amazon_s_container(several: Background) -> None:
    cases = [e for e in recorded("sagemaker_mms") if e.config == "SAGEMAKER_MULTI_MODEL=true"]
    assert len(cases) > 20
    for exchange in cases:
        if exchange.name in OF_THE_HANDLER or exchange.state:
            continue
        if exchange.name == "mme list":
            assert load(several, "b") == 200
        answer = compare(several, exchange)
        if exchange.name in ("mme list empty", "mme list", "mme list limit"):
            assert registered(answer.json) == registered(exchange.json)
            assert answer.json.get("nextPageToken") == exchange.json.get("nextPageToken")
        elif exchange.name == "mme get a":
            assert answer.json["modelName"] == exchange.json["modelName"] == "a"
        elif exchange.name == "mme invoke csv":  # a row of two became two rows of one
            assert (answer.body, exchange.body) == (b"2.0,4.0\n", "2.0\n4.0\n")


@needs("mms_direct")
def test_models_that_fail_are_answered_as_by_amazon_s_model_server(several: Background) -> None:
    for exchange in recorded("sagemaker_mme_broken"):
        compare(several, exchange)
    assert load(several, "ok") == 200
    for exchange in recorded("mms_direct"):
        if exchange.name == "invoke unloaded":
            assert ask(several, "/models/ok2", method="DELETE").status == 200
        if exchange.name == "unload oom":
            assert load(several, "oomload") == 404
            continue  # unlike its own, which was registered as well
        if exchange.name in OF_THE_HANDLER:
            continue
        answer = compare(several, exchange)
        if exchange.name == "list":
            assert registered(answer.json) == ["broken", "ok", "ok2"]


@needs("sagemaker_mms")
def test_one_of_two_loads_at_one_time_is_a_conflict(several: Background) -> None:
    pair = [e for e in recorded("sagemaker_mms") if e.state == "2 at once"]
    with ThreadPoolExecutor(2) as two:
        answers = list(two.map(lambda e: replay(several, e).status, pair))
    assert sorted(answers) == sorted(e.status for e in pair) == [200, 409]


# What clients were seen to send; the stand-in that answered them took anything.
SENT: Final = {
    "invoke_endpoint": (200, b"[[2.0,4.0]]"),
    "invoke_endpoint defaults": (400, None),  # no rows
    "JSON": (200, b'{"predictions":[[2.0,4.0]]}'),
    "CSV": (200, b"2.0,4.0\n6.0,8.0\n"),
    "answer 500 is not raised": (400, None),  # a row, not a list of them
    "TensorFlowPredictor.predict": (404, None),  # it names the model `half`
    "TensorFlowPredictor.regress": (400, None),
}


@needs("clients_wire")
def test_what_amazon_s_clients_send_is_understood(server: Background) -> None:
    lines = map(json.loads, (FOLDER / "clients_wire.jsonl").read_text("utf-8").splitlines())
    calls = [e for e in lines if "sagemaker" in e["client"] or "boto3" in e["client"]]
    assert calls
    for call in calls:
        if call["call"] not in SENT:
            continue
        request = call["request"]
        headers = {n: v for n, v in request["headers"] if n != "Content-Length"}
        answer = ask(server, request["path"], request["body"].encode(), **headers)
        status, body = SENT[call["call"]]
        assert answer.status == status, (call, answer)
        assert body is None or answer.body == body


def test_the_docs_list_every_difference() -> None:
    text = DOCS.read_text("utf-8")
    for why in sorted({difference.why for difference in DIFFERENT.values()}):
        assert why in text, why
