"""`edgeserve infer` with a photograph answers what the server's predict and Python's do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgeserve import load
from edgeserve.serve.settings.server import Settings
from tests.commands import edgeserve
from tests.seeing import boxes_bundle, colours_bundle, photograph
from tests.serve.background import Background
from tests.serve.protocols.asking import ask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    colours_bundle(folder)
    boxes_bundle(folder)
    (folder / "photo.jpg").write_bytes(photograph("orange", 64, 32))
    (folder / "blue.png").write_bytes(photograph("blue", kind="PNG"))
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Background]:
    bundles = str(folder / "colours.edge"), str(folder / "boxes.edge")
    with Background(Settings(bundle=bundles[0], bundles=bundles[1:], http_port=0)) as running:
        yield running


@pytest.mark.parametrize("name", ["colours", "boxes"])
def test_server_bundle_and_python_agree(folder: Path, server: Background, name: str) -> None:
    photo = folder / "photo.jpg"
    served = ask(server, f"/v2/models/{name}/predict", photo.read_bytes()).json
    key = "classes" if name == "colours" else "boxes"
    bundle = str(folder / f"{name}.edge")
    for where in ((bundle,), (server.url, "--model", name)):
        done = edgeserve("infer", where[0], str(photo), *where[1:], "--json", cwd=folder)
        assert done.returncode == 0, done.stderr
        (answer,) = json.loads(done.stdout)["answers"]
        assert [(a["label"], a["index"]) for a in answer[key]] == [
            (a["label"], a["index"]) for a in served[key]
        ]
        assert [a["score"] for a in answer[key]] == pytest.approx([a["score"] for a in served[key]])
    with load(bundle) as model:
        found = getattr(model.predict(photo), key)
    assert [f.label for f in found] == [a["label"] for a in served[key]]


def test_it_prints_labels_and_boxes_for_people(folder: Path) -> None:
    classes = edgeserve("infer", "colours.edge", "photo.jpg", "blue.png", "--top", "1", cwd=folder)
    assert classes.returncode == 0
    assert "red" in classes.stdout
    assert "blue" in classes.stdout
    assert "image or row 1" in classes.stdout
    boxes = edgeserve("infer", "boxes.edge", "photo.jpg", cwd=folder)
    assert "dog" in boxes.stdout
    assert "0.0, 0.0, 32.0, 32.0" in boxes.stdout


def test_a_file_that_is_not_a_photograph_is_named(folder: Path) -> None:
    (folder / "broken.jpg").write_bytes(photograph()[:200])
    done = edgeserve("infer", "colours.edge", "broken.jpg", cwd=folder)
    assert done.returncode == 2
    assert "broken.jpg is not a readable image" in done.stderr
