"""Multi-model endpoints: models are loaded by name from the server's repository alone, by callers with the control role."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeserve.serve.settings.server import Settings
from tests.serve.background import Background
from tests.serve.protocols.asking import Answered, ask
from tests.serve.repositories import shifted_bundle, version
from tests.serve.running import Served

INFER, CONTROL = "infer-key-0123456789", "control-key-0123456789"
ROW = [[0, 0, 0, 0]]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    shifted_bundle(folder, "a", 1.0)
    version(folder, "b", 1, 2.0)
    return folder


@pytest.fixture
def server(repository: Path) -> Iterator[Background]:
    settings = Settings(
        bundle=str(repository), http_port=0, protocols="sagemaker", model_control=True, load=()
    )
    with Background(settings) as running:
        yield running


def load(
    server: Background | Served, name: str, url: str = "/opt/ml/models/x", **headers: str
) -> Answered:
    return ask(server, "/models", {"model_name": name, "url": url}, **headers)


def listed(server: Background, query: str = "") -> list[str]:
    answer = ask(server, f"/models{query}", method="GET").json
    return [model["modelName"] for model in answer["models"]]


def test_a_model_s_life(server: Background) -> None:
    assert ask(server, "/ping", method="GET").status == 200  # waits for models
    assert listed(server) == []
    assert ask(server, "/models/a/invoke", ROW).status == 404
    assert load(server, "a").status == 200
    assert load(server, "a").status == 409
    assert ask(server, "/models/a/invoke", ROW).json == [[1.0] * 4]
    assert ask(server, "/models/a", method="GET").json == {"modelName": "a", "modelUrl": "a.edge"}
    assert load(server, "b").status == 200
    assert listed(server) == ["a", "b"]
    assert ask(server, "/models/b/invoke", ROW).json == [[2.0] * 4]
    assert ask(server, "/models/a", method="DELETE").status == 200
    assert [ask(server, "/models/a", method=m).status for m in ("DELETE", "GET")] == [404, 404]
    assert ask(server, "/models/a/invoke", ROW).status == 404
    assert load(server, "a").status == 200
    assert ask(server, "/models/a/invoke", ROW).status == 200


def test_models_are_listed_in_pages(server: Background) -> None:
    for name in ("a", "b"):
        assert load(server, name).status == 200
    first = ask(server, "/models?limit=1", method="GET").json
    assert ([m["modelName"] for m in first["models"]], first["nextPageToken"]) == (["a"], "1")
    assert listed(server, "?limit=1&next_page_token=1") == ["b"]
    for query in ("?limit=0", "?limit=x", "?next_page_token=-1", "?" + "a=1&" * 200):
        assert ask(server, f"/models{query}", method="GET").status == 400


@pytest.mark.parametrize(
    ("name", "status"),
    [("nobody", 404), ("", 400), ("../a", 400), ("a/../../x", 400), ("/etc/passwd", 400)],
)
def test_only_a_model_of_the_repository_is_loaded(
    server: Background, name: str, status: int
) -> None:
    answer = load(server, name)
    assert (answer.status, listed(server)) == (status, [])


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model_name": 1}', b"[" * 100, b"\xff"])
def test_a_body_that_is_not_a_load_is_refused(server: Background, body: bytes) -> None:
    assert ask(server, "/models", body).status == 400


def test_triton_s_path_traversal_opens_nothing(
    repository: Path, server: Background, tmp_path: Path
) -> None:
    """Triton's SageMaker endpoint loaded whatever the `url` of a load led to (server issue 8659)."""
    outside = shifted_bundle(tmp_path / "outside", "secret", 9.0)
    for url in (
        f"{repository}/../outside/secret.edge", "../outside", "/opt/ml/models/a/../../../etc", "..\\outside",
    ):  # fmt: skip
        answer = load(server, "a", url)
        assert (answer.status, listed(server)) == (404, [])
        assert load(server, "secret", url).status == 404
    # A path without dots that leads elsewhere: the model of that name is loaded, or none.
    assert load(server, "secret", str(outside)).status == 404
    assert load(server, "a", str(outside)).status == 200
    assert ask(server, "/models/a/invoke", ROW).json == [[1.0] * 4]
    by_query = ask(server, f"/models?model_name=b&url={outside}%2F..%2Foutside")
    assert by_query.status == 404


