"""The examples of sources, each made by its framework and converted as its README says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import edgeserve
from edgeserve.bundle import Bundle
from edgeserve.conversion.registry import converter_called, tool_environment

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "sources"
TARGET = """
name = "one"
title = "onnxruntime only"
arch = ["x86_64", "aarch64", "arm64"]
[[chain]]
runtime = "onnxruntime"
device = "cpu"
precisions = ["fp32"]
"""
CHECKPOINT = {
    "model_class": "pytorch:Net",
    "python_path": [str(EXAMPLES)],
    "shapes": {"image": (1, 3, 32, 32)},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the scripts are run in, each once, when it is first asked for."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "one.toml").write_text(TARGET)
    return folder


def run(script: str, converter: str, folder: Path) -> None:
    if (folder / script).exists():
        return
    python = tool_environment(converter_called(converter)).ensure(lambda what, share: None)
    shutil.copy(EXAMPLES / script, folder)
    done = subprocess.run([python, script], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "edgeserve convert " in done.stdout


@pytest.mark.parametrize(
    ("script", "converter", "file", "options"),
    [
        ("pytorch.py", "torch-export-to-onnx", "net.pt2", {}),
        ("pytorch.py", "torch-export-to-onnx", "net.pt", CHECKPOINT),
        ("keras_cnn.py", "keras-to-onnx", "cnn.keras", {}),
        ("keras_cnn.py", "keras-to-onnx", "saved-model", {}),
        ("forest.py", "sklearn-skops-to-onnx", "forest.skops", {}),
    ],
)
def test_an_example_becomes_a_bundle(
    made: Path,
    script: str,
    converter: str,
    file: str,
    options: dict[str, Any],
) -> None:
    run(script, converter, made)
    destination = made / f"{file}.edge"
    edgeserve.convert(made / file, destination, target=str(made / "one.toml"), **options)
    source = Bundle.open(destination).manifest.source
    assert source.file_name == file
    assert source.framework is not None
    assert source.import_error is not None
    assert source.import_error < 1e-3
