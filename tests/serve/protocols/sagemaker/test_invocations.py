"""`/invocations`: every media type that SageMaker's serializers send, answers as Accept asks, headers, errors."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeserve.serve.settings.server import Settings
from tests.conformance.models import echo_bundle
from tests.seeing import boxes_bundle, colours_bundle, photograph
from tests.serve.background import Background
from tests.serve.found import found_bundle
from tests.serve.protocols.asking import Answered, ask, form
from tests.serve.protocols.doubling import doubling_bundle
from tests.serve.repositories import version

INVOCATIONS = "/invocations"


def sized(value: object) -> str | None:
    """The id of a body: an archive has the time in it, and ids are the same in every process."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else None


TRITON = "application/vnd.sagemaker-triton.binary+json"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    bundle = doubling_bundle(tmp_path_factory.mktemp("sagemaker"))
    with Background(Settings(bundle=str(bundle), http_port=0, protocols="sagemaker")) as running:
        yield running


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    """Models of all kinds on one server; `m` has versions 1 (x + 1) and 2 (x + 2)."""
    folder = tmp_path_factory.mktemp("sagemaker")
    doubling_bundle(folder)
    colours_bundle(folder)
    boxes_bundle(folder)
    found_bundle(folder)
    echo_bundle(folder)
    version(folder, "m", 1, 1.0)
    version(folder, "m", 2, 2.0)
    settings = Settings(bundle=str(folder), http_port=0, protocols="sagemaker", versions="all")
    with Background(settings) as running:
        yield running


def npy(values: Any, dtype: Any = np.float32) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(values, dtype))
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("media", "accept", "body", "given", "answer"),
    [
        ("application/json", None, b"[[1,2],[3,4]]", "application/json", b"[[2.0,4.0],[6.0,8.0]]"),
        ("application/json", "*/*", b'{"instances":[[1,2]]}', None, b'{"predictions":[[2.0,4.0]]}'),
        ("application/json; charset=utf-8", None, b'{"inputs":{"x":[[1,2]]}}', None, b'{"outputs":[[2.0,4.0]]}'),
        (None, None, b"[[1]]", "application/json", b"[[2.0]]"),
        ("text/csv", None, b"1,2\n3,4\n", "application/json", b"[[2.0,4.0],[6.0,8.0]]"),
        ("text/csv", "text/csv", b"1,2\n3,4", "text/csv", b"2.0,4.0\n6.0,8.0\n"),
        ("text/csv; header=present", "text/csv", b"a,b\n1,2\n", "text/csv", b"2.0,4.0\n"),
        ("application/jsonlines", "application/jsonlines", b"[1,2]\n\n[3,4]\n", "application/jsonlines", b"[2.0,4.0]\n[6.0,8.0]\n"),
        ("application/jsonlines", None, b"[1,2]\n", "application/json", b"[[2.0,4.0]]"),
        ("application/x-npy", "application/json", npy([[1, 2]]), "application/json", b"[[2.0,4.0]]"),
        ("application/x-npy", "application/json", npy([[1, 2]], np.float64), "application/json", b"[[2.0,4.0]]"),
        ("application/x-npz", "application/json", npz(x=np.float32([[1]])), "application/json", b"[[2.0]]"),
        ("file-path/raw-bytes", "application/json", npy([[1, 2]]), "application/json", b"[[2.0,4.0]]"),
        ("text/plain", "application/json", b"[[1]]", "application/json", b"[[2.0]]"),
        ("application/json", "text/html, text/csv;q=0.4, application/json;q=0.5", b"[[1]]", "application/json", b"[[2.0]]"),
    ],
    ids=sized,
)  # fmt: skip
def test_forms_of_bodies_and_answers(
    server: Background, media: str | None, accept: str | None, body: bytes, given: str | None, answer: bytes
) -> None:  # fmt: skip
    headers = {"content_type": media, "accept": accept}
    found = ask(server, INVOCATIONS, body, **{k: v for k, v in headers.items() if v is not None})
    assert (found.status, found.body) == (200, answer)
    assert found.headers["content-type"] == (given or "application/json")
    assert found.headers["x-edgeserve-device"] == "cpu"


