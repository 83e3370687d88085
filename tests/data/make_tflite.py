"""Writes small-cnn-fp32.tflite and small-cnn-int8.tflite, with edgeserve's own converters.

    python -m tests.data.make_tflite

Needs a package index the first time (the tool environment of onnx-to-tflite).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx

from edgeserve.conversion.registry import converter_between, run_converter
from tests.networks import images, small_cnn

HERE = Path(__file__).parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        onnx.save(small_cnn(), work / "model.onnx")
        np.savez(work / "calibration.npz", image=images(64, seed=2))
        calibrated = {"precision": "int8", "calibration": str(work / "calibration.npz")}
        source = work / "model.onnx"
        for between, options, name in (
            (("onnx", "tflite"), {"batch": 1}, "small-cnn-fp32.tflite"),
            (("tflite", "tflite"), calibrated, "small-cnn-int8.tflite"),
        ):
            out = work / name
            out.mkdir()
            converter = converter_between(*between)
            source = run_converter(
                converter, source, out, options, tool_env=True, say=lambda what, share: print(what)
            )[0]
            shutil.copyfile(source, HERE / name)


if __name__ == "__main__":
    main()
