"""KServe's own client in version 1 of its protocol, in an environment of its own: 450 MB, made on first use."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from edgeserve.serve.settings.server import Settings
from tests.conformance.environments import environment
from tests.serve.background import Background
from tests.serve.protocols.tfserving.models import half

CLIENT = Path(__file__).parent / "kserve_v1_session.py"


@pytest.mark.slow
def test_all_that_it_asks_is_answered(tmp_path: Path) -> None:
    python = environment("kserve", "kserve==0.21.0")
    half(tmp_path, 1, 2.0)
    (tmp_path / "broken" / "1").mkdir(parents=True)
    with Background(Settings(repository=str(tmp_path), http_port=0)) as server:
        done = subprocess.run(
            [str(python), str(CLIENT), server.url], capture_output=True, text=True, timeout=120
        )
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["live"], said["ready"], said["not_ready"]) == (True, True, False)
    assert "404" in said["unknown_ready"]
    assert said["predict"] == {"predictions": [2.5, 3.0]}
    assert "501" in said["explain"]
    assert "404" in said["unknown"]
    assert "400" in said["wrong"]
