"""TorchServe's inference and management API, against recordings of the real one."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeserve.bundle import Classification, Preprocess, Task
from edgeserve.serve.settings.server import Settings
from edgeserve.tensors import Interface, TensorSpec
from tests.bundles import linear_bundle, write_bundle
from tests.seeing import boxes_bundle, colours_bundle, photograph, with_task
from tests.serve.background import Background
from tests.serve.protocols.asking import ask, form
from tests.serve.protocols.oracles import FOLDER, Recorded, needs, recorded, replay

CONTROL = "control-key-0123456789"
INFER = "infer-key-0123456789"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    folder = tmp_path_factory.mktemp("torchserve")
    bundles = [colours_bundle(folder), boxes_bundle(folder), linear_bundle(folder, "lin")]
    if (FOLDER / "net.onnx").is_file():
        bundles.append(recorded_classifier(folder))
    settings = Settings(
        bundle=str(bundles[0]), bundles=tuple(map(str, bundles[1:])), http_port=0,
        protocols="torchserve", max_body=6_553_500,
    )  # fmt: skip
    with Background(settings) as running:
        yield running


def recorded_classifier(folder: Path) -> Path:
    """The network that TorchServe's image_classifier served as `img`, with the same preprocessing."""
    import onnxruntime

    model = onnx.load(FOLDER / "net.onnx")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    given, made = session.get_inputs()[0], session.get_outputs()[0]
    images = np.random.default_rng(0).normal(size=(2, 3, 224, 224)).astype(np.float32)
    outputs = np.concatenate([session.run(None, {given.name: i[None]})[0] for i in images])
    batch = given.shape[0]
    interface = Interface(
        (TensorSpec(given.name, "FP32", (batch, 3, 224, 224)),),
        (TensorSpec(made.name, "FP32", (made.shape[0], outputs.shape[1])),),
        8 if isinstance(batch, str) else 0,
    )
    path = write_bundle(
        folder, "img", model, interface,
        {given.name: images[:1] if interface.max_batch == 0 else images},
        {made.name: outputs[:1] if interface.max_batch == 0 else outputs},
    )  # fmt: skip
    how = Preprocess(
        224, 224, crop_ratio=0.875, scale=1 / 255,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    names = json.loads((FOLDER / "index_to_name.json").read_text())
    labels = tuple(_name(names[str(i)]) for i in range(len(names)))
    task = Task("classification", how, postprocess=Classification(made.name, "softmax"))
    return with_task(path, task, labels)


def _name(entry: Any) -> str:
    return str(entry[-1]) if isinstance(entry, list) else str(entry)


# Recorded exchanges that are answered otherwise here: our status, and why. docs/coming-from/torchserve.md has the same table.
DIFFERENT = {
    "root GET": (200, "KServe v1's liveness, or the page"),
    "img multipart other name": (200, "the only part of a form counts, whatever its name"),
    "img multipart text": (400, "likewise"),
    "img form urlencoded data": (400, "wrong input is the client's mistake"),
    "img list json": (400, "likewise"),
    "img version 1 (not 1.0)": (200, "1 and 1.0 are one version"),
    "v2 health live": (200, "the Open Inference Protocol is served too"),
}


def comparable(exchange: Recorded) -> bool:
    """What handlers of the recorded server did by themselves, and what depended on earlier changes, is not compared."""
    if exchange.name.startswith(("management", "metrics")):  # of its other ports
        return False
    own = ("/cust", "/lin", "/imgflat", "/bad", "model_name=cust", "/explanations", "/models")
    return (
        not any(name in exchange.path for name in own)
        and exchange.path != "/metrics?name[]=ts_inference_requests_total"
    )


CASES = [e for e in recorded("torchserve") if comparable(e)]


@needs("torchserve")
def test_torchserve_and_this_server_answer_alike(server: Background) -> None:
    assert len(CASES) > 15
    wrong = []
    for exchange in CASES:
        answer = replay(server, exchange)
        expected = DIFFERENT.get(exchange.name, (exchange.status, ""))[0]
        if answer.status != expected:
            wrong.append(
                (
                    exchange.name,
                    exchange.method,
                    exchange.path,
                    exchange.status,
                    answer.status,
                    answer.body[:200],
                )
            )
        elif (
            answer.status == exchange.status == 200
            and "/predictions/img" in exchange.path
            and exchange.method != "OPTIONS"
        ):
            theirs = exchange.json
            assert list(answer.json) == list(theirs), exchange.name
            for label, share in theirs.items():
                assert answer.json[label] == pytest.approx(share, abs=5e-3), exchange.name
        elif (
            exchange.path.startswith("/predictions/")
            and answer.status >= 400
            and exchange.status == answer.status
            and exchange.body
            and answer.body
        ):
            theirs, ours = exchange.json, answer.json
            assert (ours["code"], ours["type"]) == (theirs["code"], theirs["type"]), exchange.name
    assert not wrong


def test_labels_and_probabilities(server: Background) -> None:
    image = photograph("lime")
    body, media = form(("data", "kitten.jpg", image))
    text = base64.b64encode(image).decode()
    for method, sent, kind in (
        ("PUT", image, "application/octet-stream"),
        ("POST", image, "image/jpeg"),
        ("GET", image, "image/png"),
        ("POST", body, media),
        ("POST", text.encode(), "text/plain"),
        ("POST", json.dumps({"data": text}).encode(), "application/json"),
        ("POST", json.dumps({"body": {"b64": text}}).encode(), "application/json"),
    ):
        answer = ask(server, "/predictions/colours", sent, method, content_type=kind)
        assert answer.status == 200, answer.body
        assert next(iter(answer.json)) == "green", kind
        assert answer.headers["x-edgeserve-device"] == "cpu"
    several = {"instances": [{"data": {"b64": text}}, {"data": text}]}
    assert [next(iter(a)) for a in ask(server, "/predictions/colours", several).json] == [
        "green"
    ] * 2


def test_boxes_are_those_of_its_object_detector(server: Background) -> None:
    answer = ask(server, "/predictions/boxes/1.0", photograph("red", 80, 40))
    assert answer.json == [{"dog": [0.0, 0.0, 40.0, 40.0], "score": 0.75}]


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ([0, 0, 0, 0], [0.5] * 3),
        ([[0, 0, 0, 0]] * 2, [[0.5] * 3] * 2),
        ({"data": [0, 0, 0, 0]}, [0.5] * 3),
        ({"x": [0, 0, 0, 0]}, [0.5] * 3),
        ({"x": [[0, 0, 0, 0]]}, [[0.5] * 3]),
        ({"instances": [[0, 0, 0, 0]]}, [[0.5] * 3]),
    ],
)
def test_rows_of_numbers(server: Background, document: Any, expected: Any) -> None:
    for path in (
        "/predictions/lin",
        "/models/lin/invoke",
        "/lin/predict",
        "/invocations?model_name=lin",
    ):
        assert ask(server, path, document).json == expected


