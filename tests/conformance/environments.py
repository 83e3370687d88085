"""Environments for clients that must not meet ours, kept in the user's cache between runs.

Each is made on first use; where that is impossible (no package index, wrong machine) the tests that
need it are skipped with the reason.
"""

from __future__ import annotations

import os
import platform
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgeserve.conversion.tools.environment import cache_root

_DONE = ".complete"


def _folder(name: str) -> Path:
    return cache_root() / "conformance" / name


def environment(name: str, *requirements: str) -> Path:
    """The Python of a virtual environment with these requirements."""
    folder = _folder(name)
    python = folder / "bin" / "python"
    done = folder / _DONE
    if done.is_file() and done.read_text() == repr(requirements):
        return python
    _run(sys.executable, "-m", "venv", "--clear", str(folder))
    _run(str(python), "-m", "pip", "install", "--quiet", *requirements)
    done.write_text(repr(requirements))
    return python


def perf_analyzer() -> tuple[Path, dict[str, str]]:
    """NVIDIA's perf_analyzer and the environment it runs in.

    Newer wheels want a newer glibc than many systems have; the one inside tritonclient 2.41.0 runs on
    all, with CUDA's runtime library beside it (no GPU is needed) and the system's libb64.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("perf_analyzer exists for Linux on x86-64 alone")
    folder = _folder("perf-analyzer")
    if not (folder / _DONE).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        wheels = folder / "wheels"
        _run(
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels),
            "tritonclient==2.41.0", "nvidia-cuda-runtime-cu12==12.9.79",
        )  # fmt: skip
        for wheel in wheels.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
        (folder / _DONE).touch()
    program = folder / "tritonclient-2.41.0.data" / "data" / "bin" / "perf_analyzer"
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    libraries = folder / "nvidia" / "cuda_runtime" / "lib"
    variables = os.environ | {"LD_LIBRARY_PATH": str(libraries)}
    tried = subprocess.run([program, "--version"], capture_output=True, text=True, env=variables)
    if "error while loading shared libraries" in tried.stderr:
        pytest.skip(f"perf_analyzer: {tried.stderr.strip()} (Debian: apt-get install libb64-0d)")
    return program, variables


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"{' '.join(command[:6])} failed: {done.stderr[-500:]}")
