"""The description of SageMaker's routes against the routes. With all protocols on one port, TorchServe's hide some."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from edgeserve.serve.settings.server import Settings
from tests.conformance.environments import environment
from tests.serve.background import Background
from tests.serve.protocols.doubling import doubling_bundle


@pytest.mark.slow
def test_schemathesis_finds_no_server_error_and_no_lie(tmp_path: Path) -> None:
    python = environment("schemathesis", "schemathesis==4.32.5")
    settings = Settings(
        bundle=str(doubling_bundle(tmp_path)), http_port=0, protocols="sagemaker", model_control=True
    )  # fmt: skip
    with Background(settings) as server:
        done = subprocess.run(
            [python.with_name("st"), "run", f"{server.url}/openapi.json", "--checks", "all",
             # A schema cannot say what a model takes; a number is a table.
             "--exclude-checks", "positive_data_acceptance,negative_data_rejection",
             "--include-path-regex", "^/(ping|invocations|models|endpoints|execution)", "-n", "50", "--no-color"],
            capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"CI": "1"}, timeout=900,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "9 selected" in done.stdout