@pytest.mark.parametrize(
    ("path", "body", "status", "kind"),
    [
        ("/predictions/none", b"x", 404, "ModelNotFoundException"),
        ("/predictions/lin/9", b"x", 404, "ModelVersionNotFoundException"),
        ("/predictions/..%2f..%2fx", b"x", 404, "ModelNotFoundException"),
        ("/predictions/lin", b"not json", 400, "BadRequestException"),
        ("/predictions/lin", [1], 400, "BadRequestException"),
        ("/predictions/lin", photograph(), 400, "BadRequestException"),
        ("/predictions/colours", photograph()[:200], 400, "BadRequestException"),
        ("/predictions/colours", b"no image", 400, "BadRequestException"),
    ],
)
def test_errors_have_its_form(
    server: Background, path: str, body: Any, status: int, kind: str
) -> None:
    answer = ask(server, path, body)
    assert answer.status == status
    assert (answer.json["code"], answer.json["type"]) == (status, kind)
    assert answer.json["message"]


def test_the_lines_of_its_readme_work_with_curl(server: Background, tmp_path: Path) -> None:
    (tmp_path / "kitten.jpg").write_bytes(photograph("red"))

    def curl(*words: str) -> Any:
        done = subprocess.run(
            ["curl", "-s", *words], cwd=tmp_path, capture_output=True, text=True, timeout=30
        )
        return json.loads(done.stdout)

    url = server.url
    assert curl(f"{url}/ping") == {"status": "Healthy"}
    assert next(iter(curl(f"{url}/predictions/colours", "-T", "kitten.jpg"))) == "red"
    assert next(iter(curl(f"{url}/predictions/colours", "-F", "data=@kitten.jpg"))) == "red"
    assert next(iter(curl("-X", "POST", f"{url}/predictions/colours", "-T", "kitten.jpg"))) == "red"
    assert curl("-X", "OPTIONS", url)["openapi"]
    assert curl(f"{url}/api-description")["paths"]["/predictions/{model}"]