def test_no_url_is_fetched(server: Background) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        for scheme in ("http", "https", "s3", "file"):
            answer = load(server, "a", f"{scheme}://127.0.0.1:{port}/model.tar.gz")
            assert (answer.status, "nothing is fetched" in answer.json["message"]) == (400, True)
        with pytest.raises(TimeoutError):
            listener.accept()
    assert listed(server) == []


def test_loading_needs_the_control_role(repository: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"infer {INFER}\ncontrol {CONTROL}\n")
    settings = Settings(
        bundle=str(repository), http_port=0, protocols="sagemaker", model_control=True, keys=str(keys)
    )  # fmt: skip
    with Background(settings) as server:
        for key, status in ((None, 401), (INFER, 403)):
            headers = {} if key is None else {"x_api_key": key}
            assert load(server, "a", **headers).status == status
            assert ask(server, "/models/a", method="DELETE", **headers).status == status
        assert ask(server, "/models/a/invoke", ROW).status == 401
        assert ask(server, "/models/a/invoke", ROW, x_api_key=INFER).status == 200
        assert ask(server, "/models", method="GET").status == 401
        assert ask(server, "/ping", method="GET").status == 200
        assert ask(server, "/models/a", method="DELETE", x_api_key=CONTROL).status == 200
        assert load(server, "a", x_api_key=CONTROL).status == 200


def test_loading_has_to_be_switched_on(repository: Path) -> None:
    settings = Settings(bundle=str(repository), http_port=0, protocols="sagemaker")
    with Background(settings) as server:
        for answer in (load(server, "a"), ask(server, "/models/a", method="DELETE")):
            assert (answer.status, answer.json["type"]) == (403, "ForbiddenException")
        assert listed(server) == ["a", "b"]


def test_a_model_that_does_not_fit_is_507(repository: Path) -> None:
    shifted_bundle(repository, "large", 3.0, pad_kb=10_000)
    settings = Settings(
        bundle=str(repository), http_port=0, protocols="sagemaker", model_control=True, load=("a",),
        memory_budget="16MB",
    )  # fmt: skip
    with Background(settings) as server:
        answer = load(server, "large")
        assert (answer.status, answer.json["code"]) == (507, 507)
        assert "does not fit" in answer.json["message"]
        assert ask(server, "/models/large/invoke", ROW).status == 503
        assert listed(server) == ["a", "large"]
        assert ask(server, "/models/a/invoke", ROW).status == 200
        assert ask(server, "/models/large", method="DELETE").status == 200


def test_a_model_that_does_not_fit_when_it_is_asked_for_is_507(repository: Path) -> None:
    shifted_bundle(repository, "large", 3.0, pad_kb=10_000)
    settings = Settings(
        bundle=str(repository), http_port=0, protocols="sagemaker", memory_budget="16MB"
    )
    with Background(settings) as server:
        for _ in range(2):
            assert ask(server, "/models/large/invoke", ROW).status == 507


def test_the_platform_s_folders_are_models(tmp_path: Path) -> None:
    """/opt/ml/models/NAME/model/, which holds what the archive held."""
    staging = shifted_bundle(tmp_path / "staging", "x", 4.0)
    folder = tmp_path / "models" / "0a1b" / "model"
    folder.mkdir(parents=True)
    staging.rename(folder / "x.edge")
    settings = Settings(
        bundle=str(tmp_path / "models"), http_port=0, protocols="sagemaker", model_control=True, load=()
    )  # fmt: skip
    with Background(settings) as server:
        assert load(server, "0a1b", "/opt/ml/models/0a1b/model").status == 200
        assert ask(server, "/models/0a1b/invoke", ROW).json == [[4.0] * 4]


def test_all_workers_load_and_unload(repository: Path, tmp_path: Path) -> None:
    flags = ("--protocols", "sagemaker", "--workers", "2", "--model-control", "--load", "a")
    with Served(tmp_path, repository, *flags) as server:
        assert load(server, "b").status == 200
        assert load(server, "b").status == 409
        answers = [ask(server, "/models/b/invoke", ROW) for _ in range(8)]
        assert all(answer.json == [[2.0] * 4] for answer in answers)
        assert ask(server, "/models/b", method="DELETE").status == 200
        assert {ask(server, "/models/b/invoke", ROW).status for _ in range(8)} == {404}
        assert ask(server, "/ping", method="GET").status == 200
        assert server.stop() == 0
