"""onnxruntime's quantization package, imported late, kept quiet, its exceptions made ours."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from edgeserve.errors import DependencyMissing, EdgeServeError, UnsupportedModel

# One protobuf file holds 2 GB: larger models keep their weights beside it.
LARGE_BYTES = 1_900_000_000
# Per-channel DequantizeLinear came with opset 13; 17 is the newest that onnx converts to reliably.
_PER_CHANNEL_OPSET: Final = 13
_UPGRADE_OPSET: Final = 17


class _Tools:
    """What this package uses of `onnxruntime.quantization`, under the names it has there."""

    def __init__(self) -> None:
        import onnx
        from onnxruntime import __version__, quantization
        from onnxruntime.quantization import registry, shape_inference
        from onnxruntime.quantization.calibrate import create_calibrator, save_tensors_data

        self.onnx: Any = onnx
        self.version = __version__
        self.registry: Any = registry
        self.shape_inference: Any = shape_inference
        self.create_calibrator: Any = create_calibrator
        self.save_tensors_data: Any = save_tensors_data
        self.quantize_static: Any = quantization.quantize_static
        self.quantize_dynamic: Any = quantization.quantize_dynamic
        self.CalibrationMethod: Any = quantization.CalibrationMethod
        self.QuantFormat: Any = quantization.QuantFormat
        self.QuantType: Any = quantization.QuantType


def quantization() -> _Tools:
    """Raises DependencyMissing."""
    try:
        return _Tools()
    except ImportError as error:
        raise DependencyMissing(
            str(error.name or "onnx"), needed_for="int8 quantization", extra="convert"
        ) from None


def is_large(model: Path) -> bool:
    """Whether a model, with the data beside it, is too large for one protobuf file."""
    files = [f for f in model.parent.iterdir() if f.name.startswith(f"{model.stem}.")]
    return sum(f.stat().st_size for f in files if f.is_file()) > LARGE_BYTES


def modern(model: Path, work: Path) -> Path:
    """The model at an opset with per-channel quantization; itself when it is there already."""
    onnx = quantization().onnx
    proto = onnx.load_model(str(model), load_external_data=False)
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset >= _PER_CHANNEL_OPSET:
        return model
    from onnx import version_converter

    upgraded = work / "upgraded.onnx"
    whole = onnx.load_model(str(model))
    onnx.save_model(
        version_converter.convert_version(whole, _UPGRADE_OPSET),
        str(upgraded),
        save_as_external_data=is_large(model),
        location="upgraded.data",
    )
    return upgraded


@contextlib.contextmanager
def as_unsupported(model: Path) -> Iterator[None]:
    """Whatever the quantizer stumbles over becomes UnsupportedModel."""
    try:
        yield
    except (EdgeServeError, OSError, MemoryError):
        raise
    except Exception as error:
        raise UnsupportedModel(
            f"onnxruntime's quantizer cannot handle {model.name}",
            cause=f"{type(error).__name__}: {error}",
            hint="try --precision fp32 or fp16",
        ) from error


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """The quantizer logs, warns and prints; its advice is followed already, and stdout is for results."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            Path(os.devnull).open("w") as sink,
            contextlib.redirect_stdout(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
