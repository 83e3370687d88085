"""`edgeserve demo`: the whole path on the embedded model, as a user starts it."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeserve import load
from edgeserve.bundle import Bundle
from edgeserve.chain import Chain
from edgeserve.demo import embedded

pytestmark = pytest.mark.slow  # it benchmarks for seconds


def demo(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgeserve", "demo", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        env=os.environ | {"TMPDIR": str(cwd)},
    )


def processes_in(folder: Path) -> list[str]:
    """Command lines of the processes whose working directory is `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # ended, or another user's
    return found


def left_in(folder: Path) -> list[str]:
    """What the demo left; onnxruntime 1.32 itself writes `.ses` into the temporary folder."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".ses")


def test_no_serve_leaves_a_bundle_that_opens(tmp_path: Path) -> None:
    done = demo("--no-serve", "--keep", "kept", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "$ edgeserve run" not in done.stdout
    bundle = Bundle.open(tmp_path / "kept" / "digits.edge")
    with Chain(bundle) as chain:
        assert chain.candidate.device == "cpu"
    assert {v.precision for v in bundle.manifest.variants} >= {"int8"}
    assert "serve it again: edgeserve run kept/digits.edge" in done.stdout
    assert left_in(tmp_path) == ["kept"]
    samples = np.load(embedded().samples)
    right = 0
    with load(bundle.path) as model:
        for digit, label in zip(samples["image"][:50], samples["label"][:50], strict=True):
            ink = Image.fromarray((255 - 255 * digit[0]).round().astype(np.uint8))
            file = io.BytesIO()
            ink.resize((240, 240), Image.Resampling.BICUBIC).convert("RGB").save(file, "JPEG")
            right += model.predict(file.getvalue()).classes[0].label == str(label)
    assert right >= 45


def test_it_converts_proves_measures_serves_and_asks(tmp_path: Path) -> None:
    done = demo(cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    for step, command in enumerate(("convert", "bench", "gate", "run"), start=1):
        assert f"{step}/5" in done.stdout
        assert f"$ edgeserve {command} " in done.stdout
    found = re.search(r"^(\d+) of 200 right, on device 'cpu'", done.stdout, re.MULTILINE)
    assert found
    assert int(found[1]) >= 180
    assert "the server drained and ended with exit code 0" in done.stdout
    assert processes_in(tmp_path) == []
    assert left_in(tmp_path) == []
