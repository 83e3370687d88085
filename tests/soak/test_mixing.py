"""A small run of benchmarks/mixing.py: no answer depends on who else asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_nobodys_answer_depends_on_hostile_neighbours() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "mixing.py", "--quick"],
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    rows = [line.split(" | ") for line in done.stdout.splitlines() if " | 0 | " in line]
    assert len(rows) == 6, done.stdout
    batching = {row[0].removeprefix("| "): row[-1] for row in rows}
    assert batching["classifier"].startswith("batches up to 32")
    assert "rows interact (Compress" in batching["detector, rows by the data"]
    assert "rows interact (DynamicQuantizeLinear" in batching["dynamic int8, onnxruntime"]