# the management API


@pytest.fixture(scope="module")
def controlled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    folder = tmp_path_factory.mktemp("managed")
    models = folder / "models"
    models.mkdir()
    linear_bundle(models, "a")
    linear_bundle(models, "b")
    keys = folder / "keys"
    keys.write_text(f"infer {INFER}\ncontrol {CONTROL}\n")
    settings = Settings(
        repository=str(models), load=("a",), http_port=0, protocols="torchserve",
        model_control=True, keys=str(keys),
    )  # fmt: skip
    with Background(settings) as running:
        yield running


def managed(
    server: Background, method: str, path: str, key: str = CONTROL, body: Any = None
) -> Any:
    return ask(server, path, body, method, authorization=f"Bearer {key}")


def test_models_are_registered_by_name_alone(controlled: Background) -> None:
    assert managed(controlled, "GET", "/models").json["models"][0] == {
        "modelName": "a",
        "modelUrl": "a",
    }
    (described,) = managed(controlled, "GET", "/models/a").json
    assert (described["modelVersion"], described["workers"][0]["status"]) == ("1", "READY")
    assert managed(controlled, "POST", "/models?url=b.mar").status == 200
    assert managed(controlled, "POST", "/models", body={"url": "b"}).status == 409
    rows = [[0, 0, 0, 0]]
    assert managed(controlled, "POST", "/predictions/b", INFER, rows).json == [[0.5] * 3]
    assert managed(controlled, "DELETE", "/models/b").json == {"status": 'Model "b" unregistered'}
    assert managed(controlled, "POST", "/predictions/b", INFER, rows).status in (404, 503)
    assert managed(controlled, "DELETE", "/models/b").status == 404
    assert [m["modelName"] for m in managed(controlled, "GET", "/models").json["models"]] == ["a"]
    assert (
        managed(controlled, "GET", "/models?limit=%C2%B2").status == 200
    )  # not a count: the default
    other = managed(controlled, "POST", "/models?url=b&model_name=c")
    assert (other.status, "model_name" in other.json["message"]) == (400, True)
    assert managed(controlled, "DELETE", "/models/none").status == 404
    assert managed(controlled, "PUT", "/models/a?min_worker=2").status == 501
    assert managed(controlled, "PUT", "/models/a/1.0/set-default").status == 501


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data", "https://example.com/x.mar", "file:///etc/passwd", "ftp://x/y",
        "../store/img.mar", "/etc/passwd", "..%2f..%2fx", "a%00b", "s3://bucket/x", "",
    ],
)  # fmt: skip
def test_shelltorch_urls_and_paths_are_never_opened(controlled: Background, url: str) -> None:
    for answer in (
        managed(controlled, "POST", f"/models?url={url}"),
        managed(controlled, "POST", "/models", body={"url": url}),
    ):
        assert answer.status == 400, (url, answer.body)
        assert "url" in answer.json["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/models"), ("GET", "/models/a"), ("POST", "/models?url=b"), ("DELETE", "/models/a"), ("PUT", "/models/a")],
)  # fmt: skip
def test_management_needs_the_control_role(controlled: Background, method: str, path: str) -> None:
    refused = managed(controlled, method, path, INFER)
    assert (refused.status, refused.json["type"]) == (403, "InvalidKeyException")
    nobody = ask(controlled, path, None, method)
    assert (nobody.status, nobody.json["type"]) == (401, "InvalidKeyException")
    assert ask(controlled, "/ping", None, "GET").status == 200


def test_without_model_control_nothing_is_registered(server: Background) -> None:
    for method, path in (("POST", "/models?url=lin"), ("DELETE", "/models/lin")):
        assert ask(server, path, None, method).status == 403


@given(
    body=st.binary(max_size=200),
    kind=st.sampled_from(
        ["application/json", "text/plain", "multipart/form-data; boundary=x", "image/png", ""]
    ),
)
@settings(max_examples=60, deadline=None)
def test_no_body_breaks_the_server(server: Background, body: bytes, kind: str) -> None:
    for name in ("lin", "colours"):
        assert ask(server, f"/predictions/{name}", body, content_type=kind).status in (200, 400)
