"""The page of examples/mobile-app: photographs go to a real server with its key, answers and errors come back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeserve.serve.settings.server import Settings
from tests import documented
from tests.seeing import colours_bundle, photograph
from tests.serve.background import Background
from tests.test_docs import shell_lines

ROOT = Path(__file__).parents[1]
APP = ROOT / "examples" / "mobile-app" / "web" / "app.py"
KEY = "infer-key-0123456789"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("mobile")
    keys = folder / "keys"
    keys.write_text(f"infer {KEY}\n")
    bundle = colours_bundle(folder, "classifier")
    with Background(Settings(bundle=str(bundle), http_port=0, keys=str(keys))) as server:
        environ = os.environ | {"EDGESERVE_URL": server.url, "EDGESERVE_API_KEY": KEY}
        command = [sys.executable, str(APP), "0"]
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as app:
            assert app.stdout is not None
            yield app.stdout.readline().strip()
            app.terminate()


def post(url: str, body: bytes) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(f"{url}/predict", body, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_page_and_its_files_are_served(page: str) -> None:
    for path, words in (("/", "photograph"), ("/app.js", "fetch"), ("/style.css", "meter")):
        with urllib.request.urlopen(page + path, timeout=30) as answer:
            text = answer.read().decode()
        assert words in text
        assert KEY not in text


def test_a_photograph_is_answered_with_the_server_s_key(page: str) -> None:
    status, answer = post(page, photograph("blue"))
    assert status == 200
    assert answer["classes"][0]["label"] == "blue"


def test_what_is_wrong_comes_back(page: str) -> None:
    status, answer = post(page, b"not a photograph")
    assert status == 400
    assert answer["error"]


@pytest.mark.slow
def test_the_commands_of_its_readme_work(tmp_path: Path) -> None:
    """With a small classifier in place of EfficientNet."""
    documented.make_folder(tmp_path)
    (tmp_path / "model.onnx").rename(tmp_path / "efficientnet_lite0.onnx")
    (tmp_path / "images").rename(tmp_path / "photos")
    shutil.copy(ROOT / "examples" / "imagenet" / "preprocess.toml", tmp_path)
    lines = [
        line
        for line in shell_lines((APP.parents[1] / "README.md").read_text("utf-8"))
        if line.startswith("edgeserve ") and "run " not in line
    ]
    assert [line.split()[1] for line in lines] == ["convert", "infer", "gate", "convert"]
    for line in lines:
        done = documented.run(line, tmp_path)
        fine = (0, 1) if " gate " in line else (0,)  # a gate judges the machine
        assert done.returncode in fine, line + done.stdout + done.stderr
    assert list(tmp_path.glob("phone.edge/variants/*/model.tflite"))
