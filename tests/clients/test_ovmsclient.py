"""ovmsclient, a client of TF Serving's REST and gRPC API, unchanged, in an environment of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeserve.serve.settings.server import Settings
from tests.conformance.environments import environment
from tests.serve.background import Background
from tests.serve.protocols.tfserving.models import repository

CLIENT = Path(__file__).parent / "ovms_session.py"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    models = repository(tmp_path_factory.mktemp("ovms"))
    with Background(Settings(repository=str(models), http_port=0, grpc_port=0)) as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_all_that_it_asks_is_answered(server: Background, kind: str) -> None:
    where = server.url.removeprefix("http://") if kind == "http" else str(server.started.grpc)
    python = environment("ovmsclient", "ovmsclient==2023.1")
    done = subprocess.run(
        [str(python), str(CLIENT), kind, where], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said: dict[str, Any] = json.loads(done.stdout)
    assert said["status"]["2"]["state"] == "AVAILABLE"
    assert set(said["status"]) == {"1", "2"}
    assert said["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert said["newest"] == [3.5, 4.0]
    assert said["first"] == [2.5, 3.0]
    assert said["two"] == {"sum": [[2.0, 3.0]], "twice": [2.0]}
    assert said["texts"] == ["a", "é"]
    assert said["whole"] == [[-(2**63), 2**63 - 1]]
    assert "NotFound" in said["unknown"]
    assert "Invalid" in said["wrong"]
