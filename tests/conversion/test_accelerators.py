"""Accelerators while converting: what runs where is recorded, and a driver that dies takes nobody along."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

import edgeserve
from edgeserve.bundle import Bundle, Placed
from edgeserve.conversion.report import Conversion
from edgeserve.errors import UnsupportedModel
from tests.bench import acme
from tests.bundles import linear_model

TARGET = """
name = "board"
title = "a board with an NPU"
arch = ["x86_64", "AMD64", "aarch64", "arm64"]
[[chain]]
runtime = "acme"
device = "npu"
precisions = ["fp32"]
options = {{ {options} }}
[[chain]]
runtime = "onnxruntime"
device = "cpu"
precisions = ["fp32"]
"""


def converted(folder: Path, monkeypatch: pytest.MonkeyPatch, options: str) -> Conversion:
    acme.install(folder / "site", monkeypatch)
    (folder / "board.toml").write_text(TARGET.format(options=options))
    onnx.save(linear_model(), folder / "model.onnx")
    return edgeserve.convert(
        folder / "model.onnx", folder / "m.edge", target=str(folder / "board.toml"), tool_env=False
    )


def test_what_the_device_runs_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = converted(tmp_path, monkeypatch, "")
    assert [c.device for c in report.chain] == ["npu", "cpu"]
    (variant,) = Bundle.open(tmp_path / "m.edge").manifest.variants
    placed = {m.device: m.placed for m in variant.measured}
    assert placed["npu"] == Placed({"npu": 0.75, "cpu": 0.25})
    assert placed["cpu"] is not None
    assert placed["cpu"].shares == {"cpu": 1.0}


def test_a_driver_that_dies_at_load_leaves_the_device_unverified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = converted(tmp_path, monkeypatch, 'fault = "abort"')
    assert [c.device for c in report.chain] == ["npu", "cpu"]
    (reason,) = [r.reason for r in report.rows if r.device == "npu"]
    assert "not verified here" in reason
    assert "died of SIGABRT: acme driver: assertion failed" in reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ('fault = "die", after = 1', "died of SIGKILL"),
        ('fault = "die", after = 200', "died of SIGKILL"),
        ("after = 200", "acme failed on npu: out of tiles"),
    ],
    ids=["at the first call", "while it is timed", "raising while it is timed"],
)
def test_a_driver_that_dies_later_is_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, words: str
) -> None:
    """The target is about this device: there is no bundle without it."""
    for seconds in ("SECONDS_PER_VARIANT", "SECONDS_PER_FINALIST", "SECONDS_PER_QUICK_FINALIST"):
        # Long enough for 200 calls on a busy machine; timing ends with the failure.
        monkeypatch.setattr(f"edgeserve.conversion.search.search.{seconds}", 2.0)
    with pytest.raises(UnsupportedModel, match="no variant for the npu") as caught:
        converted(tmp_path, monkeypatch, options)
    assert words in (caught.value.cause or "")
