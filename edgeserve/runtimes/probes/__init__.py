"""The smallest model there is, y = x + x with x FP32[4], in every format. Made by tests/data/make_probes.py."""

from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent
PROBE_FILES: Final = {
    "onnx": _FOLDER / "double.onnx",
    "openvino-ir": _FOLDER / "double.xml",
    "tflite": _FOLDER / "double.tflite",
}
