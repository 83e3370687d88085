"""The embedded digits model and its data, for conversions that are real and quick."""

from __future__ import annotations

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "edgeserve" / "demo" / "files"


@pytest.fixture(scope="session")
def digits() -> Path:
    return DATA / "digits.onnx"


@pytest.fixture(scope="session")
def calibration() -> str:
    return str(DATA / "digits-calibration.npz")


@pytest.fixture(scope="session")
def labelled() -> str:
    return str(DATA / "digits-samples.npz")


@pytest.fixture(scope="session")
def onnxruntime_target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A target with onnxruntime alone: the quickest real conversion."""
    file = tmp_path_factory.mktemp("targets") / "plain.toml"
    file.write_text(
        'name = "plain"\ntitle = "onnxruntime only"\narch = ["x86_64", "aarch64", "arm64"]\n'
        '[[chain]]\nruntime = "onnxruntime"\ndevice = "cpu"\nprecisions = ["int8", "fp32"]\n'
    )
    return str(file)
