"""ONNX -> clean ONNX: checked, dimensions fixed on request, in fp32 or in fp16 with fp32 borders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeserve_converters._fp16 import to_fp16
from edgeserve_converters._onnx import exceeds_protobuf, fix_shapes, save


class OnnxToOnnx:
    name = "onnx-to-onnx"
    source_format = "onnx"
    output_format = "onnx"
    requires: tuple[str, ...] = ("onnx==1.23.2",)
    imports: tuple[str, ...] = ("onnx",)
    pip_arguments: tuple[str, ...] = ()

    def convert(self, source: Path, out_dir: Path, options: Mapping[str, object]) -> list[Path]:
        """Precision fp16 casts weights and computation; operators that have no fp16, or whose constants it
        cannot hold, stay in fp32, as do those that read or write a value named in `fp32_values`."""
        import onnx

        precision = options.get("precision", "fp32")
        if precision not in ("fp32", "fp16"):
            raise ValueError(f"{self.name} makes fp32 and fp16, not {precision}")
        model = onnx.load_model(str(source))
        if not exceeds_protobuf(model):
            onnx.checker.check_model(model)
        fix_shapes(model, options)
        if precision == "fp16":
            kept = options.get("fp32_values") or []
            assert isinstance(kept, list)
            to_fp16(model, kept)
        destination = out_dir / "model.onnx"
        if not exceeds_protobuf(model):
            onnx.checker.check_model(model)
        return save(model, destination)


CONVERTER = OnnxToOnnx()
