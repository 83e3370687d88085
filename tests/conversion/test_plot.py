"""The picture of what was tried."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edgeserve import api
from edgeserve.conversion.plot import check_plot, plot
from edgeserve.errors import UsageError, WriteFailed

pytest.importorskip("matplotlib", reason="needs edgeserve[plot]")


@pytest.mark.slow
def test_the_picture_names_variants_and_the_reference(
    digits: Path, calibration: str, onnxruntime_target: str, tmp_path: Path
) -> None:
    report = api.convert(
        digits, tmp_path / "d.edge", target=onnxruntime_target, calibrate=calibration,
        recipes=["static"],
    )  # fmt: skip
    plot(report, tmp_path / "d.svg")
    drawn = (tmp_path / "d.svg").read_text()
    for words in ("onnx-int8 (onnxruntime)", "times the source on onnxruntime/cpu"):
        assert words in drawn  # matplotlib keeps a text as a comment beside its outlines


def test_nothing_measured_is_an_empty_picture(
    digits: Path, onnxruntime_target: str, tmp_path: Path
) -> None:
    report = api.convert(digits, tmp_path / "d.edge", target=onnxruntime_target, precision="fp32")
    unmeasured = tuple(msgspec.structs.replace(r, measured=None) for r in report.rows)
    plot(msgspec.structs.replace(report, rows=unmeasured), tmp_path / "d.png")
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_said_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot draw this"):
        check_plot(tmp_path / "d.xyz")
    with pytest.raises(WriteFailed, match="cannot be written"):
        check_plot(tmp_path / "nowhere" / "d.png")
