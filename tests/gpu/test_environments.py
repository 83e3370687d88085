"""The tests of onnxruntime's WebGPU provider, in the environments that `make gpu-envs` builds."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.gpu.conftest import why_not

ROOT = Path(__file__).parents[2]
FILE = "tests/gpu/test_onnxruntime.py"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["webgpu", "plugins"])
def test_onnxruntime_s_webgpu_provider(name: str) -> None:
    python = ROOT / ".venvs" / name / "bin" / "python"
    if not python.is_file():
        pytest.skip(f"{python.relative_to(ROOT)} is missing: make gpu-envs")
    if problem := why_not():
        pytest.skip(problem)
    ran = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", FILE],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout[-4000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None, ran.stdout[-2000:]
    assert int(passed[1]) >= 7, ran.stdout[-2000:]
