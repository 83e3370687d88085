"""Photographs as requests: raw, in forms, in v2's own tensors; and answers for people."""

from __future__ import annotations

import base64
import json
import struct
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from edgeserve import load
from edgeserve.serve.settings.server import Settings
from tests.bundles import linear_bundle
from tests.seeing import SIDE, boxes_bundle, colours_bundle, photograph
from tests.serve.background import Background
from tests.serve.protocols.asking import Answered, ask, form

PATH = "/v2/models/colours"
PHOTOGRAPH = photograph()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    folder = tmp_path_factory.mktemp("images")
    bundles = [colours_bundle(folder), boxes_bundle(folder), linear_bundle(folder)]
    settings = Settings(bundle=str(bundles[0]), bundles=tuple(map(str, bundles[1:])), http_port=0)
    with Background(settings) as running:
        yield running


def labels(answer: Answered) -> list[str]:
    assert answer.status == 200, answer.body
    return [found["label"] for found in answer.json["classes"]]


@pytest.mark.parametrize(
    ("kind", "media"),
    [
        ("JPEG", "image/jpeg"),
        ("PNG", "image/png"),
        ("WEBP", "image/webp"),
        ("PNG", "image/jpeg"),  # what it is decides, not what it is called
        ("JPEG", "application/octet-stream"),
        ("JPEG", "application/x-www-form-urlencoded"),  # curl's own, of --data-binary
    ],
)
def test_a_photograph_is_classified(server: Background, kind: str, media: str) -> None:
    answer = ask(server, f"{PATH}/predict", photograph("lime", kind=kind), content_type=media)
    assert labels(answer)[0] == "green"
    assert len(labels(answer)) == 2
    first = answer.json["classes"][0]
    assert first["index"] == 1
    assert first["score"] > 0.99
    assert (answer.json["model_name"], answer.json["model_version"]) == ("colours", "1")
    assert answer.json["parameters"]["edgeserve_variant"] == "onnx-fp32"
    assert answer.headers["x-edgeserve-device"] == "cpu"


def test_a_form_and_json_hold_photographs_too(server: Background) -> None:
    body, media = form(("data", "p.jpg", photograph("blue")))
    assert labels(ask(server, f"{PATH}/predict", body, content_type=media))[0] == "blue"
    text = base64.b64encode(photograph("red")).decode()
    for document in (
        {"image": {"b64": text}},
        {"b64": text},
        {"instances": [{"image_bytes": {"b64": text}}]},
        {"instances": [text]},
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}]},
        {"inputs": {"image": {"b64": text}}},
        {"image": f"data:image/jpeg;base64,{text}"},
    ):
        assert labels(ask(server, f"{PATH}/predict", document))[0] == "red", document


def test_several_photographs_are_a_batch(server: Background) -> None:
    parts = [("a", "a.jpg", photograph("blue")), ("b", "b.png", photograph("lime", kind="PNG"))]
    body, media = form(*parts)
    answer = ask(server, f"{PATH}/predict", body, content_type=media)
    found = [each["classes"][0]["label"] for each in answer.json["predictions"]]
    assert found == ["blue", "green"]


def test_tensors_and_options_are_taken(server: Background) -> None:
    red = np.zeros((1, 3, SIDE, SIDE), np.float32)
    red[:, 0] = 1
    for document in (
        {"instances": red.tolist()},
        {"inputs": {"image": red.tolist()}},
        {"image": red.tolist()},
    ):
        assert labels(ask(server, f"{PATH}/predict", document)) == ["red", "green"], document
    document = {"instances": red.tolist(), "parameters": {"top_k": 3, "threshold": 0.0}}
    assert len(labels(ask(server, f"{PATH}/predict", document))) == 3
    assert len(labels(ask(server, f"{PATH}/predict?top_k=1", photograph()))) == 1
    assert labels(ask(server, f"{PATH}/versions/1/predict?threshold=0.9", photograph())) == ["red"]


def test_boxes_are_in_the_photograph(server: Background) -> None:
    answer = ask(server, "/v2/models/boxes/predict", photograph("red", 80, 40))
    (box,) = answer.json["boxes"]
    assert (box["label"], box["index"], box["score"]) == ("dog", 1, 0.75)
    assert box["box"] == [0.0, 0.0, 40.0, 40.0]


def test_a_model_without_a_task_gives_its_outputs(server: Background) -> None:
    answer = ask(server, "/v2/models/linear/predict", {"instances": [[0, 0, 0, 0]]})
    assert answer.json["outputs"] == {"y": [0.5, 0.5, 0.5]}


