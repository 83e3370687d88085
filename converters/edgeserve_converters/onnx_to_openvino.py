"""ONNX -> OpenVINO IR. QDQ int8 models keep int8 weights on disk and run in int8."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path


class UnsupportedOps(Exception):
    """Operators that OpenVINO's ONNX frontend does not know."""

    def __init__(self, text: str, unsupported_ops: list[str]) -> None:
        super().__init__(text)
        self.unsupported_ops = unsupported_ops


class OnnxToOpenVino:
    name = "onnx-to-openvino"
    source_format = "onnx"
    output_format = "openvino-ir"
    requires: tuple[str, ...] = ("openvino==2026.4.1",)
    imports: tuple[str, ...] = ("openvino",)
    pip_arguments: tuple[str, ...] = ()

    def convert(
        self, source: Path, out_dir: Path, options: Mapping[str, str | int | float]
    ) -> list[Path]:
        """Precision fp16 stores float weights in fp16; the device decides what it computes in."""
        import openvino

        try:
            model = openvino.convert_model(str(source))
        except Exception as error:
            # "-- Conversion is failed for: domain.Op" once per operator, or "No conversion rule found
            # for operations: domain.Op, …", depending on the operator's domain.
            text = str(error)
            ops = re.findall(r"Conversion is failed for: ([\w.]+)", text)
            listed = re.search(r"No conversion rule found for operations: ([\w., -]+)", text)
            if listed:
                ops += [op.strip() for op in listed[1].split(",")]
            if ops:
                raise UnsupportedOps(text.strip().splitlines()[-1], sorted(set(ops))) from error
            raise
        destination = out_dir / "model.xml"
        openvino.save_model(
            model, str(destination), compress_to_fp16=options.get("precision") == "fp16"
        )
        return [destination, destination.with_suffix(".bin")]


CONVERTER = OnnxToOpenVino()
