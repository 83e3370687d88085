"""The commands that the documentation shows, with curl itself."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from edgeserve.serve.settings.server import Settings
from tests.bundles import linear
from tests.conformance.process import Served
from tests.seeing import colours_bundle, photograph
from tests.serve.background import Background

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = ("README.md", "docs/run.md", "docs/protocols.md")
NUMBERS = np.float32([[1, 2, 3, 4]])
_PHOTO = "--data-binary @"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def documented() -> list[tuple[str, str]]:
    """Every curl command in the pages, as it stands there."""
    commands = []
    for page in PAGES:
        text = (ROOT / page).read_text("utf-8").replace("\\\n", " ")
        commands += [(page, m[1]) for m in re.finditer(r"^ {4}(curl .*)$", text, re.MULTILINE)]
    return commands


def curl(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["curl", "-sS", *arguments], capture_output=True, timeout=30, check=True)


def test_the_pages_show_curl() -> None:
    assert len(documented()) >= 2


@pytest.mark.parametrize(("page", "command"), [c for c in documented() if _PHOTO not in c[1]])
def test_documented_commands_answer(linear_server: Served, page: str, command: str) -> None:
    """With this server's address and its model in the place of `model`."""
    here = command.replace("localhost:8000", linear_server.http).replace(
        "models/model/", "models/linear/"
    )
    answer = json.loads(curl(*shlex.split(here)[1:]).stdout)
    assert "error" not in answer, answer
    if "infer" in command:
        np.testing.assert_allclose(answer["outputs"][0]["data"], linear(NUMBERS)[0], rtol=1e-5)


def test_documented_photographs_are_classified(tmp_path: Path) -> None:
    """With this server's address and its model in the place of others."""
    (tmp_path / "photo.jpg").write_bytes(photograph("blue"))
    commands = [command for _, command in documented() if _PHOTO in command]
    assert commands
    with Background(Settings(bundle=str(colours_bundle(tmp_path)), http_port=0)) as server:
        for command in commands:
            here = command.replace("localhost:8000", server.url.removeprefix("http://"))
            here = re.sub("@[a-z]+.jpg", f"@{tmp_path / 'photo.jpg'}", here)
            here = re.sub("models/[a-z]+/", "models/colours/", here)
            answer = json.loads(curl(*shlex.split(here)[1:]).stdout)
            assert answer["classes"][0]["label"] == "blue"


def test_binary_data_from_a_file(linear_server: Served, tmp_path: Path) -> None:
    """A raw request: the body is the tensor and nothing else."""
    (tmp_path / "tensor.bin").write_bytes(NUMBERS.tobytes())
    done = curl(
        "-D", str(tmp_path / "head"), "-H", "Inference-Header-Content-Length: 0",
        "--data-binary", f"@{tmp_path / 'tensor.bin'}",
        f"{linear_server.url}/v2/models/linear/infer",
    )  # fmt: skip
    head = (tmp_path / "head").read_text().lower()
    length = int(re.search(r"inference-header-content-length: (\d+)", head)[1])  # type: ignore[index]
    np.testing.assert_allclose(
        np.frombuffer(done.stdout[length:], np.float32), linear(NUMBERS)[0], rtol=1e-5
    )


def test_a_large_body_is_sent_after_100_continue(linear_server: Served, tmp_path: Path) -> None:
    """curl asks for leave before bodies over a megabyte: `Expect: 100-continue`."""
    rows = np.ones((64, 4), np.float32).tolist()
    data = {"name": "x", "shape": [64, 4], "datatype": "FP32", "data": rows}
    padded = json.dumps({"id": "i" * (1 << 20), "inputs": [data]})
    (tmp_path / "body").write_text(padded)
    answer = json.loads(
        curl("-d", f"@{tmp_path / 'body'}", f"{linear_server.url}/v2/models/linear/infer").stdout
    )
    np.testing.assert_allclose(
        np.reshape(answer["outputs"][0]["data"], (64, 3)), linear(np.float32(rows)), rtol=1e-5
    )


def test_head_of_health(linear_server: Served) -> None:
    head = curl("-I", f"{linear_server.url}/v2/health/ready").stdout
    assert head.startswith(b"HTTP/1.1 200")
