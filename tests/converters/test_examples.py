"""The examples of sources, each made by its framework and converted as its README says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import edgeserve
from edgeserve.bundle import Bundle
from edgeserve.conversion.tools.registry import converter_called, runs_here, tool_environment

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
    tool = converter_called(converter)
    python: str | Path = sys.executable
    if not runs_here(tool):
        python = tool_environment(tool).ensure(lambda what, share: None)
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
        ("forest.py", "sklearn-pickle-to-onnx", "forest.joblib", {"trust_source": True}),
        ("hugging_face.py", "huggingface-to-onnx", "text-classifier", {}),
        ("hugging_face.py", "huggingface-to-onnx", "token-classifier", {}),
        ("hugging_face.py", "huggingface-to-onnx", "image-classifier", {}),
        ("hugging_face.py", "huggingface-to-onnx", "encoder", {}),
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


@pytest.mark.parametrize(
    ("script", "converter", "file", "runtime", "int8"),
    [
        ("keras_cnn.py", "keras-to-onnx", "cnn.tflite", "litert", "tflite-int8"),
        ("openvino_ir.py", "onnx-to-openvino", "cnn.xml", "openvino", "openvino-int8-nncf"),
    ],
)
def test_an_example_in_a_runtime_s_own_format_becomes_a_bundle_with_int8(
    made: Path, script: str, converter: str, file: str, runtime: str, int8: str
) -> None:
    run(script, converter, made)
    (made / "own.toml").write_text(
        TARGET.replace("onnxruntime", runtime).replace('["fp32"]', '["int8", "fp32"]')
    )
    report = edgeserve.convert(
        made / file, made / f"{file}.edge", target=str(made / "own.toml"), calibrate="random"
    )
    # What is too slow here to be worth measuring has been made, too.
    made_of_it = {r.variant for r in report.rows if r.size_bytes is not None}
    assert {int8, int8.partition("-")[0] + "-fp32"} <= made_of_it
    assert report.reference == f"{runtime}/cpu"
