"""ONNX or TFLite -> OpenVINO IR. QDQ int8 models keep int8 weights on disk and run in int8."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeserve_converters._onnx import UnsupportedOps


class OnnxToOpenVino:
    name = "onnx-to-openvino"
    source_format = "onnx"
    output_format = "openvino-ir"
    requires: tuple[str, ...] = ("openvino==2026.4.1", "onnx==1.23.2")
    imports: tuple[str, ...] = ("openvino", "onnx")
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """Precision fp16 stores float weights in fp16; the device decides what it computes in."""
        import openvino

        try:
            # The same frontend as openvino.convert_model, which also reports usage over the network.
            model = openvino.Core().read_model(str(source))
        except Exception as error:
            ops = _unconverted(str(error))
            if not ops:
                raise
            why = "OpenVINO's ONNX frontend has no rule for it"
            raise UnsupportedOps(_graph(source), ops, why) from error
        return _written(model, out_dir, options)


class TfliteToOpenVino:
    """TFLite files, quantized ones included, keep their layout: NHWC mostly."""

    name = "tflite-to-openvino"
    source_format = "tflite"
    output_format = "openvino-ir"
    requires: tuple[str, ...] = ("openvino==2026.4.1",)
    imports: tuple[str, ...] = ("openvino",)
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """Options as for ONNX."""
        import openvino

        return _written(openvino.Core().read_model(str(source)), out_dir, options)


def _written(model: Any, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
    import openvino
    from openvino._offline_transformations import apply_moc_transformations

    _fix_shapes(model, options)
    # What openvino.convert_model does after reading; without it an int8 IR is an eighth larger.
    apply_moc_transformations(model, cf=False)
    destination = out_dir / "model.xml"
    half = options.get("precision") == "fp16"
    openvino.save_model(model, str(destination), compress_to_fp16=half)
    return [destination, destination.with_suffix(".bin")]


def _unconverted(text: str) -> list[str]:
    """The operator types in OpenVINO's report: `Op-OPSET` or `domain.Op`, in two forms.

    "-- Conversion is failed for: Op-17" once per operator, or "No conversion rule found for
    operations: Op-17, domain.Op".
    """
    ops = re.findall(r"[Cc]onversion is failed for: ([\w.]+)", text)
    for listed in re.findall(r"No conversion rule found for operations: ([^\n]+)", text):
        ops += [op.strip() for op in listed.split(",")]
    return [re.sub(r"-\d+$", "", op) for op in ops if op]


def _graph(source: Path) -> Any:
    import onnx

    return onnx.load_model(str(source), load_external_data=False)


def _fix_shapes(model: Any, options: Mapping[str, object]) -> None:
    import openvino

    shapes = options.get("input_shapes") or {}
    assert isinstance(shapes, Mapping)
    batch = int(str(options.get("batch") or 0))
    wanted = {}
    for port in model.inputs:
        name, shape = port.get_any_name(), port.get_partial_shape()
        sizes = dict(enumerate(shapes.get(name, ())))
        if batch and len(shape):
            sizes.setdefault(0, batch)
        for index, size in sizes.items():
            if shape[index].is_dynamic:
                shape[index] = openvino.Dimension(int(size))
        wanted[name] = shape
    if shapes or batch:
        model.reshape(wanted)


CONVERTER = OnnxToOpenVino()
TFLITE = TfliteToOpenVino()