def test_infer_takes_photographs_and_answers_tensors(server: Background) -> None:
    raw = ask(server, f"{PATH}/infer", photograph("red"), content_type="image/jpeg")
    (output,) = raw.json["outputs"]
    assert (output["name"], output["shape"]) == ("logits", [1, 3])
    assert np.argmax(output["data"]) == 0
    body, media = form(("data", "p.jpg", photograph("red")), ("data", "q.jpg", photograph("blue")))
    (both,) = ask(server, f"{PATH}/infer", body, content_type=media).json["outputs"]
    assert both["shape"] == [2, 3]
    text = base64.b64encode(photograph("red")).decode()
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": [text]}
    (again,) = ask(server, f"{PATH}/infer", {"inputs": [tensor]}).json["outputs"]
    assert again["data"] == output["data"]
    data = photograph("red")
    blob = struct.pack("<I", len(data)) + data
    head = {
        "name": "image",
        "datatype": "BYTES",
        "shape": [1],
        "parameters": {"binary_data_size": len(blob)},
    }
    start = json.dumps({"inputs": [head]}).encode()
    sent = ask(
        server, f"{PATH}/infer", start + blob, content_type="application/octet-stream",
        inference_header_content_length=str(len(start)),
    )  # fmt: skip
    assert sent.json["outputs"][0]["data"] == output["data"]


@pytest.mark.parametrize(
    ("path", "body", "more", "status", "words"),
    [
        (f"{PATH}/predict", b"\xff\xd8\xff broken", {}, 400, "the image cannot be read"),
        (f"{PATH}/predict", photograph()[:300], {}, 400, "the image cannot be read"),
        (f"{PATH}/predict", b"", {"content_type": "image/png"}, 400, "format is not known"),
        (f"{PATH}/predict", b"a,b", {"content_type": "text/csv"}, 415, "text/csv is not read"),
        (f"{PATH}/predict", {"image": {"b64": "!!"}}, {}, 400, "expected base64"),
        (f"{PATH}/predict", {"inputs": [1, 2]}, {}, 400, "input 'image': expected shape"),
        (f"{PATH}/predict?top_k=none", photograph(), {}, 400, "top_k: expected a number"),
        (f"{PATH}/predict?top_k=0", photograph(), {}, 400, "top_k: expected a count"),
        (f"{PATH}/predict?threshold=2", photograph(), {}, 400, "threshold: expected a number"),
        ("/v2/models/linear/predict", photograph(), {}, 400, "does not take images: send tensors, 'x'"),
        ("/v2/models/linear/infer", photograph(), {"content_type": "image/jpeg"}, 400, "does not take images"),
        ("/v2/models/none/predict", photograph(), {}, 404, "unknown model"),
        (f"{PATH}/versions/2/predict", photograph(), {}, 404, "no version"),
        (f"{PATH}/infer", {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [2], "data": ["/9j/"]}]}, {}, 400, "expected 2 elements"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_says_why(
    server: Background, path: str, body: Any, more: dict[str, str], status: int, words: str
) -> None:
    answer = ask(server, path, body, **more)
    assert answer.status == status
    assert words in answer.json["error"]


def test_more_images_than_a_batch_are_refused_before_they_are_read(server: Background) -> None:
    body, media = form(*[("data", f"{i}.jpg", photograph()) for i in range(9)])
    answer = ask(server, f"{PATH}/infer", body, content_type=media)
    assert (answer.status, answer.json["error"]) == (400, "expected 1 to 8 images, got 9")


def test_photographs_at_the_same_time_keep_their_answers(server: Background) -> None:
    colours = ["red", "lime", "blue"] * 10
    with ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda c: labels(ask(server, f"{PATH}/predict", photograph(c)))[0], colours)
        )
    assert found == ["red", "green", "blue"] * 10


def test_python_and_the_server_give_the_same(server: Background, tmp_path: Any) -> None:
    image = photograph("orange", 64, 32)
    file = tmp_path / "photo.jpg"
    file.write_bytes(image)
    served = ask(server, f"{PATH}/predict", image).json["classes"]
    with load(colours_bundle(tmp_path)) as model:
        for what in (file, str(file), image):
            found = model.predict(what)
            assert [(c.label, c.score) for c in found.classes] == [
                (c["label"], pytest.approx(c["score"], rel=1e-6)) for c in served
            ]
        several = model.predict([image] * 11, top_k=1)
        assert [len(each.classes) for each in several] == [1] * 11
    with load(boxes_bundle(tmp_path)) as model:
        (box,) = model.predict(photograph("red", 80, 40)).boxes
        assert box.box == (0.0, 0.0, 40.0, 40.0)


def test_without_pillow_the_start_and_the_answer_say_so(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from edgeserve.preprocess import decoding
    from edgeserve.serve.models import opening

    decoding.pillow.cache_clear()
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    settings = Settings(bundle=str(colours_bundle(tmp_path)), http_port=0)
    photo = PHOTOGRAPH
    with Background(settings) as server:
        answer = ask(server, f"{PATH}/predict", photo)
        rows = {"instances": np.ones((1, 3, SIDE, SIDE)).tolist()}
        assert ask(server, f"{PATH}/predict", rows).status == 200
    assert (answer.status, "needs pillow" in answer.json["error"]) == (501, True)
    assert any("pip install 'edgeserve[images]'" in r.getMessage() for r in caplog.records)
