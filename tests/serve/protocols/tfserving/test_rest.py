"""TF Serving's REST API, against recordings of the real one, and KServe v1 on the same paths."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.serve.settings.server import Settings
from tests.seeing import colours_bundle, photograph
from tests.serve.background import Background
from tests.serve.protocols.asking import ask
from tests.serve.protocols.oracles import Recorded, needs, recorded, replay
from tests.serve.protocols.tfserving.models import repository

HALF = "/v1/models/half"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    folder = tmp_path_factory.mktemp("tfserving")
    models = folder / "models"
    models.mkdir()
    repository(models)
    colours = colours_bundle(folder)
    with Background(Settings(bundle=str(colours), repository=str(models), http_port=0)) as running:
        yield running


# Recorded exchanges that are answered otherwise here, by name: our status, and why.
# docs/coming-from/tf-serving.md has the same table.
DIFFERENT = {
    "status none": (200, "KServe v1 lists models there"),
    "status query": (200, "a query is ignored"),
    "status version too big": (404, "a version that there is not"),
    "status version and label": (404, "no such route"),
    "predict query": (200, "a query is ignored"),
    "predict slash": (404, "no such route"),
    "trailing garbage": (400, "the body has to be JSON"),
    "1e39 in": (200, "becomes infinity, as there"),
    "no verb": (405, "405 says which methods are right"),
    "explain verb": (501, "KServe's verb: no explainer"),
    "percent-encoded colon": (405, "405 says which methods are right"),
    "PATCH predict": (405, "405 says which methods are right"),
    "GET predict": (405, "405 says which methods are right"),
    "OPTIONS predict": (405, "CORS is off"),
    "OPTIONS with Origin": (405, "CORS is off"),
    "cors preflight": (405, "CORS is off"),
    "cors OPTIONS without Origin": (405, "CORS is off"),
    "root": (200, "KServe v1's liveness"),
    "/v2": (200, "the Open Inference Protocol is served too"),
    "POST /v1/x": (404, "no such route"),
    "metrics query": (200, "a query is ignored"),
    "wrong rank": (400, "this bundle's input has one axis"),
    "duplicate keys": (200, "the last one counts"),
    "columns scalar": (400, "this bundle's input has an axis"),
}
# Of models that this repository does not have.
OTHERS = ("gone", "broken", "img", "types", "two")


def comparable(exchange: Recorded) -> bool:
    return not any(f"/models/{name}" in exchange.path for name in OTHERS)


CASES = [e for e in recorded("tfserving") if comparable(e) and e.config != "raw"]


@needs("tfserving")
def test_tf_serving_and_this_server_answer_alike(server: Background) -> None:
    assert len(CASES) > 50
    wrong = []
    for exchange in CASES:
        if "classify" in exchange.path or "regress" in exchange.path or "metrics" in exchange.path:
            continue
        answer = replay(server, exchange)
        expected = DIFFERENT.get(exchange.name, (exchange.status, ""))[0]
        if answer.status != expected:
            wrong.append(
                (
                    exchange.name,
                    exchange.method,
                    exchange.path,
                    exchange.sent and exchange.sent[:80],
                    exchange.status,
                    answer.status,
                    answer.body[:150],
                )
            )
        elif answer.status == exchange.status == 200 and exchange.name != "duplicate keys":
            theirs, ours = json.loads(exchange.body), answer.json
            if theirs.keys() & {"predictions", "outputs"}:
                key = next(iter(theirs))
                np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-5)
            else:
                assert theirs.keys() <= ours.keys()
        elif answer.status >= 400 and exchange.path.startswith("/v1/") and answer.body:
            assert answer.json["error"]
    assert not wrong


def test_rows_and_columns(server: Background) -> None:
    assert ask(server, f"{HALF}:predict", {"instances": [1.0, 2.0]}).json == {
        "predictions": [3.5, 4.0]
    }
    assert ask(server, f"{HALF}/versions/1:predict", {"inputs": [1.0]}).json == {"outputs": [2.5]}
    rows = {"instances": [{"a": [1, 2], "b": 1}, {"a": [3, 4], "b": 2}]}
    assert ask(server, "/v1/models/two:predict", rows).json == {
        "predictions": [{"sum": [2.0, 3.0], "twice": 2.0}, {"sum": [5.0, 6.0], "twice": 4.0}]
    }
    columns = {"inputs": {"a": [[1, 2]], "b": [1], "surplus": 1}}
    assert ask(server, "/v1/models/two:predict", columns).json == {
        "outputs": {"sum": [[2.0, 3.0]], "twice": [2.0]}
    }


def test_the_status_is_the_union_of_both_protocols(server: Background) -> None:
    one = ask(server, HALF, method="GET").json
    assert [v["version"] for v in one["model_version_status"]] == ["2", "1"]
    assert {v["state"] for v in one["model_version_status"]} == {"AVAILABLE"}
    assert one["model_version_status"][0]["status"] == {"error_code": "OK", "error_message": ""}
    assert (one["name"], one["ready"]) == ("half", True)
    names = ask(server, "/v1/models", method="GET").json["models"]
    assert {"half", "two", "colours"} <= set(names)
    assert ask(server, "/", method="GET").json == {"status": "alive"}


def test_the_metadata_has_the_signature(server: Background) -> None:
    document = ask(server, f"{HALF}/metadata", method="GET").json
    assert document["model_spec"] == {"name": "half", "signature_name": "", "version": "2"}
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["inputs"]["x"]["tensor_shape"]["dim"] == [{"size": "-1", "name": ""}]
    assert signature["method_name"] == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int8", [[-128, 127]]),
        ("uint8", [[0, 255]]),
        ("int64", [[-(2**63), 2**63 - 1]]),
        ("uint64", [[0, 2**64 - 1]]),
        ("bool", [[True, False]]),
        ("fp64", [[0.1, 1e300]]),
        ("fp16", [[0.5, 2.0]]),
        ("bytes", [["é", ""]]),
    ],
)
def test_every_type_survives(server: Background, dtype: str, values: Any) -> None:
    path = f"/v1/models/types-{dtype}:predict"
    assert ask(server, path, {"instances": values}).json == {"predictions": values}
    assert ask(server, path, {"inputs": {"x": values}}).json == {"outputs": values}


def test_strings_may_come_as_base64(server: Background) -> None:
    value = [[{"b64": base64.b64encode("é".encode()).decode()}, "b"]]
    path = "/v1/models/types-bytes:predict"
    assert ask(server, path, {"instances": value}).json == {"predictions": [["é", "b"]]}
    broken = ask(server, path, {"instances": [[{"b64": "/wA="}]]})
    assert (broken.status, "UTF-8" in broken.json["error"]) == (400, True)


def test_tokens_that_are_not_json_are_read_and_written(server: Background) -> None:
    body = b'{"instances": [NaN, Infinity, -Infinity]}'
    assert ask(server, f"{HALF}:predict", body).body == b'{"predictions":[NaN,Infinity,-Infinity]}'


def test_classify_and_regress(server: Background) -> None:
    regress = ask(server, f"{HALF}:regress", {"context": {"x": 5.0}, "examples": [{}, {"x": 1.0}]})
    assert regress.json == {"results": [5.5, 3.5]}
    pixels = np.zeros((3, 8, 8))
    pixels[2] = 1
    document = {"examples": [{"image": pixels.tolist()}]}
    (row,) = ask(server, "/v1/models/colours:classify", document).json["results"]
    assert [label for label, _ in row] == ["red", "green", "blue"]
    assert sum(score for _, score in row) == pytest.approx(1)
    assert row[2][1] > 0.99
    refused = ask(server, "/v1/models/two:classify", {"examples": [{"a": [1, 2], "b": 1}]})
    assert (refused.status, "one output" in refused.json["error"]) == (400, True)
    many = ask(server, "/v1/models/colours:regress", document)
    assert (many.status, "one number a row" in many.json["error"]) == (400, True)


def test_photographs_are_classified(server: Background) -> None:
    text = base64.b64encode(photograph("blue")).decode()
    for row in ({"image": {"b64": text}}, {"image_bytes": {"b64": text}}, {"b64": text}):
        answer = ask(server, "/v1/models/colours:classify", {"examples": [row, row]})
        for scores in answer.json["results"]:
            assert max(scores, key=lambda pair: pair[1])[0] == "blue"


def test_photographs_are_rows(server: Background) -> None:
    text = base64.b64encode(photograph("blue")).decode()
    path = "/v1/models/colours:predict"
    for document in (
        {"instances": [{"b64": text}, {"image": {"b64": text}}]},
        {"instances": [{"image_bytes": {"b64": text}}]},
        {"inputs": {"image": [{"b64": text}]}},
        {"inputs": {"b64": text}},
    ):
        found = ask(server, path, document).json
        rows = found.get("predictions") or found["outputs"]
        assert np.argmax(rows, axis=1).tolist() == [2] * len(rows)
    raw = ask(server, path, photograph("blue"), content_type="image/jpeg")
    assert np.argmax(raw.json["predictions"]) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not a JSON object"),
        (b"[1]", "not a JSON object"),
        ({}, "got neither"),
        ({"instances": [1.0], "inputs": [1.0]}, "got both"),
        ({"instances": {"x": 1}}, "expected a list"),
        ({"instances": []}, "at least one"),
        ({"instances": ["a"]}, "input 'x': expected FP32 values, got a string"),
        ({"instances": [None]}, "expected FP32 values"),
        ({"instances": [{"x": 1.0}, {"z": 1.0}]}, "instances[1]"),
        ({"instances": [{"z": 1.0}]}, "unknown input 'z'"),
        ({"instances": [1.0] * 1025}, "batch of 1 to 1024"),
        ({"signature_name": "other", "instances": [1.0]}, "other"),
        ({"signature_name": 1, "instances": [1.0]}, "signature_name"),
    ],
)
def test_what_is_wrong_is_said(server: Background, body: Any, words: str) -> None:
    answer = ask(server, f"{HALF}:predict", body)
    assert answer.status == 400
    assert words in answer.json["error"]


def test_integers_are_never_wrapped(server: Background) -> None:
    answer = ask(server, "/v1/models/types-uint8:predict", {"instances": [[256]]})
    assert (answer.status, "outside UINT8" in answer.json["error"]) == (400, True)


def test_the_newest_version_is_also_version_0(server: Background) -> None:
    assert ask(server, f"{HALF}/versions/0:predict", {"instances": [1.0]}).json == {
        "predictions": [3.5]
    }
    assert ask(server, f"{HALF}/versions/9:predict", {"instances": [1.0]}).status == 404
    assert ask(server, "/v1/models/none:predict", {"instances": [1.0]}).status == 404
    label = ask(server, f"{HALF}/labels/stable:predict", {"instances": [1.0]})
    assert (label.status, "label: stable" in label.json["error"]) == (400, True)
    assert ask(server, f"{HALF}:explain", {"instances": [1.0]}).status == 501


def test_the_metrics_have_tf_servings_names(server: Background) -> None:
    path = "/monitoring/prometheus/metrics"

    def counted() -> dict[str, float]:
        answer = ask(server, path, method="GET")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = answer.body.decode().splitlines()
        assert "# TYPE :tensorflow:serving:request_count counter" in lines
        samples = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return {name: float(value) for name, _, value in samples}

    ok = ':tensorflow:serving:request_count{model_name="types-fp64",status="OK"}'
    took = ':tensorflow:serving:request_latency_count{model_name="types-fp64"}'
    before = counted()
    ask(server, "/v1/models/types-fp64:predict", {"instances": [[1.0]]})
    ask(server, "/v1/models/never-there:predict", {"instances": [[1.0]]})
    after = counted()
    assert (after[ok] - before[ok], after[took] - before[took]) == (1, 1)
    bucket = took.replace("_count{", '_bucket{le="%s",')
    assert after[bucket % "+Inf"] == after[took]
    assert 0 <= after[bucket % "25"] <= after[bucket % "10000000"] <= after[took]
    assert not any("never-there" in line for line in after)


def test_the_protocol_can_be_off(tmp_path: Path) -> None:
    settings = Settings(bundle=str(colours_bundle(tmp_path)), http_port=0, protocols="v2")
    with Background(settings) as alone:
        assert ask(alone, "/v1/models/colours", method="GET").status == 404


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "b64", "a", "b", "z"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(
    document=st.dictionaries(st.sampled_from(["instances", "inputs", "examples", "context", "signature_name", "z"]), JSON, max_size=3)
    | JSON,
    path=st.sampled_from(["half:predict", "two:predict", "half:classify", "half:regress", "types-bytes:predict", "colours:predict"]),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_no_json_breaks_the_server(server: Background, document: Any, path: str) -> None:
    answer = ask(server, f"/v1/models/{path}", json.dumps(document).encode())
    assert answer.status in (200, 400), answer.body
