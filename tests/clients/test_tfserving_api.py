"""tensorflow-serving-api's stubs, in an environment of their own without TensorFlow: its messages come from another package."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from edgeserve.serve.settings.server import Settings
from tests.conformance.environments import environment
from tests.seeing import colours_bundle
from tests.serve.background import Background
from tests.serve.protocols.tfserving.models import repository

CLIENT = Path(__file__).parent / "tfserving_session.py"


@pytest.mark.slow
def test_all_that_its_stubs_ask_is_answered(tmp_path: Path) -> None:
    python = environment(
        "tensorflow-serving-api", "--no-deps", "tensorflow-protobuf==2.11.0",
        "tensorflow-serving-api==2.21.0", "grpcio", "protobuf", "typing-extensions",
    )  # fmt: skip
    models = tmp_path / "models"
    models.mkdir()
    repository(models)
    settings = Settings(
        bundle=str(colours_bundle(tmp_path)), repository=str(models), http_port=0, grpc_port=0
    )
    with Background(settings) as server:
        done = subprocess.run(
            [str(python), str(CLIENT), str(server.started.grpc)],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said["newest"]["outputs"]["y"]["float_val"] == [3.5, 4.0]
    assert said["newest"]["model_spec"] == {
        "name": "half", "version": "2", "signature_name": "serving_default",
    }  # fmt: skip
    assert (said["first"], said["zero"]) == ([2.5, 3.0], [3.5, 4.0])
    assert said["texts"] == ["a", "é"]
    assert [v["state"] for v in said["status"]["model_version_status"]] == ["AVAILABLE"] * 2
    assert said["signature"]["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert said["classes"] == ["red", "green", "blue"]
    assert said["numbers"] == [3.5, 5.5]
    assert said["unknown"] == "NOT_FOUND"
    assert (said["several"], said["reload"]) == ("UNIMPLEMENTED", "UNIMPLEMENTED")
