"""Static int8 for ONNX with onnxruntime's own quantizer (QDQ format).

The same file runs in onnxruntime, which fuses QDQ into int8 kernels, and through OpenVINO's importer.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from edgeserve.bundle import Calibration, Recipe
from edgeserve.errors import DependencyMissing, EdgeServeError, UnsupportedModel
from edgeserve.evaluate import Samples
from edgeserve.targets import Quantization
from edgeserve.tensors import Tensors

# Per-channel DequantizeLinear came with opset 13; 17 is the newest that onnx converts to reliably.
_PER_CHANNEL_OPSET: Final = 13
_UPGRADE_OPSET: Final = 17


def quantize_onnx_static(
    model: Path,
    destination: Path,
    samples: Samples,
    scheme: Quantization,
    work: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Recipe:
    """Write an int8 QDQ model to `destination`, calibrated (min-max) on all `samples`.

    `progress(done, total)` counts calibration samples. Raises UnsupportedModel when onnxruntime's
    quantizer cannot handle the graph, DependencyMissing without `onnx`.
    """
    try:
        import onnx
        from onnxruntime import __version__ as version
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise DependencyMissing(
            str(error.name or "onnx"), needed_for="int8 quantization", extra="convert"
        ) from None
    types = {
        "uint8": QuantType.QUInt8,
        "int8": QuantType.QInt8,
    }
    prepared = work / "prepared.onnx"
    with _silenced(), _as_unsupported(model):
        quant_pre_process(str(_modern(onnx, model, work)), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(destination),
            _Reader(samples, progress),
            quant_format=QuantFormat.QDQ,
            per_channel=scheme.per_channel,
            activation_type=types[scheme.activation_type],
            weight_type=types[scheme.weight_type],
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": scheme.symmetric_activations},
        )
    prepared.unlink()
    short = {"uint8": "U8", "int8": "S8"}
    return Recipe(
        method="static int8",
        tool=f"onnxruntime {version}",
        scheme=f"QDQ {short[scheme.activation_type]}{short[scheme.weight_type]}",
        per_channel=scheme.per_channel,
        calibration_method="minmax",
        calibration=calibration_record(samples),
    )


def calibration_record(samples: Samples) -> Calibration:
    """What the manifest keeps of the calibration data."""
    return Calibration(samples.source, samples.sha256, len(samples), samples.random)


class _Reader:
    """Hands samples to onnxruntime's calibrator one at a time, so that none pile up in memory."""

    def __init__(self, samples: Samples, progress: Callable[[int, int], None] | None) -> None:
        self._total = len(samples)
        self._samples = enumerate(samples, start=1)
        self._progress = progress

    def get_next(self) -> Tensors | None:
        step = next(self._samples, None)
        if step is None:
            return None
        done, inputs = step
        if self._progress is not None:
            self._progress(done, self._total)
        return inputs

    def __iter__(self) -> Iterator[Tensors]:
        while (inputs := self.get_next()) is not None:
            yield inputs

    def __next__(self) -> Tensors:
        inputs = self.get_next()
        if inputs is None:
            raise StopIteration
        return inputs

    def set_range(self, start_index: int, end_index: int) -> None:
        raise UnsupportedModel("the calibration data cannot be read out of order")


def _modern(onnx: Any, model: Path, work: Path) -> Path:
    """The model at an opset with per-channel quantization; itself when it is there already."""
    proto = onnx.load_model(str(model), load_external_data=False)
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset >= _PER_CHANNEL_OPSET:
        return model
    from onnx import version_converter

    upgraded = work / "upgraded.onnx"
    whole = onnx.load_model(str(model))
    onnx.save_model(version_converter.convert_version(whole, _UPGRADE_OPSET), str(upgraded))
    return upgraded


@contextlib.contextmanager
def _as_unsupported(model: Path) -> Iterator[None]:
    try:
        yield
    except (EdgeServeError, OSError, MemoryError):
        raise
    except Exception as error:  # it raises whatever it stumbles over
        raise UnsupportedModel(
            f"onnxruntime's quantizer cannot handle {model.name}",
            cause=f"{type(error).__name__}: {error}",
            hint="try --precision fp32 or fp16",
        ) from error


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """The quantizer advises on the root logger and warns; its advice is followed already."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
