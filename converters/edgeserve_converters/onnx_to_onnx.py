"""ONNX -> clean ONNX: checked, dimensions fixed on request, in fp32 or in fp16 with fp32 borders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeserve_converters._onnx import exceeds_protobuf, fix_shapes, part_outputs, save


class OnnxToOnnx:
    name = "onnx-to-onnx"
    source_format = "onnx"
    output_format = "onnx"
    requires: tuple[str, ...] = ("onnx==1.23.2", "onnxconverter-common==1.16.0")
    imports: tuple[str, ...] = ("onnx", "onnxconverter_common")
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """Precision fp16 casts weights and computation; values beyond its range are clamped."""
        import warnings

        import onnx

        precision = options.get("precision", "fp32")
        if precision not in ("fp32", "fp16"):
            raise ValueError(f"{self.name} makes fp32 and fp16, not {precision}")
        model = onnx.load_model(str(source))
        large = exceeds_protobuf(model)
        if not large:
            onnx.checker.check_model(model)
        fix_shapes(model, options)
        if precision == "fp16":
            from onnxconverter_common import float16

            part_outputs(model)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # one a clamped value
                model = float16.convert_float_to_float16(
                    model, keep_io_types=True, disable_shape_infer=large
                )
        destination = out_dir / "model.onnx"
        if not exceeds_protobuf(model):
            onnx.checker.check_model(model)
        return save(model, destination)


CONVERTER = OnnxToOnnx()
