"""ONNX fp32 -> ONNX fp16, with inputs and outputs left in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class OnnxToOnnx:
    name = "onnx-to-onnx"
    source_format = "onnx"
    output_format = "onnx"
    requires: tuple[str, ...] = ("onnx==1.23.2", "onnxconverter-common==1.16.0")
    imports: tuple[str, ...] = ("onnx", "onnxconverter_common")
    pip_arguments: tuple[str, ...] = ()

    def convert(
        self, source: Path, out_dir: Path, options: Mapping[str, str | int | float]
    ) -> list[Path]:
        """Cast weights and computation to fp16; values beyond its range are clamped, not infinite."""
        import warnings

        import onnx
        from onnxconverter_common import float16

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one a clamped value
            model = float16.convert_float_to_float16(
                onnx.load_model(str(source)), keep_io_types=True, disable_shape_infer=False
            )
        destination = out_dir / "model.onnx"
        onnx.save_model(model, str(destination))
        return [destination]


CONVERTER = OnnxToOnnx()
