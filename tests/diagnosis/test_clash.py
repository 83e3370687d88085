"""Two real builds of onnxruntime in one environment: what doctor says, and that its command mends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with edgeserve as it is here, onnxruntime, and another build over it."""
    folder = tmp_path_factory.mktemp("clash") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pip = [folder / "bin" / "pip", "--disable-pip-version-check", "install", "--quiet"]
    for wanted in (project["dependencies"], ["onnxruntime-webgpu"]):
        done = subprocess.run([*pip, *wanted], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"packages cannot be installed here: {done.stderr[-300:]}")
    return folder


def doctor(environment: Path) -> tuple[int, list[dict[str, Any]]]:
    """The exit code, and the errors about packages."""
    done = subprocess.run(
        [environment / "bin" / "python", "-m", "edgeserve", "doctor", "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    findings = json.loads(done.stdout)["findings"]
    errors = [f for f in findings if f["level"] == "error" and f["about"] == "packages"]
    return done.returncode, errors


@pytest.mark.slow
def test_the_command_that_doctor_names_mends_a_clash(environment: Path) -> None:
    code, errors = doctor(environment)
    assert code == 1
    (error,) = errors
    assert error["text"] == (
        "onnxruntime and onnxruntime-webgpu both install the module onnxruntime and overwrite each other "
        "(the files there are onnxruntime-webgpu's)"
    )
    command = error["command"]
    assert command == (
        "pip uninstall -y onnxruntime onnxruntime-webgpu && pip install onnxruntime-webgpu"
    )
    path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        command, shell=True, check=True, env=os.environ | {"PATH": path}, capture_output=True
    )
    code, errors = doctor(environment)
    assert (code, errors) == (0, [])
