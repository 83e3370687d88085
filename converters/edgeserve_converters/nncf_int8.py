"""Quantization by NNCF: ONNX -> ONNX and OpenVINO IR -> OpenVINO IR, both to be run by OpenVINO.

NNCF places quantizers as OpenVINO needs them; its ONNX files are slow in onnxruntime.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgeserve_converters._calibration import Requests
from edgeserve_converters._onnx import save

_REQUIRES = ("nncf==3.4.0", "openvino==2026.4.1", "onnx==1.23.2", "onnxruntime==1.32.0")


class NncfOnnx:
    """Static int8 of an ONNX file. The file must be pre-processed: shapes inferred, constants folded."""

    name = "nncf-onnx"
    source_format = "onnx"
    output_format = "onnx"
    environment = "nncf"
    requires: tuple[str, ...] = _REQUIRES
    imports: tuple[str, ...] = ("nncf", "onnx", "onnxruntime")
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """Options: `calibration` (.npz of requests), `transformer`, `ignored` (names of nodes),
        `reduce_range` (weights take half of the range, for CPUs whose sums saturate)."""
        import onnx

        model = onnx.load_model(str(source))
        quantized = _static(model, options)
        destination = out_dir / "model.onnx"
        return save(quantized, destination)


class NncfOpenVino:
    """Static int8 of an IR, or int8/int4 of its weights alone."""

    name = "nncf-openvino"
    source_format = "openvino-ir"
    output_format = "openvino-ir"
    environment = "nncf"
    requires: tuple[str, ...] = _REQUIRES
    imports: tuple[str, ...] = ("nncf", "openvino")
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """Options: `weights_only`, `precision` (int8, int4); else as for ONNX."""
        import openvino

        model = openvino.Core().read_model(source)
        if options.get("weights_only"):
            model = _weights(model, str(options.get("precision")))
        else:
            model = _static(model, options)
        destination = out_dir / "model.xml"
        openvino.save_model(model, destination, compress_to_fp16=False)
        return [destination, destination.with_suffix(".bin")]


def _static(model: Any, options: Mapping[str, object]) -> Any:
    if not options.get("calibration"):
        raise ValueError("static int8 needs calibration data")
    with _silenced():
        import nncf

        fix = nncf.OverflowFix.ENABLE if options.get("reduce_range") else nncf.OverflowFix.DISABLE
        samples = Requests(Path(str(options["calibration"])))
        ignored = options.get("ignored") or []
        assert isinstance(ignored, list)
        return nncf.quantize(
            model,
            nncf.Dataset(samples),
            subset_size=len(samples),
            # Symmetric activations, but asymmetric where values are of both signs: as fast on CPUs with
            # VNNI, and closer.
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            model_type=nncf.ModelType.TRANSFORMER if options.get("transformer") else None,
            ignored_scope=nncf.IgnoredScope(names=list(ignored), validate=False)
            if ignored
            else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
        )


def _weights(model: Any, precision: str) -> Any:
    with _silenced():
        import nncf

        if precision == "int4":
            mode: Any = nncf.CompressWeightsMode.INT4_SYM
            return nncf.compress_weights(model, mode=mode, group_size=32, ratio=1.0)
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """NNCF logs, warns and draws progress bars while it is imported and while it works."""
    import logging

    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            Path(os.devnull).open("w") as sink,
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            yield
    finally:
        logging.disable(previous)


ONNX = NncfOnnx()
OPENVINO = NncfOpenVino()
