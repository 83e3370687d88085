"""KServe's own client, in an environment of its own: 450 MB, made on first use."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import linear
from tests.conformance.environments import environment
from tests.conformance.process import Served

pytestmark = pytest.mark.slow
X = np.arange(8, dtype=np.float32).reshape(2, 4) - 3


def test_kserve_s_client(linear_server: Served) -> None:
    python = environment("kserve", "kserve==0.21.0")
    done = subprocess.run(
        [python, Path(__file__).with_name("kserve_client.py"), linear_server.url, linear_server.grpc],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for protocol, found in json.loads(done.stdout.splitlines()[-1]).items():
        for question in ("live", "ready", "model_ready"):
            assert found.pop(question) is True, (protocol, question)
        for answer in found.values():
            np.testing.assert_allclose(answer, linear(X), rtol=1e-5)
