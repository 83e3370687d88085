"""Losing a device and getting it back leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("cycles", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_nothing_is_left_of_lost_processes(cycles: int) -> None:
    """In a process of its own: pytest keeps what was logged, and with it errors and what they saw."""
    command = [sys.executable, "-m", "tests.fallback.cycles", "--cycles", str(cycles)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
