"""Where the embedded files are."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Demo(msgspec.Struct, frozen=True):
    """Paths of the embedded model, its calibration data, labelled samples and class names."""

    model: Path
    calibration: Path
    samples: Path
    labels: Path


def embedded() -> Demo:
    folder = Path(__file__).with_name("files")
    return Demo(
        model=folder / "digits.onnx",
        calibration=folder / "digits-calibration.npz",
        samples=folder / "digits-samples.npz",
        labels=folder / "digits-labels.txt",
    )
