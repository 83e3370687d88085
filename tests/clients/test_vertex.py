"""google-cloud-aiplatform's own REST client, unchanged but for its address, in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from edgeserve.serve.settings.server import Settings
from tests.conformance.environments import environment
from tests.serve.background import Background
from tests.serve.protocols.doubling import doubling_bundle

CLIENT = Path(__file__).parent / "vertex_session.py"


@pytest.mark.slow
def test_predictions_and_errors_are_read(tmp_path: Path) -> None:
    python = environment("aiplatform", "google-cloud-aiplatform==1.121.0")
    settings = Settings(bundle=str(doubling_bundle(tmp_path)), http_port=0, protocols="vertex")
    with Background(settings) as server:
        done = subprocess.run(
            [str(python), str(CLIENT), server.url], capture_output=True, text=True, timeout=120,
            env=os.environ | {"GOOGLE_CLOUD_PROJECT": "p"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    assert said["predictions"] == [[2.0, 4.0], [6.0, 8.0]]
    assert said["error"].startswith("BadRequest: 400")
    assert "input 'x'" in said["error"]
