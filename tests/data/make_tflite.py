"""Writes small-cnn-fp32.tflite, small-cnn-int8.tflite and digits-fp32.tflite, with edgeserve's own
converters.

    python -m tests.data.make_tflite

Needs a package index the first time (the tool environment of onnx-to-tflite).
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx

import edgeserve.demo
from edgeserve.conversion.tools.registry import converter_called, run_converter
from tests.networks import images, small_cnn

HERE = Path(__file__).parent


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        onnx.save(small_cnn(), work / "model.onnx")
        samples = {f"{i}/image": image[None] for i, image in enumerate(images(64, seed=2))}
        np.savez(work / "calibration.npz", **samples)
        calibrated = {"precision": "int8", "calibration": str(work / "calibration.npz")}
        source = work / "model.onnx"
        for converter, options, name in (
            ("onnx-to-tflite", {"batch": 1}, "small-cnn-fp32.tflite"),
            ("tflite-to-tflite", calibrated, "small-cnn-int8.tflite"),
        ):
            out = work / name
            out.mkdir()
            source = run_converter(
                converter_called(converter),
                source,
                out,
                options,
                tool_env=True,
                say=lambda what, share: print(what),
            )[0]
            shutil.copyfile(source, HERE / name)
        digits = Path(edgeserve.demo.__file__).parent / "files" / "digits.onnx"
        out = work / "digits"
        out.mkdir()
        (made, *_) = run_converter(
            converter_called("onnx-to-tflite"),
            digits,
            out,
            {"batch": 1},
            tool_env=True,
            say=lambda what, share: print(what),
        )
        shutil.copyfile(made, HERE / "digits-fp32.tflite")


if __name__ == "__main__":
    main()