def test_arrays_of_numpy_come_back_as_arrays(server: Background) -> None:
    found = ask(
        server, INVOCATIONS, npy([[1, 2]]), content_type="application/x-npy", accept="application/x-npy"
    )  # fmt: skip
    assert found.headers["content-type"] == "application/x-npy"
    np.testing.assert_array_equal(np.load(io.BytesIO(found.body)), np.float32([[2, 4]]))


def triton_body(shape: list[int]) -> bytes:
    entry = {"name": "x", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": 4 * int(np.prod(shape))}}  # fmt: skip
    return json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()


def test_triton_s_binary_type(server: Background) -> None:
    start = triton_body([1, 2])
    body = start + np.float32([1, 2]).tobytes()
    found = ask(server, INVOCATIONS, body, content_type=f"{TRITON};json-header-size={len(start)}")
    media, _, size = found.headers["content-type"].partition(";json-header-size=")
    assert (found.status, media) == (200, TRITON)
    document, data = json.loads(found.body[: int(size)]), found.body[int(size) :]
    assert (document["model_name"], document["outputs"][0]["name"]) == ("double", "y")
    assert np.frombuffer(data, np.float32).tolist() == [2.0, 4.0]


def test_v2_s_json(server: Background) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    found = ask(server, INVOCATIONS, {"id": "7", "inputs": [tensor]})
    assert (found.json["id"], found.json["outputs"][0]["data"]) == ("7", [2.0, 4.0])
    wrong = ask(server, INVOCATIONS, {"inputs": [tensor | {"name": "z"}]})
    assert (wrong.status, "'z'" in wrong.json["message"]) == (400, True)


@pytest.mark.parametrize("size", ["", ";json-header-size=z", ";json-header-size=-1", ";json-header-size=99999"])  # fmt: skip
def test_a_wrong_size_of_triton_s_json_is_refused(server: Background, size: str) -> None:
    body = triton_body([1, 2]) + bytes(8)
    assert ask(server, INVOCATIONS, body, content_type=TRITON + size).status == 400


@pytest.mark.parametrize(
    ("body", "more", "status", "words"),
    [
        (b"[[1,", {}, 400, "JSON"),
        (b"", {}, 400, "JSON"),
        (b'[["a"]]', {}, 400, "input 'x'"),
        (b'{"x": {"y": 1}}', {}, 400, "input 'x'"),
        (b'{"rows": [[1]]}', {}, 400, "expected instances, inputs"),
        (b"1,a\n", {"content_type": "text/csv"}, 400, "'a'"),
        (b"1,2\n3\n", {"content_type": "text/csv"}, 400, "differ in length"),
        (b"[1]\n[", {"content_type": "application/jsonlines"}, 400, "line 2"),
        (b"\x93NUMPY", {"content_type": "application/x-npy"}, 400, ".npy"),
        (b"PK", {"content_type": "application/x-npz"}, 400, ".npz"),
        (b"1 1:2", {"content_type": "text/libsvm"}, 415, "text/libsvm is not read"),
        (b"x", {"content_type": "tensor/pt"}, 415, "tensor/pt is not read"),
        (b"[[1]]", {"accept": "text/html"}, 406, "Accept names none"),
        (photograph(), {"content_type": "image/jpeg"}, 400, "does not take images"),
        (b"[[1]]", {"x_amzn_sagemaker_target_variant": "blue"}, 400, "AllTraffic"),
        (b"[[1]]", {"x_amzn_sagemaker_target_variant": "7"}, 404, "it has 1"),
        (b"[[1]]", {"x_amzn_sagemaker_target_model": "../../etc/passwd"}, 404, "unknown model"),
        (b"[[1]]", {"x_amzn_sagemaker_inference_id": "x" * 65}, 400, "1 to 64"),
        (b"[[1]]", {"x_amzn_sagemaker_custom_attributes": "tfs-method=regress"}, 400, "/v1/models/M:regress"),
    ],
    ids=sized,
)  # fmt: skip
def test_errors_say_what_is_wrong(
    server: Background, body: bytes, more: dict[str, str], status: int, words: str
) -> None:
    found = ask(server, INVOCATIONS, body, **more)
    assert (found.status, found.json["code"]) == (status, status)
    assert words in found.json["message"]
    assert found.json["type"].endswith("Exception")


def test_arrays_are_never_unpickled(server: Background) -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    found = ask(server, INVOCATIONS, file.getvalue(), content_type="application/x-npy")
    assert (found.status, "object" in found.json["message"]) == (400, True)


def invoke(server: Background, model: str, body: Any, **headers: str) -> Answered:
    return ask(server, INVOCATIONS, body, x_amzn_sagemaker_target_model=model, **headers)


def test_an_image_gets_an_answer_for_people(several: Background) -> None:
    found = invoke(several, "colours.tar.gz", photograph("green"), content_type="image/jpeg")
    assert found.json["classes"][0]["label"] == "green"
    raw = invoke(several, "colours", photograph("green", kind="PNG"), content_type="application/x-image")  # fmt: skip
    assert raw.json["classes"][0]["label"] == "green"
    body, media = form(("file", "p.jpg", photograph("blue")))
    assert invoke(several, "colours", body, content_type=media).json["classes"][0]["label"] == "blue"  # fmt: skip
    boxes = invoke(several, "boxes", photograph("red", 80, 40), content_type="image/png")
    assert boxes.json["boxes"][0]["label"] == "dog"


def test_a_form_may_hold_any_body(several: Background) -> None:
    body, media = form(("data", "x.json", b"[[1, 2]]"))
    assert invoke(several, "double", body, content_type=media).json == [[2.0, 4.0]]
    typed = body.replace(b"application/octet-stream", b"text/csv").replace(b"[[1, 2]]", b"1,2")
    assert invoke(several, "double", typed, content_type=media).json == [[2.0, 4.0]]
    body, media = form(("x", "", b"[[1, 2]]"), ("ids", "", b"[7]"))
    assert invoke(several, "found", body, content_type=media).json["outputs"]["kinds"] == [[7]]
    nested = typed.replace(b"text/csv", media.encode())
    assert invoke(several, "double", nested, content_type=media).status == 400


def test_a_damaged_image_is_refused(several: Background) -> None:
    found = invoke(several, "colours", photograph()[:300], content_type="image/jpeg")
    assert (found.status, found.json["type"]) == (400, "BadRequestException")


def test_several_inputs_and_outputs(several: Background) -> None:
    body = {"inputs": {"x": [[1, 2], [-1, 3]], "ids": [7, 8]}}
    found = invoke(several, "found", body)
    assert found.json == {"outputs": {"boxes": [[1.0, 2.0]], "kinds": [[7]]}}
    arrays = npz(x=np.float32([[1, 2]]), ids=np.int64([7]))
    answer = invoke(several, "found", arrays, content_type="application/x-npz", accept="application/x-npz")  # fmt: skip
    with np.load(io.BytesIO(answer.body)) as outputs:
        assert outputs["kinds"].tolist() == [[7]]
    csv = invoke(several, "found", body, accept="text/csv")
    assert (csv.status, "2 outputs" in csv.json["message"]) == (400, True)


def test_every_type_comes_and_goes(several: Background) -> None:
    row = {"half": [1.5, 2], "long": [2**53, -2], "byte": [0, 255], "flag": [True, False], "text": ["ä", ""]}  # fmt: skip
    found = invoke(several, "echo", {"instances": [row, row]})
    assert found.json == {"predictions": [{f"{k}_out": v for k, v in row.items()}] * 2}
    lines = invoke(
        several, "echo", json.dumps(row).encode(), content_type="application/jsonlines", accept="application/jsonlines"
    )  # fmt: skip
    assert lines.json == found.json["predictions"][0]


def test_no_rows_found_is_an_answer(several: Background) -> None:
    found = invoke(several, "found", {"inputs": {"x": [[-1, 2]], "ids": [7]}})
    assert found.json == {"outputs": {"boxes": [], "kinds": []}}


@pytest.mark.parametrize(
    ("headers", "shift"),
    [
        ({}, 2.0),
        ({"x_amzn_sagemaker_target_variant": "AllTraffic"}, 2.0),
        ({"x_amzn_sagemaker_target_variant": "1"}, 1.0),
        ({"x_amzn_sagemaker_target_variant": "2"}, 2.0),
        ({"x_amzn_sagemaker_custom_attributes": "a=1,tfs-model-version=1,tfs-method=predict"}, 1.0),
    ],
)
def test_a_variant_is_a_version(several: Background, headers: dict[str, str], shift: float) -> None:
    found = invoke(several, "m", {"instances": [[0, 0, 0, 0]]}, **headers)
    assert found.json == {"predictions": [[shift] * 4]}


def test_tensorflow_s_predictor_names_its_model(several: Background) -> None:
    attributes = "tfs-model-name=m,tfs-model-version=1"
    body = {"instances": [[0, 0, 0, 0]]}
    found = ask(several, INVOCATIONS, body, x_amzn_sagemaker_custom_attributes=attributes)
    assert found.json == {"predictions": [[1.0] * 4]}
    assert found.headers["x-amzn-sagemaker-custom-attributes"] == attributes


def test_without_a_name_one_of_several_models_is_not_guessed(several: Background) -> None:
    found = ask(several, INVOCATIONS, [[1]])
    assert (found.status, "X-Amzn-SageMaker-Target-Model" in found.json["message"]) == (400, True)
    by_endpoint = ask(several, "/endpoints/m/invocations", [[0, 0, 0, 0]])
    assert by_endpoint.json == [[2.0] * 4]


def test_aws_s_clients_get_the_name_of_their_error(server: Background) -> None:
    found = ask(server, "/endpoints/any/invocations", b"[")
    assert (found.status, found.headers["x-amzn-errortype"]) == (400, "ModelError")
    assert "x-amzn-errortype" not in ask(server, INVOCATIONS, b"[").headers
    assert ask(server, "/endpoints/any/invocations", [[1]]).json == [[2.0]]


@pytest.mark.parametrize("value", ["trace=1, b", "x" * 1_024])
def test_custom_attributes_come_back(server: Background, value: str) -> None:
    for body in ([[1]], b"["):
        found = ask(server, INVOCATIONS, body, x_amzn_sagemaker_custom_attributes=value)
        assert found.headers["x-amzn-sagemaker-custom-attributes"] == value


@pytest.mark.parametrize("value", ["x" * 1_025, "\xe9", "a\tb"])
def test_custom_attributes_that_no_header_may_hold_do_not(server: Background, value: str) -> None:
    found = ask(server, INVOCATIONS, [[1]], x_amzn_sagemaker_custom_attributes=value)
    assert found.status == 200
    assert "x-amzn-sagemaker-custom-attributes" not in found.headers


def test_batch_transform_is_told_how_to_send_records(server: Background) -> None:
    found = ask(server, "/execution-parameters", method="GET").json
    assert found["BatchStrategy"] == "SINGLE_RECORD"
    assert 0 < found["MaxConcurrentTransforms"] * found["MaxPayloadInMB"] <= 100


def test_the_default_accept_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT", "text/csv")
    settings = Settings(bundle=str(doubling_bundle(tmp_path)), http_port=0, protocols="sagemaker")
    with Background(settings) as server:
        assert ask(server, INVOCATIONS, [[1, 2]]).body == b"2.0,4.0\n"
        assert ask(server, INVOCATIONS, [[1, 2]], accept="application/json").json == [[2.0, 4.0]]
