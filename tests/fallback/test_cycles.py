"""Losing a device and getting it back leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fallback.cycles import leaked, run_cycles


@pytest.mark.parametrize("cycles", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_nothing_is_left_of_lost_workers(tmp_path: Path, cycles: int) -> None:
    found = run_cycles(tmp_path, cycles)
    assert leaked(found) is None
