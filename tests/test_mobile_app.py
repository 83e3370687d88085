"""The page of examples/mobile-app: photographs go to a real server with its key, answers and errors come back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeserve.serve.settings.server import Settings
from tests.seeing import colours_bundle, photograph
from tests.serve.background import Background

APP = Path(__file__).parents[1] / "examples" / "mobile-app" / "web" / "app.py"
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
