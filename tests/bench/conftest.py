"""Bundles to measure."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeserve.bundle import Bundle, Candidate
from tests.bench import acme
from tests.bundles import linear_bundle

CPU = Candidate("onnx-fp32", "onnxruntime", "cpu")
GPU = Candidate("onnx-fp32", "onnxruntime", "gpu", options={"provider": "CUDAExecutionProvider"})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """Its first candidate does not open on any test machine, its second does everywhere."""
    return Bundle.open(linear_bundle(tmp_path, chain=(GPU, CPU)))


@pytest.fixture
def acme_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acme.install(tmp_path / "site", monkeypatch)
